//! What gateways ask of each server of a pool to decide which one gets a request, under the names that vLLM has for it: those of
//! the Gateway API Inference Extension and llm-d read them without being told anything.
//!
//! There is one series of adapters. Its labels change with what is in memory and its value is when they last did, so that
//! whoever has read several takes the newest.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet},
    metrics::MetricType,
};

use super::{app::LoraInfo, generator::Generator, metrics::Detail};
use crate::{
    adapter::{Adapters, Census, Digest},
    engine::PAGE,
    tenant::Tenants,
};

/// The most adapters that a label lists; there are never said to be more places than that, or a gateway would take a full
/// server for one with room.
const MOST_LISTED: usize = 256;
/// Hexadecimal digits of a digest that tell adapters apart.
const DIGITS: usize = 12;

/// The queue, what runs, and the memory for keys and values.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) generator: Arc<dyn Generator>,
    pub(super) adapters: Adapters,
}

impl Collector for Load {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.generator.stats();
        // To a gateway it makes no difference what a request waits for.
        let waiting = stats.waiting + self.adapters.stats().waiting;
        for (name, help, value) in [
            ("vllm:num_requests_waiting", "Requests waiting to run, or for an adapter", waiting),
            ("vllm:num_requests_running", "Sequences being computed", stats.running),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&(value as u64))?;
        }
        let used = stats.pages_total.saturating_sub(stats.pages_free);
        let usage = used as f64 / stats.pages_total.max(1) as f64;
        let (name, help) = ("vllm:kv_cache_usage_perc", "Part of the KV pages in use, from 0 to 1");
        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&usage)?;
        let (name, help) =
            ("vllm:cache_config_info", "Tokens of a KV page, and how many there are");
        let pages =
            [("block_size", PAGE.to_string()), ("num_gpu_blocks", stats.pages_total.to_string())];
        let mut info = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        info.encode_family(&pages)?.encode_gauge(&1_u64)
    }
}

/// The adapters, for those who may see so much.
#[derive(Debug)]
pub(super) struct Loras {
    adapters: Adapters,
    tenants: Tenants,
    shown: LoraInfo,
    detail: Detail,
    /// As they were shown last, and since when they have been so.
    last: Mutex<Option<(Labels, f64)>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    max_lora: u64,
    running_lora_adapters: String,
    waiting_lora_adapters: String,
}

/// What adapters are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    /// As requests name them.
    Names,
    /// By what they are, which tells nothing of whose they are.
    Digests,
}

impl Loras {
    /// Shows them beside everything else of this `detail`, as the operator wants it.
    pub(super) fn new(
        (adapters, tenants): (Adapters, Tenants),
        shown: LoraInfo,
        detail: Detail,
    ) -> Self {
        Self { adapters, tenants, shown, detail, last: Mutex::default() }
    }

    /// What they are called where so much detail is shown; `None` where they are not shown.
    fn called(&self) -> Option<Called> {
        let called = match self.shown {
            LoraInfo::Auto if self.tenants.are_open() => Called::Names,
            LoraInfo::Auto | LoraInfo::Off => return None,
            LoraInfo::Names => Called::Names,
            LoraInfo::Digests => Called::Digests,
        };
        // Each is shown once: what is named is not part of what names nobody.
        let detail = match called {
            Called::Names => Detail::Named,
            Called::Digests => Detail::Unnamed,
        };
        (detail == self.detail).then_some(called)
    }

    fn labels(&self, called: Called) -> Labels {
        let Census { mut resident, mut awaited, room } = self.adapters.census();
        resident.truncate(MOST_LISTED);
        awaited.truncate(MOST_LISTED);
        Labels {
            max_lora: room.min(MOST_LISTED) as u64,
            running_lora_adapters: self.list(called, &resident),
            waiting_lora_adapters: self.list(called, &awaited),
        }
    }

    /// In alphabetical order: which of them was used last makes no new series.
    fn list(&self, called: Called, digests: &[Digest]) -> String {
        let listed: BTreeSet<String> = match called {
            Called::Digests => digests.iter().map(short).collect(),
            Called::Names => {
                let mut ids = self.adapters.ids(digests);
                let named = digests.iter().filter_map(|digest| ids.remove(digest));
                named.flatten().take(MOST_LISTED).collect()
            }
        };
        listed.into_iter().collect::<Vec<_>>().join(",")
    }
}

/// Enough of a digest to tell adapters apart.
pub(super) fn short(digest: &Digest) -> String {
    format!("{digest}")[..DIGITS].to_owned()
}

impl Collector for Loras {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(called) = self.called() else { return Ok(()) };
        let labels = self.labels(called);
        let since = {
            let mut last = self.last.lock().expect("nothing that is done under it panics");
            match &*last {
                Some((shown, since)) if *shown == labels => *since,
                _ => last.insert((labels.clone(), now())).1,
            }
        };
        let help = "Adapters in memory and waited for, and when that last changed";
        let name = "vllm:lora_requests_info";
        let mut info = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        info.encode_family(&labels)?.encode_gauge(&since)
    }
}

/// In unix seconds.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
