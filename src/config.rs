//! Flags, `CHORUS_*` variables and a TOML file, turned into one typed configuration.
//!
//! The only reader of the environment. Every knob exists in all three places under one name:
//! `--adapter-slots`, `CHORUS_ADAPTER_SLOTS`, `adapter-slots = 64`. A flag wins over a variable, a
//! variable over the file, the file over the default. Relative paths, also those in the file, start
//! at the working directory.

mod values;

use std::{
    env,
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use clap::{Args, Command, builder::NonEmptyStringValueParser};
use serde::Deserialize;

pub use self::values::{
    AdapterDtype, ByteSize, Count, Device, HeaderField, Hosts, Kernels, KvDtype, Listen, LogFormat,
    LoraInfo, ModelId, Precision, Span, Switch,
};
use crate::{
    catalog::{self, HubAccess},
    store::{BadLocation, Location},
    tenant::{BadKey, Key},
};

const MODELS_DIR: &str = "models";
/// Where a server keeps what must outlive it, unless it is told otherwise.
pub const DATA_DIR: &str = "chorus-data";
const STORE_REFRESH: Duration = Duration::from_secs(5);
const LEAST_REFRESH: Duration = Duration::from_millis(100);
const ADAPTERS_DIR: &str = "adapters";
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const ADAPTER_CACHE: ByteSize = ByteSize(1 << 30);
const ADAPTER_WAIT: Duration = Duration::from_secs(30);
const ADAPTER_LINE: Count = Count::new(256);
const ADAPTER_SLOTS: Count = Count::new(64);
const MAX_RANK: Count = Count::new(512);
const KV: ByteSize = ByteSize(512 << 20);
const STEP_TOKENS: Count = Count::new(256);
const MAX_RUNNING: Count = Count::new(64);
const MAX_WAITING: Count = Count::new(256);
const CHAT_TOKENS: Count = Count::new(1024);
const MAX_CONNECTIONS: Count = Count::new(4096);
const REQUEST_TIMEOUT: Duration = Duration::from_mins(10);
const DRAIN_TIME: Duration = Duration::from_secs(30);
/// A prompt that fills any context fits several times over.
const MAX_BODY: ByteSize = ByteSize(8 << 20);
const LOG: &str = "info";

/// A configuration file is a few hundred bytes.
const MOST_FILE_BYTES: u64 = 1 << 20;
/// Threads beyond this are a typing mistake.
const MOST_THREADS: usize = 1024;

/// Where the file is.
#[derive(Args, Clone, Debug, Default)]
pub struct FileArg {
    /// TOML file with any of the other options as `name = value`
    #[arg(long, env = "CHORUS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What was typed, set or written for `serve`; a knob that was left alone is `None`.
///
/// One definition serves the command line, the environment and the file, so that none can lack a
/// knob that another has.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Knobs {
    /// Base model: a name of the catalog, a .gguf file or a Hugging Face directory
    /// [default: smollm2-135m-instruct]
    #[arg(long, env = "CHORUS_MODEL", value_name = "NAME|PATH", value_parser = NonEmptyStringValueParser::new())]
    model: Option<String>,
    /// Folder for fetched base models [default: ./models]
    #[arg(long, env = "CHORUS_MODELS_DIR", value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Name of the base in the API [default: the catalog's name, or the file's]
    #[arg(long, env = "CHORUS_SERVED_MODEL_NAME", value_name = "NAME")]
    served_model_name: Option<ModelId>,
    /// Folder of PEFT adapter folders, read-only, served by folder name [default: ./adapters]
    #[arg(long, env = "CHORUS_ADAPTERS", value_name = "DIR")]
    adapters: Option<PathBuf>,
    /// Where uploaded adapters live: a directory, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or
    /// `az://CONTAINER/PREFIX` [default: ./chorus-data]
    #[arg(long, env = "CHORUS_STORE", value_name = "DIR|URL", value_parser = NonEmptyStringValueParser::new())]
    store: Option<String>,
    /// How long what other servers write to the store may go unseen [default: 5s]
    #[arg(long, env = "CHORUS_STORE_REFRESH", value_name = "TIME")]
    store_refresh: Option<Span>,
    /// Folder where uploads wait until they are checked [default: the store's, or the system's
    /// temporary one]
    #[arg(long, env = "CHORUS_SPOOL", value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Folder where usage is noted until the store has it; it must outlive the process [default: journals in
    /// the store's directory, or in ./chorus-data]
    #[arg(long, env = "CHORUS_JOURNALS", value_name = "DIR")]
    journals: Option<PathBuf>,
    /// Folder below which the operator may load adapters by their path, with vLLM's `/v1/load_lora_adapter`
    /// [default: that is off]
    #[arg(long, env = "CHORUS_LORA_ROOT", value_name = "DIR")]
    lora_root: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:8080]
    #[arg(long, env = "CHORUS_LISTEN", value_name = "IP:PORT")]
    listen: Option<Listen>,
    /// Address and port of a listener for scrapers: it has /metrics, /health and /ready, and nothing else
    /// [default: none; they are on the main one]
    #[arg(long, env = "CHORUS_METRICS_LISTEN", value_name = "IP:PORT")]
    metrics_listen: Option<Listen>,
    /// Further names, comma-separated, by which clients or a proxy may call this server in `Host`
    /// and `Origin` [default: localhost and loopback addresses]
    #[arg(long, env = "CHORUS_ALLOWED_HOSTS", value_name = "HOST,..")]
    allowed_hosts: Option<Hosts>,
    /// Listen beyond this machine although there are no API keys
    #[arg(long, env = "CHORUS_OPEN", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    open: Option<Switch>,
    /// Let everybody who reaches this server read all of /metrics, not only the operator
    #[arg(long, env = "CHORUS_METRICS_OPEN", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    metrics_open: Option<Switch>,
    /// How /metrics lists the adapters in memory for gateways: names; digests, which tell nothing of tenants; off; or
    /// auto, names where there are no API keys and off otherwise [default: auto]
    #[arg(long, env = "CHORUS_LORA_INFO", value_name = "HOW")]
    lora_info: Option<LoraInfo>,
    /// What computes: auto or cpu [default: auto]
    #[arg(long, env = "CHORUS_DEVICE", value_name = "DEVICE")]
    device: Option<Device>,
    /// How a quantized base is computed: int16, in integers with inputs rounded to 16 bits; int8,
    /// rounded to 8, faster for many rows and less exact; or exact, in 32-bit floats and slower [default: int16]
    #[arg(long, env = "CHORUS_PRECISION", value_name = "PRECISION")]
    precision: Option<Precision>,
    /// Instructions to compute with: auto, avx512, avx2 or portable; all give the same answers
    /// [default: auto]
    #[arg(long, env = "CHORUS_KERNELS", value_name = "KERNELS")]
    kernels: Option<Kernels>,
    /// Threads that compute [default: all cores]
    #[arg(long, env = "CHORUS_THREADS", value_name = "N")]
    threads: Option<Count>,
    /// Request header that names the adapter [default: X-Adapter]
    #[arg(long, env = "CHORUS_ADAPTER_HEADER", value_name = "HEADER")]
    adapter_header: Option<HeaderField>,
    /// Memory for loaded adapters [default: 1GiB]
    #[arg(long, env = "CHORUS_ADAPTER_CACHE_BYTES", value_name = "SIZE")]
    adapter_cache_bytes: Option<ByteSize>,
    /// Type of the adapters' low-rank matrices there: native, as they were trained; or int8, rounded
    /// to 8 bits, of which two to four times as many fit [default: native]
    #[arg(long, env = "CHORUS_ADAPTER_DTYPE", value_name = "TYPE")]
    adapter_dtype: Option<AdapterDtype>,
    /// How long a request may wait for room in the adapter cache [default: 30s]
    #[arg(long, env = "CHORUS_ADAPTER_WAIT", value_name = "TIME")]
    adapter_wait: Option<Span>,
    /// Requests that may wait for room in the adapter cache [default: 256]
    #[arg(long, env = "CHORUS_ADAPTER_LINE", value_name = "N")]
    adapter_line: Option<Count>,
    /// Different adapters that may run at once [default: 64]
    #[arg(long, env = "CHORUS_ADAPTER_SLOTS", value_name = "N")]
    adapter_slots: Option<Count>,
    /// Highest rank an adapter may have [default: 512]
    #[arg(long, env = "CHORUS_MAX_RANK", value_name = "N")]
    max_rank: Option<Count>,
    /// Memory for keys and values, at most what max-running full contexts need [default: 512MiB]
    #[arg(long, env = "CHORUS_KV_BYTES", value_name = "SIZE")]
    kv_bytes: Option<ByteSize>,
    /// Type of keys and values: f16; f32; or auto, f32 with exact precision and f16 otherwise
    /// [default: auto]
    #[arg(long, env = "CHORUS_KV_DTYPE", value_name = "TYPE")]
    kv_dtype: Option<KvDtype>,
    /// Keep computed prefixes in memory for keys and values that nothing else needs, so that requests
    /// which begin alike are computed from where they differ [default: true]
    #[arg(long, env = "CHORUS_PREFIX_CACHE", value_name = "true|false")]
    prefix_cache: Option<Switch>,
    /// Most tokens of prompt and answer together [default: the model's own context]
    #[arg(long, env = "CHORUS_MAX_CONTEXT", value_name = "N")]
    max_context: Option<Count>,
    /// Most tokens computed in one step [default: 256]
    #[arg(long, env = "CHORUS_STEP_TOKENS", value_name = "N")]
    step_tokens: Option<Count>,
    /// Requests that run at once [default: 64]
    #[arg(long, env = "CHORUS_MAX_RUNNING", value_name = "N")]
    max_running: Option<Count>,
    /// Requests that may wait to run; further ones get 503 [default: 256]
    #[arg(long, env = "CHORUS_MAX_WAITING", value_name = "N")]
    max_waiting: Option<Count>,
    /// Longest a request may take [default: 10m]
    #[arg(long, env = "CHORUS_REQUEST_TIMEOUT", value_name = "TIME")]
    request_timeout: Option<Span>,
    /// How long running answers may go on after SIGTERM [default: 30s]
    #[arg(long, env = "CHORUS_DRAIN_TIME", value_name = "TIME")]
    drain_time: Option<Span>,
    /// Most tokens of an answer where the request does not say; of text completions 16 [default: 1024]
    #[arg(long, env = "CHORUS_CHAT_TOKENS", value_name = "N")]
    chat_tokens: Option<Count>,
    /// Connections at once; further ones wait to be accepted [default: 4096]
    #[arg(long, env = "CHORUS_MAX_CONNECTIONS", value_name = "N")]
    max_connections: Option<Count>,
    /// Largest request body [default: 8MiB]
    #[arg(long, env = "CHORUS_MAX_BODY_BYTES", value_name = "SIZE")]
    max_body_bytes: Option<ByteSize>,
    /// What is logged: error, warn, info, debug or trace, for all or by module [default: info]
    #[arg(long, env = "CHORUS_LOG", value_name = "FILTER", value_parser = NonEmptyStringValueParser::new())]
    log: Option<String>,
    /// How logs look [default: pretty]
    #[arg(long, env = "CHORUS_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl Knobs {
    /// These knobs, and where one was left alone, the other's.
    fn or(self, under: Self) -> Self {
        Self {
            model: self.model.or(under.model),
            models_dir: self.models_dir.or(under.models_dir),
            served_model_name: self.served_model_name.or(under.served_model_name),
            adapters: self.adapters.or(under.adapters),
            store: self.store.or(under.store),
            store_refresh: self.store_refresh.or(under.store_refresh),
            spool: self.spool.or(under.spool),
            journals: self.journals.or(under.journals),
            lora_root: self.lora_root.or(under.lora_root),
            listen: self.listen.or(under.listen),
            metrics_listen: self.metrics_listen.or(under.metrics_listen),
            allowed_hosts: self.allowed_hosts.or(under.allowed_hosts),
            open: self.open.or(under.open),
            metrics_open: self.metrics_open.or(under.metrics_open),
            lora_info: self.lora_info.or(under.lora_info),
            prefix_cache: self.prefix_cache.or(under.prefix_cache),
            device: self.device.or(under.device),
            precision: self.precision.or(under.precision),
            kernels: self.kernels.or(under.kernels),
            threads: self.threads.or(under.threads),
            adapter_header: self.adapter_header.or(under.adapter_header),
            adapter_cache_bytes: self.adapter_cache_bytes.or(under.adapter_cache_bytes),
            adapter_dtype: self.adapter_dtype.or(under.adapter_dtype),
            adapter_wait: self.adapter_wait.or(under.adapter_wait),
            adapter_line: self.adapter_line.or(under.adapter_line),
            adapter_slots: self.adapter_slots.or(under.adapter_slots),
            max_rank: self.max_rank.or(under.max_rank),
            kv_bytes: self.kv_bytes.or(under.kv_bytes),
            kv_dtype: self.kv_dtype.or(under.kv_dtype),
            max_context: self.max_context.or(under.max_context),
            step_tokens: self.step_tokens.or(under.step_tokens),
            max_running: self.max_running.or(under.max_running),
            max_waiting: self.max_waiting.or(under.max_waiting),
            request_timeout: self.request_timeout.or(under.request_timeout),
            drain_time: self.drain_time.or(under.drain_time),
            chat_tokens: self.chat_tokens.or(under.chat_tokens),
            max_connections: self.max_connections.or(under.max_connections),
            max_body_bytes: self.max_body_bytes.or(under.max_body_bytes),
            log: self.log.or(under.log),
            log_format: self.log_format.or(under.log_format),
        }
    }

    fn read(file: &Path) -> Result<Self, ConfigError> {
        let shown = || file.display().to_string();
        let text =
            read_text(file).map_err(|source| ConfigError::Unreadable { file: shown(), source })?;
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |at| 1 + text[..at.start].matches('\n').count());
            let what = error.message().replace('\n', " ");
            ConfigError::Malformed { file: shown(), line, what }
        })
    }
}

