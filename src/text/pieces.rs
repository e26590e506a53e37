//! The bytes of every token.

use serde_json::Value;
use tokenizers::{DecoderWrapper, Tokenizer};

/// Largest vocabulary accepted; real ones end near 262,144.
const MAX_VOCAB: usize = 1 << 22;

/// How a vocabulary writes the bytes of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte is one printable character, by GPT-2's table.
    ByteLevel,
    /// `▁` is a space and `<0x0A>` a byte.
    SentencePiece {
        /// Spaces that decoding drops at the start of a text: the encoder put them there.
        leading: usize,
    },
}

impl Spelling {
    /// The spelling that a `tokenizers` decoder undoes; otherwise the decoder's description.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, String> {
        let described = serde_json::to_value(decoder).map_err(|error| error.to_string())?;
        let steps = match described["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(&described),
        };
        let kinds: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
        match kinds[..] {
            ["ByteLevel"] => Ok(Self::ByteLevel),
            ["Replace", "ByteFallback", "Fuse"] if is_space(&steps[0]) => {
                Ok(Self::SentencePiece { leading: 0 })
            }
            ["Replace", "ByteFallback", "Fuse", "Strip"]
                if is_space(&steps[0]) && steps[3]["content"] == " " && steps[3]["stop"] == 0 =>
            {
                let leading = steps[3]["start"].as_u64().and_then(|n| usize::try_from(n).ok());
                leading
                    .map(|leading| Self::SentencePiece { leading })
                    .ok_or_else(|| described.to_string())
            }
            _ => Err(described.to_string()),
        }
    }

    /// The character that stands for `byte` in a byte-level vocabulary.
    #[cfg(test)]
    pub(super) fn byte_char(byte: u8) -> char {
        // The printable bytes stand for themselves, the others follow from U+0100 in order.
        let moved = match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => return char::from(byte),
            0x00..=0x20 => byte,
            0x7F..=0xA0 => byte - 0x7F + 33,
            0xAD => 67,
        };
        char::from_u32(0x100 + u32::from(moved)).expect("U+0100..=U+0143 are characters")
    }

    /// The byte that a character of a byte-level vocabulary stands for.
    fn char_byte(character: char) -> Option<u8> {
        match u32::from(character) {
            code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
            code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
            code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
            0x143 => Some(0xAD),
            _ => None,
        }
    }

    /// Appends the bytes that `text` spells.
    fn write(self, text: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let spelled: Option<Vec<u8>> = text.chars().map(Self::char_byte).collect();
                // A token that is not spelled by the table stands for itself.
                bytes.extend(spelled.unwrap_or_else(|| text.as_bytes().to_vec()));
            }
            Self::SentencePiece { .. } => match byte_token(text) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(text.replace('▁', " ").as_bytes()),
            },
        }
    }
}

/// Whether a `Replace` step turns `▁` into a space.
fn is_space(step: &Value) -> bool {
    step["pattern"]["String"] == "▁" && step["content"] == " "
}

/// The byte of a byte-fallback token, `<0x0A>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// A token as a model's files describe it.
#[derive(Clone, Debug)]
pub(super) struct Token {
    /// As it stands in the vocabulary.
    pub(super) text: String,
    /// Whether it stands for its own text, not for what the spelling makes of it.
    pub(super) added: bool,
    /// Whether it steers the model, as `<|im_end|>` does, and is no part of an answer.
    pub(super) special: bool,
}

impl Token {
    /// A token of the learnt vocabulary.
    pub(super) fn normal(text: String) -> Self {
        Self { text, added: false, special: false }
    }
}

/// The tokens of a `tokenizers` tokenizer by id, with gaps; or what is wrong with their ids.
pub(super) fn tokens(tokenizer: &Tokenizer) -> Result<Vec<Option<Token>>, String> {
    let learnt = tokenizer.get_vocab(false).into_iter().map(|(text, id)| (id, Token::normal(text)));
    let added = tokenizer.get_added_tokens_decoder().into_iter().map(|(id, token)| {
        (id, Token { text: token.content, added: true, special: token.special })
    });
    let mut tokens = Vec::new();
    // The added ones come last: they replace the entries of the learnt vocabulary.
    for (id, token) in learnt.chain(added) {
        let at = usize::try_from(id).expect("a token id fits in usize");
        if at >= MAX_VOCAB {
            return Err(format!("token id {id} of {:?} is above {MAX_VOCAB}", token.text));
        }
        if at >= tokens.len() {
            tokens.resize(at + 1, None);
        }
        tokens[at] = Some(token);
    }
    Ok(tokens)
}

/// One token's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) special: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Absent,
    Normal,
    Special,
}

