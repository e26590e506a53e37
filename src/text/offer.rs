//! An answer that is free until it begins a call, and then has the form of one.
//!
//! What is free costs nothing: no grammar is asked about it. All that has to be known is how much of a call's beginning the text
//! ends with, and which tokens would begin one and go on at once, past where the form begins: those are left out.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use llguidance::toktrie::{SimpleVob, TokEnv};

use super::{
    grammar::{Follow, SPECIAL, TooComplex, Ways},
    tools::{Dialect, Number},
};

/// Notices where a call begins.
pub(super) struct Gate {
    tokens: TokEnv,
    /// What it begins with.
    opener: &'static [u8],
    /// The token that is that and no text.
    mark: Option<u32>,
    /// The token that stands for the end of a form.
    end: u32,
    /// Of each place in the opener: where a text stands instead that does not go on there as the opener does.
    back: Vec<usize>,
    /// What may come next, by how much of the opener has been seen.
    ways: Vec<OnceLock<Vec<u32>>>,
}

/// What a token comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// So much of the opener is the end of the text.
    Part(usize),
    /// All of it.
    All,
    /// All of it and more.
    More,
}

/// The answer on its way.
#[derive(Clone)]
pub(super) struct Offer {
    gate: Arc<Gate>,
    /// How much of the opener has been seen.
    seen: usize,
    /// A call behind its opener, at its beginning.
    call: Follow,
    /// The one that is being written.
    open: Option<Follow>,
    /// Whether there may be more after one.
    calls: Calls,
}

/// How many calls may still be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    /// As many as it likes.
    Any,
    /// One, or one list of them, which ends the answer.
    Last,
}

impl Gate {
    /// For calls that begin with `opener`.
    pub(super) fn new(tokens: TokEnv, opener: &'static str, mark: Option<u32>, end: u32) -> Self {
        let opener = opener.as_bytes();
        let mut gate = Self {
            tokens,
            opener,
            mark,
            end,
            back: vec![0; opener.len()],
            ways: opener.iter().map(|_| OnceLock::new()).collect(),
        };
        for (at, byte) in opener.iter().enumerate().skip(1) {
            gate.back[at] = gate.advance(gate.back[at - 1], *byte, at);
        }
        gate
    }

    /// How much has been seen after one more byte, where `known` places say where to go on.
    fn advance(&self, mut seen: usize, byte: u8, known: usize) -> usize {
        while seen > 0 && self.opener[seen] != byte {
            seen = self.back[seen.min(known) - 1];
        }
        seen + usize::from(self.opener[seen] == byte)
    }

    fn see(&self, mut seen: usize, token: u32) -> Seen {
        if self.mark == Some(token) {
            return Seen::All;
        }
        let bytes = self.bytes(token);
        if bytes.first() == Some(&SPECIAL) {
            // It is not shown.
            return Seen::Part(seen);
        }
        for (at, byte) in bytes.iter().enumerate() {
            seen = self.advance(seen, *byte, self.opener.len());
            if seen == self.opener.len() {
                return if at + 1 == bytes.len() { Seen::All } else { Seen::More };
            }
        }
        Seen::Part(seen)
    }

    fn bytes(&self, token: u32) -> &[u8] {
        if token < self.end { self.tokens.tok_trie().token(token) } else { &[] }
    }

    /// Everything but what would begin a call and go on at once.
    fn ways(&self, seen: usize) -> Ways {
        let words = self.ways[seen].get_or_init(|| {
            let mut free = SimpleVob::alloc(self.end as usize + 1);
            for token in (0..self.end).filter(|token| self.see(seen, *token) != Seen::More) {
                free.allow_token(token);
            }
            free.as_slice().to_vec()
        });
        Ways::Some(words.clone(), true)
    }
}

impl Offer {
    pub(super) fn new(gate: Arc<Gate>, call: Follow, dialect: Dialect, number: Number) -> Self {
        let calls = match (dialect, number) {
            (Dialect::Tagged, Number::Several) => Calls::Any,
            (Dialect::Tagged, Number::One) | (Dialect::Bare | Dialect::Listed, _) => Calls::Last,
        };
        Self { gate, seen: 0, call, open: None, calls }
    }