/// A file that is small, as a configuration is; a device that never ends is not.
fn read_text(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(MOST_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_FILE_BYTES {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

/// Where base models are kept, for commands that need nothing else.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelsArgs {
    #[command(flatten)]
    file: FileArg,
    /// Folder for fetched base models [default: ./models]
    #[arg(long, env = "CHORUS_MODELS_DIR", value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

/// Which store, for commands that need nothing else.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    #[command(flatten)]
    file: FileArg,
    /// The store: a directory, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`
    /// [default: ./chorus-data]
    #[arg(long, env = "CHORUS_STORE", value_name = "DIR|URL", value_parser = NonEmptyStringValueParser::new())]
    store: Option<String>,
}

impl TryFrom<StoreArgs> for Location {
    type Error = ConfigError;

    fn try_from(args: StoreArgs) -> Result<Self, ConfigError> {
        let file = args.file.config.as_deref().map(Knobs::read).transpose()?.unwrap_or_default();
        location(args.store.or(file.store).as_deref().unwrap_or(DATA_DIR))
    }
}

/// Reads where a store is, with what the environment says about reaching it.
pub fn location(text: &str) -> Result<Location, ConfigError> {
    Ok(Location::parse(text, variables())?)
}

/// Everything `serve` is told on the command line and in the environment.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    #[command(flatten)]
    file: FileArg,
    #[command(flatten)]
    knobs: Knobs,
}

/// Where base models are kept, and whether the hub may be asked for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    /// The folder.
    pub folder: PathBuf,
    /// `HF_HUB_OFFLINE`, as other programs understand it.
    pub hub: HubAccess,
}

