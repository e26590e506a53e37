//! [`Text`] from hand-made model files.

mod any_text;
mod directory;
mod gguf;
mod lengths;
mod sentence_piece;

use super::*;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::fs::{self, File};
use std::sync::LazyLock;
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

static BYTE_LEVEL: LazyLock<Text> = LazyLock::new(|| {
    Gguf::byte_level("gpt-2", &["ab", "Ġab", "Ã©"], &["a b", "Ġ ab", "Ã ©"]).read().unwrap()
});

static SENTENCE_PIECE: LazyLock<Text> = LazyLock::new(|| sentence_piece().read().unwrap());
