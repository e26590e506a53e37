//! Every option of `serve`, as it was typed, set or written.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::{Args, builder::NonEmptyStringValueParser};
use serde::Deserialize;

use super::{
    AdapterDtype, ByteSize, ConfigError, Count, Device, Endpoint, Guesses, HeaderField, Hosts,
    Kernels, KvDtype, Listen, LogFormat, LoraInfo, ModelId, Precision, Span, Switch,
};

/// A configuration file is a few hundred bytes.
const MOST_FILE_BYTES: u64 = 1 << 20;

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
    pub(super) model: Option<String>,
    /// Folder for fetched base models [default: ./models]
    #[arg(long, env = "CHORUS_MODELS_DIR", value_name = "DIR")]
    pub(super) models_dir: Option<PathBuf>,
    /// Name of the base in the API [default: the catalog's name, or the file's]
    #[arg(long, env = "CHORUS_SERVED_MODEL_NAME", value_name = "NAME")]
    pub(super) served_model_name: Option<ModelId>,
    /// Folder of PEFT adapter folders, read-only, served by folder name [default: ./adapters]
    #[arg(long, env = "CHORUS_ADAPTERS", value_name = "DIR")]
    pub(super) adapters: Option<PathBuf>,
    /// Where uploaded adapters live: a directory, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or
    /// `az://CONTAINER/PREFIX` [default: ./chorus-data]
    #[arg(long, env = "CHORUS_STORE", value_name = "DIR|URL", value_parser = NonEmptyStringValueParser::new())]
    pub(super) store: Option<String>,
    /// How long what other servers write to the store may go unseen [default: 5s]
    #[arg(long, env = "CHORUS_STORE_REFRESH", value_name = "TIME")]
    pub(super) store_refresh: Option<Span>,
    /// Folder where uploads wait until they are checked [default: the store's, or the system's
    /// temporary one]
    #[arg(long, env = "CHORUS_SPOOL", value_name = "DIR")]
    pub(super) spool: Option<PathBuf>,
    /// Folder where usage is noted until the store has it; it must outlive the process [default: journals in
    /// the store's directory, or in ./chorus-data]
    #[arg(long, env = "CHORUS_JOURNALS", value_name = "DIR")]
    pub(super) journals: Option<PathBuf>,
    /// Folder below which the operator may load adapters by their path, with vLLM's `/v1/load_lora_adapter`
    /// [default: that is off]
    #[arg(long, env = "CHORUS_LORA_ROOT", value_name = "DIR")]
    pub(super) lora_root: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:8080]
    #[arg(long, env = "CHORUS_LISTEN", value_name = "IP:PORT")]
    pub(super) listen: Option<Listen>,
    /// Address and port of a listener for scrapers: it has /metrics, /health and /ready, and nothing else
    /// [default: none; they are on the main one]
    #[arg(long, env = "CHORUS_METRICS_LISTEN", value_name = "IP:PORT")]
    pub(super) metrics_listen: Option<Listen>,
    /// Certificate that clients are shown, and those that lead from it to one they trust, as PEM; with it they are
    /// answered by TLS alone [default: none, HTTP in the clear]
    #[arg(long, env = "CHORUS_TLS_CERT", value_name = "FILE")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Its private key, as PEM [default: none, as for the certificate]
    #[arg(long, env = "CHORUS_TLS_KEY", value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,
    /// Further names, comma-separated, by which clients or a proxy may call this server in `Host`
    /// and `Origin` [default: localhost and loopback addresses]
    #[arg(long, env = "CHORUS_ALLOWED_HOSTS", value_name = "HOST,..")]
    pub(super) allowed_hosts: Option<Hosts>,
    /// Listen beyond this machine although there are no API keys
    #[arg(long, env = "CHORUS_OPEN", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) open: Option<Switch>,
    /// Let everybody who reaches this server read all of /metrics, not only the operator
    #[arg(long, env = "CHORUS_METRICS_OPEN", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) metrics_open: Option<Switch>,
    /// How /metrics lists the adapters in memory for gateways: names; digests, which tell nothing of tenants; off; or
    /// auto, names where there are no API keys and off otherwise [default: auto]
    #[arg(long, env = "CHORUS_LORA_INFO", value_name = "HOW")]
    pub(super) lora_info: Option<LoraInfo>,
    /// What computes: auto or cpu, or in a build with CUDA cuda or cuda:N for GPU N; auto is a GPU where there is one
    /// [default: auto]
    #[arg(long, env = "CHORUS_DEVICE", value_name = "DEVICE")]
    pub(super) device: Option<Device>,
    /// How a quantized base is computed: int16, in integers with inputs rounded to 16 bits; int8,
    /// rounded to 8, faster for many rows and less exact; or exact, in 32-bit floats and slower [default: int16]
    #[arg(long, env = "CHORUS_PRECISION", value_name = "PRECISION")]
    pub(super) precision: Option<Precision>,
    /// Instructions to compute with: auto, avx512, avx2 or portable; all give the same answers
    /// [default: auto]
    #[arg(long, env = "CHORUS_KERNELS", value_name = "KERNELS")]
    pub(super) kernels: Option<Kernels>,
    /// Threads that compute [default: all cores]
    #[arg(long, env = "CHORUS_THREADS", value_name = "N")]
    pub(super) threads: Option<Count>,
    /// Give the same answers in any company on a GPU as well, at the price of speed where the base is not quantized; the
    /// processor's always are
    #[arg(long, env = "CHORUS_DETERMINISTIC", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) deterministic: Option<Switch>,
    /// Memory of a GPU for adapters, which come there from adapter-cache-bytes [default: 1GiB where a GPU computes]
    #[arg(long, env = "CHORUS_DEVICE_ADAPTER_BYTES", value_name = "SIZE")]
    pub(super) device_adapter_bytes: Option<ByteSize>,
    /// Request header that names the adapter [default: X-Adapter]
    #[arg(long, env = "CHORUS_ADAPTER_HEADER", value_name = "HEADER")]
    pub(super) adapter_header: Option<HeaderField>,
    /// Memory for loaded adapters [default: 1GiB]
    #[arg(long, env = "CHORUS_ADAPTER_CACHE_BYTES", value_name = "SIZE")]
    pub(super) adapter_cache_bytes: Option<ByteSize>,
    /// Type of the adapters' low-rank matrices there: native, as they were trained; or int8, rounded
    /// to 8 bits, of which two to four times as many fit [default: native]
    #[arg(long, env = "CHORUS_ADAPTER_DTYPE", value_name = "TYPE")]
    pub(super) adapter_dtype: Option<AdapterDtype>,
    /// How long a request may wait for room in the adapter cache [default: 30s]
    #[arg(long, env = "CHORUS_ADAPTER_WAIT", value_name = "TIME")]
    pub(super) adapter_wait: Option<Span>,
    /// Requests that may wait for room in the adapter cache [default: 256]
    #[arg(long, env = "CHORUS_ADAPTER_LINE", value_name = "N")]
    pub(super) adapter_line: Option<Count>,
    /// Different adapters that may run at once [default: 64]
    #[arg(long, env = "CHORUS_ADAPTER_SLOTS", value_name = "N")]
    pub(super) adapter_slots: Option<Count>,
    /// Highest rank an adapter may have [default: 512]
    #[arg(long, env = "CHORUS_MAX_RANK", value_name = "N")]
    pub(super) max_rank: Option<Count>,
    /// Memory for keys and values, at most what max-running full contexts need [default: 512MiB]
    #[arg(long, env = "CHORUS_KV_BYTES", value_name = "SIZE")]
    pub(super) kv_bytes: Option<ByteSize>,
    /// Type of keys and values: f16; f32; int8, half the memory of f16; or auto, f32 with exact
    /// precision and f16 otherwise [default: auto]
    #[arg(long, env = "CHORUS_KV_DTYPE", value_name = "TYPE")]
    pub(super) kv_dtype: Option<KvDtype>,
    /// Keep computed prefixes in memory for keys and values that nothing else needs, so that requests
    /// which begin alike are computed from where they differ [default: true]
    #[arg(long, env = "CHORUS_PREFIX_CACHE", value_name = "true|false")]
    pub(super) prefix_cache: Option<Switch>,
    /// Most tokens of an answer that are guessed in a step from what it and its adapter said before, and computed beside the
    /// next one: faster where they are right, and never another answer; 0 for none [default: 7]
    #[arg(long, env = "CHORUS_GUESS_TOKENS", value_name = "N")]
    pub(super) guess_tokens: Option<Guesses>,
    /// Most tokens of prompt and answer together [default: the model's own context]
    #[arg(long, env = "CHORUS_MAX_CONTEXT", value_name = "N")]
    pub(super) max_context: Option<Count>,
    /// Most tokens computed in one step [default: 256]
    #[arg(long, env = "CHORUS_STEP_TOKENS", value_name = "N")]
    pub(super) step_tokens: Option<Count>,
    /// Requests that run at once [default: 64]
    #[arg(long, env = "CHORUS_MAX_RUNNING", value_name = "N")]
    pub(super) max_running: Option<Count>,
    /// Requests that may wait to run; further ones get 503 [default: 256]
    #[arg(long, env = "CHORUS_MAX_WAITING", value_name = "N")]
    pub(super) max_waiting: Option<Count>,
    /// How long a request may have to wait to run, as far as can be told; further ones get 503 at once [default: 30s]
    #[arg(long, env = "CHORUS_MAX_WAIT", value_name = "TIME")]
    pub(super) max_wait: Option<Span>,
    /// Longest a request may take [default: 10m]
    #[arg(long, env = "CHORUS_REQUEST_TIMEOUT", value_name = "TIME")]
    pub(super) request_timeout: Option<Span>,
    /// How long running answers may go on after SIGTERM [default: 30s]
    #[arg(long, env = "CHORUS_DRAIN_TIME", value_name = "TIME")]
    pub(super) drain_time: Option<Span>,
    /// Most tokens of an answer where the request does not say; of text completions 16 [default: 1024]
    #[arg(long, env = "CHORUS_CHAT_TOKENS", value_name = "N")]
    pub(super) chat_tokens: Option<Count>,
    /// Connections at once; further ones wait to be accepted [default: 4096]
    #[arg(long, env = "CHORUS_MAX_CONNECTIONS", value_name = "N")]
    pub(super) max_connections: Option<Count>,
    /// Largest request body [default: 8MiB]
    #[arg(long, env = "CHORUS_MAX_BODY_BYTES", value_name = "SIZE")]
    pub(super) max_body_bytes: Option<ByteSize>,
    /// What is logged: error, warn, info, debug or trace, for all or by module [default: info]
    #[arg(long, env = "CHORUS_LOG", value_name = "FILTER", value_parser = NonEmptyStringValueParser::new())]
    pub(super) log: Option<String>,
    /// How logs look [default: pretty]
    #[arg(long, env = "CHORUS_LOG_FORMAT", value_name = "FORMAT")]
    pub(super) log_format: Option<LogFormat>,
    /// Where spans of requests are sent, by OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`
    /// [default: nowhere, no spans are made]
    #[arg(long, env = "CHORUS_OTLP_TRACES_ENDPOINT", value_name = "URL")]
    pub(super) otlp_traces_endpoint: Option<Endpoint>,
}

