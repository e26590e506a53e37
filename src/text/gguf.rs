//! The tokenizer and chat template inside a GGUF file.

use super::ends;
use super::error::LoadError;
use super::pieces::{Spelling, Token};
use super::pretokenizer::{self, PreTokenizer};
use super::template::{OWN, Template};
use super::{Frame, Parts};
use candle_core::quantized::gguf_file::{Content, Value};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Most bytes of a file's head, metadata and tensor list; 256k-token vocabularies take 15 MB.
const MAX_HEAD: u64 = 64 << 20;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Token types, from `llama.h`.
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

/// Reads the text side of a GGUF file.
pub(super) fn read(path: &Path) -> Result<Parts, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let mut head = Head::of(File::open(path).map_err(io)?).map_err(io)?;
    let content = Content::read(&mut head)
        .map_err(|source| LoadError::Gguf { path: path.to_owned(), source })?;
    Metadata { path, values: &content.metadata }.parts()
}

/// The first [`MAX_HEAD`] bytes of a file: whatever lengths the file claims, no more is read.
struct Head {
    file: BufReader<File>,
    at: u64,
    end: u64,
}

impl Head {
    fn of(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len().min(MAX_HEAD);
        Ok(Self { file: BufReader::with_capacity(1 << 20, file), at: 0, end })
    }
}

impl Read for Head {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.file.read(&mut buffer[..wanted])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Head {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let target = target.ok_or(io::ErrorKind::InvalidInput)?;
        self.at = self.file.seek(SeekFrom::Start(target))?;
        Ok(self.at)
    }

    /// Without a system call: the reader asks before every string.
    fn stream_position(&mut self) -> io::Result<u64> {
        Ok(self.at)
    }
}

/// A file's metadata, asked for by key and type.
struct Metadata<'a> {
    path: &'a Path,
    values: &'a HashMap<String, Value>,
}

