//! Text: strings to token ids and back, chat templates, stop strings. It knows no engine.
//!
//! - [`Text`] is a model's text side, read from a GGUF file or a model directory.
//! - [`Detok`] turns tokens into text while they come, [`Stops`] ends that text.
//!
//! Everything here is work for the processor alone and takes time linear in its input, but encoding
//! a long prompt takes milliseconds: callers keep it off the reactor.

mod bound;
mod brought;
mod clock;
mod detok;
mod ends;
mod error;
mod formats;
mod gbnf;
mod gguf;
mod grammar;
mod hub;
mod intersections;
mod json;
mod offer;
mod pieces;
mod pretokenizer;
mod stop;
mod template;
mod tools;

pub use brought::Rendering;
pub use clock::utc;
pub use detok::{Detok, Specials};
pub use error::{Error, LoadError};
pub use grammar::{BadForm, Form, TooComplex, Walk, Ways};
pub use stop::{Keep, Released, Stops};
pub use template::{Call, Chat, Ending, Message};
pub use tools::{Calls, Dialect, Listener, Number, Said, Tool};

use bound::Bound;
use pieces::{Pieces, Spelling, Token};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use template::Template;
use tokenizers::Tokenizer;

/// Most bytes encoded in one piece: some 230,000 tokens of prose, more than any context that is
/// served. A byte of prose takes about a microsecond and 140 bytes of memory, a digit, a word to
/// many tokenizers, three times as much.
const MAX_TEXT: usize = 1 << 20;
/// Most whitespace characters in a row. The pattern that splits words looks back over a run of
/// whitespace and keeps a stack of a million places; when that is full it splits wrongly, silently.
const MAX_WHITESPACE: usize = 200_000;

/// Whether encoding adds the tokens that the model wants around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// With the bos and eos tokens that the model's files ask for: for a bare prompt.
    Framed,
    /// The text alone: for a rendered chat, whose template writes these tokens itself.
    Bare,
}

/// Where the tokens around a text come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// From the tokenizer's post-processor.
    PostProcessor,
    /// These tokens, those there are.
    Tokens { bos: Option<u32>, eos: Option<u32> },
}

/// What a model's files say about text.
struct Parts {
    tokenizer: Tokenizer,
    /// The vocabulary by id.
    tokens: Vec<Option<Token>>,
    spelling: Spelling,
    frame: Frame,
    ends: Vec<u32>,
    /// What templates may name: `bos_token`, `<s>`.
    names: Vec<(&'static str, String)>,
    template: Option<Template>,
}

/// The text side of a model: tokenizer, chat template, special tokens. Cheap to clone.
#[derive(Clone)]
pub struct Text {
    shared: Arc<Shared>,
    template: Option<Arc<Template>>,
}

struct Shared {
    tokenizer: Tokenizer,
    pieces: Arc<Pieces>,
    frame: Frame,
    stop_tokens: Arc<[u32]>,
    names: Vec<(&'static str, String)>,
    /// What a text's bytes tell of its tokens, where they do.
    bound: Option<Bound>,
    grammars: grammar::Lazily,
}

impl Text {
    /// Reads the metadata of a GGUF file.
    pub fn from_gguf(path: &Path) -> Result<Self, LoadError> {
        gguf::read(path).map(Self::from_parts)
    }

    /// Reads `tokenizer.json` and the configuration files of a directory in Hugging Face layout.
    pub fn from_dir(dir: &Path) -> Result<Self, LoadError> {
        hub::read(dir).map(Self::from_parts)
    }

    fn from_parts(parts: Parts) -> Self {
        let pieces = Pieces::new(parts.spelling, parts.tokens);
        let shared = Shared {
            bound: Bound::of(&parts.tokenizer, parts.spelling, &pieces),
            tokenizer: parts.tokenizer,
            pieces: Arc::new(pieces),
            frame: parts.frame,
            stop_tokens: parts.ends.into(),
            names: parts.names,
            grammars: grammar::Lazily::default(),
        };
        Self { shared: Arc::new(shared), template: parts.template.map(Arc::new) }
    }