/// Which base is served, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// A name of the catalog, or a path.
    pub model: String,
    /// Where catalog bases are kept.
    pub models: Models,
    /// Its id in the API, where it is not to be the obvious one.
    pub served_name: Option<ModelId>,
}

/// How adapters are found, chosen and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapters {
    /// The folder of PEFT folders.
    pub folder: PathBuf,
    /// The folder was asked for; without it the default may be absent.
    pub folder_is_given: bool,
    /// The header that names one.
    pub header: HeaderField,
    /// Memory for loaded ones.
    pub cache_bytes: ByteSize,
    /// The type of their low-rank matrices there.
    pub dtype: AdapterDtype,
    /// How long a request waits for room.
    pub wait: Duration,
    /// How many may wait.
    pub line: usize,
    /// Highest rank.
    pub max_rank: usize,
}

/// Where uploads go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// The store, with what the environment says about reaching it.
    pub location: Location,
    /// How often it is looked at.
    pub refresh: Duration,
    /// Where uploads wait.
    pub spool: Option<PathBuf>,
    /// Where usage waits.
    pub journals: Option<PathBuf>,
}

/// How much the engine does at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// What computes.
    pub device: Device,
    /// How a quantized base is computed.
    pub precision: Precision,
    /// The instructions it is computed with.
    pub kernels: Kernels,
    /// Threads that compute.
    pub threads: NonZeroUsize,
    /// Memory for keys and values.
    pub kv_bytes: ByteSize,
    /// Their type.
    pub kv_dtype: KvDtype,
    /// Whether computed prefixes are kept there.
    pub prefix_cache: bool,
    /// Most tokens of one sequence, where it is to be less than the model's.
    pub max_context: Option<usize>,
    /// Most rows of one step.
    pub step_tokens: usize,
    /// Sequences that run at once.
    pub max_running: usize,
    /// Jobs that may wait.
    pub max_waiting: usize,
    /// Different adapters that run at once.
    pub adapter_slots: usize,
}