impl Knobs {
    /// These knobs, and where one was left alone, the other's.
    pub(super) fn or(self, under: Self) -> Self {
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
            tls_cert: self.tls_cert.or(under.tls_cert),
            tls_key: self.tls_key.or(under.tls_key),
            allowed_hosts: self.allowed_hosts.or(under.allowed_hosts),
            open: self.open.or(under.open),
            metrics_open: self.metrics_open.or(under.metrics_open),
            lora_info: self.lora_info.or(under.lora_info),
            prefix_cache: self.prefix_cache.or(under.prefix_cache),
            guess_tokens: self.guess_tokens.or(under.guess_tokens),
            device: self.device.or(under.device),
            deterministic: self.deterministic.or(under.deterministic),
            device_adapter_bytes: self.device_adapter_bytes.or(under.device_adapter_bytes),
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
            max_wait: self.max_wait.or(under.max_wait),
            request_timeout: self.request_timeout.or(under.request_timeout),
            drain_time: self.drain_time.or(under.drain_time),
            chat_tokens: self.chat_tokens.or(under.chat_tokens),
            max_connections: self.max_connections.or(under.max_connections),
            max_body_bytes: self.max_body_bytes.or(under.max_body_bytes),
            log: self.log.or(under.log),
            log_format: self.log_format.or(under.log_format),
            otlp_traces_endpoint: self.otlp_traces_endpoint.or(under.otlp_traces_endpoint),
        }
    }

    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
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
