//! [`Text`] from hand-made model files.

use super::*;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use serde_json::json;
use std::fs::{self, File};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// GGUF token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// A GGUF file in the making: its metadata.
struct Gguf(Vec<(&'static str, Value)>);

impl Gguf {
    /// 256 bytes (ids are their positions in GPT-2's order of characters), then `words`, then
    /// special tokens.
    fn byte_level(pre: &str, words: &[&str], merges: &[&str]) -> Self {
        let bytes = (0..=255).map(|byte| (Spelling::byte_char(byte).to_string(), NORMAL));
        let words = words.iter().map(|&word| (word.to_owned(), NORMAL));
        let special = [("<|end|>", CONTROL), ("<think>", USER_DEFINED), ("<|bos|>", CONTROL)];
        let special = special.map(|(text, kind)| (text.to_owned(), kind));
        let merges = merges.iter().map(|&merge| Value::String(merge.to_owned())).collect();
        Self::vocabulary("gpt2", bytes.chain(words).chain(special))
            .with("tokenizer.ggml.pre", Value::String(pre.to_owned()))
            .with("tokenizer.ggml.merges", Value::Array(merges))
    }

    fn vocabulary(model: &str, tokens: impl Iterator<Item = (String, i32)>) -> Self {
        let (texts, types): (Vec<_>, Vec<_>) =
            tokens.map(|(text, kind)| (Value::String(text), Value::I32(kind))).unzip();
        Self(vec![])
            .with("tokenizer.ggml.model", Value::String(model.to_owned()))
            .with("tokenizer.ggml.tokens", Value::Array(texts))
            .with("tokenizer.ggml.token_type", Value::Array(types))
    }

    fn with(mut self, key: &'static str, value: Value) -> Self {
        self.0.retain(|(other, _)| *other != key);
        self.0.push((key, value));
        self
    }

    fn without(mut self, key: &'static str) -> Self {
        self.0.retain(|(other, _)| *other != key);
        self
    }

    fn read(&self) -> Result<Text, LoadError> {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("model.gguf");
        self.write(&path);
        Text::from_gguf(&path)
    }

    fn write(&self, path: &Path) {
        let metadata: Vec<(&str, &Value)> = self.0.iter().map(|(key, v)| (*key, v)).collect();
        // The format wants a tensor.
        let tensor = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
        let file = &mut File::create(path).unwrap();
        gguf_file::write(file, &metadata, &[("t", &tensor)]).unwrap();
    }
}

const END: u32 = 256;
const THINK: u32 = 257;
const BOS: u32 = 258;

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// A model directory in the making.
struct Dir(TempDir);

impl Dir {
    /// A byte-level tokenizer of 256 bytes and one special token, 256.
    fn new() -> Self {
        let dir = Self(TempDir::new().unwrap());
        dir.write("tokenizer.json", &Self::tokenizer().to_string())
    }

    fn tokenizer() -> serde_json::Value {
        let vocab: serde_json::Map<String, serde_json::Value> = (0..=255u8)
            .map(|byte| (Spelling::byte_char(byte).to_string(), json!(byte)))
            .chain([("ab".to_owned(), json!(256))])
            .collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": true});
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                "stride": 0},
            "padding": null,
            "added_tokens": [special(257, "<s>"), special(258, "</s>")],
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}}},
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
                "merges": [["a", "b"]]},
        })
    }

    fn write(self, name: &str, text: &str) -> Self {
        fs::write(self.0.path().join(name), text).unwrap();
        self
    }

    fn read(&self) -> Result<Text, LoadError> {
        Text::from_dir(self.0.path())
    }
}

fn problem(result: Result<Text, LoadError>) -> String {
    result.expect_err("the files are wrong").to_string()
}

fn message(content: &str) -> Message {
    Message::new("user", content)
}

