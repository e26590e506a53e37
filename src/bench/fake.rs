//! A server of OpenAI's shape with known times, for tests.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::sleep,
};

/// What it does with requests.
#[derive(Clone, Debug)]
pub(super) struct Manners {
    /// Until the first token.
    pub(super) first: Duration,
    /// Between tokens.
    pub(super) between: Duration,
    /// Requests before so many are refused with 429 and this `Retry-After` in seconds.
    pub(super) refused: (u64, u64),
    /// At requests of these numbers, the first of which is 0, the connection is closed without an answer.
    pub(super) closes: Range<u64>,
    /// Streams end after so many tokens, without a word.
    pub(super) cut_after: Option<u64>,
    /// Whether answers say how many tokens they have.
    pub(super) counts: Counts,
    /// Requests that it takes until it is gone.
    pub(super) lives: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    Yes,
    No,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            between: Duration::from_millis(5),
            refused: (0, 0),
            closes: 0..0,
            cut_after: None,
            counts: Counts::Yes,
            lives: u64::MAX,
        }
    }
}

/// What it was asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Value,
}

pub(super) struct Fake {
    pub(super) url: String,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub(super) async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&asked);
        let accepting = tokio::spawn(async move {
            let manners = Arc::new(manners);
            let count = Arc::new(AtomicU64::new(0));
            let mut connections = tokio::task::JoinSet::new();
            while count.load(Ordering::SeqCst) < manners.lives {
                let ended =
                    tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
                let Ok(Ok((stream, _))) = ended else { continue };
                let (manners, count, told) =
                    (Arc::clone(&manners), Arc::clone(&count), Arc::clone(&told));
                connections.spawn(async move {
                    // A client that goes away is none of its business.
                    drop(converse(stream, &manners, &count, &told).await);
                });
            }
        });
        Self { url, asked, accepting }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn converse(
    mut stream: TcpStream,
    manners: &Manners,
    count: &AtomicU64,
    told: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if path == "/v1/models" {
            let list = json!({"data": [{"id": "small", "parent": null}, {"id": "sql", "parent": "small"}]});
            whole(&mut writer, "200 OK", "", &list).await?;
            continue;
        }
        let number = count.fetch_add(1, Ordering::SeqCst);
        let wanted = body["max_tokens"].as_u64().unwrap();
        let unknown = body["model"] == "unknown";
        told.lock().await.push(Asked { path, headers, body });
        if manners.closes.contains(&number) {
            return Ok(());
        }
        if number < manners.refused.0 {
            let header = format!("Retry-After: {}\r\n", manners.refused.1);
            let error = json!({"error": {"message": "later", "code": "rate_limit_exceeded"}});
            whole(&mut writer, "429 Too Many Requests", &header, &error).await?;
        } else if unknown {
            let error = json!({"error": {"message": "no such model", "code": "model_not_found"}});
            whole(&mut writer, "404 Not Found", "", &error).await?;
        } else if !answer(&mut writer, manners, wanted).await? {
            return Ok(());
        }
    }
}

async fn whole(
    writer: &mut (impl AsyncWriteExt + Unpin),
    status: &str,
    header: &str,
    body: &Value,
) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{header}\r\n{body}", body.len());
    writer.write_all(head.as_bytes()).await
}

/// Whether it came to its end.
async fn answer(
    writer: &mut (impl AsyncWriteExt + Unpin),
    manners: &Manners,
    wanted: u64,
) -> std::io::Result<bool> {
    writer
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    for token in 0..wanted {
        if manners.cut_after == Some(token) {
            return Ok(false);
        }
        sleep(if token == 0 { manners.first } else { manners.between }).await;
        event(writer, &json!({"choices": [{"text": " x", "finish_reason": null}]}).to_string())
            .await?;
    }
    event(writer, &json!({"choices": [{"text": "", "finish_reason": "length"}]}).to_string())
        .await?;
    if manners.counts == Counts::Yes {
        let usage =
            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": wanted}});
        event(writer, &usage.to_string()).await?;
    }
    event(writer, "[DONE]").await?;
    writer.write_all(b"0\r\n\r\n").await?;
    Ok(true)
}

async fn event(writer: &mut (impl AsyncWriteExt + Unpin), data: &str) -> std::io::Result<()> {
    let event = format!("data: {data}\n\n");
    writer.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}
