//! Changes on a store in memory that can be made to fail, and on a directory.

mod bases;
mod folder;
mod losses;
mod memory;
mod newer;
mod privacy;
mod refusals;
mod versions;

use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::json;

use super::{
    super::{
        Folder, Kept, LoadError, NotLent, Room, Terms, Trial, Unproved, Upload, Wanted, fixture,
    },
    *,
};
use crate::{
    lora::{Digest, Extras, Lease},
    store::{Location, Store},
};

const ME: TenantId = TenantId::DEFAULT;
const ROOM: usize = 1 << 20;

/// Says the same of every adapter, and in answer to every smoke test.
struct Verdict(Result<(), Unproved>, &'static str);

impl Trial for Verdict {
    fn probe(&self, _: Lease) -> BoxFuture<'_, Result<(), Unproved>> {
        future::ready(self.0.clone()).boxed()
    }

    fn rehearse(
        &self,
        _: Lease,
        extras: Arc<Extras>,
    ) -> BoxFuture<'_, Result<Option<String>, Unproved>> {
        let answer = extras.smoke_test.as_ref().map(|_| self.1.to_owned());
        future::ready(Ok(answer)).boxed()
    }
}

const GOOD: Verdict = says("Ahoy");

const fn says(answer: &'static str) -> Verdict {
    Verdict(Ok(()), answer)
}

fn name(text: &str) -> AdapterName {
    AdapterName::parse(text).unwrap()
}

fn target(name: &AdapterName) -> Target<'_> {
    Target { tenant: ME, name, by: "me" }
}

async fn open(store: &Store) -> Adapters {
    fixture::open(Folder::empty(), store.clone(), ROOM).await
}

/// An upload of the fixture's adapter of rank 2 with this value.
async fn arrived(adapters: &Adapters, value: f32) -> Upload {
    received(adapters, fixture::adapter(2, value)).await
}

async fn received(adapters: &Adapters, (config, weights): (String, Vec<u8>)) -> Upload {
    let mut upload = adapters.upload();
    for (part, bytes) in [(Part::Config, config.as_bytes()), (Part::Weights, &weights)] {
        upload.begin(part).await.unwrap();
        upload.write(part, bytes).await.unwrap();
    }
    upload
}

fn digest(value: f32) -> Digest {
    let (config, weights) = fixture::adapter(2, value);
    Digest::of(config.as_bytes(), &weights)
}

fn terms(expected: &Expected) -> Terms<'_> {
    Terms { expected, activate: true, room: Room::default() }
}

async fn put_if(
    adapters: &Adapters,
    text: &str,
    value: f32,
    expected: &Expected,
) -> Result<Kept, NotChanged> {
    let upload = arrived(adapters, value).await;
    adapters.put(target(&name(text)), upload, &terms(expected), &GOOD).await
}

async fn put(adapters: &Adapters, text: &str, value: f32) -> Result<Kept, NotChanged> {
    put_if(adapters, text, value, &Expected::Anything).await
}

/// Version and content that a text stands for.
fn resolve(adapters: &Adapters, text: &str) -> Option<(u32, Digest)> {
    let revision = adapters.resolve(ME, &Wanted::parse(text).unwrap(), None)?;
    Some((revision.version, revision.digest))
}

async fn lease(adapters: &Adapters, text: &str) -> Result<Lease, NotLent> {
    adapters.lease(ME, &adapters.resolve(ME, &Wanted::parse(text).unwrap(), None).unwrap()).await
}

/// How many there are once what nobody waits for is done.
async fn blobs(store: &Store) -> usize {
    tokio::time::sleep(Duration::from_millis(20)).await;
    store.blobs(Duration::ZERO).await.unwrap().len()
}
