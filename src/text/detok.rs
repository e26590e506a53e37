//! Token ids to text, one at a time.

use super::pieces::Pieces;
use std::fmt;
use std::sync::Arc;

/// What becomes of special tokens (`<|im_end|>`) in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// They are written out.
    Show,
    /// They leave no trace.
    Hide,
    /// They leave no trace but this one.
    HideBut(u32),
}

/// Decodes a growing list of tokens.
///
/// - Each push gives only whole characters, and nothing given is ever taken back.
/// - All pushes and `finish` together are [`Text::decode`](super::Text::decode) of all tokens.
/// - Bytes that are no UTF-8 become U+FFFD as in [`String::from_utf8_lossy`]: at once when no later
///   byte can complete them, in `finish` when the text ends within a character.
/// - Work per token is linear in that token's bytes; at most three bytes are held back.
#[derive(Clone)]
pub struct Detok {
    pieces: Arc<Pieces>,
    specials: Specials,
    /// Spaces still to be dropped at the start of the text.
    leading: usize,
    /// The bytes of an unfinished character.
    partial: Vec<u8>,
}

impl Detok {
    pub(super) fn new(pieces: Arc<Pieces>, specials: Specials) -> Self {
        let leading = pieces.leading_spaces();
        Self { pieces, specials, leading, partial: Vec::new() }
    }

    /// The decoder of what follows these tokens: a space between them and their continuation is kept, and a character that
    /// they began is completed. Work is linear in the tokens, but hardly any for each.
    #[must_use]
    pub fn after(mut self, ids: &[u32]) -> Self {
        let mut passed = String::new();
        let mut rest = ids;
        while self.leading > 0
            && let Some((&id, others)) = rest.split_first()
        {
            self.push_to(id, &mut passed);
            rest = others;
        }
        // Whatever is unfinished lies in the last three bytes: a character has four at most.
        let mut bytes = 0;
        let tail = rest.iter().rposition(|&id| {
            bytes += shown(&self.pieces, id, self.specials).len();
            bytes >= 3
        });
        if let Some(tail) = tail {
            self.partial.clear();
            rest = &rest[tail..];
        }
        for &id in rest {
            self.push_to(id, &mut passed);
        }
        self
    }

    /// Characters that the next push gives before the text of this token itself begins: one where the token breaks off an
    /// unfinished character, which then becomes U+FFFD.
    pub fn before(&self, id: u32) -> usize {
        let Some(&first) = shown(&self.pieces, id, self.specials).first() else { return 0 };
        if self.partial.is_empty() {
            return 0;
        }
        let joined = [&*self.partial, &[first]].concat();
        usize::from(!begins_character(&joined) && std::str::from_utf8(&joined).is_err())
    }

