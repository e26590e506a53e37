//! `chorus serve`: builds every part from the configuration and joins them.

use std::{
    env,
    io::{self, Write as _},
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::Duration,
};

use opentelemetry_sdk::trace::SdkTracer;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
};

use super::{
    base::{Located, locate},
    device::{Computer, Size},
    error::CliError,
    plan::{self, Plan},
    reload::{Reloaded, reload_on},
    signals::{Hangups, Signals},
};
use crate::{
    adapter::{self, Adapters, Folder, LoraRoot, Rules},
    config::{self, AdapterDtype, Serve, ServeArgs},
    engine::{self, Engine},
    http,
    kernels::{linear::Precision, panels::Encoding, simd::Tier},
    ledger::{Ledger, NotOpened},
    lora::{Limits, Matrices},
    model::{Llama, PAGE},
    store::Store,
    telemetry::{self, traces::Traces},
    tenant::Tenants,
    text::Text,
};

/// Threads for sockets and JSON. They do little, and every further one takes time from kernels.
const HTTP_THREADS: usize = 2;

/// Adapters that are loaded at once: one that reads beside one that computes. More would only take
/// cores from the requests that run.
const ADAPTER_LOADERS: NonZeroUsize = NonZeroUsize::new(2).expect("not 0");

/// How long the end waits for the store to take what was used.
const LAST_SHEET: Duration = Duration::from_secs(5);
/// How long it waits for the last spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Serves until a signal ends it.
pub(crate) fn run(args: ServeArgs) -> Result<(), CliError> {
    let config = Serve::try_from(args)?;
    telemetry::start(&config.log)?;
    for variable in config::variables_without_meaning() {
        tracing::warn!(variable, "is no option of chorus; `chorus serve --help` lists them");
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()
        .map_err(CliError::System)?;
    let served = runtime.block_on(serve(config));
    // A signal may have come while a blocking thread was still loading: do not wait for it.
    runtime.shutdown_background();
    served
}

async fn serve(config: Serve) -> Result<(), CliError> {
    let mut signals = Signals::listen().map_err(CliError::System)?;
    let hangups = Hangups::listen().map_err(CliError::System)?;
    // First of all, because a port in use should not cost a download.
    let listeners = tokio::select! {
        listeners = listen(&config.http) => listeners?,
        _ = signals.next() => return Ok(()),
    };
    let address = listeners.clients.local_addr().map_err(CliError::System)?;
    let watchers = listeners.watchers.as_ref().map(TcpListener::local_addr).transpose();
    let metrics = watchers.map_err(CliError::System)?;
    let started = tokio::select! {
        started = http::starting(&listeners, start(&config)) => started?,
        _ = signals.next() => return Ok(()),
    };
    let plan = Plan { address, metrics, ..started.plan };
    write!(io::stdout(), "{plan}").map_err(CliError::Output)?;
    let (tenants, adapters) = started.stored;
    let reloaded = Reloaded { tls: listeners.tls.clone(), tenants, adapters };
    let reloading = tokio::spawn(reload_on(hangups, reloaded));
    // The engine ends when it is told to. Where it does so by itself, only a new process brings it back.
    let (engine, ledger, mut asked) = (started.engine, started.ledger, false);
    let end = async {
        tokio::select! {
            () = signals.first() => asked = true,
            () = engine.stopped() => {}
        }
    };
    http::serve(listeners, started.app, end).await.map_err(CliError::Serve)?;
    reloading.abort();
    match tokio::time::timeout(LAST_SHEET, ledger.put()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "usage waits here for the next start"),
        Err(_) => tracing::warn!("the store is slow: usage waits here for the next start"),
    }
    if let Some(traces) = started.traces {
        // Blocking is all right there, and where it fails all spans are lost and nothing else.
        drop(tokio::task::spawn_blocking(move || traces.end(LAST_SPANS)).await);
    }
    if asked { Ok(()) } else { Err(CliError::EngineEnded) }
}

/// Takes the addresses.
async fn listen(http: &config::Http) -> Result<http::Listeners, CliError> {
    let bind = async |address, option| {
        let bound = TcpListener::bind(address).await;
        bound.map_err(|source| CliError::Listen { address, option, source })
    };
    let clients = bind(http.listen, "--listen").await?;
    let watchers = match http.metrics_listen {
        Some(address) => Some(bind(address, "--metrics-listen").await?),
        None => None,
    };
    let tls = match http.tls.clone() {
        Some((certificate, key)) => {
            let files = http::TlsFiles { certificate, key };
            // They may lie on a disk that does not answer.
            let opened = tokio::task::spawn_blocking(move || http::Tls::open(files)).await;
            Some(opened.map_err(|lost| CliError::System(io::Error::other(lost)))??)
        }
        None => None,
    };
    Ok(http::Listeners { clients, watchers, tls })
}

