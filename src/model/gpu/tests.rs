//! A network on a device made of the host, against the network of the CPU.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::*;
use crate::{
    kernels::{
        cuda::{Half, Host},
        linear::Precision,
        simd::Tier,
    },
    lora::{LoraBatch, Matrices, Sites, peft},
    model::{Kv, KvType, Outputs, SequenceRows},
};

/// Sequences of a world, and the pages of each.
const SEQUENCES: usize = 6;
const PAGES: usize = 5;
/// Rows of a step, at most.
const ROWS: usize = 80;

fn size() -> Size {
    Size {
        pages: SEQUENCES * PAGES,
        context: PAGES * PAGE,
        rows: ROWS,
        sequences: SEQUENCES,
        scored: ROWS,
        parts: 3,
        rank: 64,
        adapter_bytes: 4 << 20,
        products: Products::Fastest,
    }
}

/// A device that tests run on.
trait TestGpu: Gpu {
    /// Fails where something was written that nobody may write, as far as it can be told.
    fn check(&self);
}

impl TestGpu for Host {
    fn check(&self) {
        Self::check(self);
    }
}

/// The same base on both sides, with the same pages.
struct World<G: Gpu> {
    llama: Arc<Llama>,
    kv: Kv,
    gpu: Arc<G>,
    network: Network<G>,
    /// Positions of each sequence that were computed.
    computed: [usize; SEQUENCES],
}

/// A base on a device of the host, for the engine's tests.
pub(crate) struct TestDevice {
    llama: Arc<Llama>,
    gpu: Arc<Host>,
    size: Size,
}

impl TestDevice {
    /// With so many bytes for adapters.
    pub(crate) fn new(
        base: &Path,
        adapter_bytes: usize,
        settings: &crate::engine::Settings,
    ) -> Self {
        let llama = Llama::load(base, Tier::available()[0], 1, Precision::Exact).unwrap();
        let size = Size {
            pages: settings.pages,
            context: settings.context,
            rows: settings.step_tokens,
            sequences: settings.max_running,
            scored: 8,
            adapter_bytes,
            ..size()
        };
        Self { llama: Arc::new(llama), gpu: Arc::new(Host::new(1 << 30)), size }
    }

    pub(crate) fn llama(&self) -> &Arc<Llama> {
        &self.llama
    }

    pub(crate) fn gpu(&self) -> &Arc<Host> {
        &self.gpu
    }

    pub(crate) fn network(&self) -> Network<Host> {
        Network::new(Arc::clone(&self.gpu), Arc::clone(&self.llama), self.size).unwrap()
    }
}

/// Rows of one sequence.
struct Part<'a> {
    sequence: usize,
    tokens: &'a [u32],
    adapter: Option<&'a Arc<Adapter>>,
}

impl<G: TestGpu> World<G> {
    fn new(gpu: &Arc<G>, base: &Path, size: Size) -> Self {
        let llama = Llama::load(base, Tier::available()[0], 1, Precision::Exact).unwrap();
        let llama = Arc::new(llama);
        let network = Network::new(Arc::clone(gpu), Arc::clone(&llama), size).unwrap();
        let kv = Kv::new(llama.spec(), KvType::F32, size.pages, &Device::Cpu).unwrap();
        Self { llama, kv, gpu: Arc::clone(gpu), network, computed: [0; SEQUENCES] }
    }

    /// The pages of a sequence, in no order.
    fn pages(sequence: usize) -> Vec<u32> {
        let page = |page: usize| u32::try_from((page * 7 + 3) % PAGES * SEQUENCES + sequence);
        (0..PAGES).map(|at| page(at).unwrap()).collect()
    }

