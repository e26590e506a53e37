//! What a server is about to do, printed once before it does it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use crate::{
    catalog::Checksum,
    config::{AdapterDtype, ByteSize},
};

/// The plan. Printing it is all that can be done with it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) device: Device,
    pub(crate) base: Base,
    pub(crate) kv: Kv,
    pub(crate) adapters: Adapters,
    /// Where uploads go.
    pub(crate) store: Place,
    /// How many there are; `None` where there are no keys.
    pub(crate) tenants: Option<usize>,
    /// `http`, or `https`.
    pub(crate) scheme: &'static str,
    pub(crate) address: SocketAddr,
    /// Where scrapers have a listener of their own.
    pub(crate) metrics: Option<SocketAddr>,
}

/// What computes.
#[derive(Debug)]
pub(crate) enum Device {
    Processor {
        /// Threads that compute.
        threads: usize,
        /// Name of the instructions that kernels use.
        tier: String,
        /// How products with a quantized base are computed.
        precision: &'static str,
    },
    #[cfg(feature = "cuda")]
    Gpu {
        name: String,
        /// What products take.
        precision: &'static str,
        /// In which order they are summed, where that is fixed.
        products: &'static str,
        memory: crate::model::gpu::Plan,
        /// Bytes that are free now.
        free: usize,
    },
}

/// Where a store is.
#[derive(Debug)]
pub(crate) enum Place {
    /// There was one.
    Known(String),
    /// There was none, so that it has been made.
    New(String),
}

/// The base model.
#[derive(Debug)]
pub(crate) struct Base {
    /// Its id in the API.
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    /// For people: `GGUF, Q4_1`.
    pub(crate) format: String,
    /// On disk.
    pub(crate) bytes: u64,
    /// Loaded.
    pub(crate) memory: u64,
    pub(crate) checksum: Checksum,
    /// Why its context is no longer, where that is its rotary embedding's doing.
    pub(crate) horizon: Option<String>,
}

/// Memory for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) pages: usize,
    /// Tokens of one page.
    pub(crate) page_tokens: usize,
    /// Bytes of one page.
    pub(crate) page_bytes: u64,
    /// Most tokens of one sequence.
    pub(crate) context: usize,
}

/// The adapters' folder and the memory for them.
#[derive(Debug)]
pub(crate) struct Adapters {
    pub(crate) folder: PathBuf,
    pub(crate) budget: ByteSize,
    /// What their matrices are kept in.
    pub(crate) dtype: AdapterDtype,
    /// The request header that chooses one.
    pub(crate) header: String,
    pub(crate) found: Vec<Found>,
    pub(crate) refused: Vec<Refused>,
}

/// An adapter that is served.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// Its largest.
    pub(crate) rank: usize,
    /// In memory, once loaded.
    pub(crate) bytes: u64,
}

/// A folder that is not served.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) folder: String,
    pub(crate) why: String,
}

impl Kv {
    /// How many tokens fit.
    pub(crate) fn tokens(self) -> usize {
        self.pages * self.page_tokens
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processor { threads, tier, precision } => {
                writeln!(f, "  device    cpu, {threads} threads, {tier} kernels, {precision}")
            }
            #[cfg(feature = "cuda")]
            Self::Gpu { name, precision, products, memory, free } => {
                writeln!(f, "  device    {name}, {precision}{products}")?;
                let size = |bytes: usize| ByteSize(bytes as u64);
                let (total, free) = (size(memory.total()), size(*free));
                writeln!(
                    f,
                    "            {total} of {free} free: base {}, keys and values {}, adapters {} and their tables {}, steps {}, left to the driver {}",
                    size(memory.base),
                    size(memory.kv),
                    size(memory.adapters),
                    size(memory.tables),
                    size(memory.step),
                    size(memory.driver)
                )
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, base, kv, .. } = self;
        writeln!(f, "chorus {}", env!("CARGO_PKG_VERSION"))?;
        write!(f, "{device}")?;
        writeln!(f, "  base      {}: {}", base.id, base.path.display())?;
        let (bytes, memory) = (ByteSize(base.bytes), ByteSize(base.memory));
        writeln!(f, "            {}, {bytes} on disk, {memory} in memory", base.format)?;
        writeln!(f, "            sha256 {}", base.checksum)?;
        writeln!(f, "  context   {} tokens", kv.context)?;
        if let Some(horizon) = &base.horizon {
            writeln!(f, "            {horizon}")?;
        }
        let bytes = ByteSize(kv.pages as u64 * kv.page_bytes);
        let (pages, size, tokens) = (kv.pages, kv.page_tokens, kv.tokens());
        writeln!(f, "  kv        {bytes}: {pages} pages of {size} tokens, {tokens} tokens in all")?;
        write!(f, "{}", self.adapters)?;
        writeln!(f, "  store     {}", self.store)?;
        match self.tenants {
            None => writeln!(f, "  tenants   none: no keys are asked for")?,
            Some(count) => writeln!(f, "  tenants   {count}, with keys")?,
        }
        if let Some(metrics) = self.metrics {
            writeln!(f, "  metrics   http://{metrics}/metrics")?;
        }
        writeln!(f, "  address   {}://{}", self.scheme, self.address)?;
        writeln!(f, "\nTry it:\n{}", self.curl())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(place) => f.write_str(place),
            Self::New(place) => {
                writeln!(f, "{place}")?;
                write!(
                    f,
                    "            new: there was none; if one should be there, is its volume mounted?"
                )
            }
        }
    }
}