#[test]
fn gguf_control_and_user_defined_tokens_are_found_in_text() {
    let text = Gguf::byte_level("gpt-2", &[], &[]).read().unwrap();
    let prompt = "a<|end|><think> <|x|>";
    let tokens = text.encode(prompt, Framing::Bare).unwrap();
    assert_eq!(tokens, [ids("a"), vec![END, THINK], ids(" <|x|>")].concat());
    assert_eq!(text.decode(&tokens, Specials::Show), prompt);
    assert_eq!(text.decode(&tokens, Specials::Hide), "a<think> <|x|>");
    assert_eq!(text.vocab(), 259);
    assert_eq!(text.token_bytes(0xC3), Some(&b"\xC3"[..]));
    assert_eq!(text.token_bytes(END), Some(&b"<|end|>"[..]));
    assert_eq!(text.token_bytes(259), None);
}

#[test]
fn gguf_framing_is_what_the_metadata_asks_for() {
    let framed = |gguf: Gguf| gguf.read().unwrap().encode("a", Framing::Framed).unwrap();
    let a = u32::from(b'a');
    let gguf = |pre| {
        Gguf::byte_level(pre, &[], &[])
            .with("tokenizer.ggml.bos_token_id", Value::U32(BOS))
            .with("tokenizer.ggml.eos_token_id", Value::U32(END))
    };
    let add_bos = "tokenizer.ggml.add_bos_token";
    assert_eq!(framed(gguf("smollm")), [a]);
    assert_eq!(framed(gguf("llama-bpe")), [BOS, a]);
    assert_eq!(framed(gguf("llama-bpe").with(add_bos, Value::Bool(false))), [a]);
    assert_eq!(framed(gguf("smollm").with(add_bos, Value::Bool(true))), [BOS, a]);
    let add_eos = "tokenizer.ggml.add_eos_token";
    assert_eq!(framed(gguf("smollm").with(add_eos, Value::Bool(true))), [a, END]);
    let bare = gguf("llama-bpe").read().unwrap().encode("a", Framing::Bare).unwrap();
    assert_eq!(bare, [a]);
    let missing = Gguf::byte_level("gpt-2", &[], &[]).with(add_bos, Value::Bool(true)).read();
    assert!(problem(missing).contains("bos_token_id"));
}

