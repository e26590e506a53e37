//! A base from the model hub, in pieces that survive an interruption.

use std::{error::Error as _, io, iter, path::Path, time::Duration};

use futures_util::StreamExt as _;
use hf_hub::{HFClient, HFError, split_id};
use tokio::time::{error::Elapsed, timeout};

use super::{
    Entry, Progress,
    intake::{Intake, NotTheFile},
};

/// The hub must begin to answer within this time, so that a machine without network hears of it
/// in seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A transfer that stands still for this long is cut.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// Broken transfers that are taken up again within one pull, as long as each brings new bytes.
const RESUMPTIONS: usize = 8;

/// A file of a repository on the hub.
#[derive(Clone, Copy, Debug)]
pub(super) struct HubFile<'a> {
    /// `OWNER/NAME`
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: &'a str,
}

/// Why the hub did not give the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("not asked because HF_HUB_OFFLINE is set")]
    Offline,
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    #[error("the transfer stood still for {} s", STALLED_AFTER.as_secs())]
    Stalled,
    #[error("{}", root_cause(.0))]
    Hub(#[from] HFError),
    #[error(transparent)]
    NotTheFile(#[from] NotTheFile),
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// The innermost cause is what happened; the layers around it repeat the address.
fn root_cause(error: &HFError) -> String {
    match iter::successors(error.source(), |&cause| cause.source()).last() {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}

/// Fetches the file to `part`, going on with what an earlier run left there, and checks it.
pub(super) async fn fetch(
    client: &HFClient,
    wanted: HubFile<'_>,
    entry: &Entry,
    part: &Path,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    progress.begin(&format!("fetching {} from the model hub", wanted.file), entry.bytes);
    let mut intake = Intake::resume(part, entry.bytes)?;
    let mut resumptions = 0;
    while intake.written() < entry.bytes {
        let before = intake.written();
        match transfer(client, wanted, &mut intake, progress).await {
            Ok(()) => break,
            Err(failure) if intake.written() == before || resumptions == RESUMPTIONS => {
                return Err(failure);
            }
            Err(Failure::Stalled | Failure::Hub(_)) => resumptions += 1,
            Err(failure) => return Err(failure),
        }
    }
    Ok(intake.finish(entry.sha256)?)
}

/// Asks for the bytes that are missing and takes in as many as come.
async fn transfer(
    client: &HFClient,
    wanted: HubFile<'_>,
    intake: &mut Intake,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let (owner, name) = split_id(wanted.repo);
    let repository = client.model(owner, name);
    let answer = repository
        .download_file_stream()
        .filename(wanted.file)
        .revision(wanted.revision)
        .range(intake.written()..intake.bytes())
        .send();
    let (_, mut chunks) = timeout(ANSWER_WITHIN, answer).await.map_err(|_| Failure::Silent)??;
    loop {
        progress.at(intake.written());
        let next = timeout(STALLED_AFTER, chunks.next()).await;
        match next.map_err(|_: Elapsed| Failure::Stalled)? {
            // Written where it arrives: nothing else runs during a pull that this could delay.
            Some(chunk) => intake.write(&chunk?)?,
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::catalog::fixture::{Silent, entry};

    const WANTED: HubFile<'_> =
        HubFile { repo: "someone/tiny-GGUF", revision: "main", file: "tiny.gguf" };

    /// A hub with one file, which hangs up after `cut` bytes of each answer.
    struct FakeHub {
        content: Vec<u8>,
        cut: usize,
        asked: Mutex<Vec<String>>,
    }

    impl FakeHub {
        async fn answer(&self, mut socket: TcpStream) -> io::Result<()> {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await?);
            }
            let request = String::from_utf8_lossy(&request).to_lowercase();
            let from = request
                .lines()
                .find_map(|line| line.strip_prefix("range: bytes=")?.split('-').next())
                .map_or(0, |from| from.parse().unwrap());
            let body = &self.content[from..];
            let head = format!(
                "HTTP/1.1 {}\r\nContent-Length: {}\r\nETag: \"x\"\r\nConnection: close\r\n\r\n",
                if from > 0 { "206 Partial Content" } else { "200 OK" },
                body.len(),
            );
            socket.write_all(head.as_bytes()).await?;
            if request.starts_with("get") {
                self.asked.lock().unwrap().push(format!("from {from}"));
                socket.write_all(&body[..body.len().min(self.cut)]).await?;
            }
            socket.shutdown().await
        }

        async fn start(self) -> (Arc<Self>, HFClient) {
            let hub = Arc::new(self);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let serving = Arc::clone(&hub);
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    serving.answer(socket).await.unwrap();
                }
            });
            let client = HFClient::builder().endpoint(endpoint).retry_max_attempts(0);
            (hub, client.build().unwrap())
        }
    }

    #[tokio::test]
    async fn a_broken_transfer_goes_on_where_it_stopped() {
        let content: Vec<u8> = (0..1000_u32).map(|i| (i % 251) as u8).collect();
        let entry = entry(&content);
        let (hub, client) =
            FakeHub { content: content.clone(), cut: 400, asked: Mutex::default() }.start().await;
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("part");
        std::fs::write(&part, &content[..100]).unwrap();
        fetch(&client, WANTED, &entry, &part, &Silent).await.unwrap();
        assert_eq!(std::fs::read(&part).unwrap(), content);
        assert_eq!(*hub.asked.lock().unwrap(), ["from 100", "from 500", "from 900"]);
    }

    #[tokio::test]
    async fn other_bytes_are_not_the_file() {
        let entry = entry(b"what the catalog lists");
        let content = b"what the hub has today".to_vec();
        let (_hub, client) =
            FakeHub { content, cut: usize::MAX, asked: Mutex::default() }.start().await;
        let dir = tempfile::tempdir().unwrap();
        let failure = fetch(&client, WANTED, &entry, &dir.path().join("part"), &Silent).await;
        assert!(matches!(failure, Err(Failure::NotTheFile(NotTheFile::Checksum { .. }))));
    }

    #[tokio::test]
    async fn a_closed_port_is_an_answer_at_once() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let client = HFClient::builder()
            .endpoint(format!("http://{address}"))
            .retry_max_attempts(0)
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("part");
        let failure = fetch(&client, WANTED, &entry(b"abc"), &part, &Silent).await.unwrap_err();
        assert!(failure.to_string().contains("refused"), "{failure}");
    }
}
