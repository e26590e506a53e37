//! A small world for tests: a tokenizer of bytes, two adapters on a base of zeros, and an engine that follows a script.

use std::{
    collections::VecDeque,
    fs,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{
    app::{App, BaseModel, Settings, Stored},
    generator::Generator,
};
use crate::{
    adapter::{self, Adapters, Folder, Foundation, Rules},
    engine::{Event, Failure, Finish, Job, Logprob, Refused, Stats, TokenStream},
    ledger::Ledger,
    lora::{Lease, Limits, Matrices, Sites, ZeroBase},
    store::Store,
    tenant::Tenants,
    text::Text,
};

/// The token that ends an answer, written `<|end|>`; all others are bytes.
pub(super) const SPECIAL: u32 = 256;
/// ` a` in [`sentence_piece`].
pub(super) const SPACE_A: u32 = 259;
/// Most tokens of one sequence.
pub(super) const CONTEXT: usize = 100;

/// One token per byte, and a template of one line per message.
pub(super) fn text() -> Text {
    static TEXT: LazyLock<Text> = LazyLock::new(|| read(&tokenizer(), TEMPLATE));
    TEXT.clone()
}

/// The same with a template that knows tools, in few words.
pub(super) fn text_with_tools() -> Text {
    static TEXT: LazyLock<Text> = LazyLock::new(|| read(&tokenizer(), TOOLS));
    TEXT.clone()
}

/// The same in `SentencePiece`'s spelling, and [`SPACE_A`].
pub(super) fn sentence_piece() -> Text {
    let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), json!(byte)));
    let words = [("<|end|>", SPECIAL), ("\u{2581}", 257), ("a", 258), ("\u{2581}a", SPACE_A)];
    let words = words.map(|(word, id)| (word.to_owned(), json!(id)));
    let vocab: Map<String, Value> = bytes.chain(words).collect();
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut tokenizer = tokenizer();
    tokenizer["pre_tokenizer"] = Value::Null;
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}")]});
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [replace("\u{2581}", " "),
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    tokenizer["model"]["byte_fallback"] = json!(true);
    tokenizer["model"]["vocab"] = Value::Object(vocab);
    tokenizer["model"]["merges"] = json!([["\u{2581}", "a"]]);
    read(&tokenizer, TEMPLATE)
}