impl Metadata<'_> {
    fn parts(&self) -> Result<Parts, LoadError> {
        let tokens = self.tokens()?;
        let mut tokenizer = match self.string(MODEL)? {
            Some("gpt2") => self.byte_level(&tokens)?,
            Some("llama") => self.sentence_piece(&tokens)?,
            Some(other) => {
                let supported = "gpt2 (byte-level BPE), llama (SentencePiece BPE)";
                return Err(self.unsupported(MODEL, other, supported));
            }
            None => return Err(self.missing(MODEL)),
        };
        let added = tokens
            .iter()
            .filter(|token| token.added)
            .map(|token| AddedToken::from(token.text.clone(), token.special).normalized(false));
        tokenizer.add_tokens(added).map_err(|error| self.inconsistent(error.to_string()))?;
        let spelling =
            Spelling::of(tokenizer.get_decoder()).map_err(|problem| self.inconsistent(problem))?;
        let tokens: Vec<_> = tokens.into_iter().map(Some).collect();
        Ok(Parts {
            frame: self.frame(&tokens)?,
            ends: self.ends(&tokens)?,
            names: self.names(&tokens)?,
            template: self.template(&tokens)?,
            tokenizer,
            spelling,
            tokens,
        })
    }

    fn tokens(&self) -> Result<Vec<Token>, LoadError> {
        let texts = self.strings(TOKENS)?.ok_or_else(|| self.missing(TOKENS))?;
        let types: Vec<i64> = match self.array(TOKEN_TYPES)? {
            Some(types) => types.iter().map(|kind| self.integer(TOKEN_TYPES, kind)).collect(),
            None => Err(self.missing(TOKEN_TYPES)),
        }?;
        self.same_length(TOKEN_TYPES, types.len(), texts.len())?;
        let token = |(text, kind): (String, i64)| {
            let special = matches!(kind, TYPE_UNKNOWN | TYPE_CONTROL);
            Token { text, added: special || kind == TYPE_USER_DEFINED, special }
        };
        Ok(texts.into_iter().zip(types).map(token).collect())
    }

    fn byte_level(&self, tokens: &[Token]) -> Result<Tokenizer, LoadError> {
        let pre = self.pre_tokenizer()?;
        let vocab = vocab(tokens);
        let lines = self.strings(MERGES)?.ok_or_else(|| self.missing(MERGES))?;
        let merges = lines.iter().map(|line| self.merge(line, &vocab)).collect::<Result<_, _>>()?;
        let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignore_merges);
        let mut tokenizer =
            self.tokenizer(model.build(), pre.normalizer, pretokenizer::byte_level_decoder())?;
        tokenizer.with_pre_tokenizer(Some(self.step::<PreTokenizerWrapper>(pre.splitter)?));
        Ok(tokenizer)
    }

    /// What [`PRE`] names; its `default` where it is missing, as llama.cpp has it.
    fn pre_tokenizer(&self) -> Result<PreTokenizer, LoadError> {
        let name = self.string(PRE)?.unwrap_or_else(|| {
            tracing::warn!(
                path = %self.path.display(),
                "the file does not say how its tokenizer splits words ({PRE} is missing): the default is used, which may not be what the model was trained with; convert the model again with a current converter"
            );
            "default"
        });
        PreTokenizer::named(name)
            .ok_or_else(|| self.unsupported(PRE, name, PreTokenizer::SUPPORTED))
    }

    fn sentence_piece(&self, tokens: &[Token]) -> Result<Tokenizer, LoadError> {
        let scores: Vec<f32> = match self.array(SCORES)? {
            Some(scores) => scores.iter().map(|score| self.float(SCORES, score)).collect(),
            None => Err(self.missing(SCORES)),
        }?;
        self.same_length(SCORES, scores.len(), tokens.len())?;
        let texts: Vec<String> = tokens.iter().map(|token| token.text.clone()).collect();
        let merges = pretokenizer::merges_by_score(&texts, &scores);
        let mut model = BPE::builder()
            .vocab_and_merges(vocab(tokens), merges)
            .byte_fallback(true)
            .fuse_unk(true);
        if let Some(unknown) = self.token(UNKNOWN, tokens.len())? {
            model = model.unk_token(texts[unknown].clone());
        }
        let leading = usize::from(self.boolean(ADD_SPACE)?.unwrap_or(true));
        self.tokenizer(
            model.build(),
            Some(pretokenizer::sentence_piece_normalizer(leading)),
            pretokenizer::sentence_piece_decoder(leading),
        )
    }

    fn tokenizer(
        &self,
        model: tokenizers::Result<BPE>,
        normalizer: Option<serde_json::Value>,
        decoder: serde_json::Value,
    ) -> Result<Tokenizer, LoadError> {
        let model = model.map_err(|error| self.inconsistent(error.to_string()))?;
        let mut tokenizer = Tokenizer::new(model);
        if let Some(normalizer) = normalizer {
            let normalizer = self.step::<NormalizerWrapper>(normalizer)?;
            tokenizer
                .with_normalizer(Some(normalizer))
                .map_err(|error| self.inconsistent(error.to_string()))?;
        }
        tokenizer.with_decoder(Some(self.step::<DecoderWrapper>(decoder)?));
        Ok(tokenizer)
    }

    /// A step of the tokenizer from its description in `tokenizer.json`.
    fn step<T: DeserializeOwned>(&self, description: serde_json::Value) -> Result<T, LoadError> {
        serde_json::from_value(description).map_err(|error| self.inconsistent(error.to_string()))
    }

    /// One line of the merges. The `tokenizers` crate trusts that a merge gives a token.
    fn merge(&self, line: &str, vocab: &Vocab) -> Result<(String, String), LoadError> {
        let pair = line.split_once(' ').filter(|(left, right)| {
            vocab.contains_key(*left)
                && vocab.contains_key(*right)
                && vocab.contains_key(&format!("{left}{right}"))
        });
        let (left, right) = pair.ok_or_else(|| {
            self.invalid(MERGES, format!("{line:?} does not merge two tokens into a third"))
        })?;
        Ok((left.to_owned(), right.to_owned()))
    }

    fn frame(&self, tokens: &[Option<Token>]) -> Result<Frame, LoadError> {
        let by_default = match (self.string(MODEL)?, self.string(PRE)?) {
            (Some("llama"), _) => true,
            (_, pre) => pre.and_then(PreTokenizer::named).is_some_and(|pre| pre.adds_bos),
        };
        let (bos, add_bos) = self.framing(BOS, ADD_BOS, tokens.len())?;
        let (eos, add_eos) = self.framing(EOS, ADD_EOS, tokens.len())?;
        Ok(Frame::Tokens {
            bos: bos.filter(|_| add_bos.unwrap_or(by_default)),
            eos: eos.filter(|_| add_eos.unwrap_or(false)),
        })
    }

    /// The token `key`, and whether `flag` asks to add it: that needs the token.
    fn framing(
        &self,
        key: &'static str,
        flag: &'static str,
        vocab: usize,
    ) -> Result<(Option<u32>, Option<bool>), LoadError> {
        match (self.id(key, vocab)?, self.boolean(flag)?) {
            (None, Some(true)) => Err(self.missing(key)),
            found => Ok(found),
        }
    }

    fn ends(&self, tokens: &[Option<Token>]) -> Result<Vec<u32>, LoadError> {
        let named: Vec<Option<u32>> = [EOS, EOT, EOM]
            .into_iter()
            .map(|key| self.id(key, tokens.len()))
            .collect::<Result<_, _>>()?;
        let template = self.string(TEMPLATE)?.unwrap_or_default();
        Ok(ends::collect(named.into_iter().flatten(), tokens, template))
    }

    fn names(&self, tokens: &[Option<Token>]) -> Result<Vec<(&'static str, String)>, LoadError> {
        let mut names = Vec::new();
        let keys = [
            ("bos_token", BOS),
            ("eos_token", EOS),
            ("unk_token", UNKNOWN),
            ("pad_token", PADDING),
        ];
        for (name, key) in keys {
            let token = self.token(key, tokens.len())?.and_then(|at| tokens[at].as_ref());
            names.extend(token.map(|token| (name, token.text.clone())));
        }
        Ok(names)
    }

    fn template(&self, tokens: &[Option<Token>]) -> Result<Option<Template>, LoadError> {
        let Some(source) = self.string(TEMPLATE)? else { return Ok(None) };
        let compiled = Template::compile(source, self.names(tokens)?, OWN);
        compiled
            .map(Some)
            .map_err(|source| LoadError::Template { path: self.path.to_owned(), source })
    }

    fn string(&self, key: &'static str) -> Result<Option<&str>, LoadError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(key, "a string", other)),
        }
    }

    fn boolean(&self, key: &'static str) -> Result<Option<bool>, LoadError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.mistyped(key, "a boolean", other)),
        }
    }

    /// A token id below `vocab`.
    fn id(&self, key: &'static str, vocab: usize) -> Result<Option<u32>, LoadError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let id = u32::try_from(self.integer(key, value)?)
            .map_err(|_| self.mistyped(key, "a token id", value))?;
        if (id as usize) < vocab {
            return Ok(Some(id));
        }
        Err(LoadError::NoSuchToken { path: self.path.to_owned(), key, id, vocab })
    }

    /// A token id as an index.
    fn token(&self, key: &'static str, vocab: usize) -> Result<Option<usize>, LoadError> {
        Ok(self.id(key, vocab)?.map(|id| id as usize))
    }

    fn array(&self, key: &'static str) -> Result<Option<&[Value]>, LoadError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.mistyped(key, "an array", other)),
        }
    }

    fn strings(&self, key: &'static str) -> Result<Option<Vec<String>>, LoadError> {
        let Some(values) = self.array(key)? else { return Ok(None) };
        let strings = values.iter().map(|value| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.mistyped(key, "an array of strings", other)),
        });
        strings.collect::<Result<_, _>>().map(Some)
    }

    fn integer(&self, key: &'static str, value: &Value) -> Result<i64, LoadError> {
        match *value {
            Value::U8(n) => Ok(n.into()),
            Value::I8(n) => Ok(n.into()),
            Value::U16(n) => Ok(n.into()),
            Value::I16(n) => Ok(n.into()),
            Value::U32(n) => Ok(n.into()),
            Value::I32(n) => Ok(n.into()),
            Value::I64(n) => Ok(n),
            Value::U64(n) => i64::try_from(n).map_err(|_| self.mistyped(key, "below 2^63", value)),
            _ => Err(self.mistyped(key, "an integer", value)),
        }
    }

    fn float(&self, key: &'static str, value: &Value) -> Result<f32, LoadError> {
        match *value {
            Value::F32(score) if score.is_finite() => Ok(score),
            _ => Err(self.mistyped(key, "finite 32-bit numbers", value)),
        }
    }

    fn same_length(&self, key: &'static str, found: usize, vocab: usize) -> Result<(), LoadError> {
        if found == vocab {
            return Ok(());
        }
        Err(self.invalid(key, format!("{found} entries for {vocab} tokens")))
    }

    fn missing(&self, key: &'static str) -> LoadError {
        self.invalid(key, "is missing; convert the model again with a current converter".to_owned())
    }

    fn mistyped(&self, key: &'static str, wanted: &str, found: &Value) -> LoadError {
        self.invalid(key, format!("must be {wanted}, is of type {:?}", found.value_type()))
    }

    fn invalid(&self, key: &'static str, problem: String) -> LoadError {
        LoadError::Metadata { path: self.path.to_owned(), key, problem }
    }

    fn unsupported(&self, what: &'static str, found: &str, supported: &str) -> LoadError {
        LoadError::Unsupported {
            path: self.path.to_owned(),
            what,
            found: found.to_owned(),
            supported: supported.to_owned(),
        }
    }

    fn inconsistent(&self, problem: String) -> LoadError {
        LoadError::Tokenizer { path: self.path.to_owned(), problem }
    }
}

/// Token texts to ids; of equal texts the first counts.
fn vocab(tokens: &[Token]) -> Vocab {
    let mut vocab = Vocab::default();
    for (token, id) in tokens.iter().zip(0u32..) {
        vocab.entry(token.text.clone()).or_insert(id);
    }
    vocab
}