    /// A step on both sides, which must agree: the device's logits of all rows. Of prompts, hidden states are asked for besides; of
    /// answers, whose rows want no more, the greedy token once more.
    fn both(&mut self, parts: &[Part<'_>], what: &str) -> Vec<f32> {
        let pages: Vec<_> = parts.iter().map(|part| Self::pages(part.sequence)).collect();
        let (mut tokens, mut sequences, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        for (part, pages) in parts.iter().zip(&pages) {
            let rows = tokens.len()..tokens.len() + part.tokens.len();
            tokens.extend_from_slice(part.tokens);
            let computed = &mut self.computed[part.sequence];
            let used = (*computed + rows.len()).div_ceil(PAGE);
            sequences.push(SequenceRows {
                rows: rows.clone(),
                position: *computed,
                pages: &pages[..used],
            });
            *computed += rows.len();
            groups.extend(part.adapter.map(|adapter| (rows, Arc::clone(adapter))));
        }
        let all: Vec<u32> = (0..u32::try_from(tokens.len()).unwrap()).collect();
        let pool: Vec<u32> = if tokens.len() > parts.len() {
            all.iter().copied().step_by(3).collect()
        } else {
            Vec::new()
        };
        let lora = LoraBatch::new(groups);
        let step =
            Step { tokens: &tokens, sequences: &sequences, lora: &lora, sample: &all, pool: &pool };
        let Outputs { logits, states } = self.llama.forward(&step, &mut self.kv).unwrap();
        let computed = self.network.forward(&step, &[]).unwrap();
        let flat = |tensor: &candle_core::Tensor| -> Vec<f32> {
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let (noise, spec) = (noise(base::half_of(&self.llama)), self.llama.spec());
        assert_close((&computed.states, &flat(&states)), (spec.hidden, noise), what);
        assert_close((&computed.logits, &flat(&logits)), (spec.vocab, noise), what);
        if pool.is_empty() {
            // Computed again, they leave the same keys and values.
            let greedy = self.network.forward(&Step { sample: &[], ..step }, &all).unwrap();
            assert_eq!((greedy.logits.len(), greedy.states.len()), (0, 0));
            for (row, token) in computed.logits.chunks(spec.vocab).zip(greedy.greedy) {
                let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let first = row.iter().position(|logit| *logit >= best).unwrap();
                assert_eq!(token, Some(u32::try_from(first).unwrap()), "{what}");
            }
        }
        self.gpu.check();
        computed.logits
    }
}

/// What 16-bit inputs of products may change of a row, by its length.
fn noise(half: Half) -> f64 {
    match half {
        Half::F16 => 0.006,
        Half::BF16 => 0.04,
    }
}

/// Holds rows of `width` numbers against each other.
#[track_caller]
fn assert_close((got, want): (&[f32], &[f32]), (width, noise): (usize, f64), what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let length =
        |row: &mut dyn Iterator<Item = f32>| row.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let off = length(&mut got.iter().zip(want).map(|(got, want)| got - want));
        let off = off / length(&mut want.iter().copied());
        assert!(off <= noise, "{what}, row {row}: off by {off}");
    }
}

pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models")
}

/// An adapter of a fixture, where it is one that is served.
fn adapter(folder: &Path, llama: &Llama, matrices: Matrices) -> Option<Arc<Adapter>> {
    use crate::lora::Base as _;
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let sites: &Sites = llama.sites();
    let manifest = peft::read(&config, &weights, sites, &crate::lora::Limits::default()).ok()?;
    // A server has each adapter in one form.
    let digest = Digest::of(&config, format!("{matrices:?}, {}", folder.display()).as_bytes());
    Adapter::build(digest, &manifest, llama, matrices).ok().map(Arc::new)
}

/// All adapters of a fixture that are served.
pub(crate) fn adapters(base: &Path, llama: &Llama) -> Vec<(String, Arc<Adapter>)> {
    adapters_in(base, llama, Matrices::Native)
}

fn adapters_in(base: &Path, llama: &Llama, matrices: Matrices) -> Vec<(String, Arc<Adapter>)> {
    let mut folders: Vec<_> =
        std::fs::read_dir(base.join("adapters")).unwrap().map(|one| one.unwrap().path()).collect();
    folders.sort();
    let named = |folder: PathBuf| {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        Some((name, adapter(&folder, llama, matrices)?))
    };
    folders.into_iter().filter_map(named).collect()
}

/// Tokens of a seed.
fn tokens(seed: u32, count: usize) -> Vec<u32> {
    (0..u32::try_from(count).unwrap()).map(|at| (seed * 37 + at * at * 11 + at) % 197).collect()
}

/// One after the other: a prompt, then answers, which are captured the first time and replayed from there on.
fn in_one_batch<G: TestGpu>(world: &mut World<G>, of: [Option<&Arc<Adapter>>; 3], what: &str) {
    world.computed = [0; SEQUENCES];
    let prompts = [tokens(1, 9), tokens(2, 5), tokens(1, 9)];
    // The base's rows are first.
    let parts = [1, 0, 2].map(|at| Part { sequence: at, tokens: &prompts[at], adapter: of[at] });
    world.both(&parts, what);
    for turn in 0..3 {
        let next = [tokens(turn, 1), tokens(turn + 5, 1), tokens(turn, 1)];
        let parts = [1, 0, 2].map(|at| Part { sequence: at, tokens: &next[at], adapter: of[at] });
        world.both(&parts, &format!("{what}, answer {turn}"));
    }
}

/// A base with each of the adapters, in one batch with base rows and with another one.
fn adapters_do_on_the_device_what_they_do_on_the_cpu<G: TestGpu>(
    gpu: &Arc<G>,
    (base, adapters): (&Path, &Path),
    products: Products,
) {
    let mut world = World::new(gpu, base, Size { products, ..size() });
    let native = adapters_in(adapters, &world.llama, Matrices::Native);
    let (_, plain) = native.iter().find(|(name, _)| name == "plain").unwrap();
    let rounded = adapters_in(adapters, &world.llama, Matrices::Int8);
    let rounded =
        rounded.iter().filter(|(name, _)| matches!(&**name, "plain" | "all-linear" | "dora"));
    // Those that differ from another one only in how their files are read.
    let alike = ["layers", "regex", "exclude", "patterns-", "rslora-", "slim", "ensure-tied"];
    let differs = |(name, _): &&(String, _)| alike.iter().all(|part| !name.contains(part));
    for (name, adapter) in native.iter().filter(differs).chain(rounded) {
        let what = format!("{}, {name}, {products:?}", base.display());
        in_one_batch(&mut world, [Some(plain), None, Some(adapter)], &what);
    }
    let low_rank =
        native.iter().filter(|(name, _)| matches!(&**name, "plain" | "all-linear" | "lora-bias"));
    let mixed: Vec<_> = low_rank.map(|(_, one)| Arc::clone(one)).zip([0.5, -1.5, 0.7]).collect();
    let mix = Arc::new(Adapter::mix(mixed).unwrap());
    in_one_batch(&mut world, [Some(plain), None, Some(&mix)], "a mix");
}

/// All bases of the fixtures.
fn on<G: TestGpu>(gpu: &Arc<G>) {
    for model in ["tied", "untied-bias", "qwen2", "rope-llama3", "sliding", "yarn", "linear-rope"] {
        let base = models().join(model);
        adapters_do_on_the_device_what_they_do_on_the_cpu(gpu, (&base, &base), Products::Fastest);
    }
    for model in ["qwen2", "sliding", "rope-llama3"] {
        let base = models().join(model);
        adapters_do_on_the_device_what_they_do_on_the_cpu(gpu, (&base, &base), Products::Fixed);
    }
    let gguf = models().join("../gguf/tied-mixed.gguf");
    let bases = (&*gguf, &*models().join("tied"));
    adapters_do_on_the_device_what_they_do_on_the_cpu(gpu, bases, Products::Fastest);
}

#[test]
fn every_kind_of_adapter_changes_what_it_changes_on_the_cpu() {
    let gpu = Arc::new(Host::new(1 << 30));
    on(&gpu);
    let (launches, replayed) = gpu.launches();
    assert!(replayed > launches / 8, "{replayed} of {launches} launches were replayed");
    assert_eq!(gpu.held(), 0);
}

/// With room for two or three, any of them in turn, and never one for another of the same step.
#[test]
fn no_adapter_of_a_step_goes_for_another() {
    let base = models().join("tied");
    let gpu = Arc::new(Host::new(1 << 30));
    let mut world = World::new(&gpu, &base, Size { adapter_bytes: 36 << 10, ..size() });
    let all = adapters(&base, &world.llama);
    let low_rank = all.iter().filter(|(name, _)| {
        ["plain", "all-linear", "dora", "rslora", "patterns", "file-f16"].contains(&&**name)
    });
    let all: Vec<_> = low_rank.map(|(_, adapter)| adapter).collect();
    let (mut brought, mut refused) = (0, 0);
    for turn in 0..12 {
        let (one, other) = (turn % all.len(), (turn * 3 + 1 + turn / 4) % all.len());
        world.computed = [0; SEQUENCES];
        let (prompt, of) = (tokens(3, 4), [all[one], all[other]]);
        let wanted = of.map(Arc::clone);
        let before = gpu.brought();
        let mut there = world.network.prepare(&wanted, &[]).unwrap().0;
        while world.network.settle().unwrap() {
            there = world.network.prepare(&wanted, &[]).unwrap().0;
        }
        brought += usize::from(gpu.brought() > before);
        if wanted.iter().any(|adapter| !there.contains(&adapter.digest())) {
            // What is free lies in pieces.
            refused += 1;
            continue;
        }
        let parts = [0, 1].map(|at| Part { sequence: at, tokens: &prompt, adapter: Some(of[at]) });
        world.both(&parts, &format!("turn {turn}"));
    }
    assert!(
        brought > 4 && refused < 9,
        "{brought} times one had to be brought, {refused} had no room"
    );
    // All at once there is no room for, and nobody runs through another's.
    let prompt = tokens(3, 2);
    let parts =
        (0..SEQUENCES).map(|at| Part { sequence: at, tokens: &prompt, adapter: Some(all[at]) });
    let (parts, pages) = (parts.collect::<Vec<_>>(), World::<Host>::pages(0));
    let rows = |at: usize| at * 2..(at + 1) * 2;
    let sequences: Vec<_> = (0..SEQUENCES)
        .map(|at| SequenceRows { rows: rows(at), position: 0, pages: &pages[..1] })
        .collect();
    let groups =
        parts.iter().enumerate().map(|(at, part)| (rows(at), Arc::clone(part.adapter.unwrap())));
    let (lora, tokens) = (LoraBatch::new(groups.collect()), prompt.repeat(SEQUENCES));
    let step =
        Step { tokens: &tokens, sequences: &sequences, lora: &lora, sample: &[1], pool: &[] };
    let refused = world.network.forward(&step, &[]).unwrap_err().to_string();
    assert!(refused.contains("has no room on the device"), "{refused}");
}

/// A step that wants nothing but keys and values is done as well before its adapter may go.
#[test]
fn nobody_goes_before_a_step_is_done() {
    let base = models().join("tied");
    let gpu = Arc::new(Host::new(1 << 30));
    let mut world = World::new(&gpu, &base, Size { adapter_bytes: 20 << 10, ..size() });
    let all = adapters(&base, &world.llama);
    let named = |name: &str| &all.iter().find(|(own, _)| own == name).unwrap().1;
    let (one, other) = (named("all-linear"), named("rslora"));
    let (prompt, pages) = (tokens(4, 12), World::<Host>::pages(0));
    let sequences = [SequenceRows { rows: 0..prompt.len(), position: 0, pages: &pages[..1] }];
    let lora = LoraBatch::new(vec![(0..prompt.len(), Arc::clone(one))]);
    let step = Step { tokens: &prompt, sequences: &sequences, lora: &lora, sample: &[], pool: &[] };
    world.llama.forward(&step, &mut world.kv).unwrap();
    world.network.forward(&step, &[]).unwrap();
    let wanted = [Arc::clone(other)];
    while !world.network.prepare(&wanted, &[]).unwrap().0.contains(&other.digest()) {
        assert!(world.network.settle().unwrap(), "it has room once the other goes");
    }
    assert!(!world.network.on_device().contains(&one.digest()));
    // Were the step still to be done, it would be now.
    gpu.wait().unwrap();
    world.computed[0] = prompt.len();
    world.both(&[Part { sequence: 0, tokens: &[5], adapter: Some(one) }], "what was kept");
}

#[test]
fn the_plan_is_all_that_the_device_is_asked_for() {
    let base = models().join("tied");
    let llama = Llama::load(&base, Tier::available()[0], 1, Precision::Exact).unwrap();
    let (llama, size) = (Arc::new(llama), size());
    let plan = size.plan(&llama);
    assert!(plan.kv >= size.pages * page_bytes(&llama) && plan.adapters == size.adapter_bytes);
    assert_eq!(precision(&llama), "bf16 inputs");
    let gpu = Arc::new(Host::new(plan.total()));
    let network = Network::new(Arc::clone(&gpu), Arc::clone(&llama), size).unwrap();
    assert_eq!(gpu.held() + plan.driver, plan.total(), "{plan:?} on {}", gpu.name());
    drop(network);
    let gpu = Arc::new(Host::new(plan.total() - 1));
    let refused = Network::new(gpu, Arc::clone(&llama), size).unwrap_err().to_string();
    assert!(refused.contains(&format!("the plan takes {}", plan.total())), "{refused}");
}

/// Answers of a reference: a prompt, the tokens of its greedy answer, and by how much each led.
fn reference(name: &str) -> (Vec<u32>, Vec<u32>, Vec<f64>) {
    let file = models().join(format!("../smollm2/reference/{name}.json"));
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let prompt = &reference["prompts"][0];
    let read = |key: &str| prompt[key].clone();
    (
        serde_json::from_value(read("prompt_ids")).unwrap(),
        serde_json::from_value(read("greedy_ids")).unwrap(),
        serde_json::from_value(read("margin")).unwrap(),
    )
}

/// The default base with adapters of the project in one batch, token by token as transformers and PEFT answered: what is told is always their
/// last token, so that one that is not decided by more than 16-bit inputs may change says nothing of the next.
fn the_default_base_answers_as_the_reference_on<G: TestGpu>(gpu: &Arc<G>, answers: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = root.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(base.exists(), "fetch it first: chorus pull smollm2-135m-instruct");
    let llama = Llama::load(&base, Tier::available()[0], 2, Precision::Exact).unwrap();
    let llama = Arc::new(llama);
    let size = Size { pages: 40, context: 160, rows: 256, adapter_bytes: 64 << 20, ..size() };
    let mut network = Network::new(Arc::clone(gpu), Arc::clone(&llama), size).unwrap();
    let names = ["base", "german", "pirate", "sql"];
    let load = |name: &str| adapter(&root.join("adapters").join(name), &llama, Matrices::Native);
    let adapters = names.map(load_unless_base(load));
    let references = names.map(reference);
    let mut computed = [0; 4];
    for answer in 0..answers {
        let (mut tokens, mut sequences, mut groups, mut last) = (vec![], vec![], vec![], vec![]);
        let pages: Vec<Vec<u32>> = (0..4).map(|at| (at * 10..at * 10 + 10).collect()).collect();
        for at in 0..4 {
            let (prompt, greedy, _) = &references[at];
            let known: Vec<u32> = prompt.iter().chain(&greedy[..answer]).copied().collect();
            let rows = tokens.len()..tokens.len() + known.len() - computed[at];
            tokens.extend_from_slice(&known[computed[at]..]);
            let position = std::mem::replace(&mut computed[at], known.len());
            let used = known.len().div_ceil(PAGE);
            sequences.push(SequenceRows {
                rows: rows.clone(),
                position,
                pages: &pages[at][..used],
            });
            last.push(u32::try_from(rows.end - 1).unwrap());
            groups.extend(adapters[at].clone().map(|adapter| (rows, adapter)));
        }
        let lora = LoraBatch::new(groups);
        let step =
            Step { tokens: &tokens, sequences: &sequences, lora: &lora, sample: &[], pool: &[] };
        let got = network.forward(&step, &last).unwrap().greedy;
        for (at, name) in names.iter().enumerate() {
            let (_, greedy, margins) = &references[at];
            let decided = margins[answer] > 0.1;
            assert!(!decided || got[at] == Some(greedy[answer]), "{name}, token {answer}: {got:?}");
        }
        gpu.check();
    }
}

fn load_unless_base<'a>(
    load: impl Fn(&str) -> Option<Arc<Adapter>> + 'a,
) -> impl FnMut(&'a str) -> Option<Arc<Adapter>> {
    move |name| if name == "base" { None } else { Some(load(name).unwrap()) }
}