fn read(tokenizer: &Value, template: &str) -> Text {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, json: &Value| {
        fs::write(dir.path().join(name), json.to_string()).unwrap();
    };
    write("tokenizer.json", tokenizer);
    write("tokenizer_config.json", &json!({"eos_token": "<|end|>", "chat_template": template}));
    Text::from_dir(dir.path()).unwrap()
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

const TOOLS: &str = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}\
                     {{ m.role }}{{ m.tool_call_id or '' }}:{{ m.content }}{% for c in m.tool_calls or [] %}\
                     <tool_call>{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{{ '\\n' }}\
                     {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

/// The tokens of a text.
pub(super) fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn tokenizer() -> Value {
    let vocab: Map<String, Value> =
        (0..=255).map(|byte| (byte_char(byte).to_string(), json!(byte))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": SPECIAL, "content": "<|end|>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": []},
    })
}

/// How byte-level tokenizers write a byte: printable ones as they are, the others from U+0100 on, in order.
fn byte_char(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(&byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|byte| !printable(byte)).count();
    char::from_u32(0x100 + u32::try_from(rank).unwrap()).unwrap()
}

/// What happens to a job.
#[derive(Debug)]
pub(super) enum Play {
    /// These events, then the end of the stream.
    Events(Vec<Event>),
    /// These events, then nothing, for ever.
    Hang(Vec<Event>),
    /// It is not taken.
    Refuse(Refused),
}

impl Play {
    /// An answer that is complete. Each token's score is minus its place, counted from 1.
    pub(super) fn say(text: &str) -> Self {
        Self::Events(tokens(text).chain([Event::Finished(Finish::Stop)]).collect())
    }

    /// An answer that ends at its length.
    pub(super) fn exhaust(text: &str) -> Self {
        Self::Events(tokens(text).chain([Event::Finished(Finish::Length)]).collect())
    }

    /// A vector.
    pub(super) fn pooled(numbers: [f32; SITES.hidden]) -> Self {
        let events = [begun(0), Event::Pooled(numbers.to_vec())];
        Self::Events(events.into_iter().chain([Event::Finished(Finish::Length)]).collect())
    }

    /// An answer that breaks off.
    pub(super) fn fail(text: &str, failure: Failure) -> Self {
        Self::Events(tokens(text).chain([Event::Failed(failure)]).collect())
    }

    /// An answer that does not go on.
    pub(super) fn hang(text: &str) -> Self {
        Self::Hang(tokens(text).collect())
    }
}

fn tokens(text: &str) -> impl Iterator<Item = Event> {
    ids(text)
        .into_iter()
        .zip(1u8..)
        .map(|(id, place)| Event::Token { id, logprob: Some(score(id, -f32::from(place))) })
}

/// A job begins that has been in the queue for ten microseconds, with so many tokens at hand.
pub(super) fn begun(cached: usize) -> Event {
    Event::Begun { cached, waited: Duration::from_micros(10) }
}

/// A score whose likeliest token is the token itself.
pub(super) fn score(token: u32, logprob: f32) -> Logprob {
    Logprob { token, logprob, top: vec![(token, logprob)] }
}

/// An engine that follows a script; when that is over it says `ok`.
#[derive(Debug, Default)]
pub(super) struct Scripted {
    plays: Mutex<VecDeque<Play>>,
    jobs: Mutex<Vec<Job>>,
    hanging: Mutex<Vec<(mpsc::Sender<Event>, Option<Lease>)>>,
    shown: Mutex<Option<Stats>>,
}

impl Scripted {
    /// The jobs since the last call, without their leases.
    pub(super) fn jobs(&self) -> Vec<Job> {
        std::mem::take(&mut *self.jobs.lock().unwrap())
    }

    /// How many jobs that hang are still wanted by somebody. The others end, as they would in a step.
    pub(super) fn wanted(&self) -> usize {
        let mut hanging = self.hanging.lock().unwrap();
        hanging.retain(|(sender, _)| !sender.is_closed());
        hanging.len()
    }
}

impl Scripted {
    /// From now on its numbers are these.
    pub(super) fn show(&self, stats: Stats) {
        *self.shown.lock().unwrap() = Some(stats);
    }

    /// Ends all jobs that hang.
    pub(super) fn end(&self, last: &Event) {
        for (sender, _lease) in self.hanging.lock().unwrap().drain(..) {
            // Nobody may listen any more.
            drop(sender.try_send(last.clone()));
        }
    }
}

impl Scripted {
    fn play(&self, mut job: Job) -> Result<TokenStream, Refused> {
        let scored = job.logprobs.is_some();
        let lease = job.adapter.take();
        self.jobs.lock().unwrap().push(job);
        let play = self.plays.lock().unwrap().pop_front().unwrap_or_else(|| Play::say("ok"));
        let (events, hangs) = match play {
            Play::Events(events) => (events, false),
            Play::Hang(events) => (events, true),
            Play::Refuse(refused) => return Err(refused),
        };
        let (sender, receiver) = mpsc::channel(events.len() + 1);
        for event in events {
            let event = match event {
                Event::Token { id, .. } if !scored => Event::Token { id, logprob: None },
                event => event,
            };
            sender.try_send(event).unwrap();
        }
        if hangs {
            self.hanging.lock().unwrap().push((sender, lease));
        }
        Ok(TokenStream::new(receiver))
    }
}

impl Generator for Scripted {
    fn submit_all(&self, jobs: Vec<Job>) -> Result<Vec<TokenStream>, Refused> {
        jobs.into_iter().map(|job| self.play(job)).collect()
    }

    fn check(&self, prompt: &[u32], max_tokens: usize) -> Result<(), Refused> {
        let tokens = prompt.len() + max_tokens;
        if tokens > CONTEXT {
            return Err(Refused::TooLong { tokens, context: CONTEXT });
        }
        let known = prompt.iter().all(|id| *id <= SPECIAL);
        if known { Ok(()) } else { Err(Refused::BadPrompt { vocab: SITES.vocab }) }
    }

    fn hidden(&self) -> usize {
        SITES.hidden
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn stats(&self) -> Stats {
        let shown = self.shown.lock().unwrap().clone();
        shown.unwrap_or_else(|| Stats { running: 3, ..Stats::default() })
    }

    fn stop_now(&self) {
        self.end(&Event::Failed(Failure::Stopping));
    }
}

/// An app over the script. It has the adapters `sql` and `law`.
pub(super) fn app(plays: impl IntoIterator<Item = Play>) -> (App, Arc<Scripted>) {
    app_with(plays, Settings::default())
}

/// The same with other settings.
pub(super) fn app_with(
    plays: impl IntoIterator<Item = Play>,
    settings: Settings,
) -> (App, Arc<Scripted>) {
    app_over(text(), plays, settings)
}

/// The same over another tokenizer.
pub(super) fn app_over(
    text: Text,
    plays: impl IntoIterator<Item = Play>,
    settings: Settings,
) -> (App, Arc<Scripted>) {
    let (store, _) = Store::faulty();
    app_on(store, text, plays, settings)
}

/// The same over a tokenizer whose template knows tools.
pub(super) fn app_with_tools(plays: impl IntoIterator<Item = Play>) -> (App, Arc<Scripted>) {
    app_over(text_with_tools(), plays, Settings::default())
}

/// The same on a store that others may write to.
pub(super) fn app_on(
    store: Store,
    text: Text,
    plays: impl IntoIterator<Item = Play>,
    settings: Settings,
) -> (App, Arc<Scripted>) {
    let plays = Mutex::new(plays.into_iter().collect());
    let scripted = Arc::new(Scripted { plays, ..Scripted::default() });
    let base = BaseModel { id: "org/tiny".to_owned(), digest: BASE.repeat(16), created: 7 };
    let generator: Arc<dyn Generator> = Arc::<Scripted>::clone(&scripted);
    let tenants = Tenants::open(&store, None, Duration::from_mins(1));
    let tenants = tenants.now_or_never().expect("a store in memory is open at once").unwrap();
    let ledger = Ledger::open(store.clone(), JOURNALS.path());
    let ledger = ledger.now_or_never().expect("a store in memory is open at once").unwrap();
    let stored = Stored { adapters: adapters(store, tenants.clone()), tenants, ledger };
    (App::over(base, text, stored, generator, settings), scripted)
}

/// A part of the base's sha256.
const BASE: &str = "ba5e";

/// Where the adapters lie; kept for as long as the tests run, for they are loaded on demand.
static SHELF: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().unwrap();
    write_adapter(&dir.path().join("sql"), 1.0);
    write_adapter(&dir.path().join("law"), 2.0);
    dir
});