#[test]
fn gguf_pre_types_split_words_as_their_models_do() {
    // With a token for every split that some pre type makes, the splits show in the tokens.
    let words = ["12", "123", "1234", "'S", "!\n", "!/", "Ab", "ab", "abC"];
    let merges = ["1 2", "12 3", "123 4", "' S", "! Ċ", "! /", "A b", "a b", "ab C"];
    let splits = |pre: &str, text: &str| -> Vec<String> {
        let words = words.map(|word| word.replace('\n', "Ċ"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let model = Gguf::byte_level(pre, &words, &merges).read().unwrap();
        let tokens = model.encode(text, Framing::Bare).unwrap();
        tokens.iter().map(|&id| model.decode(&[id], Specials::Show)).collect()
    };
    for (pre, expected) in [
        ("gpt-2", vec!["1234"]),
        ("smollm", vec!["1", "2", "3", "4"]),
        ("starcoder", vec!["1", "2", "3", "4"]),
        ("llama-bpe", vec!["123", "4"]),
        ("llama3", vec!["123", "4"]),
        ("smaug-bpe", vec!["123", "4"]),
        ("qwen2", vec!["1", "2", "3", "4"]),
        ("tekken", vec!["1", "2", "3", "4"]),
    ] {
        assert_eq!(splits(pre, "1234"), expected, "{pre}");
    }
    assert_eq!(splits("gpt-2", "!\n"), ["!", "\n"]);
    assert_eq!(splits("llama-bpe", "!\n"), ["!\n"]);
    assert_eq!(splits("llama-bpe", "!/"), ["!/"]);
    assert_eq!(splits("qwen2", "x'S"), ["x", "'S"]);
    assert_eq!(splits("gpt-2", "abC"), ["abC"]);
    assert_eq!(splits("tekken", "abC"), ["ab", "C"]);
}

#[test]
fn gguf_qwen_composes_characters() {
    let tokens = |pre| {
        let model = Gguf::byte_level(pre, &[], &[]).read().unwrap();
        model.encode("e\u{301}", Framing::Bare).unwrap()
    };
    assert_eq!(tokens("qwen2"), ids("é"));
    assert_eq!(tokens("llama-bpe"), ids("e\u{301}"));
}

#[test]
fn gguf_whole_words_beat_merges_only_where_the_model_says_so() {
    // No merge makes "xyz": only ignoring the merges finds it.
    let tokens = |pre| {
        let model = Gguf::byte_level(pre, &["xyz"], &[]).read().unwrap();
        model.encode("xyz", Framing::Bare).unwrap()
    };
    assert_eq!(tokens("llama-bpe"), [256]);
    assert_eq!(tokens("qwen2"), ids("xyz"));
}

#[test]
fn a_gguf_that_names_no_pre_tokenizer_has_the_default_one() {
    let gguf = |pre| Gguf::byte_level(pre, &["!a"], &["! a"]);
    let missing = gguf("gpt-2").without("tokenizer.ggml.pre").read().unwrap();
    let default = gguf("default").read().unwrap();
    for text in ["!a", "it's 12345"] {
        let encode = |model: &Text| model.encode(text, Framing::Framed).unwrap();
        assert_eq!(encode(&missing), encode(&default));
    }
    assert_eq!(default.encode("!a", Framing::Framed).unwrap(), ids("!a"), "two words");
}

#[test]
fn gguf_problems_are_named() {
    let gguf = || Gguf::byte_level("gpt-2", &["ab"], &["a b"]);
    let string = |text: &str| Value::String(text.to_owned());
    let strings = |text: &str| Value::Array(vec![Value::String(text.to_owned())]);
    let cases = [
        (gguf().with("tokenizer.ggml.pre", string("hexagon")), "\"hexagon\"; supported: default, "),
        (gguf().with("tokenizer.ggml.model", string("bert")), "\"bert\"; supported: gpt2"),
        (gguf().without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens: is missing"),
        (gguf().with("tokenizer.ggml.tokens", Value::U32(1)), "must be an array, is of type U32"),
        (gguf().with("tokenizer.ggml.token_type", Value::Array(vec![])), "0 entries for 260"),
        (gguf().with("tokenizer.ggml.merges", strings("ab")), "\"ab\" does not merge"),
        // In the vocabulary, but not together: the tokenizers crate would panic.
        (gguf().with("tokenizer.ggml.merges", strings("<|end|> <|end|>")), "does not merge"),
        (gguf().with("tokenizer.ggml.eos_token_id", Value::U32(260)), "names token 260"),
        (gguf().with("tokenizer.ggml.eos_token_id", Value::I32(-1)), "must be a token id"),
        (gguf().with("tokenizer.ggml.add_bos_token", Value::U8(1)), "must be a boolean"),
        (gguf().with("tokenizer.chat_template", string("{% if %}")), "does not compile"),
    ];
    for (gguf, expected) in cases {
        let problem = problem(gguf.read());
        assert!(problem.contains(expected), "{problem:?} does not tell {expected:?}");
        assert!(!problem.contains('\n'), "{problem:?}");
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    assert!(problem(Text::from_gguf(&path)).contains("cannot read"));
    fs::write(&path, b"GGUF\x03\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF").unwrap();
    let damaged = problem(Text::from_gguf(&path));
    assert!(damaged.contains("is not a readable GGUF file"), "{damaged}");
    assert!(!damaged.contains('\n'), "{damaged:?}");
}

#[test]
fn gguf_stop_tokens_are_those_of_metadata_and_template() {
    let gguf =
        || Gguf::byte_level("gpt-2", &[], &[]).with("tokenizer.ggml.eos_token_id", Value::U32(BOS));
    let stops = |gguf: Gguf| gguf.read().unwrap().stop_tokens().to_vec();
    assert_eq!(stops(gguf()), [BOS]);
    assert_eq!(stops(gguf().with("tokenizer.ggml.eot_token_id", Value::U32(7))), [7, BOS]);
    let template = |source: &str| Value::String(source.to_owned());
    let key = "tokenizer.chat_template";
    assert_eq!(stops(gguf().with(key, template("{{ '<|end|>' }}"))), [END, BOS]);
    assert_eq!(stops(gguf().with(key, template("{{ '<think>' }}"))), [BOS]);
    assert!(stops(gguf().without("tokenizer.ggml.eos_token_id")).is_empty());
}

#[test]
fn gguf_templates_know_the_special_tokens() {
    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}";
    let gguf = Gguf::byte_level("gpt-2", &[], &[])
        .with("tokenizer.ggml.bos_token_id", Value::U32(BOS))
        .with("tokenizer.ggml.eos_token_id", Value::U32(END));
    let bare = gguf.read().unwrap();
    assert!(!bare.has_template());
    assert_eq!(bare.render(&vec![message("x")].into(), Ending::Prompt), Err(Error::NoTemplate));
    let gguf = gguf.with("tokenizer.chat_template", Value::String(source.to_owned()));
    let text = gguf.read().unwrap();
    assert_eq!(text.render(&vec![message("x")].into(), Ending::Prompt).unwrap(), "<|bos|>x<|end|>");
}

/// A small `SentencePiece` vocabulary in which the scores decide what is merged.
fn sentence_piece() -> Gguf {
    let special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)];
    let special = special.map(|(text, kind)| (text.to_owned(), kind, 0.0));
    let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), BYTE, 0.0));
    let words = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab", "abc", "▁▁", "▁▁▁"];
    let scores = [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -4.0, -3.0, -5.0, -6.0, -7.0];
    let words = words.iter().zip(scores).map(|(&word, score)| (word.to_owned(), NORMAL, score));
    let all: Vec<_> = special.into_iter().chain(bytes).chain(words).collect();
    let scores = all.iter().map(|&(.., score)| Value::F32(score)).collect();
    Gguf::vocabulary("llama", all.into_iter().map(|(text, kind, _)| (text, kind)))
        .with("tokenizer.ggml.scores", Value::Array(scores))
        .with("tokenizer.ggml.bos_token_id", Value::U32(1))
        .with("tokenizer.ggml.eos_token_id", Value::U32(2))
        .with("tokenizer.ggml.unknown_token_id", Value::U32(0))
}

