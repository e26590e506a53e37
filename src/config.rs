//! Flags, `CHORUS_*` variables and a TOML file, turned into one typed configuration.
//!
//! The only reader of the environment. Every knob exists in all three places under one name:
//! `--adapter-slots`, `CHORUS_ADAPTER_SLOTS`, `adapter-slots = 64`. A flag wins over a variable, a
//! variable over the file, the file over the default. Relative paths, also those in the file, start
//! at the working directory.

mod choices;
mod knobs;
mod values;

use std::{
    env, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    thread,
    time::Duration,
};

use clap::{Args, Command, builder::NonEmptyStringValueParser};

pub use self::{
    choices::{AdapterDtype, Device, Kernels, KvDtype, LogFormat, LoraInfo, Precision},
    knobs::{FileArg, Knobs},
    values::{
        ByteSize, Count, Endpoint, Guesses, HeaderField, Hosts, Listen, ModelId, Span, Switch,
    },
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
const GUESS_TOKENS: Guesses = Guesses(7);
const MAX_RUNNING: Count = Count::new(64);
const MAX_WAITING: Count = Count::new(256);
const MAX_WAIT: Duration = Duration::from_secs(30);
const CHAT_TOKENS: Count = Count::new(1024);
const MAX_CONNECTIONS: Count = Count::new(4096);
const REQUEST_TIMEOUT: Duration = Duration::from_mins(10);
const DRAIN_TIME: Duration = Duration::from_secs(30);
/// A prompt that fills any context fits several times over.
const MAX_BODY: ByteSize = ByteSize(8 << 20);
const LOG: &str = "info";

/// Threads beyond this are a typing mistake.
const MOST_THREADS: usize = 1024;

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
    /// Whether a GPU's answers are the same in any company.
    pub deterministic: bool,
    /// Memory of a GPU for adapters, where it was asked for.
    pub device_adapter_bytes: Option<ByteSize>,
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
    /// Most tokens of an answer that are guessed in a step.
    pub guess_tokens: usize,
    /// Most tokens of one sequence, where it is to be less than the model's.
    pub max_context: Option<usize>,
    /// Most rows of one step.
    pub step_tokens: usize,
    /// Sequences that run at once.
    pub max_running: usize,
    /// Jobs that may wait.
    pub max_waiting: usize,
    /// How long one may have to wait.
    pub max_wait: Duration,
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
    /// The certificate that clients are shown, and its key, where TLS is spoken.
    pub tls: Option<(PathBuf, PathBuf)>,
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

/// What is told of requests as spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// Where they are sent; nowhere where it is `None`.
    pub endpoint: Option<Endpoint>,
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
    /// Spans.
    pub traces: Traces,
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
    /// A certificate without a key, or a key without one.
    #[error(
        "{given} is there and {missing} is not: TLS needs a certificate and its key, plain HTTP neither"
    )]
    HalfOfTls {
        /// The one that is given.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
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
        let threads = threads(knobs.threads)?;
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
                deterministic: knobs.deterministic.is_some_and(|Switch(fixed)| fixed),
                device_adapter_bytes: knobs.device_adapter_bytes,
                precision: knobs.precision.unwrap_or_default(),
                kernels: knobs.kernels.unwrap_or_default(),
                threads,
                kv_bytes: knobs.kv_bytes.unwrap_or(KV),
                kv_dtype: knobs.kv_dtype.unwrap_or_default(),
                prefix_cache: knobs.prefix_cache.is_none_or(|Switch(kept)| kept),
                guess_tokens: knobs.guess_tokens.unwrap_or(GUESS_TOKENS).0,
                max_context: knobs.max_context.map(Count::get),
                step_tokens: or(knobs.step_tokens, STEP_TOKENS),
                max_running: or(knobs.max_running, MAX_RUNNING),
                max_waiting: or(knobs.max_waiting, MAX_WAITING),
                max_wait: time(knobs.max_wait, MAX_WAIT),
                adapter_slots: or(knobs.adapter_slots, ADAPTER_SLOTS),
            },
            http: Http {
                listen,
                metrics_listen,
                tls: tls(knobs.tls_cert, knobs.tls_key)?,
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
            traces: Traces { endpoint: knobs.otlp_traces_endpoint },
        })
    }
}

/// As many as there are cores, where nothing else is asked for.
fn threads(asked: Option<Count>) -> Result<NonZeroUsize, ConfigError> {
    match asked {
        Some(Count(threads)) if threads.get() > MOST_THREADS => {
            Err(ConfigError::Threads { threads: threads.get() })
        }
        Some(Count(threads)) => Ok(threads),
        None => Ok(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
    }
}

/// Both files or neither.
fn tls(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
    let half = |given, missing| Err(ConfigError::HalfOfTls { given, missing });
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(_), None) => half("tls-cert", "tls-key"),
        (None, Some(_)) => half("tls-key", "tls-cert"),
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