/// Where what is used is noted.
static JOURNALS: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().unwrap());

fn adapters(store: Store, tenants: Tenants) -> Adapters {
    let rules = Rules {
        base: &ZeroBase(SITES),
        limits: &Limits { max_rank: 8, max_bytes: 1 << 20 },
        reserved: &["base", "default"],
        workers: NonZeroUsize::MIN,
    };
    let folder = Folder::scan(SHELF.path(), &rules).unwrap();
    let settings = adapter::Settings {
        budget: 1 << 20,
        max_waiting: 8,
        time_out: Duration::from_secs(5),
        loaders: NonZeroUsize::MIN,
        limits: Limits { max_rank: 8, max_bytes: 1 << 20 },
        matrices: Matrices::Native,
        spool: std::env::temp_dir(),
        refresh: Duration::from_mins(1),
    };
    let foundation = Foundation { base: Arc::new(ZeroBase(SITES)), sha256: BASE.repeat(16) };
    // A store in memory never waits.
    let open = Adapters::open(folder, foundation, (store, tenants), settings);
    open.now_or_never().expect("a store in memory is open at once").unwrap()
}

const SITES: Sites = Sites {
    layers: 1,
    hidden: 4,
    attention: 4,
    kv: 4,
    ffn: 4,
    vocab: 257,
    qkv_bias: false,
    o_bias: false,
    mlp_bias: false,
};

fn write_adapter(folder: &Path, value: f32) {
    let floats = value.to_le_bytes().repeat(SITES.hidden);
    let view = |shape| TensorView::new(Dtype::F32, shape, &floats).unwrap();
    let site = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors = [
        (format!("{site}.lora_A.weight"), view(vec![1, SITES.hidden])),
        (format!("{site}.lora_B.weight"), view(vec![SITES.hidden, 1])),
    ];
    let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1,
        "target_modules": ["q_proj"], "bias": "none", "inference_mode": true});
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let weights = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.join("adapter_model.safetensors"), weights).unwrap();
}