impl fmt::Display for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { folder, budget, dtype, found, refused, .. } = self;
        let all = ByteSize(found.iter().map(|adapter| adapter.bytes).sum());
        let (count, folder) = (found.len(), folder.display());
        let loaded = match dtype {
            AdapterDtype::Native => "loaded",
            AdapterDtype::Int8 => "loaded as int8",
        };
        writeln!(
            f,
            "  adapters  {count} in {folder}, {all} when all are {loaded}; budget {budget}"
        )?;
        for Found { name, rank, bytes } in found {
            writeln!(f, "            {name:<16} rank {rank:<4} {}", ByteSize(*bytes))?;
        }
        for Refused { folder, why } in refused {
            // Both may hold what an attacker chose: no control characters on an operator's screen.
            let (folder, why) = (folder.escape_debug(), why.replace(char::is_control, " "));
            writeln!(f, "  refused   {folder}: {why}")?;
        }
        Ok(())
    }
}

impl Plan {
    /// A command line that works when it is pasted on this machine.
    fn curl(&self) -> String {
        let found = &self.adapters.found;
        // Of the examples that come with chorus the one whose answer anybody hears the difference in.
        let shown = found.iter().find(|adapter| adapter.name == "pirate").or(found.first());
        let header = match shown {
            // The folder's are the default tenant's; whose key it will be is not known.
            _ if self.tenants.is_some() => {
                " \\\n    -H \"Authorization: Bearer $CHORUS_KEY\"".to_owned()
            }
            Some(adapter) => format!(" \\\n    -H '{}: {}'", self.adapters.header, adapter.name),
            None => String::new(),
        };
        let (address, id) = (self.reachable(), quoted(&self.base.id));
        format!(
            "  curl -s {address}/v1/chat/completions -H 'Content-Type: application/json'\
             {header} \\\n    -d '{{\"model\": {id}, \"max_tokens\": 48, \"messages\": \
             [{{\"role\": \"user\", \"content\": \"How do I cook rice?\"}}]}}'"
        )
    }

    /// The URL by which this machine reaches it. A certificate is for a name.
    fn reachable(&self) -> String {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let (scheme, port) = (self.scheme, self.address.port());
        if scheme == "https" && ip.is_loopback() {
            return format!("{scheme}://localhost:{port}");
        }
        format!("{scheme}://{}", SocketAddr::new(ip, port))
    }
}