    /// See [`super::Walk::after`].
    pub(super) fn after(&mut self, token: Option<u32>) -> Result<Ways, TooComplex> {
        if let Some(open) = &mut self.open {
            let ways = open.after(token)?;
            if !is_over(&ways) {
                return Ok(ways);
            }
            if self.calls == Calls::Last {
                return Ok(Ways::None);
            }
            self.open = None;
            return Ok(self.gate.ways(self.seen));
        }
        match token.map(|token| self.gate.see(self.seen, token)) {
            None => {}
            Some(Seen::Part(seen)) => self.seen = seen,
            Some(Seen::All | Seen::More) => {
                self.seen = 0;
                let open = self.open.insert(self.call.clone());
                return open.after(None);
            }
        }
        Ok(self.gate.ways(self.seen))
    }
}

/// Whether nothing but the end may come.
fn is_over(ways: &Ways) -> bool {
    match ways {
        Ways::None => true,
        Ways::Some(words, may_end) => *may_end && words.iter().all(|word| *word == 0),
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer")
            .field("seen", &self.seen)
            .field("open", &self.open.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::LazyLock};

    use serde_json::{Value, json};

    use super::*;
    use crate::text::{self, Form, Text, Tool, Walk};

    static TEXT: LazyLock<Text> = LazyLock::new(|| {
        let tied = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/tied");
        Text::from_dir(&tied).unwrap()
    });

    fn tool(name: &str, strict: &Value) -> Tool {
        let parameters = json!({
            "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false,
        });
        let sent = json!({"type": "function", "function": {"name": name, "strict": strict}});
        Tool { name: name.to_owned(), parameters, sent }
    }

    fn offer(dialect: Dialect, number: Number) -> Walk {
        let tools = vec![tool("look", &json!(true)), tool("go", &json!(null))];
        TEXT.form(&Form::Offered(text::Calls { dialect, tools, number })).unwrap()
    }

    /// The longest tokens that the text is made of.
    fn tokens(mut bytes: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        while !bytes.is_empty() {
            let all = 0..u32::try_from(TEXT.vocab()).unwrap();
            let fits = |id: &u32| {
                let token = TEXT.token_bytes(*id).filter(|token| !token.is_empty());
                token.is_some_and(|token| !TEXT.is_special(*id) && bytes.starts_with(token))
            };
            let id =
                all.into_iter().filter(fits).max_by_key(|id| TEXT.token_bytes(*id).unwrap().len());
            bytes = &bytes[TEXT.token_bytes(id.unwrap()).unwrap().len()..];
            ids.extend(id);
        }
        ids
    }

    /// How many bytes of the text may come, and whether it may end there.
    fn said(mut walk: Walk, text: &str) -> (usize, bool) {
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        let mut last = None;
        for (at, byte) in bytes.iter().enumerate() {
            let id = tokens(byte)[0];
            match walk.after(last).unwrap() {
                Ways::Some(words, _) if words[id as usize / 32] >> (id % 32) & 1 == 1 => {}
                Ways::Some(_, may_end) => return (at, may_end),
                Ways::None => return (at, true),
            }
            last = Some(id);
        }
        (text.len(), matches!(walk.after(last).unwrap(), Ways::None | Ways::Some(_, true)))
    }

    fn assert_said(dialect: Dialect, number: Number, text: &str, how: (&str, bool)) {
        let (length, may_end) = said(offer(dialect, number), text);
        assert_eq!((&text[..length], may_end), how, "{text}");
    }

    #[test]
    fn text_is_free_and_calls_are_not() {
        let tagged = |text: &str, how| assert_said(Dialect::Tagged, Number::Several, text, how);
        for free in [
            "",
            "a <tool_call {} </tool_call>",
            "<<tool_call",
            "{\"name\": \"fly\"}",
            "\u{e4}<tool<tool_cal",
        ] {
            tagged(free, (free, true));
        }
        let call =
            "Well <tool_call>\n{\"name\": \"look\", \"arguments\": {\"n\": 1}}\n</tool_call>";
        let close = "</tool_call>".len();
        for (at, _) in call.char_indices().filter(|(at, _)| *at >= "Well <tool_call>".len()) {
            tagged(&call[..at], (&call[..at], false));
        }
        tagged(call, (call, true));
        let after = format!("{call} and <tool_call>{}", &call["Well <tool_call>\n".len()..]);
        tagged(&after, (&after, true));
        tagged(&after[..after.len() - close], (&after[..after.len() - close], false));
        for (text, fine) in [
            ("<tool_call>{\"name\": \"fly", "<tool_call>{\"name\": \""),
            (
                "<tool_call>{\"name\": \"look\", \"arguments\": {}",
                "<tool_call>{\"name\": \"look\", \"arguments\": {",
            ),
            ("<<tool_call>no", "<<tool_call>"),
            (
                "<tool_call>{\"name\": \"go\", \"arguments\": 1",
                "<tool_call>{\"name\": \"go\", \"arguments\": ",
            ),
        ] {
            tagged(text, (fine, false));
        }
        let loose = "<tool_call>{\"name\": \"go\", \"arguments\": {\"m\": [2]}}</tool_call>";
        tagged(loose, (loose, true));
    }

    #[test]
    fn the_last_call_ends_the_answer() {
        let one = "<tool_call>{\"name\": \"look\", \"arguments\": {\"n\": 1}}</tool_call>";
        assert_said(Dialect::Tagged, Number::One, &format!("{one} "), (one, true));
        let list = "Now [TOOL_CALLS][{\"name\": \"look\", \"arguments\": {\"n\": 1}}";
        for (number, rest, whole) in [
            (Number::One, ", ", "]"),
            (
                Number::Several,
                ", {\"name\": \"go\", \"arguments\": {}}]x",
                ", {\"name\": \"go\", \"arguments\": {}}]",
            ),
        ] {
            let whole = format!("{list}{whole}");
            assert_said(Dialect::Listed, number, &whole, (&whole, true));
            let stop = if number == Number::One { (list, false) } else { (&*whole, true) };
            assert_said(Dialect::Listed, number, &format!("{list}{rest}"), stop);
        }
    }

    /// Tokens as long as they are: what begins a call does not go past where the form begins.
    #[test]
    fn no_token_begins_a_call_and_goes_on() {
        let gate = Gate::new(gate_tokens(), "th", None, u32::try_from(TEXT.vocab()).unwrap());
        let mut left_out = 0;
        for seen in 0..2 {
            let Ways::Some(words, true) = gate.ways(seen) else { panic!("it is free") };
            for id in 0..u32::try_from(TEXT.vocab()).unwrap() {
                let text = [&b"th"[..seen], TEXT.token_bytes(id).unwrap_or_default()].concat();
                let at = text.windows(2).position(|pair| pair == b"th");
                let goes_on = at.is_some_and(|at| at + 2 < text.len()) && !TEXT.is_special(id);
                assert_eq!(words[id as usize / 32] >> (id % 32) & 1 == 0, goes_on, "{text:?}");
                left_out += usize::from(goes_on);
            }
        }
        assert!(left_out > 0, "no token of the fixture does");
    }

    fn gate_tokens() -> TokEnv {
        let grammars = TEXT.shared.grammars.get(&TEXT.shared.pieces).unwrap();
        grammars.tokens()
    }

    #[test]
    fn what_repeats_in_a_beginning_is_seen() {
        let end = u32::try_from(TEXT.vocab()).unwrap();
        let gate = Gate::new(gate_tokens(), "aabaaac", None, end);
        let mut seen = 0;
        for byte in b"aabaabaaa" {
            seen = gate.advance(seen, *byte, 7);
        }
        assert_eq!(seen, 6);
        assert_eq!(gate.advance(seen, b'a', 7), 2);
        assert_eq!(gate.advance(seen, b'c', 7), 7);
    }
}