/// Everything that a listener still lacks.
struct Started {
    app: http::App,
    engine: Engine,
    ledger: Ledger,
    /// What other servers change as well.
    stored: (Tenants, Adapters),
    traces: Option<Traces>,
    /// With the addresses that were asked for, which may leave the port to the system.
    plan: Plan,
}

/// Fetches, loads and checks; the slow parts on a thread of their own.
async fn start(config: &Serve) -> Result<Started, CliError> {
    let store = Store::open(&config.store.location).await?;
    let is_new = store.is_new();
    let (operator, refresh) = (config.http.operator_key.as_ref(), config.store.refresh);
    let tenants = Tenants::open(&store, operator, refresh).await.map_err(CliError::Records)?;
    // Before a download, and before anybody is let in.
    let address = config.http.listen;
    if tenants.are_open() && !address.ip().is_loopback() && !config.http.open {
        return Err(CliError::Open { address });
    }
    let located = locate(&config.base).await?;
    let (place, config) = (&config.store.location, config.clone());
    let built = tokio::task::spawn_blocking(move || build(&config, located, (store, tenants)));
    let started = built.await.map_err(|lost| CliError::System(io::Error::other(lost)))??;
    // A start that fails says one thing, which is why.
    if is_new {
        tracing::warn!(%place, "there was no store: a new one is made, without adapters, tenants and keys");
    }
    Ok(started)
}

/// Joins the parts.
fn build(
    config: &Serve,
    located: Located,
    (store, tenants): (Store, Tenants),
) -> Result<Started, CliError> {
    // Before the base is read, which takes its time.
    let computer = Computer::choose(&config.engine)?;
    let (text, model) = load(&located.path, &config.engine)?;
    let page_bytes = computer.page_bytes(&config.engine, &model);
    let kv = kv_plan(&config.engine, &model, &located.id, page_bytes)?;
    let size = Size {
        engine: config.engine.clone(),
        settings: engine_settings(&config.engine, kv),
        rank: config.adapters.max_rank,
    };
    // What is larger than all adapters may be together could never be loaded as it is; and a file that is rounded is whole in memory
    // meanwhile.
    let largest = computer.largest_adapter(&config.engine, config.adapters.cache_bytes.0);
    let limits = Limits { max_rank: config.adapters.max_rank, max_bytes: largest };
    let threads = config.engine.threads;
    let folder = scan(&config.adapters, (&model, &located.id), &limits, threads)?;
    let base_model = http::BaseModel {
        id: located.id.clone(),
        digest: located.checksum.to_string(),
        created: located.changed,
    };
    let plan = Plan {
        device: computer.plan(&model, &size),
        base: plan::Base {
            id: located.id.clone(),
            format: format(&located.path, model.encoding()),
            path: located.path,
            bytes: located.bytes,
            memory: model.bytes() as u64,
            checksum: located.checksum,
            horizon: model.spec().rope.horizon.map(|horizon| horizon.to_string()),
        },
        kv,
        adapters: adapters_plan(&config.adapters, &folder),
        store: place(config, &store),
        tenants: if tenants.are_open() { None } else { Some(tenants.list().len()) },
        scheme: if config.http.tls.is_some() { "https" } else { "http" },
        address: config.http.listen,
        metrics: config.http.metrics_listen,
    };
    let model = Arc::new(model);
    let base: Arc<dyn crate::lora::Base> = Arc::<Llama>::clone(&model);
    let settings = adapter_settings(config, &store, limits);
    // Blocking is all right on this thread, which is no worker of the runtime.
    let runtime = Handle::current();
    let ledger = runtime.block_on(open_ledger(config, &store))?;
    let foundation = adapter::Foundation { base, sha256: base_model.digest.clone() };
    let shared = (store, tenants.clone());
    let adapters = runtime.block_on(Adapters::open(folder, foundation, shared, settings))?;
    let engine = computer.start(model, &size)?;
    let traces = config.traces.endpoint.as_ref();
    let traces = traces.map(|endpoint| Traces::start(endpoint.as_str())).transpose()?;
    let tracer = traces.as_ref().map(Traces::tracer);
    let settings = http_settings(config, tracer)?;
    let shared = (tenants.clone(), adapters.clone());
    let stored = http::Stored { adapters, tenants, ledger: ledger.clone() };
    let app = http::App::new(base_model, text, stored, engine.clone(), settings);
    Ok(Started { app, engine, ledger, stored: shared, traces, plan })
}

