//! The tokenizer and chat template of a directory in Hugging Face layout.

use super::ends;
use super::error::LoadError;
use super::pieces::{self, Spelling, Token};
use super::template::{OWN, Template};
use super::{Frame, Parts};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Most bytes of `tokenizer.json`; the largest real ones have 35 MB.
const MAX_TOKENIZER: u64 = 128 << 20;
/// Most bytes of a configuration file or template; the largest real ones have 1 MB.
const MAX_CONFIG: u64 = 8 << 20;

/// Reads the text side of a model directory.
pub(super) fn read(dir: &Path) -> Result<Parts, LoadError> {
    let path = dir.join("tokenizer.json");
    let Some(bytes) = file(&path, MAX_TOKENIZER)? else {
        return Err(LoadError::NoTokenizer { dir: dir.to_owned() });
    };
    let tokenizer = tokenizer(&path, &bytes)?;
    let tokens = pieces::tokens(&tokenizer)
        .map_err(|problem| LoadError::Tokenizer { path: path.clone(), problem })?;
    let spelling = Spelling::of(tokenizer.get_decoder()).map_err(|found| {
        let supported = "ByteLevel; Replace, ByteFallback, Fuse and Strip in sequence".to_owned();
        LoadError::Unsupported { path: path.clone(), what: "decoder", found, supported }
    })?;

    let config_path = dir.join("tokenizer_config.json");
    let config: TokenizerConfig = json(&config_path)?.unwrap_or_default();
    let template = config.template(dir, &config_path)?;
    let model = Model { dir, config: &config, tokenizer: &tokenizer, tokens: &tokens };
    let source = template.as_ref().map_or("", |(_, source)| source);
    let ends = ends::collect(model.ends()?, &tokens, source);
    let frame = model.frame();
    let names: Vec<_> = config.names().collect();
    let template = match template {
        None => None,
        Some((path, source)) => Some(
            Template::compile(&source, names.clone(), OWN)
                .map_err(|source| LoadError::Template { path, source })?,
        ),
    };
    Ok(Parts { tokenizer, tokens, spelling, frame, ends, names, template })
}

/// Parses `tokenizer.json` after checking what the `tokenizers` crate takes on trust.
fn tokenizer(path: &Path, bytes: &[u8]) -> Result<Tokenizer, LoadError> {
    let inconsistent = |problem| LoadError::Tokenizer { path: path.to_owned(), problem };
    let described: Described = serde_json::from_slice(bytes)
        .map_err(|source| LoadError::Json { path: path.to_owned(), source })?;
    described.model.check(path)?;
    let mut tokenizer =
        Tokenizer::from_bytes(bytes).map_err(|error| inconsistent(error.to_string()))?;
    for added in &described.added_tokens {
        let given = tokenizer.token_to_id(&added.content);
        if given != Some(added.id) {
            let AddedEntry { id, content } = added;
            return Err(inconsistent(format!(
                "added token {content:?} has id {id} in the file, but its place gives {given:?}"
            )));
        }
    }
    // What a file was saved with: cutting or filling up prompts is not the tokenizer's business.
    tokenizer.with_truncation(None).map_err(|error| inconsistent(error.to_string()))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// `tokenizer.json`, as far as it is checked.
#[derive(Deserialize)]
struct Described {
    #[serde(default)]
    added_tokens: Vec<AddedEntry>,
    model: DescribedModel,
}

#[derive(Deserialize)]
struct AddedEntry {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct DescribedModel {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: serde_json::Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl DescribedModel {
    /// Only byte-pair models are supported, and each merge must give a token.
    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let kind = self.kind.as_deref().unwrap_or("BPE");
        let Some(vocab) = self.vocab.as_object().filter(|_| kind == "BPE") else {
            return Err(LoadError::Unsupported {
                path: path.to_owned(),
                what: "tokenizer model",
                found: kind.to_owned(),
                supported: "BPE".to_owned(),
            });
        };
        let prefix = self.continuing_subword_prefix.as_deref().unwrap_or_default();
        for merge in &self.merges {
            let pair = match merge {
                Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
                Merge::Line(line) => line.split_once(' '),
            };
            let merged = pair.filter(|(left, right)| {
                let end = right.strip_prefix(prefix).unwrap_or(right);
                [*left, *right, &format!("{left}{end}")].iter().all(|t| vocab.contains_key(*t))
            });
            // A line may carry the version of the merges, as GPT-2's first line does.
            let comment = matches!(merge, Merge::Line(line) if line.starts_with("#version"));
            if merged.is_none() && !comment {
                let problem = format!("merge {pair:?} does not merge two tokens into a third");
                return Err(LoadError::Tokenizer { path: path.to_owned(), problem });
            }
        }
        Ok(())
    }
}

/// `tokenizer_config.json`, as far as it is used.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    tokenizer_class: Option<String>,
}

/// One chat template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Token { content: String },
}