/// How the server behaves towards its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it listens for scrapers besides.
    pub metrics_listen: Option<SocketAddr>,
    /// Beyond this machine too, although there are no keys.
    pub open: bool,
    /// The metrics may be read without a key.
    pub metrics_open: bool,
    /// As what they list adapters.
    pub lora_info: LoraInfo,
    /// Where the operator may load adapters from by their path.
    pub lora_root: Option<PathBuf>,
    /// The operator's key, where one was set.
    pub operator_key: Option<Key>,
    /// Host names, without port, that requests may be for besides the loopback ones.
    pub allowed_hosts: Vec<String>,
    /// Longest a request may take.
    pub request_timeout: Duration,
    /// How long running answers may go on after a signal.
    pub drain_time: Duration,
    /// Most tokens of an answer whose request does not say.
    pub chat_tokens: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Largest body.
    pub max_body_bytes: ByteSize,
}

/// What is logged, and how it looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// In the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// Everything `chorus serve` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// The base model.
    pub base: Base,
    /// Its adapters.
    pub adapters: Adapters,
    /// Where more of them are kept.
    pub store: Store,
    /// The engine.
    pub engine: Engine,
    /// The server.
    pub http: Http,
    /// The log.
    pub log: Log,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: {source}; --config must name a readable TOML file")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{file} line {line}: {what}")]
    Malformed {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The key or value, and what is wrong with it.
        what: String,
    },
    /// The operator's key could be guessed, or cannot be sent.
    #[error("CHORUS_OPERATOR_KEY: {0}")]
    OperatorKey(#[from] BadKey),
    /// The store has no place.
    #[error("store: {0}")]
    Store(#[from] BadLocation),
    /// Clients and scrapers at one address.
    #[error(
        "metrics-listen = {address} is the address of --listen: leave it out, /metrics is there as well, or give \
         scrapers another port"
    )]
    OneAddress {
        /// Both.
        address: SocketAddr,
    },
    /// More threads than any machine has.
    #[error(
        "threads = {threads} is more than {MOST_THREADS}: leave it out to use all cores of this \
         machine"
    )]
    Threads {
        /// What was asked for.
        threads: usize,
    },
}

