//! What was acknowledged is there after a crash.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::*;

/// The state of one name as it was last acknowledged, and what may have come after it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    versions: BTreeMap<u64, String>,
    active: Option<u64>,
}

impl Known {
    fn of(status: StatusCode, shown: &Value) -> Self {
        if status == 404 {
            return Self::default();
        }
        let versions = shown["versions"].as_array().unwrap().iter();
        let entry = |version: &Value| {
            (version["version"].as_u64().unwrap(), version["digest"].as_str().unwrap().to_owned())
        };
        let active = (shown["status"] == "active").then(|| shown["version"].as_u64().unwrap());
        Self { versions: versions.map(entry).collect(), active }
    }
}

/// Where nobody was told a version's number.
const UNTOLD: u64 = u64::MAX;

/// One of the names that are changed until the server is killed.
struct Tested {
    name: String,
    known: Known,
    /// What the change in flight would have made of it.
    perhaps: Option<Known>,
    /// The next adapter's number: no two have the same bytes.
    next: u32,
}

impl Tested {
    /// Finds what was acknowledged or would have come of the change in flight, and nothing between; and all of it answers.
    async fn check(&mut self, server: &Server) {
        let (status, shown) = server.show(&self.name).await;
        let found = Known::of(status, &shown);
        let (name, perhaps) = (&self.name, self.perhaps.take());
        assert!(
            found == self.known || Some(&found) == perhaps.as_ref(),
            "{name} is {found:?}, was {:?}, perhaps {perhaps:?}",
            self.known
        );
        self.known = found;
        for (version, digest) in &self.known.versions {
            let (begun, model) = (Instant::now(), format!("{name}@v{version}"));
            let (_, from) = server.says(&model).await;
            assert_eq!(from, format!("{model};{}", digest.replace(':', "=")));
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
    }

    /// A change, and what comes of it.
    fn change(&mut self, server: &Server, step: u32) -> (reqwest::RequestBuilder, Known) {
        let url = format!("{}/v1/adapters/{}", server.url, self.name);
        let mut next = self.known.clone();
        let oldest = self.known.versions.keys().next().copied();
        match (step % 4, oldest) {
            (1, Some(oldest)) => {
                next.active = Some(oldest);
                let body = json!({ "version": oldest });
                (server.client.post(url + "/activate").json(&body), next)
            }
            (3, Some(_)) if step % 8 == 7 || self.known.versions.len() > 3 => {
                (server.client.delete(url), Known::default())
            }
            _ => {
                let files = mini(self.next);
                self.next += 3;
                next.versions.insert(UNTOLD, digest(&files));
                next.active = Some(UNTOLD);
                (server.client.put(url).multipart(form(files)), next)
            }
        }
    }

    /// Changes it until the server is gone, and counts what is acknowledged.
    async fn go_on(&mut self, server: &Server, acknowledged: &AtomicUsize) {
        for step in 0.. {
            let (request, mut next) = self.change(server, step);
            let answer = async { request.send().await?.json::<Value>().await };
            let Ok(answer) = answer.await else {
                self.perhaps = Some(next);
                return;
            };
            assert!(answer["error"].is_null(), "{answer}");
            next.tell(answer["version"].as_u64());
            self.known = next;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Known {
    /// The number that an upload was given.
    fn tell(&mut self, number: Option<u64>) {
        if let (Some(digest), Some(number)) = (self.versions.remove(&UNTOLD), number) {
            self.versions.insert(number, digest);
            self.active = Some(number);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_and_nothing_is_half_there() {
    let store = tempfile::tempdir().unwrap();
    let arguments = ["--store", store.path().to_str().unwrap()];
    let mut names = [0, 1, 2].map(|number| Tested {
        name: format!("n{number}"),
        known: Known::default(),
        perhaps: None,
        next: number,
    });
    let mut all = 0;
    let rounds = times(5, 100);
    for round in 0..rounds {
        let server = Server::start(&arguments);
        for name in &mut names {
            name.check(&server).await;
        }
        let acknowledged = AtomicUsize::new(0);
        // Anywhere in what goes on: in half of the rounds from the first write on, in the others from the first answer on.
        let after = Duration::from_millis(u64::try_from(3 + (round * 37) % 211).unwrap());
        let kill = async {
            while round % 2 == 1 && acknowledged.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(after).await;
            server.signal("KILL");
        };
        let changes = join_all(names.iter_mut().map(|name| name.go_on(&server, &acknowledged)));
        tokio::join!(changes, kill);
        all += acknowledged.into_inner();
        for Tested { name, perhaps, .. } in &mut names {
            // The answer is lost, so the number is read from the records.
            if let Some(perhaps) = perhaps {
                perhaps.tell(newest(store.path(), name));
            }
        }
    }
    assert!(all >= rounds / 2, "only {all} changes were acknowledged");
    println!("{all} changes were acknowledged, {rounds} processes killed");
}

/// The greatest number that a name has in the records on disk.
fn newest(store: &Path, name: &str) -> Option<u64> {
    let files = std::fs::read_dir(store.join("logs/adapters")).ok()?;
    let paths = files.map(|file| file.unwrap().path());
    let records = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let number = |path: PathBuf| {
        let record = json(&path)["record"].clone();
        (record["name"] == name).then(|| record["change"]["stored"]["version"].as_u64())?
    };
    records.filter_map(number).max()
}