    /// The text that this token completes. A token that the vocabulary does not have is nothing.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_to(id, &mut text);
        text
    }

    /// What is left: U+FFFD when the tokens ended within a character.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.finish_to(&mut text);
        text
    }

    pub(super) fn push_to(&mut self, id: u32, text: &mut String) {
        let mut bytes = shown(&self.pieces, id, self.specials);
        while self.leading > 0
            && let Some((&first, rest)) = bytes.split_first()
        {
            if first == b' ' {
                self.leading -= 1;
                bytes = rest;
            } else {
                self.leading = 0;
            }
        }
        if self.partial.is_empty() {
            self.partial.extend_from_slice(write_whole(bytes, text));
        } else {
            let mut all = std::mem::take(&mut self.partial);
            all.extend_from_slice(bytes);
            self.partial.extend_from_slice(write_whole(&all, text));
        }
    }

    pub(super) fn finish_to(&mut self, text: &mut String) {
        if !self.partial.is_empty() {
            self.partial.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

impl fmt::Debug for Detok {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detok")
            .field("specials", &self.specials)
            .field("partial", &self.partial)
            .finish_non_exhaustive()
    }
}

/// The bytes that a token adds to a text; none where it leaves no trace.
fn shown(pieces: &Pieces, id: u32, specials: Specials) -> &[u8] {
    match pieces.get(id) {
        Some(piece)
            if !piece.special
                || specials == Specials::Show
                || specials == Specials::HideBut(id) =>
        {
            piece.bytes
        }
        _ => &[],
    }
}

/// Writes the whole characters of `bytes`, and U+FFFD for what can never be one; returns the
/// beginning of a character at the end.
fn write_whole<'a>(bytes: &'a [u8], text: &mut String) -> &'a [u8] {
    let mut rest = bytes;
    for chunk in bytes.utf8_chunks() {
        let invalid = chunk.invalid();
        rest = &rest[chunk.valid().len() + invalid.len()..];
        text.push_str(chunk.valid());
        if rest.is_empty() && begins_character(invalid) {
            return invalid;
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    &[]
}

/// Whether more bytes can make `bytes` a character.
fn begins_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pieces::{Spelling, Token};
    use proptest::prelude::*;

    /// A byte-level vocabulary: all 256 bytes, then words, a cut character, a special token.
    fn byte_level() -> Arc<Pieces> {
        let bytes = (0..=255).map(|byte| Token::normal(Spelling::byte_char(byte).to_string()));
        let words = ["Ġthe", "Ã", "ĠÃ", "©", "ðŁ", "ĺĤ"].map(|w| Token::normal(w.to_owned()));
        let special = Token { text: "<|é|>".to_owned(), added: true, special: true };
        let tokens = bytes.chain(words).chain([special]).map(Some).chain([None]);
        Arc::new(Pieces::new(Spelling::ByteLevel, tokens))
    }

    fn sentence_piece() -> Arc<Pieces> {
        let words = ["▁", "▁▁", "▁a", "b", "▁é", "é"].map(|w| Token::normal(w.to_owned()));
        let bytes = (0..=255).map(|byte| Token::normal(format!("<0x{byte:02X}>")));
        let special = Token { text: "</s>".to_owned(), added: true, special: true };
        let spelling = Spelling::SentencePiece { leading: 1 };
        Arc::new(Pieces::new(spelling, words.into_iter().chain(bytes).chain([special]).map(Some)))
    }

    fn streamed(pieces: &Arc<Pieces>, specials: Specials, ids: &[u32]) -> String {
        let mut detok = Detok::new(Arc::clone(pieces), specials);
        let mut text: String = ids.iter().map(|&id| detok.push(id)).collect();
        text.push_str(&detok.finish());
        text
    }

    /// The slow decode: all bytes joined, then made text.
    fn joined(pieces: &Pieces, specials: Specials, ids: &[u32]) -> String {
        let shown = ids.iter().filter_map(|&id| pieces.get(id));
        let shown = shown.filter(|piece| specials == Specials::Show || !piece.special);
        let bytes: Vec<u8> = shown.flat_map(|piece| piece.bytes.iter().copied()).collect();
        let spaces = bytes.iter().take_while(|&&b| b == b' ').count();
        let dropped = spaces.min(pieces.leading_spaces());
        String::from_utf8_lossy(&bytes[dropped..]).into_owned()
    }

    #[test]
    fn a_character_comes_when_its_last_byte_does() {
        let mut detok = Detok::new(byte_level(), Specials::Show);
        let crab = "🦀".as_bytes();
        for &byte in &crab[..3] {
            assert_eq!(detok.push(u32::from(byte)), "");
        }
        assert_eq!(detok.push(u32::from(crab[3])), "🦀");
        assert_eq!(detok.finish(), "");
    }

    #[test]
    fn a_broken_character_is_replaced_once_and_at_once() {
        let mut detok = Detok::new(byte_level(), Specials::Show);
        assert_eq!(detok.push(0xF0), "");
        assert_eq!(detok.push(u32::from(b'a')), "\u{FFFD}a");
        assert_eq!(detok.push(0xFF), "\u{FFFD}");
        assert_eq!(detok.push(0xE2), "");
        assert_eq!(detok.push(0x82), "");
        assert_eq!(detok.finish(), "\u{FFFD}");
        assert_eq!(detok.finish(), "");
    }

    #[test]
    fn hidden_specials_and_unknown_ids_leave_no_trace() {
        let pieces = byte_level();
        let special = 262;
        let ids = [u32::from(b'a'), special, 263, 100_000, u32::from(b'b')];
        assert_eq!(streamed(&pieces, Specials::Hide, &ids), "ab");
        assert_eq!(streamed(&pieces, Specials::Show, &ids), "a<|é|>b");
    }

    #[test]
    fn sentence_piece_drops_one_leading_space_of_the_text() {
        let pieces = sentence_piece();
        let (end, newline) = (262, 6 + 10);
        assert_eq!(streamed(&pieces, Specials::Hide, &[2, 2]), "a a");
        assert_eq!(streamed(&pieces, Specials::Hide, &[end, 1, 3]), " b");
        assert_eq!(streamed(&pieces, Specials::Show, &[end, 2]), "</s> a");
        assert_eq!(streamed(&pieces, Specials::Hide, &[newline, 2]), "\n a");
        assert_eq!(streamed(&pieces, Specials::Hide, &[6 + 32, 0, 3]), " b");
    }

    #[test]
    fn a_continuation_keeps_its_space_and_its_character() {
        let pieces = sentence_piece();
        let (end, e) = (262, 6);
        let first = |prompt: &[u32], id| {
            Detok::new(Arc::clone(&pieces), Specials::Hide).after(prompt).push(id)
        };
        assert_eq!(first(&[], 2), "a");
        assert_eq!(first(&[end], 2), "a");
        assert_eq!(first(&[2], 2), " a");
        assert_eq!(first(&[end, 3, end], 2), " a");
        assert_eq!(first(&[2, e + 0xC3], e + 0xA9), "é");
    }

    #[test]
    fn a_token_that_breaks_off_a_character_begins_after_it() {
        let mut detok = Detok::new(byte_level(), Specials::Hide);
        let special = 262;
        let offsets = [0xE2, 0x82, u32::from(b'a'), 0xF0, 0xC3, special, 0xA9].map(|id| {
            let before = detok.before(id);
            (before, detok.push(id))
        });
        let offsets = offsets.each_ref().map(|(before, text)| (*before, &**text));
        assert_eq!(
            offsets,
            [(0, ""), (0, ""), (1, "\u{FFFD}a"), (0, ""), (1, "\u{FFFD}"), (0, ""), (0, "é")]
        );
        // U+FFFD itself is a character of three bytes.
        let written = [0xEF, 0xBF, 0xBD].map(|id| (detok.before(id), detok.push(id)));
        assert_eq!(written[2], (0, "\u{FFFD}".to_owned()));
    }

    proptest! {
        #[test]
        fn a_prompt_and_its_continuation_are_one_text(
            ids in prop::collection::vec(0u32..266, 0..40),
            cut in 0usize..40,
            hide: bool,
        ) {
            let specials = if hide { Specials::Hide } else { Specials::Show };
            let (prompt, answer) = ids.split_at(cut.min(ids.len()));
            for pieces in [byte_level(), sentence_piece()] {
                let new = || Detok::new(Arc::clone(&pieces), specials);
                let (mut before, mut after) = (new(), new().after(prompt));
                let mut text: String = prompt.iter().map(|&id| before.push(id)).collect();
                text.extend(answer.iter().map(|&id| after.push(id)));
                text.push_str(&after.finish());
                prop_assert_eq!(text, joined(&pieces, specials, &ids));
            }
        }

        #[test]
        fn pushes_together_are_the_whole_decode(
            ids in prop::collection::vec(0u32..266, 0..40),
            hide: bool,
        ) {
            let specials = if hide { Specials::Hide } else { Specials::Show };
            for pieces in [byte_level(), sentence_piece()] {
                let whole = joined(&pieces, specials, &ids);
                prop_assert_eq!(streamed(&pieces, specials, &ids), whole);
            }
        }
    }
}
