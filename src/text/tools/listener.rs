//! Calls found again in what a model has written.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Dialect, LIST, PYTHON, Said, TAGS, Tool};

/// How often the end of one call is looked for: a tag may stand in a text that is passed on.
const MOST_TRIES: usize = 16;

/// Finds calls in a text while it comes.
///
/// - What it gives, put together, is the text without its calls; all of the text, where none of it is a call of these tools.
/// - Held back is what may be the beginning of a call, and a call until it is complete.
#[derive(Clone, Debug)]
pub struct Listener {
    dialect: Dialect,
    names: Vec<String>,
    /// Not given out yet.
    held: String,
    /// White space before `held`, which is not said where that is a call.
    gap: String,
    state: State,
    /// Where in `held` an end is looked for.
    searched: usize,
    /// Ends that were none.
    tries: usize,
}

/// What a listener waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A call may begin.
    Open,
    /// The same, and a call was the last that was said: white space behind it is none of the text.
    Called,
    /// `held` begins with the mark of a call.
    Calling,
    /// Nothing: what follows is text.
    Deaf,
}

impl Listener {
    /// Listens for calls of these tools.
    pub fn new(dialect: Dialect, tools: &[Tool]) -> Self {
        Self {
            dialect,
            names: tools.iter().map(|tool| tool.name.clone()).collect(),
            held: String::new(),
            gap: String::new(),
            state: State::Open,
            searched: 0,
            tries: 0,
        }
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.advance(&mut said) {}
        said
    }

    /// The text is over.
    pub fn finish(&mut self) -> Vec<Said> {
        let rest = std::mem::take(&mut self.held);
        let found = match self.dialect {
            _ if self.state != State::Calling => None,
            Dialect::Listed => self.list(&rest[LIST.len()..]),
            Dialect::Bare => self.bare(&rest),
            Dialect::Tagged => None,
        };
        let gap = std::mem::take(&mut self.gap);
        found.unwrap_or_else(|| text(gap + &rest).into_iter().collect())
    }

    /// Goes on as far as it can; whether there may be more.
    fn advance(&mut self, said: &mut Vec<Said>) -> bool {
        match (self.state, self.dialect) {
            (State::Deaf, _) => {
                said.extend(self.give(self.held.len()));
                false
            }
            (State::Calling, Dialect::Tagged) => self.close(said),
            (State::Calling, Dialect::Bare | Dialect::Listed) => false,
            (State::Open | State::Called, Dialect::Tagged) => self.open(TAGS[0], said),
            (State::Open | State::Called, Dialect::Listed) => self.open(LIST, said),
            (State::Open | State::Called, Dialect::Bare) => {
                let begun = self.held.trim_start();
                if begun.starts_with('{') || begun.starts_with(PYTHON) {
                    self.state = State::Calling;
                    return false;
                }
                let other = !begun.is_empty() && !PYTHON.starts_with(begun);
                if other {
                    self.state = State::Deaf;
                }
                other
            }
        }
    }

    /// Looks for what begins a call; white space before it is not said.
    fn open(&mut self, mark: &str, said: &mut Vec<Said>) -> bool {
        if self.state == State::Called {
            self.held = self.held.trim_start().to_owned();
            if !self.held.is_empty() {
                self.state = State::Open;
            }
        }
        if let Some(at) = self.held.find(mark) {
            let before = self.held[..at].trim_end().len();
            said.extend(self.give(before));
            self.gap = self.held.drain(..at - before).collect();
            (self.state, self.searched, self.tries) = (State::Calling, mark.len(), 0);
            return true;
        }
        let begun = (1..mark.len()).rev().find(|length| self.held.ends_with(&mark[..*length]));
        let kept = self.held[..self.held.len() - begun.unwrap_or(0)].trim_end().len();
        said.extend(self.give(kept));
        false
    }