/// A JSON string that may stand between the single quotes of a shell.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\'', "\\u0027")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            device: Device::Processor {
                threads: 2,
                tier: "avx512".into(),
                precision: "16-bit inputs",
            },
            base: Base {
                id: "tiny".into(),
                path: "models/tiny.gguf".into(),
                format: "GGUF, Q4_1".into(),
                bytes: 98_362_432,
                memory: 1 << 27,
                checksum: Checksum::from([0xab; 32]),
                horizon: None,
            },
            kv: Kv { pages: 64, page_tokens: 16, page_bytes: 1 << 20, context: 512 },
            adapters: Adapters {
                folder: "adapters".into(),
                budget: ByteSize(1 << 30),
                dtype: AdapterDtype::Native,
                header: "X-Adapter".into(),
                found: vec![Found { name: "pirate".into(), rank: 8, bytes: 1 << 20 }],
                refused: vec![Refused {
                    folder: "red\u{1b}[31m".into(),
                    why: "r is 0\nand more".into(),
                }],
            },
            store: Place::Known("s3://bucket".into()),
            tenants: None,
            scheme: "http",
            address: ([0, 0, 0, 0], 8080).into(),
            metrics: None,
        }
    }

    #[test]
    fn where_keys_are_asked_for_the_line_to_paste_has_one() {
        let open = plan();
        assert!(!open.to_string().contains("CHORUS_KEY"));
        let closed = Plan { tenants: Some(2), ..plan() }.to_string();
        assert!(closed.contains("-H \"Authorization: Bearer $CHORUS_KEY\""), "{closed}");
        assert!(closed.contains("tenants   2, with keys"), "{closed}");
    }

    #[test]
    fn a_store_that_was_not_there_is_told_from_one_that_was() {
        let known = plan().to_string();
        assert!(known.contains("store     s3://bucket\n") && !known.contains("new:"), "{known}");
        let new = Plan { store: Place::New("/data".into()), ..plan() }.to_string();
        assert!(new.contains("store     /data\n            new: there was none"), "{new}");
    }

    #[test]
    fn the_plan_says_what_is_there_and_what_is_not() {
        let shown = plan().to_string();
        for part in [
            "cpu, 2 threads, avx512 kernels, 16-bit inputs",
            "tiny: models/tiny.gguf",
            "GGUF, Q4_1, 93.8 MiB on disk, 128.0 MiB in memory",
            "sha256 abab",
            "512 tokens",
            "64.0 MiB: 64 pages of 16 tokens, 1024 tokens in all",
            "1 in adapters, 1.0 MiB when all are loaded; budget 1.0 GiB",
            "pirate           rank 8    1.0 MiB",
            "refused   red\\u{1b}[31m: r is 0 and more",
            "http://0.0.0.0:8080",
        ] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
    }

    #[test]
    fn where_scrapers_are_listened_for_the_plan_says_so() {
        assert!(!plan().to_string().contains("/metrics"));
        let shown = Plan { metrics: Some(([10, 0, 0, 1], 9).into()), ..plan() }.to_string();
        assert!(shown.contains("\n  metrics   http://10.0.0.1:9/metrics\n"), "{shown}");
    }

    #[test]
    fn a_base_whose_positions_end_says_why() {
        let mut plan = plan();
        plan.base.horizon = Some("beyond 512 tokens it is another one".into());
        let shown = plan.to_string();
        let lines = "context   512 tokens\n            beyond 512 tokens it is another one\n";
        assert!(shown.contains(lines), "{shown}");
    }

    #[test]
    fn where_matrices_are_rounded_the_plan_says_so() {
        let mut plan = plan();
        plan.adapters.dtype = AdapterDtype::Int8;
        let shown = plan.to_string();
        assert!(shown.contains("1.0 MiB when all are loaded as int8; budget 1.0 GiB"), "{shown}");
    }

    #[test]
    fn where_tls_is_spoken_the_line_to_paste_asks_for_the_name() {
        let shown = Plan { scheme: "https", ..plan() }.to_string();
        assert!(shown.contains("address   https://0.0.0.0:8080\n"), "{shown}");
        assert!(shown.contains("curl -s https://localhost:8080/v1/chat/completions"), "{shown}");
    }

    #[test]
    fn the_curl_line_asks_an_adapter_where_there_is_one() {
        let mut plan = plan();
        let line = plan.curl();
        assert!(line.contains("http://127.0.0.1:8080/v1/chat/completions"), "{line}");
        assert!(line.contains("-H 'X-Adapter: pirate'"), "{line}");
        let body = line.split_once("-d '").unwrap().1.strip_suffix('\'').unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], "tiny");
        plan.adapters.found.clear();
        assert!(!plan.curl().contains("X-Adapter"));
    }

    #[test]
    fn a_quote_in_the_models_name_does_not_end_the_argument() {
        assert_eq!(quoted("it's"), r#""it\u0027s""#);
    }
}