/// The bytes of all tokens of a vocabulary, in one block of memory.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where the token before it ends.
    ends: Vec<usize>,
    kinds: Vec<Kind>,
    spelling: Spelling,
}

impl Pieces {
    pub(super) fn new(spelling: Spelling, tokens: impl IntoIterator<Item = Option<Token>>) -> Self {
        let mut pieces = Self { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new(), spelling };
        for token in tokens {
            match &token {
                Some(Token { text, added: true, .. }) => {
                    pieces.bytes.extend_from_slice(text.as_bytes());
                }
                Some(Token { text, .. }) => spelling.write(text, &mut pieces.bytes),
                None => {}
            }
            pieces.ends.push(pieces.bytes.len());
            pieces.kinds.push(match token {
                None => Kind::Absent,
                Some(token) if token.special => Kind::Special,
                Some(_) => Kind::Normal,
            });
        }
        pieces
    }

    /// One above the highest token id.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest token, at least one.
    pub(super) fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        self.ends.iter().zip(starts).map(|(end, start)| end - start).max().unwrap_or(0).max(1)
    }

    /// Which bytes are tokens of their own, so that any text of them can be spelled.
    pub(super) fn single_bytes(&self) -> [bool; 256] {
        let mut found = [false; 256];
        let starts = std::iter::once(&0).chain(&self.ends);
        for ((&end, &start), kind) in self.ends.iter().zip(starts).zip(&self.kinds) {
            if let ([byte], Kind::Normal) = (&self.bytes[start..end], kind) {
                found[usize::from(*byte)] = true;
            }
        }
        found
    }

    /// Spaces to drop at the start of a decoded text.
    pub(super) fn leading_spaces(&self) -> usize {
        match self.spelling {
            Spelling::ByteLevel => 0,
            Spelling::SentencePiece { leading } => leading,
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<Piece<'_>> {
        let at = usize::try_from(id).ok()?;
        let end = *self.ends.get(at)?;
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        match self.kinds[at] {
            Kind::Absent => None,
            kind => Some(Piece { bytes: &self.bytes[start..end], special: kind == Kind::Special }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spelling(decoder: Value) -> Result<Spelling, String> {
        Spelling::of(Some(&serde_json::from_value(decoder).unwrap()))
    }

    #[test]
    fn the_byte_table_is_a_bijection_that_tokenizers_shares() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        for byte in 0..=255 {
            let character = Spelling::byte_char(byte);
            assert_eq!(Spelling::char_byte(character), Some(byte));
            assert!(alphabet.contains(&character), "{byte:#x} as {character:?}");
        }
        assert_eq!(Spelling::byte_char(b' '), 'Ġ');
        assert_eq!(Spelling::byte_char(b'\n'), 'Ċ');
        assert_eq!(Spelling::char_byte(' '), None);
        assert_eq!(Spelling::char_byte('\u{144}'), None);
    }

    #[test]
    fn added_tokens_stand_for_themselves() {
        let added = Token { text: "é Ġ".to_owned(), added: true, special: false };
        let pieces =
            Pieces::new(Spelling::ByteLevel, [Some(added), Some(Token::normal("Ġé".to_owned()))]);
        assert_eq!(pieces.get(0).unwrap().bytes, "é Ġ".as_bytes());
        assert_eq!(pieces.get(1).unwrap().bytes, b" \xE9");
        assert_eq!(pieces.get(2), None);
    }

    #[test]
    fn byte_tokens_are_two_hexadecimal_digits() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0xff>"), Some(255));
        for text in ["<0x+1>", "<0x1>", "<0x001>", "0x01", "<0xé>"] {
            assert_eq!(byte_token(text), None, "{text}");
        }
    }

    #[test]
    fn the_decoders_of_real_models_are_recognised() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let (bytes, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let sequence = |decoders: &[&Value]| json!({"type": "Sequence", "decoders": decoders});
        assert_eq!(
            spelling(sequence(&[&replace, &bytes, &fuse, &strip])),
            Ok(Spelling::SentencePiece { leading: 1 })
        );
        assert_eq!(
            spelling(sequence(&[&replace, &bytes, &fuse])),
            Ok(Spelling::SentencePiece { leading: 0 })
        );
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": true});
        assert_eq!(spelling(byte_level.clone()), Ok(Spelling::ByteLevel));
        assert_eq!(spelling(sequence(&[&byte_level])), Ok(Spelling::ByteLevel));
        // Strip before Fuse cuts every token, not the text.
        assert!(spelling(sequence(&[&replace, &bytes, &strip, &fuse])).is_err());
        let refused = spelling(json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
        assert!(refused.unwrap_err().contains("WordPiece"));
        assert_eq!(Spelling::of(None), Err("null".to_owned()));
    }
}
