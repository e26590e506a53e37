//! Any records in a store are refused or understood; what is understood can be looked at, lent and changed, and is then what
//! a server finds that opens the store next. Each line is a record, of tenants where it begins with `t` and of adapters where
//! with anything else; the bytes 1, 2 and 3 stand for the keys of two files that are there, and for their digest.
#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use chorus::{
    adapter::{
        Adapters, Card, Expected, Extras, Folder, Lease, Part, Room, Target, Terms, Trial, Unproved,
    },
    lora::Digest,
    store::{BlobKey, Location, Store},
    tenant::{TenantId, Tenants},
};
use chorus_fuzz::{CONFIG, WEIGHTS, bounds, fill, foundation};
use futures_util::future::{BoxFuture, ready};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::runtime::Builder;

/// Most records that are written, and most names of a tenant that are changed.
const RECORDS: usize = 16;
const NAMES: usize = 3;

/// The two files as a store has them.
static FILES: LazyLock<[(String, PathBuf); 2]> = LazyLock::new(|| {
    let folder = TempDir::new().expect("there is room").keep();
    [CONFIG, WEIGHTS].map(|bytes| {
        let key =
            BlobKey::new(Sha256::digest(bytes).into()).expect("the system has random numbers");
        let key = String::from(key);
        let path = folder.join(&key);
        fs::write(&path, bytes).expect("there is room");
        (key, path)
    })
});

/// Everything passes.
struct Lenient;

impl Trial for Lenient {
    fn probe(&self, adapter: Lease) -> BoxFuture<'_, Result<(), Unproved>> {
        drop(adapter);
        Box::pin(ready(Ok(())))
    }

    fn rehearse(
        &self,
        adapter: Lease,
        extras: Arc<Extras>,
    ) -> BoxFuture<'_, Result<Option<String>, Unproved>> {
        drop((adapter, extras));
        Box::pin(ready(Ok(None)))
    }
}

fn write(root: &Path, bytes: &[u8]) {
    let [(config, _), (weights, _)] = &*FILES;
    let digest = Digest::of(CONFIG, WEIGHTS).to_string();
    let places = [(1, config.as_bytes()), (2, weights.as_bytes()), (3, digest.as_bytes())];
    let mut counts = [0, 0];
    fs::create_dir_all(root.join("blobs")).expect("there is room");
    for (key, path) in &*FILES {
        fs::hard_link(path, root.join("blobs").join(key)).expect("there is room");
    }
    for log in ["tenants", "adapters"] {
        fs::create_dir_all(root.join("logs").join(log)).expect("there is room");
    }
    for line in bytes.split(|byte| *byte == b'\n').take(RECORDS) {
        let Some((which, record)) = line.split_first() else { continue };
        let (log, count) =
            if *which == b't' { ("tenants", &mut counts[0]) } else { ("adapters", &mut counts[1]) };
        *count += 1;
        let path = root.join("logs").join(log).join(format!("{count:020}.json"));
        fs::write(path, fill(record, &places)).expect("there is room");
    }
}

/// What each tenant has, as far as it is written down.
type Kept = Vec<(TenantId, Vec<(String, u32, bool, bool)>)>;

fn kept(adapters: &Adapters, tenants: &[TenantId]) -> Kept {
    let of =
        |card: Card| (card.revision.to_string(), card.revision.version, card.active, card.pinned);
    let list = |tenant: TenantId| adapters.list(tenant).into_iter().map(of).collect();
    tenants.iter().map(|tenant| (*tenant, list(*tenant))).collect()
}

/// All that a tenant can do with one of its names. Nothing of it needs to succeed.
async fn use_up(adapters: &Adapters, tenant: TenantId, card: &Card) {
    let name = &card.revision.name;
    let target = Target { tenant, name, by: "fuzz" };
    for version in adapters.versions(tenant, name) {
        let revision = version.card.revision;
        drop(adapters.lease(tenant, &revision).await);
        drop(adapters.file(target, Some(revision.version), Part::Weights).await);
        drop(adapters.validate(target, revision.version, &Lenient).await);
        drop(adapters.activate(target, (revision.version, None), &Expected::There).await);
        drop(adapters.lease(tenant, &revision).await);
    }
    drop(adapters.pin(target).await);
    let mut upload = adapters.upload();
    for (part, bytes) in [(Part::Config, CONFIG), (Part::Weights, WEIGHTS)] {
        upload.begin(part).await.expect("there is room");
        upload.write(part, bytes).await.expect("there is room");
    }
    let room = Room { adapters: Some(9), bytes: Some(1 << 40) };
    let terms = Terms { expected: &Expected::Anything, activate: true, room };
    drop(adapters.put(target, upload, &terms, &Lenient).await);
    drop(adapters.remove(target, Some(card.revision.version), &Expected::There).await);
    drop(adapters.unpin(target).await);
}

async fn open(root: &Path, bytes: &[u8]) {
    let refresh = Duration::from_secs(3600);
    let store = Store::open(&Location::Folder(root.to_owned())).await.expect("a new store opens");
    write(root, bytes);
    let Ok(tenants) = Tenants::open(&store, None, refresh).await else { return };
    let known: Vec<_> = tenants.list().iter().map(|card| card.id).collect();
    for tenant in &known {
        if let Ok(permit) = tenants.admit(*tenant, Instant::now()) {
            permit.spend(1000, Instant::now());
        }
    }
    let opened = || {
        let stored = (store.clone(), tenants.clone());
        Adapters::open(Folder::empty(), foundation(), stored, bounds(root))
    };
    let Ok(adapters) = opened().await else { return };
    for tenant in &known {
        for card in adapters.list(*tenant).iter().take(NAMES) {
            use_up(&adapters, *tenant, card).await;
        }
    }
    let again = opened().await.expect("it could be opened before");
    assert_eq!(kept(&adapters, &known), kept(&again, &known));
}

fuzz_target!(|bytes: &[u8]| {
    let root = TempDir::new().expect("there is room");
    let runtime = Builder::new_current_thread().enable_all().build().expect("the system has room");
    runtime.block_on(open(root.path(), bytes));
});