    /// The tokens of `text`. Special tokens written out in it (`<|im_start|>`) are those tokens.
    pub fn encode(&self, text: &str, framing: Framing) -> Result<Vec<u32>, Error> {
        check_length(text)?;
        let Shared { tokenizer, frame, .. } = &*self.shared;
        let processed = framing == Framing::Framed && *frame == Frame::PostProcessor;
        let encoding = tokenizer
            .encode_fast(text, processed)
            .map_err(|error| Error::Untokenizable(error.to_string()))?;
        let ids = encoding.get_ids().iter().copied();
        Ok(match (framing, frame) {
            (Framing::Framed, &Frame::Tokens { bos, eos }) => {
                bos.into_iter().chain(ids).chain(eos).collect()
            }
            _ => ids.collect(),
        })
    }

    /// A number of tokens that `text` has at least, from its bytes alone: a prompt far above the
    /// context can be refused without the work of encoding it. 0 where nothing is known.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.shared.bound.as_ref().map_or(0, |bound| bound.least_tokens(text))
    }

    /// The text of `ids`. Ids that the vocabulary does not have are nothing; bytes that are no UTF-8
    /// become U+FFFD as in [`String::from_utf8_lossy`].
    ///
    /// This is what `tokenizers` decodes, but for one thing: where it gives up a whole run of
    /// byte-fallback tokens for one wrong byte in it, the right ones are kept.
    pub fn decode(&self, ids: &[u32], specials: Specials) -> String {
        let mut detok = self.detok(specials);
        let mut text = String::new();
        for &id in ids {
            detok.push_to(id, &mut text);
        }
        detok.finish_to(&mut text);
        text
    }

    /// Decodes tokens as they come.
    pub fn detok(&self, specials: Specials) -> Detok {
        Detok::new(Arc::clone(&self.shared.pieces), specials)
    }

    /// The bytes of one token, not always whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.shared.pieces.get(id).map(|piece| piece.bytes)
    }

    /// Whether the token steers the model, as `<|im_end|>` does, and is no part of an answer.
    pub fn is_special(&self, id: u32) -> bool {
        self.shared.pieces.get(id).is_some_and(|piece| piece.special)
    }

    /// Size of the vocabulary: one above the highest token id. The model may have more rows.
    pub fn vocab(&self) -> usize {
        self.shared.pieces.len()
    }

    /// The tokens that end an answer, in rising order.
    pub fn stop_tokens(&self) -> &Arc<[u32]> {
        &self.shared.stop_tokens
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt for a chat: the model's chat template, rendered.
    pub fn render(&self, chat: &Chat, ending: Ending) -> Result<String, Error> {
        self.template.as_ref().ok_or(Error::NoTemplate)?.render(chat, ending)
    }

    /// How calls of tools are written: as the template shows it, which is the model's own or another.
    pub fn dialect(&self, brought: Option<&str>) -> Dialect {
        match (brought, &self.template) {
            (Some(source), _) => Dialect::of(source),
            (None, Some(template)) => template.dialect(),
            (None, None) => Dialect::Tagged,
        }
    }

    /// The special token that the calls of a dialect begin with, which is shown although it is special.
    pub fn mark(&self, dialect: Dialect) -> Option<u32> {
        let ids = 0..u32::try_from(self.vocab()).unwrap_or(u32::MAX);
        let pieces = &self.shared.pieces;
        let marks = dialect.marks();
        let is_mark = |id: &u32| {
            pieces.get(*id).is_some_and(|piece| {
                piece.special && marks.iter().any(|mark| mark.as_bytes() == piece.bytes)
            })
        };
        ids.into_iter().find(is_mark)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Text")
            .field("vocab", &self.vocab())
            .field("frame", &self.shared.frame)
            .field("stop_tokens", &self.shared.stop_tokens)
            .field("has_template", &self.has_template())
            .finish_non_exhaustive()
    }
}

fn check_length(text: &str) -> Result<(), Error> {
    if text.len() > MAX_TEXT {
        return Err(Error::TextTooLong { bytes: text.len(), max: MAX_TEXT });
    }
    // Runs this long are rare: only a text with one is looked through.
    let longest = text.split(|c: char| !c.is_whitespace()).max_by_key(|run| run.len());
    let run = longest.filter(|run| run.len() > MAX_WHITESPACE).unwrap_or_default();
    let characters = run.chars().count();
    if characters > MAX_WHITESPACE {
        return Err(Error::TooMuchWhitespace { characters, max: MAX_WHITESPACE });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