impl TryFrom<ServeArgs> for Serve {
    type Error = ConfigError;

    fn try_from(args: ServeArgs) -> Result<Self, ConfigError> {
        let file = args.file.config.as_deref().map(Knobs::read).transpose()?;
        Self::from_knobs(args.knobs.or(file.unwrap_or_default()))
    }
}

impl TryFrom<ModelsArgs> for Models {
    type Error = ConfigError;

    fn try_from(args: ModelsArgs) -> Result<Self, ConfigError> {
        let file = args.file.config.as_deref().map(Knobs::read).transpose()?.unwrap_or_default();
        Ok(Self::at(args.models_dir.or(file.models_dir)))
    }
}

impl Models {
    fn at(folder: Option<PathBuf>) -> Self {
        Self { folder: folder.unwrap_or_else(|| MODELS_DIR.into()), hub: hub_access() }
    }
}

impl Serve {
    /// Fills in the defaults and checks what concerns more than one knob.
    fn from_knobs(knobs: Knobs) -> Result<Self, ConfigError> {
        let listen = knobs.listen.map_or(LISTEN, |Listen(address)| address);
        let metrics_listen = knobs.metrics_listen.map(|Listen(address)| address);
        // Port 0 is a port of its own each time.
        if let Some(address) = metrics_listen.filter(|own| *own == listen && own.port() != 0) {
            return Err(ConfigError::OneAddress { address });
        }
        let threads = match knobs.threads {
            Some(Count(threads)) if threads.get() > MOST_THREADS => {
                return Err(ConfigError::Threads { threads: threads.get() });
            }
            Some(Count(threads)) => threads,
            None => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        let or = |given: Option<Count>, default: Count| given.unwrap_or(default).get();
        let time = |given: Option<Span>, default| given.map_or(default, |Span(time)| time);
        Ok(Self {
            base: Base {
                model: knobs.model.unwrap_or_else(|| catalog::DEFAULT.to_owned()),
                models: Models::at(knobs.models_dir),
                served_name: knobs.served_model_name,
            },
            adapters: Adapters {
                folder_is_given: knobs.adapters.is_some(),
                folder: knobs.adapters.unwrap_or_else(|| ADAPTERS_DIR.into()),
                header: knobs.adapter_header.unwrap_or_default(),
                cache_bytes: knobs.adapter_cache_bytes.unwrap_or(ADAPTER_CACHE),
                dtype: knobs.adapter_dtype.unwrap_or_default(),
                wait: time(knobs.adapter_wait, ADAPTER_WAIT),
                line: or(knobs.adapter_line, ADAPTER_LINE),
                max_rank: or(knobs.max_rank, MAX_RANK),
            },
            store: Store {
                location: location(knobs.store.as_deref().unwrap_or(DATA_DIR))?,
                // A server that looks all the time does nothing else.
                refresh: time(knobs.store_refresh, STORE_REFRESH).max(LEAST_REFRESH),
                spool: knobs.spool,
                journals: knobs.journals,
            },
            engine: Engine {
                device: knobs.device.unwrap_or_default(),
                precision: knobs.precision.unwrap_or_default(),
                kernels: knobs.kernels.unwrap_or_default(),
                threads,
                kv_bytes: knobs.kv_bytes.unwrap_or(KV),
                kv_dtype: knobs.kv_dtype.unwrap_or_default(),
                prefix_cache: knobs.prefix_cache.is_none_or(|Switch(kept)| kept),
                max_context: knobs.max_context.map(Count::get),
                step_tokens: or(knobs.step_tokens, STEP_TOKENS),
                max_running: or(knobs.max_running, MAX_RUNNING),
                max_waiting: or(knobs.max_waiting, MAX_WAITING),
                adapter_slots: or(knobs.adapter_slots, ADAPTER_SLOTS),
            },
            http: Http {
                listen,
                metrics_listen,
                open: knobs.open.is_some_and(|Switch(open)| open),
                metrics_open: knobs.metrics_open.is_some_and(|Switch(open)| open),
                lora_info: knobs.lora_info.unwrap_or_default(),
                lora_root: knobs.lora_root,
                operator_key: operator_key()?,
                allowed_hosts: knobs.allowed_hosts.map_or_else(Vec::new, |hosts| hosts.0),
                request_timeout: time(knobs.request_timeout, REQUEST_TIMEOUT),
                drain_time: time(knobs.drain_time, DRAIN_TIME),
                chat_tokens: or(knobs.chat_tokens, CHAT_TOKENS),
                max_connections: or(knobs.max_connections, MAX_CONNECTIONS),
                max_body_bytes: knobs.max_body_bytes.unwrap_or(MAX_BODY),
            },
            log: Log {
                filter: knobs.log.unwrap_or_else(|| LOG.to_owned()),
                format: knobs.log_format.unwrap_or_default(),
            },
        })
    }
}

/// Holds the operator's key. It has no flag, because other users of a machine see arguments, and no line in the file.
const OPERATOR_KEY: &str = "CHORUS_OPERATOR_KEY";

/// What other commands read, which may be set where a server runs as well, and what has no flag.
const OTHERS: [&str; 3] = ["CHORUS_URL", "CHORUS_KEY", OPERATOR_KEY];

/// `CHORUS_*` variables that are set and are no option: most are misspelt.
///
/// Not among them are those that Kubernetes sets in every container beside a service called `chorus`.
pub fn variables_without_meaning() -> Vec<String> {
    let set = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    without_meaning(set)
}

fn without_meaning(set: impl Iterator<Item = String>) -> Vec<String> {
    let options = ServeArgs::augment_args(Command::new("serve"));
    let known = |name: &str| {
        OTHERS.contains(&name)
            || options.get_arguments().any(|option| option.get_env().is_some_and(|env| env == name))
    };
    let injected = |name: &str| {
        ["CHORUS_SERVICE_", "CHORUS_PORT_"].iter().any(|prefix| name.starts_with(prefix))
            || name == "CHORUS_PORT"
    };
    set.filter(|name| name.starts_with("CHORUS_") && !known(name) && !injected(name)).collect()
}

/// All variables that are text: how a cloud's storage is reached is said in its own.
fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The operator's key, where one is set.
#[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
fn operator_key() -> Result<Option<Key>, BadKey> {
    let set = env::var(OPERATOR_KEY).ok().filter(|key| !key.is_empty());
    set.map(|key| Key::parse(&key)).transpose()
}

/// `HF_HUB_OFFLINE`, with the values that its other readers take for yes.
#[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
fn hub_access() -> HubAccess {
    match env::var("HF_HUB_OFFLINE") {
        Ok(value) if ["1", "on", "true", "yes"].contains(&value.to_lowercase().as_str()) => {
            HubAccess::Offline
        }
        _ => HubAccess::Allowed,
    }
}

#[cfg(test)]
mod tests;