/// The id of a word of [`sentence_piece`].
fn word(text: &str) -> u32 {
    let words = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab", "abc", "▁▁", "▁▁▁"];
    let at = words.iter().position(|&word| word == text).unwrap();
    259 + u32::try_from(at).unwrap()
}

#[test]
fn sentence_piece_merges_by_score() {
    let text = sentence_piece().read().unwrap();
    let tokens = |prompt: &str| text.encode(prompt, Framing::Bare).unwrap();
    // bc before ab: what is left of ▁abc is ▁a, then bc.
    assert_eq!(tokens("abc"), [word("▁a"), word("bc")]);
    assert_eq!(tokens("ab"), [word("▁ab")]);
    assert_eq!(tokens("ab ab"), [word("▁ab"), word("▁ab")]);
    assert_eq!(tokens("b  c"), [word("▁"), word("b"), word("▁▁"), word("c")]);
    assert_eq!(tokens("é"), [word("▁"), 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokens("</s>a"), [2, word("▁a")]);
    assert_eq!(tokens(""), [0; 0]);
}

#[test]
fn sentence_piece_frames_with_bos_unless_told_not_to() {
    let framed = |gguf: Gguf| gguf.read().unwrap().encode("ab", Framing::Framed).unwrap();
    assert_eq!(framed(sentence_piece()), [1, word("▁ab")]);
    let add_bos = "tokenizer.ggml.add_bos_token";
    assert_eq!(framed(sentence_piece().with(add_bos, Value::Bool(false))), [word("▁ab")]);
}

#[test]
fn sentence_piece_decodes_what_it_encodes() {
    let spaced = sentence_piece().read().unwrap();
    let add_space = "tokenizer.ggml.add_space_prefix";
    let unspaced = sentence_piece().with(add_space, Value::Bool(false)).read().unwrap();
    assert_eq!(unspaced.encode("ab", Framing::Bare).unwrap(), [word("ab")]);
    for prompt in ["abc ab", "  a", "日本 é\n\nb ", " ", "", "🦀a"] {
        for text in [&spaced, &unspaced] {
            let tokens = text.encode(prompt, Framing::Bare).unwrap();
            assert_eq!(text.decode(&tokens, Specials::Hide), prompt);
            let reference = text.shared.tokenizer.decode(&tokens, true).unwrap();
            assert_eq!(reference, prompt);
        }
    }
    // One wrong byte does not spoil its neighbours.
    let crab = [3 + 0xF0, 3 + 0x9F, 3 + 0xA6, 3 + 0x80, 3 + 0xFF];
    assert_eq!(spaced.decode(&crab, Specials::Hide), "🦀\u{FFFD}");
}

#[test]
fn sentence_piece_continues_a_prompt_with_its_space() {
    let text = sentence_piece().read().unwrap();
    let prompt = text.encode("ab", Framing::Framed).unwrap();
    let begun = |prompt: &[u32]| text.detok(Specials::Hide).after(prompt).push(word("▁ab"));
    assert_eq!(begun(&prompt), " ab");
    assert_eq!(begun(&text.encode("", Framing::Framed).unwrap()), "ab");
}

#[test]
fn dir_reads_tokenizer_and_template() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
        "chat_template": template});
    let text = Dir::new().write("tokenizer_config.json", &config.to_string()).read().unwrap();
    // Saved with truncation to three tokens; that is not the tokenizer's business.
    let prompt = "xab</s>  é🦀";
    let tokens = text.encode(prompt, Framing::Bare).unwrap();
    assert_eq!(tokens[..3], [u32::from(b'x'), 256, 258]);
    assert_eq!(text.decode(&tokens, Specials::Show), prompt);
    assert_eq!(text.encode("ab", Framing::Framed).unwrap(), [257, 256]);
    assert_eq!(text.render(&vec![message("hi")].into(), Ending::Prompt).unwrap(), "<s>hi");
    assert_eq!(**text.stop_tokens(), [258]);
    assert_eq!(text.vocab(), 259);

    let own = Dir::new()
        .write("tokenizer_config.json", &config.to_string())
        .write("chat_template.jinja", "own");
    assert_eq!(own.read().unwrap().render(&Chat::default(), Ending::Open).unwrap(), "own");
    let bare = Dir::new().read().unwrap();
    assert!(!bare.has_template());
    assert!(bare.stop_tokens().is_empty());
}

