//! The default base's text side against vectors of independent implementations.

use chorus::text::{Ending, Framing, Message, Specials, Text};
use serde::Deserialize;
use std::sync::LazyLock;

static TEXT: LazyLock<Text> = LazyLock::new(|| {
    Text::from_gguf(&crate::world::base_gguf()).expect("the default base is readable")
});

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    text: String,
    ids: Vec<u32>,
}

/// A reference made by transformers, as far as it is text.
#[derive(Deserialize)]
struct Reference {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    id: String,
    messages: Vec<Turn>,
    rendered: String,
    #[serde(rename = "prompt_ids")]
    ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    text: String,
    text_ignore_eos: String,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

impl Turn {
    fn message(&self) -> Message {
        Message::new(&*self.role, &*self.content)
    }
}

fn vectors() -> Vec<Vector> {
    let json = include_str!("../fixtures/smollm2/tokenizer_vectors.json");
    serde_json::from_str::<Vectors>(json).expect("the vectors are readable").vectors
}

fn prompts() -> Vec<Prompt> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smollm2/reference");
    let files = std::fs::read_dir(folder).expect("the references are there");
    let paths = files.map(|file| file.expect("the folder is readable").path());
    let prompts: Vec<Prompt> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| std::fs::read(path).expect("the reference is readable"))
        .flat_map(|json| serde_json::from_slice::<Reference>(&json).expect("it is JSON").prompts)
        .collect();
    assert!(prompts.len() >= 70, "{} prompts", prompts.len());
    prompts
}

#[test]
fn all_vectors_encode_as_by_others() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 129);
    for Vector { text, ids } in &vectors {
        // SmolLM2 puts no token around a text: framed and bare are the same.
        for framing in [Framing::Bare, Framing::Framed] {
            assert_eq!(&TEXT.encode(text, framing).unwrap(), ids, "{text:?}");
        }
    }
}

#[test]
fn all_vectors_decode_to_their_texts_however_the_tokens_come() {
    for Vector { text, ids } in &vectors() {
        assert_eq!(&TEXT.decode(ids, Specials::Show), text);
        let mut detok = TEXT.detok(Specials::Show);
        let streamed: String = ids.iter().map(|&id| detok.push(id)).collect();
        assert_eq!(&(streamed + &detok.finish()), text);
        let bytes: Vec<u8> =
            ids.iter().flat_map(|&id| TEXT.token_bytes(id).unwrap()).copied().collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

#[test]
fn the_stop_token_is_im_end_alone() {
    assert_eq!(**TEXT.stop_tokens(), [2]);
    assert_eq!(TEXT.vocab(), 49_152);
}

#[test]
fn chats_render_and_encode_as_by_transformers() {
    for prompt in prompts() {
        let messages: Vec<Message> = prompt.messages.iter().map(Turn::message).collect();
        let rendered = TEXT.render(&messages.into(), Ending::Prompt).unwrap();
        assert_eq!(rendered, prompt.rendered, "{}", prompt.id);
        let ids = TEXT.encode(&rendered, Framing::Bare).unwrap();
        assert_eq!(ids, prompt.ids, "{}", prompt.id);
    }
}

#[test]
fn answers_decode_as_by_transformers() {
    for prompt in prompts() {
        let whole = TEXT.decode(&prompt.greedy_ids, Specials::Show);
        assert_eq!(whole, prompt.text_ignore_eos, "{}", prompt.id);
        let stopped = prompt.greedy_ids.split(|id| TEXT.stop_tokens().contains(id)).next();
        let answer = TEXT.decode(stopped.unwrap_or_default(), Specials::Hide);
        assert_eq!(answer, prompt.text, "{}", prompt.id);
    }
}

#[test]
fn a_chat_without_a_system_message_gets_the_models_own() {
    let turn = |role: &str| Message::new(role, "Hi");
    let own = TEXT.render(&vec![turn("user")].into(), Ending::Open).unwrap();
    assert!(own.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"));
    let given = TEXT.render(&vec![turn("system"), turn("user")].into(), Ending::Continue).unwrap();
    assert_eq!(given, "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\nHi");
}

/// The default base has no token for 21 bytes, most of which no text can hold.
#[test]
fn a_prompt_far_beyond_the_context_is_known_before_it_is_encoded() {
    assert!(TEXT.least_tokens(&"x".repeat(1 << 20)) > 8192);
    assert!(TEXT.least_tokens(&"7".repeat(1 << 20)) > 8192);
    assert_eq!(TEXT.least_tokens(&"\u{4}".repeat(1 << 20)), 0, "dropped");
    for sample in ["x", "Ahoy, matey!", &"    ".repeat(100), "\u{4}\u{6}", "\u{f1234}"] {
        let tokens = TEXT.encode(sample, Framing::Bare).unwrap().len();
        assert!(TEXT.least_tokens(sample) <= tokens, "{sample:?}");
    }
}