    /// Looks for the end of a tagged call.
    fn close(&mut self, said: &mut Vec<Said>) -> bool {
        let [open, close] = TAGS;
        let Some(at) = self.held[self.searched..].find(close) else {
            // It may have begun.
            let from = self.held.len().saturating_sub(close.len() - 1).max(self.searched);
            self.searched = self.held.ceil_char_boundary(from);
            return false;
        };
        let at = self.searched + at;
        self.searched = at + close.len();
        if let Some(call) = self.call(&self.held[open.len()..at]) {
            self.held.drain(..self.searched);
            self.state = State::Called;
            self.gap.clear();
            said.push(call);
        } else {
            self.tries += 1;
            if self.tries == MOST_TRIES {
                self.state = State::Deaf;
            }
        }
        true
    }

    /// The text so far as it goes out.
    fn give(&mut self, length: usize) -> Option<Said> {
        let gap = std::mem::take(&mut self.gap);
        text(gap + &self.held.drain(..length).collect::<String>())
    }

    /// `{"name": .., "arguments": ..}` of one of the tools.
    fn call(&self, json: &str) -> Option<Said> {
        self.known(&serde_json::from_str(json).ok()?)
    }

    fn known(&self, call: &Written<'_>) -> Option<Said> {
        let arguments = call.arguments.or(call.parameters).map_or("{}", RawValue::get);
        let known = arguments.starts_with('{') && self.names.contains(&call.name);
        known.then(|| Said::Call { name: call.name.clone(), arguments: arguments.to_owned() })
    }

    /// All of a list, or nothing.
    fn list(&self, json: &str) -> Option<Vec<Said>> {
        let calls: Vec<Written<'_>> = serde_json::from_str(json).ok()?;
        let calls: Option<Vec<_>> = calls.iter().map(|call| self.known(call)).collect();
        calls.filter(|calls| !calls.is_empty())
    }

    /// One call or several, with semicolons between them; or nothing.
    fn bare(&self, text: &str) -> Option<Vec<Said>> {
        let text = text.trim_start();
        let mut rest = text.strip_prefix(PYTHON).unwrap_or(text).trim_start();
        let mut calls = Vec::new();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Written<'_>>();
            calls.push(self.known(&values.next()?.ok()?)?);
            rest = rest[values.byte_offset()..].trim_start_matches([';', ' ', '\n']);
        }
        (!calls.is_empty()).then_some(calls)
    }
}

/// A call as a model writes it. Its arguments are passed on as they stand there: read and written again, a number that is too
/// large or too exact for 64 bits would be another one, or none.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
}

