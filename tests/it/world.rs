//! What tests stand on: fixtures, and a model driven by hand.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
};

use chorus::{
    catalog::{HubAccess, Progress},
    kernels::{linear::Precision, simd::Tier},
    lora::{Adapter, Base, BuildError, Digest, Limits, LoraBatch, Matrices, peft},
    model::{Kv, KvType, Llama, Outputs, PAGE, SequenceRows, Step},
};
use serde_json::Value;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub(crate) fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

pub(crate) fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let mut folders: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

pub(crate) fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// The instructions that are tested: `CHORUS_KERNELS`, as servers have it from there too, or the best.
#[expect(clippy::disallowed_methods, reason = "a test's own setting, and the server's")]
pub(crate) fn tier() -> Tier {
    let asked = std::env::var("CHORUS_KERNELS").ok();
    let asked = asked.filter(|asked| asked != "auto");
    let is_asked = |tier: &Tier| asked.as_ref().is_none_or(|asked| tier.to_string() == *asked);
    Tier::available().into_iter().find(is_asked).expect("the processor has what is asked for")
}

/// Loads a base that computes in `f32`, as references did.
pub(crate) fn load(path: &Path) -> Llama {
    Llama::load(path, tier(), 2, Precision::Exact).unwrap_or_else(|why| panic!("{why}"))
}

/// Reads and builds a PEFT folder, and checks that it is as large as it was said to be.
pub(crate) fn adapter(
    folder: &Path,
    base: &Llama,
    matrices: Matrices,
) -> Result<Arc<Adapter>, BuildError> {
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let manifest = peft::read(&config, &weights, base.sites(), &Limits::default())?;
    let planned = Adapter::planned_memory(&manifest, base.sites());
    let adapter = Adapter::build(Digest::of(&config, &weights), &manifest, base, matrices)?;
    assert_eq!(planned.of(matrices), adapter.bytes(), "{}", folder.display());
    assert!(planned.int8 < planned.native, "{}", folder.display());
    Ok(Arc::new(adapter))
}

/// One sequence through the network, by hand.
pub(crate) struct Solo<'a> {
    llama: &'a Llama,
    kv: Kv,
    pages: Vec<u32>,
    adapter: Option<Arc<Adapter>>,
    computed: usize,
}

impl<'a> Solo<'a> {
    pub(crate) fn new(llama: &'a Llama, adapter: Option<Arc<Adapter>>, most: usize) -> Self {
        let pages = most.div_ceil(PAGE);
        let kv = Kv::new(llama.spec(), KvType::F32, pages, &candle_core::Device::Cpu).unwrap();
        let pages = (0..u32::try_from(pages).unwrap()).rev().collect();
        Self { llama, kv, pages, adapter, computed: 0 }
    }

    /// Logits after each of `tokens`.
    pub(crate) fn feed(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.feed_for(tokens, &(0..u32::try_from(tokens.len()).unwrap()).collect::<Vec<_>>())
    }

    /// Logits after those of `tokens` whose places are in `sample`.
    pub(crate) fn feed_for(&mut self, tokens: &[u32], sample: &[u32]) -> Vec<Vec<f32>> {
        self.feed_for_both(tokens, sample, &[]).0
    }

    /// And hidden states of those whose places are in `pool`.
    pub(crate) fn feed_for_both(
        &mut self,
        tokens: &[u32],
        sample: &[u32],
        pool: &[u32],
    ) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let rows = 0..tokens.len();
        let groups = self.adapter.iter().map(|adapter| (rows.clone(), Arc::clone(adapter)));
        let step = Step {
            tokens,
            sequences: &[SequenceRows {
                rows: rows.clone(),
                position: self.computed,
                pages: &self.pages,
            }],
            lora: &LoraBatch::new(groups.collect()),
            sample,
            pool,
        };
        self.computed += tokens.len();
        let Outputs { logits, states } = self.llama.forward(&step, &mut self.kv).unwrap();
        (logits.to_vec2().unwrap(), states.to_vec2().unwrap())
    }
}

/// Natural log-probabilities.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    logits.iter().map(|logit| f64::from(*logit) - max - sum.ln()).collect()
}

/// The greatest logit, the lowest token among equals.
pub(crate) fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().rev().max_by(|(_, a), (_, b)| a.total_cmp(b));
    u32::try_from(best.unwrap().0).unwrap()
}

/// The default base, fetched once into the project's own models folder.
pub(crate) fn base_gguf() -> PathBuf {
    static PULLED: OnceLock<PathBuf> = OnceLock::new();
    PULLED
        .get_or_init(|| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
            let entry = chorus::catalog::find(chorus::catalog::DEFAULT).unwrap();
            let pulled = move || {
                let pull = chorus::catalog::pull(entry, &folder, HubAccess::Allowed, &Quiet);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(pull).unwrap_or_else(|why| panic!("the base: {why}"))
            };
            // On a thread of its own, because the test's may already drive a runtime.
            std::thread::spawn(pulled).join().unwrap()
        })
        .clone()
}

struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &str, _: u64) {}
    fn at(&self, _: u64) {}
    fn note(&self, _: &str) {}
}

/// The example adapters that the project ships.
pub(crate) fn shipped_adapters() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters")
}

/// A `chorus serve` of its own, on a port of its own; ends with the value.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    /// What it printed until it was ready.
    pub(crate) plan: String,
    pub(crate) client: reqwest::Client,
    /// Its own, where none was given.
    _store: Option<tempfile::TempDir>,
}

impl Server {
    /// Serves the default base with these arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_on(&base_gguf(), chorus::catalog::DEFAULT, arguments)
    }

    /// Serves a base under a name, on the device that `CHORUS_TEST_DEVICE` names.
    pub(crate) fn start_on(base: &Path, id: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chorus"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--served-model-name", id]);
        command.arg("--model").arg(base);
        #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
        if let Ok(device) = std::env::var("CHORUS_TEST_DEVICE") {
            command.args(["--device", &device]);
        }
        if !arguments.contains(&"--adapters") {
            command.arg("--adapters").arg(shipped_adapters());
        }
        let store = (!arguments.contains(&"--store")).then(|| tempfile::tempdir().unwrap());
        if let Some(store) = &store {
            command.arg("--store").arg(store.path());
        }
        if !arguments.contains(&"--log") {
            command.args(["--log", "error"]);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut plan = String::new();
        let mut url = None;
        while url.is_none() {
            let line = lines.next().unwrap_or_else(|| panic!("it ended after:\n{plan}")).unwrap();
            url = line.strip_prefix("  address").map(|address| address.trim().to_owned());
            plan.push_str(&line);
            plan.push('\n');
        }
        // Whatever else it prints must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url: url.unwrap(), plan, client: reqwest::Client::new(), _store: store }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).json(body).send().await.unwrap()
    }

    /// The answer, which must be one.
    pub(crate) async fn answer(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{status}: {text}\nfor {body}");
        serde_json::from_str(&text).unwrap()
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let response = self.client.get(format!("{}/metrics", self.url)).send().await.unwrap();
        let text = response.text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    /// Bytes of the process that are in memory (`VmRSS`).
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
