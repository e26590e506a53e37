//! What targets share: a tiny base, an adapter for it, and a real server over both.

use std::{
    future,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use chorus::{
    adapter::{self, Adapters, Folder, Foundation, Rules},
    engine::{self, Engine},
    http::{self, App, Listeners, Stored},
    kernels::{linear::Precision, simd::Tier},
    ledger::Ledger,
    lora::{Base, Limits, Matrices},
    model::{KvType, Llama},
    store::{Location, Store},
    tenant::{Quota, TenantName, Tenants},
    text::Text,
};
use tokio::{net::TcpListener, runtime::Runtime};

/// The base's folder.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tied");
/// An adapter's `adapter_config.json`.
pub const CONFIG: &[u8] =
    include_bytes!("../../tests/fixtures/models/tied/adapters/plain/adapter_config.json");
/// Its `adapter_model.safetensors`.
pub const WEIGHTS: &[u8] =
    include_bytes!("../../tests/fixtures/models/tied/adapters/plain/adapter_model.safetensors");

/// How long what other servers write may go unseen: there are none.
const REFRESH: Duration = Duration::from_secs(3600);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads start"));
static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| RUNTIME.block_on(serve()));

/// The base, in memory once.
pub static BASE: LazyLock<Arc<Llama>> = LazyLock::new(|| {
    let model = Llama::load(Path::new(FOLDER), Tier::best(), 1, Precision::default());
    Arc::new(model.expect("the fixture loads"))
});

/// The base as adapters know it. Its checksum is all zeros.
pub fn foundation() -> Foundation {
    let base: Arc<dyn Base> = Arc::<Llama>::clone(&BASE);
    Foundation { base, sha256: "00".repeat(32) }
}

/// Bounds for adapters, which are spooled in `folder`.
pub fn bounds(folder: &Path) -> adapter::Settings {
    adapter::Settings {
        budget: 1 << 30,
        max_waiting: 8,
        time_out: Duration::from_secs(1),
        loaders: NonZeroUsize::MIN,
        limits: Limits::default(),
        matrices: Matrices::Native,
        spool: folder.to_owned(),
        refresh: REFRESH,
    }
}

/// Serves the base with the fixture's adapters. Its store has no room: what could be kept is refused at the very end, so
/// that the store does not grow.
async fn serve() -> SocketAddr {
    let folder = Path::new(FOLDER);
    let limits = Limits::default();
    let rules = Rules {
        base: &**BASE,
        limits: &limits,
        reserved: &["base", "default", "tied"],
        workers: NonZeroUsize::MIN,
    };
    let found = Folder::scan(&folder.join("adapters"), &rules).expect("the fixture is there");
    let root = tempfile::TempDir::new().expect("there is room").keep();
    let store = Store::open(&Location::Folder(root.clone())).await.expect("a new store opens");
    let tenants = Tenants::open(&store, None, REFRESH).await.expect("it has no records");
    let name = TenantName::parse("default").expect("a name");
    let quota = Quota { stored_bytes: Some(0), ..Quota::default() };
    tenants.set_quota("fuzz", &name, quota).await.expect("the tenant is there");
    let ledger = Ledger::open(store.clone(), &root.join("journals")).await;
    let ledger = ledger.expect("a new journal opens");
    let stored = (store, tenants.clone());
    let adapters = Adapters::open(found, foundation(), stored, bounds(&root)).await;
    let adapters = adapters.expect("it has no records");
    let settings = engine::Settings {
        pages: 64,
        context: BASE.spec().context,
        step_tokens: 64,
        max_running: 4,
        max_waiting: 8,
        max_wait: Duration::MAX,
        slots: 4,
        keep_prefixes: true,
        guesses: 7,
    };
    let engine = Engine::start(Arc::clone(&BASE), KvType::F16, settings).expect("threads start");
    let base = http::BaseModel { id: "tied".to_owned(), digest: "00".repeat(32), created: 0 };
    let text = Text::from_dir(folder).expect("the fixture loads");
    let app = App::new(
        base,
        text,
        Stored { adapters, tenants, ledger },
        engine,
        http::Settings::default(),
    );
    let clients = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = clients.local_addr().expect("it listens");
    let listeners = Listeners { clients, watchers: None, tls: None };
    tokio::spawn(http::serve(listeners, app, future::pending()));
    address
}

/// What a real server answers to all that is said on a connection; `ends` says that there comes no more.
pub fn answer(said: &[u8], ends: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(*SERVER).expect("the server accepts");
    // The server may have said all it has to say before everything is sent.
    drop(stream.write_all(said));
    if ends {
        drop(stream.shutdown(Shutdown::Write));
    }
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&answer));
    answer
}

/// The bytes with something else in the place of some of them, so that seeds are short and files whole.
pub fn fill(bytes: &[u8], places: &[(u8, &[u8])]) -> Vec<u8> {
    let filled = bytes.iter().flat_map(|byte| {
        let place = places.iter().find(|(place, _)| place == byte);
        place.map_or(std::slice::from_ref(byte), |(_, content)| *content)
    });
    filled.copied().collect()
}