fn text(text: String) -> Option<Said> {
    (!text.is_empty()).then_some(Said::Text(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop, prop_assert_eq, prop_oneof, proptest};

    use super::{super::tests::tool, *};

    fn listener(dialect: Dialect) -> Listener {
        Listener::new(dialect, &[tool("look"), tool("go")])
    }

    /// All that is said, texts that follow each other put together.
    fn said(dialect: Dialect, pieces: &[&str]) -> Vec<Said> {
        let mut listener = listener(dialect);
        let mut all: Vec<Said> = Vec::new();
        let said: Vec<_> = pieces.iter().flat_map(|piece| listener.push(piece)).collect();
        for part in said.into_iter().chain(listener.finish()) {
            match (all.last_mut(), part) {
                (Some(Said::Text(before)), Said::Text(more)) => before.push_str(&more),
                (_, part) => all.push(part),
            }
        }
        all
    }

    fn text(text: &str) -> Said {
        Said::Text(text.to_owned())
    }

    fn call(name: &str, arguments: &str) -> Said {
        Said::Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn arguments_are_passed_on_as_they_are_written() {
        for arguments in [
            r#"{"n": 1e999}"#,
            r#"{ "n":18446744073709551617 }"#,
            r#"{"a":1,"a":2}"#,
            "{\"deep\":[[[]]]}",
        ] {
            let mut listener = Listener::new(Dialect::Tagged, &[tool("look")]);
            let text = format!(
                "<tool_call>{{\"name\": \"look\", \"arguments\": {arguments}}}</tool_call>"
            );
            assert_eq!(listener.push(&text), [call("look", arguments)]);
        }
        let deep = format!("{{\"deep\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        let mut listener = Listener::new(Dialect::Tagged, &[tool("look")]);
        let text = format!("<tool_call>{{\"name\": \"look\", \"arguments\": {deep}}}</tool_call>");
        assert_eq!(listener.push(&text), [call("look", &deep)]);
    }

    #[test]
    fn tagged_calls_are_found_among_text() {
        let whole = "Let me see.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"</tool_call>\"}}\n</tool_call>\n\
            <tool_call>{\"name\": \"go\"}</tool_call> Done.";
        let expected = [
            text("Let me see."),
            call("look", r#"{"at": "</tool_call>"}"#),
            call("go", "{}"),
            text("Done."),
        ];
        assert_eq!(said(Dialect::Tagged, &[whole]), expected);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for whole in [
            "plain",
            "a < b <tool",
            "<tool_call>{\"name\": \"other\", \"arguments\": {}}</tool_call> b",
            "<tool_call>{\"name\": \"look\", \"arguments\": [1]}</tool_call>",
            "<tool_call>not json</tool_call>",
            "<tool_call>{\"name\": \"look\"",
            "ends with spaces  ",
        ] {
            assert_eq!(said(Dialect::Tagged, &[whole]), [text(whole)], "{whole}");
        }
        let many = format!("<tool_call>{}", "x</tool_call>".repeat(99));
        assert_eq!(said(Dialect::Tagged, &[&many]), [text(&many)]);
        assert_eq!(said(Dialect::Tagged, &[]), []);
    }

    #[test]
    fn a_bare_call_is_the_whole_answer() {
        let go = r#"{"name": "go", "parameters": {"to": "sea"}}"#;
        let called = call("go", r#"{"to": "sea"}"#);
        assert_eq!(said(Dialect::Bare, &[go]), std::slice::from_ref(&called));
        let two = format!("<|python_tag|>{go}; {go}");
        assert_eq!(said(Dialect::Bare, &[&two]), [called.clone(), called]);
        for whole in [r#"{"name": "fly", "parameters": {}}"#, r#"{"a": 1}"#, "{ no", "I go"] {
            assert_eq!(said(Dialect::Bare, &[whole]), [text(whole)], "{whole}");
        }
    }

    #[test]
    fn a_list_of_calls_ends_the_answer() {
        let list = r#"Well [TOOL_CALLS][{"name": "go", "arguments": {}}, {"name": "look"}]"#;
        let expected = [text("Well"), call("go", "{}"), call("look", "{}")];
        assert_eq!(said(Dialect::Listed, &[list]), expected);
        for whole in
            ["[TOOL_CALLS]", "[TOOL_CALLS][]", "[TOOL_CALLS][{\"name\": \"fly\"}]", "[TOOL"]
        {
            assert_eq!(said(Dialect::Listed, &[whole]), [text(whole)], "{whole}");
        }
    }

    proptest! {
        /// How a text is cut into pieces leaves no trace.
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(prop_oneof![
                prop::sample::select(vec![
                    "<tool_call>", "</tool_call>", "{\"name\": \"go\"}", "{\"name\": \"go\", \"arguments\": {}}",
                    "[TOOL_CALLS]", "[{\"name\": \"look\"}]", "<|python_tag|>", ";", " ", "\n", "<", "\u{e4}",
                ]).prop_map(str::to_owned),
                "[a-z<\\[{ ]{0,4}",
            ], 0..9),
            cuts in prop::collection::vec(0..200_usize, 0..9),
        ) {
            let whole = parts.concat();
            for dialect in [Dialect::Tagged, Dialect::Bare, Dialect::Listed] {
                let mut cuts: Vec<_> =
                    cuts.iter().map(|cut| whole.floor_char_boundary(*cut)).chain([0, whole.len()]).collect();
                cuts.sort_unstable();
                let pieces: Vec<_> = cuts.windows(2).map(|cut| &whole[cut[0]..cut[1]]).collect();
                let once = said(dialect, &[&whole]);
                prop_assert_eq!(said(dialect, &pieces), once.clone());
                if !once.iter().any(|said| matches!(said, Said::Call { .. })) {
                    let texts: String = once.iter().map(|said| match said {
                        Said::Text(text) => text.as_str(),
                        Said::Call { .. } => "",
                    }).collect();
                    prop_assert_eq!(texts, whole.clone());
                }
            }
        }
    }
}
