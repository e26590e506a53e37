//! Any bytes sent to a real server get an answer, and none of 500. The first byte says whether they are a body, and for which
//! route, or all that is said on the connection.
#![no_main]

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
    adapter::{self, Adapters, Folder, Rules},
    engine::{self, Engine},
    http::{self, App},
    kernels::{linear::Precision, simd::Tier},
    lora::Limits,
    model::{KvType, Llama},
    text::Text,
};
use libfuzzer_sys::fuzz_target;
use tokio::{net::TcpListener, runtime::Runtime};

const ROUTES: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/models"];

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads start"));
static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tied"));
    let model = Llama::load(folder, Tier::best(), 1, Precision::default());
    let model = Arc::new(model.expect("the fixture loads"));
    let text = Text::from_dir(folder).expect("the fixture loads");
    let (limits, workers) = (Limits::default(), NonZeroUsize::MIN);
    let rules = Rules { base: &*model, limits: &limits, reserved: &["base", "default"], workers };
    let found = Folder::scan(&folder.join("adapters"), &rules).expect("the fixture is there");
    let base: Arc<dyn chorus::lora::Base> = Arc::<Llama>::clone(&model);
    let settings = adapter::Settings {
        budget: 1 << 30,
        max_waiting: 8,
        time_out: Duration::from_secs(1),
        loaders: NonZeroUsize::MIN,
    };
    let adapters = Adapters::open(found, base, settings);
    let context = model.spec().context;
    let settings = engine::Settings {
        pages: 64,
        context,
        step_tokens: 64,
        max_running: 4,
        max_waiting: 8,
        slots: 4,
        keep_prefixes: true,
    };
    let engine = Engine::start(model, KvType::F16, settings).expect("threads start");
    let base = http::BaseModel { id: "tied".to_owned(), digest: "00".repeat(32), created: 0 };
    let app = App::new(base, text, adapters, engine, http::Settings::default());
    let listener = RUNTIME.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
    let address = listener.local_addr().expect("it listens");
    RUNTIME.spawn(http::serve(listener, app, future::pending()));
    address
});

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let mut stream = TcpStream::connect(*SERVER).expect("the server accepts");
    let head = ROUTES.get(usize::from(*which) % (ROUTES.len() + 1)).map(|route| {
        format!(
            "POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        )
    });
    let is_request = head.is_some();
    // The server may have said all it has to say before everything is sent.
    drop(stream.write_all(&[head.unwrap_or_default().as_bytes(), bytes].concat()));
    if !is_request {
        drop(stream.shutdown(Shutdown::Write));
    }
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&answer));
    assert!(!is_request || answer.starts_with(b"HTTP/1.1 "), "no answer");
});