#[test]
fn dir_chooses_the_default_of_several_templates() {
    let named = |names: &[&str]| {
        let list: Vec<_> =
            names.iter().map(|name| json!({"name": name, "template": name})).collect();
        let config = json!({"chat_template": list}).to_string();
        Dir::new().write("tokenizer_config.json", &config).read()
    };
    let text = named(&["tool_use", "default"]).unwrap();
    assert_eq!(text.render(&Chat::default(), Ending::Open).unwrap(), "default");
    assert!(problem(named(&["tool_use", "rag"])).contains(r#"["tool_use", "rag"]"#));
}

#[test]
fn dir_llama_tokenizers_are_framed_by_their_configuration() {
    let framed = |config: serde_json::Value| {
        let dir = Dir::new().write("tokenizer_config.json", &config.to_string());
        dir.read().unwrap().encode("ab", Framing::Framed).unwrap()
    };
    let llama = |bos: bool, eos: bool| {
        json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "add_bos_token": bos, "add_eos_token": eos})
    };
    assert_eq!(framed(llama(true, false)), [257, 256]);
    assert_eq!(framed(llama(false, false)), [256]);
    assert_eq!(framed(llama(true, true)), [257, 256, 258]);
    let other = json!({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false});
    assert_eq!(framed(other), [257, 256]);
}