fn place(config: &Serve, store: &Store) -> plan::Place {
    let place = config.store.location.to_string();
    if store.is_new() { plan::Place::New(place) } else { plan::Place::Known(place) }
}

/// Beside the store, where that is a directory.
async fn open_ledger(config: &Serve, store: &Store) -> Result<Ledger, CliError> {
    let given = config.store.journals.clone();
    let beside = || store.folder().unwrap_or(Path::new(config::DATA_DIR)).join("journals");
    let folder = given.unwrap_or_else(beside);
    Ledger::open(store.clone(), &folder).await.map_err(|error| match error {
        NotOpened::Store(error) => CliError::Ledger(error),
        NotOpened::Folder(source) => CliError::Journals { path: folder, source },
    })
}

fn adapter_settings(config: &Serve, store: &Store, limits: Limits) -> adapter::Settings {
    let spool = config.store.spool.clone();
    let beside = || store.folder().map_or_else(env::temp_dir, Path::to_owned);
    adapter::Settings {
        budget: usize::try_from(config.adapters.cache_bytes.0).unwrap_or(usize::MAX),
        max_waiting: config.adapters.line,
        time_out: config.adapters.wait,
        loaders: ADAPTER_LOADERS,
        limits,
        matrices: matrices(&config.adapters),
        spool: spool.unwrap_or_else(beside),
        refresh: config.store.refresh,
    }
}

/// The instructions asked for, if the processor has them.
fn tier(asked: config::Kernels) -> Result<Tier, CliError> {
    let available = Tier::available();
    let found = available
        .iter()
        .find(|tier| asked == config::Kernels::Auto || tier.to_string() == asked.to_string());
    found.copied().ok_or_else(|| {
        let names: Vec<_> = available.iter().map(Tier::to_string).collect();
        CliError::Kernels { asked, known: names.join(", ") }
    })
}

/// Reads the base: its weights, then its tokenizer, because a model of another family is better
/// refused for what it is than for its tokenizer. A network may have more tokens than its tokenizer:
/// embeddings are padded to round numbers.
fn load(path: &Path, config: &config::Engine) -> Result<(Text, Llama), CliError> {
    let precision = match config.precision {
        config::Precision::Int8 => Precision::Int8,
        config::Precision::Int16 => Precision::Int16,
        config::Precision::Exact => Precision::Exact,
    };
    let tier = tier(config.kernels)?;
    let model = Llama::load(path, tier, config.threads.get(), precision)?;
    let text = if path.is_dir() { Text::from_dir(path) } else { Text::from_gguf(path) }?;
    let (tokenizer, network) = (text.vocab(), model.spec().vocab);
    if tokenizer > network {
        return Err(CliError::Vocabulary { path: path.to_owned(), tokenizer, network });
    }
    Ok((text, model))
}

/// What a base's files are, for people: `GGUF, Q4_1`.
fn format(path: &Path, encoding: Encoding) -> String {
    let container = if path.is_dir() { "safetensors" } else { "GGUF" };
    format!("{container}, {encoding:?}")
}

fn matrices(adapters: &config::Adapters) -> Matrices {
    match adapters.dtype {
        AdapterDtype::Native => Matrices::Native,
        AdapterDtype::Int8 => Matrices::Int8,
    }
}

/// Checks the adapters' folder; an absent default folder has no adapters.
fn scan(
    adapters: &config::Adapters,
    (base, base_id): (&Llama, &str),
    limits: &Limits,
    workers: NonZeroUsize,
) -> Result<Folder, CliError> {
    let reserved = ["base", "default", base_id];
    let rules = Rules { base, limits, reserved: &reserved, workers };
    match Folder::scan(&adapters.folder, &rules) {
        Err(absent) if absent.is_absent() && !adapters.folder_is_given => Ok(Folder::empty()),
        scanned => Ok(scanned?),
    }
}