impl TokenText {
    fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Token { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// The chat template and the file it is in. Its own file comes before the configuration's.
    fn template(
        &self,
        dir: &Path,
        config_path: &Path,
    ) -> Result<Option<(PathBuf, String)>, LoadError> {
        let path = dir.join("chat_template.jinja");
        if let Some(bytes) = file(&path, MAX_CONFIG)? {
            return match String::from_utf8(bytes) {
                Ok(source) => Ok(Some((path, source))),
                Err(error) => {
                    let problem = format!("the chat template is not UTF-8: {error}");
                    Err(LoadError::Tokenizer { path, problem })
                }
            };
        }
        let source = match &self.chat_template {
            None => return Ok(None),
            Some(Templates::One(source)) => source,
            Some(Templates::Named(list)) => {
                let default = list.iter().find(|named| named.name == "default");
                &default.ok_or_else(|| no_default(config_path, list))?.template
            }
        };
        Ok(Some((config_path.to_owned(), source.clone())))
    }

    /// The special tokens that a template may name.
    fn names(&self) -> impl Iterator<Item = (&'static str, String)> {
        let all = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ];
        all.into_iter()
            .filter_map(|(name, token)| Some((name, token.as_ref()?.as_str().to_owned())))
    }
}

fn no_default(path: &Path, list: &[NamedTemplate]) -> LoadError {
    let names: Vec<&str> = list.iter().map(|named| named.name.as_str()).collect();
    let problem = format!("of the chat templates {names:?} none is named \"default\"");
    LoadError::Tokenizer { path: path.to_owned(), problem }
}

/// `generation_config.json` or `config.json`, as far as it is used.
#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// What the directory's files say together.
struct Model<'a> {
    dir: &'a Path,
    config: &'a TokenizerConfig,
    tokenizer: &'a Tokenizer,
    tokens: &'a [Option<Token>],
}

impl Model<'_> {
    /// The ends that `generation_config.json` names, or else `config.json`; and the tokenizer's eos.
    fn ends(&self) -> Result<Vec<u32>, LoadError> {
        let mut ends = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let path = self.dir.join(name);
            let found: GenerationConfig = json(&path)?.unwrap_or_default();
            match found.eos_token_id {
                None => continue,
                Some(OneOrMany::One(id)) => ends.push(id),
                Some(OneOrMany::Many(ids)) => ends.extend(ids),
            }
            let vocab = self.tokens.len();
            if let Some(&id) = ends.iter().find(|&&id| id as usize >= vocab) {
                return Err(LoadError::NoSuchToken { path, key: "eos_token_id", id, vocab });
            }
            break;
        }
        ends.extend(self.id(self.config.eos_token.as_ref()));
        Ok(ends)
    }

    /// transformers' Llama and Gemma tokenizers put bos and eos by their configuration, whatever
    /// the post-processor of `tokenizer.json` would do; the others leave it to that.
    fn frame(&self) -> Frame {
        let class = self.config.tokenizer_class.as_deref().unwrap_or_default();
        match class.strip_suffix("Fast").unwrap_or(class) {
            "LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer" => {
                let bos = self.config.add_bos_token.unwrap_or(true);
                let eos = self.config.add_eos_token.unwrap_or(false);
                Frame::Tokens {
                    bos: self.id(self.config.bos_token.as_ref()).filter(|_| bos),
                    eos: self.id(self.config.eos_token.as_ref()).filter(|_| eos),
                }
            }
            _ => Frame::PostProcessor,
        }
    }

    fn id(&self, token: Option<&TokenText>) -> Option<u32> {
        token.and_then(|token| self.tokenizer.token_to_id(token.as_str()))
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    let Some(bytes) = file(path, MAX_CONFIG)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| LoadError::Json { path: path.to_owned(), source })
}

/// A file of at most `max` bytes, if it is there.
fn file(path: &Path, max: u64) -> Result<Option<Vec<u8>>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max {
        return Err(LoadError::TooLarge { path: path.to_owned(), max });
    }
    Ok(Some(bytes))
}