#[test]
fn dir_stop_tokens_come_from_generation_config_first() {
    let config = r#"{"eos_token_id": 9}"#;
    let stops = |dir: Dir| dir.read().unwrap().stop_tokens().to_vec();
    assert_eq!(stops(Dir::new().write("config.json", config)), [9]);
    let both = |generation: &str| {
        Dir::new().write("config.json", config).write("generation_config.json", generation)
    };
    assert_eq!(stops(both(r#"{"eos_token_id": [8, 7]}"#)), [7, 8]);
    assert_eq!(stops(both(r#"{"eos_token_id": null}"#)), [9]);
    let named = both("{}").write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    assert_eq!(stops(named), [9, 258]);
    assert!(problem(both(r#"{"eos_token_id": 259}"#).read()).contains("names token 259"));
}

#[test]
fn dir_problems_are_named() {
    let empty = Dir(TempDir::new().unwrap());
    assert!(problem(empty.read()).contains("has no tokenizer.json"));
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut tokenizer = Dir::tokenizer();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        Dir(TempDir::new().unwrap()).write("tokenizer.json", &tokenizer.to_string())
    };
    let word_piece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let cases = [
        (changed("/model/type", json!("Unigram")), "\"Unigram\"; supported: BPE"),
        (changed("/model/merges", json!([["ab", "ab"]])), "does not merge two tokens"),
        (changed("/model/merges", json!(["x y"])), "does not merge two tokens"),
        (changed("/model/vocab/Ā", json!(1_u32 << 31)), "is above"),
        (changed("/added_tokens/0/id", json!(300)), "has id 300"),
        (changed("/decoder", word_piece), "WordPiece"),
        (changed("/decoder", json!(null)), "decoder \"null\""),
        (Dir::new().write("tokenizer.json", "{"), "EOF"),
        (Dir::new().write("tokenizer_config.json", "[1]"), "tokenizer_config.json: "),
        (
            Dir::new().write("generation_config.json", r#"{"eos_token_id": -1}"#),
            "generation_config",
        ),
        (Dir::new().write("chat_template.jinja", "{{"), "does not compile"),
    ];
    for (dir, expected) in cases {
        let problem = problem(dir.read());
        assert!(problem.contains(expected), "{problem:?} does not tell {expected:?}");
        assert!(!problem.contains('\n'), "{problem:?}");
    }
}

#[test]
fn a_file_above_its_bound_is_not_read() {
    let dir = Dir::new();
    let file = File::create(dir.0.path().join("generation_config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(problem(dir.read()).contains("too many for a file of its kind"));
}

#[test]
fn long_texts_and_long_runs_of_whitespace_are_refused() {
    // After an even run, only a word split from it begins with the last space.
    let text = Gguf::byte_level("llama-bpe", &["ĠĠ", "Ġx"], &["Ġ Ġ", "Ġ x"]).read().unwrap();
    let encode = |prompt: &str| text.encode(prompt, Framing::Bare);
    let run = " ".repeat(MAX_WHITESPACE);
    assert_eq!(encode(&format!("{run}x")).unwrap().last(), Some(&257));
    assert_eq!(
        encode(&format!("x{run}\n")),
        Err(Error::TooMuchWhitespace { characters: MAX_WHITESPACE + 1, max: MAX_WHITESPACE })
    );
    let long = "x".repeat(MAX_TEXT + 1);
    assert_eq!(encode(&long), Err(Error::TextTooLong { bytes: MAX_TEXT + 1, max: MAX_TEXT }));
}

#[test]
fn encoding_takes_time_linear_in_the_text() {
    // 200,000 steps squared take minutes; linear, the worst of these takes half a second.
    let limit = Duration::from_mins(2);
    let words = ["aa", "aaaa", "ĠĠ", "ĠĠĠĠ"];
    let merges = ["a a", "aa aa", "Ġ Ġ", "ĠĠ ĠĠ"];
    for pre in ["smollm", "llama-bpe"] {
        let text = Gguf::byte_level(pre, &words, &merges).read().unwrap();
        for unit in ["a", " ", "1", "!", "\n", "é", "a ", " \n"] {
            let prompt = unit.repeat(200_000 / unit.len());
            let start = Instant::now();
            text.encode(&prompt, Framing::Bare).unwrap();
            assert!(start.elapsed() < limit, "{pre}, {unit:?}: {:?}", start.elapsed());
        }
    }
}

proptest! {
    #[test]
    fn decoding_is_that_of_tokenizers(
        ids in prop::collection::vec(0u32..262, 0..30),
        show: bool,
    ) {
        let specials = if show { Specials::Show } else { Specials::Hide };
        let byte_level = &*BYTE_LEVEL;
        let reference = byte_level.shared.tokenizer.decode(&ids, !show).unwrap();
        prop_assert_eq!(byte_level.decode(&ids, specials), reference);
        // Without bytes: there, tokenizers gives up whole runs.
        let pieces: Vec<u32> = ids.iter().map(|id| id % 14).collect();
        let pieces: Vec<u32> =
            pieces.iter().map(|&id| if id < 3 { id } else { id + 256 }).collect();
        let reference = SENTENCE_PIECE.shared.tokenizer.decode(&pieces, !show).unwrap();
        prop_assert_eq!(SENTENCE_PIECE.decode(&pieces, specials), reference);
    }

    #[test]
    fn encoding_loses_nothing_and_takes_the_least_tokens_at_least(prompt in "(\\PC|ab|\\s){0,20}") {
        for text in [&*BYTE_LEVEL, &*SENTENCE_PIECE] {
            let tokens = text.encode(&prompt, Framing::Bare).unwrap();
            prop_assert_eq!(text.decode(&tokens, Specials::Show), prompt.as_str());
            prop_assert!(tokens.len() >= text.least_tokens(&prompt));
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_or_a_tokenizer_never_a_panic(
        at in 0usize..6000,
        byte: u8,
        kept in 0usize..8000,
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("model.gguf");
        let mut bytes = GGUF_FILE.clone();
        let at = at.min(bytes.len() - 1);
        bytes[at] = byte;
        bytes.truncate(kept.max(at));
        fs::write(&path, bytes).unwrap();
        if let Ok(text) = Text::from_gguf(&path) {
            drop(text.encode("a b", Framing::Framed));
        }
    }
}

static BYTE_LEVEL: LazyLock<Text> = LazyLock::new(|| {
    Gguf::byte_level("gpt-2", &["ab", "Ġab", "Ã©"], &["a b", "Ġ ab", "Ã ©"]).read().unwrap()
});

static SENTENCE_PIECE: LazyLock<Text> = LazyLock::new(|| sentence_piece().read().unwrap());

static GGUF_FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    let template = Value::String("{{ messages }}".to_owned());
    let gguf = Gguf::byte_level("llama-bpe", &["ab"], &["a b"]);
    gguf.with("tokenizer.chat_template", template).write(&path);
    fs::read(path).unwrap()
});

#[test]
fn the_least_tokens_are_known_where_nothing_shrinks_a_text() {
    // The longest token is <|end|> with seven bytes.
    assert_eq!(BYTE_LEVEL.least_tokens(&"x".repeat(70)), 10);
    assert_eq!(BYTE_LEVEL.least_tokens(&"x".repeat(71)), 11);
    // NFC makes one byte of almost four.
    let qwen = Gguf::byte_level("qwen2", &[], &[]).read().unwrap();
    assert_eq!(qwen.least_tokens(&"x".repeat(70)), 3);
    // `<0x..>` is a byte; the longest token is </s>, and `▁` a space.
    assert_eq!(SENTENCE_PIECE.least_tokens(&"x".repeat(150)), 10);
}

#[test]
fn the_least_tokens_are_unknown_where_text_may_get_lost() {
    let least = |change: fn(&mut serde_json::Value)| {
        let mut tokenizer = Dir::tokenizer();
        change(&mut tokenizer);
        let dir = Dir(TempDir::new().unwrap()).write("tokenizer.json", &tokenizer.to_string());
        dir.read().unwrap().least_tokens(&"x".repeat(1000))
    };
    assert_eq!(least(|_| {}), 250);
    let lossy: [fn(&mut serde_json::Value); 5] = [
        |t| t["normalizer"] = json!({"type": "Lowercase"}),
        |t| t["pre_tokenizer"] = json!({"type": "WhitespaceSplit"}),
        |t| {
            t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": "x"},
                "behavior": "Removed", "invert": false});
        },
        |t| t["added_tokens"][0]["rstrip"] = json!(true),
        |t| {
            let id = t["model"]["vocab"]["x"].take();
            t["model"]["vocab"].as_object_mut().unwrap().remove("x");
            t["model"]["vocab"]["xyz"] = id;
        },
    ];
    for change in lossy {
        assert_eq!(least(change), 0);
    }
}