fn adapters_plan(adapters: &config::Adapters, folder: &Folder) -> plan::Adapters {
    let found = folder.adapters().iter().map(|found| plan::Found {
        name: found.name.to_string(),
        rank: found.facts.rank,
        bytes: found.facts.memory.of(matrices(adapters)) as u64,
    });
    let refused = folder.refused().iter().map(|refused| plan::Refused {
        folder: refused.folder.clone(),
        why: refused.why.to_string(),
    });
    plan::Adapters {
        folder: adapters.folder.clone(),
        budget: adapters.cache_bytes,
        dtype: adapters.dtype,
        header: adapters.header.as_str().to_owned(),
        found: found.collect(),
        refused: refused.collect(),
    }
}

/// How the memory for keys and values is cut into pages.
fn kv_plan(
    config: &config::Engine,
    model: &Llama,
    base: &str,
    bytes: u64,
) -> Result<plan::Kv, CliError> {
    let context = model.spec().context;
    let context = match config.max_context {
        Some(asked) if asked > context => {
            return Err(CliError::Context { asked, context, base: base.to_owned() });
        }
        asked => asked.unwrap_or(context),
    };
    let page = Page { tokens: PAGE, bytes };
    page.divide(config.kv_bytes.0, context, config.max_running).ok_or(CliError::NoPage {
        given: config.kv_bytes.0,
        tokens: page.tokens,
        page: page.bytes,
    })
}

/// The unit in which keys and values are kept.
#[derive(Clone, Copy)]
struct Page {
    tokens: usize,
    bytes: u64,
}

impl Page {
    /// As many pages as `budget` bytes hold, but no more than `sequences` full contexts need; a
    /// context that all pages together cannot hold is cut down to them. `None` where not one fits.
    fn divide(self, budget: u64, context: usize, sequences: usize) -> Option<plan::Kv> {
        let affordable = usize::try_from(budget / self.bytes).unwrap_or(usize::MAX);
        let useful = context.div_ceil(self.tokens).saturating_mul(sequences);
        let pages = affordable.min(useful);
        let context = context.min(pages.saturating_mul(self.tokens));
        let kv = plan::Kv { pages, page_tokens: self.tokens, page_bytes: self.bytes, context };
        (pages > 0).then_some(kv)
    }
}

fn http_settings(config: &Serve, tracer: Option<SdkTracer>) -> Result<http::Settings, CliError> {
    let http = &config.http;
    Ok(http::Settings {
        adapter_header: http::AdapterHeader::parse(config.adapters.header.as_str())?,
        body_limit: usize::try_from(http.max_body_bytes.0).unwrap_or(usize::MAX),
        request_timeout: http.request_timeout,
        chat_tokens: http.chat_tokens,
        drain: http.drain_time,
        max_connections: http.max_connections,
        metrics_open: http.metrics_open,
        lora_info: match http.lora_info {
            config::LoraInfo::Auto => http::LoraInfo::Auto,
            config::LoraInfo::Names => http::LoraInfo::Names,
            config::LoraInfo::Digests => http::LoraInfo::Digests,
            config::LoraInfo::Off => http::LoraInfo::Off,
        },
        lora_root: lora_root(http.lora_root.as_deref())?,
        allowed_hosts: http.allowed_hosts.clone(),
        tracer,
    })
}

/// Where adapters may be loaded from by their path, which must be there.
fn lora_root(path: Option<&Path>) -> Result<Option<LoraRoot>, CliError> {
    let open = |path: &Path| {
        let failed = |source| CliError::LoraRoot { path: path.to_owned(), source };
        LoraRoot::open(path).map_err(failed)
    };
    path.map(open).transpose()
}

fn engine_settings(config: &config::Engine, kv: plan::Kv) -> engine::Settings {
    engine::Settings {
        pages: kv.pages,
        context: kv.context,
        step_tokens: config.step_tokens,
        max_running: config.max_running,
        max_waiting: config.max_waiting,
        max_wait: config.max_wait,
        slots: config.adapter_slots,
        keep_prefixes: config.prefix_cache,
        guesses: config.guess_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_the_budget_the_use_and_the_context() {
        let page = Page { tokens: 16, bytes: 100 };
        let divided = |budget, context, sequences| {
            page.divide(budget, context, sequences).map(|kv| (kv.pages, kv.context))
        };
        assert_eq!(divided(1000, 64, 100), Some((10, 64)), "the budget decides");
        assert_eq!(divided(1_000_000, 65, 2), Some((10, 65)), "two contexts of five pages");
        assert_eq!(divided(250, 64, 1), Some((2, 32)), "the context is cut");
        assert_eq!(divided(99, 64, 1), None);
    }
}