#[test]
#[ignore = "takes minutes; .ci/full runs it"]
fn the_default_base_answers_as_the_reference() {
    the_default_base_answers_as_the_reference_on(&Arc::new(Host::new(1 << 31)), 6);
}

#[cfg(feature = "cuda")]
impl TestGpu for crate::kernels::cuda::Cuda {
    /// `compute-sanitizer` tells, see `deploy/cuda/README.md`.
    fn check(&self) {}
}

/// Chosen with `CHORUS_TEST_DEVICE=cuda:N`, in a build with CUDA.
#[cfg(feature = "cuda")]
#[test]
fn networks_are_on_the_gpu_what_they_are_on_the_cpu() {
    #[expect(clippy::disallowed_methods, reason = "a test's own setting")]
    let asked = std::env::var("CHORUS_TEST_DEVICE").unwrap_or_default();
    let Some(ordinal) = asked.strip_prefix("cuda:").and_then(|number| number.parse().ok()) else {
        eprintln!("not run: it needs a GPU, which CHORUS_TEST_DEVICE=cuda:0 would choose");
        return;
    };
    let gpu = Arc::new(crate::kernels::cuda::Cuda::new(ordinal).unwrap());
    on(&gpu);
    the_default_base_answers_as_the_reference_on(&gpu, 48);
}
