//! What comes of an answer, event by event.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

/// A line that is longer than this is no event of ours.
const MOST_LINE: usize = 16 << 20;

/// Bytes as they arrive, given out as lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// Up to where there is known to be no end of a line.
    searched: usize,
}

/// A line without an end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// More bytes. Lines that were given out are forgotten.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        self.bytes.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        if self.bytes.len() + bytes.len() > MOST_LINE {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.bytes.len();
            return None;
        };
        let line = &self.bytes[self.begin..end];
        self.begin = end + 1;
        self.searched = self.begin;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// What a line of a stream says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// Nothing that counts: a comment, an empty line, another field, an event without text.
    Nothing,
    /// A part of the answer.
    Part,
    /// That the answer is over, and why.
    Finish,
    /// `[DONE]`
    End,
    /// The server's own fault, in the middle of an answer.
    Fault(String),
    /// No JSON.
    Garbage,
}

/// Tokens as the server counts them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: u64,
    #[serde(default)]
    pub(super) completion_tokens: u64,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default, borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    delta: Option<Delta<'a>>,
    #[serde(default, borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
}

impl Choice<'_> {
    fn has_part(&self) -> bool {
        let some = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|text| !text.is_empty());
        match &self.delta {
            // The first event of a chat has a role and no text.
            Some(delta) => {
                some(&delta.content)
                    || some(&delta.reasoning)
                    || some(&delta.reasoning_content)
                    || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
            }
            // A token that is half a character has no text yet, and is a token all the same.
            None => some(&self.text) || (self.text.is_some() && self.finish_reason.is_none()),
        }
    }
}

/// Reads one line; `usage` is set where the line has it.
pub(super) fn read(line: &[u8], usage: &mut Option<Usage>) -> Said {
    let Some(data) = line.strip_prefix(b"data:") else { return Said::Nothing };
    let data = data.trim_ascii();
    if data.starts_with(b"[DONE]") {
        return Said::End;
    }
    let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return Said::Garbage };
    if let Some(error) = event.error.filter(|error| !error.is_null()) {
        return Said::Fault(message(&error));
    }
    *usage = event.usage.or(*usage);
    let choices = event.choices.unwrap_or_default();
    if choices.iter().any(Choice::has_part) {
        Said::Part
    } else if choices.iter().any(|choice| choice.finish_reason.is_some()) {
        Said::Finish
    } else {
        Said::Nothing
    }
}

/// What an error of OpenAI's shape, or of any other, says: its code or type, and its message.
pub(super) fn message(error: &Value) -> String {
    let word = ["code", "type"].iter().find_map(|name| match &error[name] {
        Value::String(word) if !word.is_empty() => Some(word.as_str()),
        _ => None,
    });
    let said = error["message"].as_str().or_else(|| error.as_str()).unwrap_or_default();
    let text = match (word, said) {
        (Some(word), "") => word.to_owned(),
        (Some(word), said) => format!("{word}: {said}"),
        (None, "") => error.to_string(),
        (None, said) => said.to_owned(),
    };
    printable(&text)
}

/// The beginning of what a server says, without what could change a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(300).map(|one| if one.is_control() { ' ' } else { one }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for byte in b"data: 1\r\n\ndata: 2\n: x\nrest" {
            lines.push(&[*byte]).unwrap();
            while let Some(line) = lines.next() {
                seen.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        assert_eq!(seen, ["data: 1", "", "data: 2", ": x"]);
        lines.push(b"\na\nb\n").unwrap();
        assert_eq!(lines.next(), Some(&b"rest"[..]));
        assert_eq!(lines.next(), Some(&b"a"[..]));
        lines.push(b"c\n").unwrap();
        assert_eq!(lines.next(), Some(&b"b"[..]));
        assert_eq!(lines.next(), Some(&b"c"[..]));
        assert_eq!(lines.next(), None);
        assert_eq!(lines.push(&vec![0; MOST_LINE + 1]), Err(TooLong));
    }

    #[test]
    fn events_of_all_servers_are_understood() {
        let mut usage = None;
        for (line, said) in [
            ("", Said::Nothing),
            (": keep-alive", Said::Nothing),
            ("event: x", Said::Nothing),
            ("data: [DONE]", Said::End),
            (r#"data: {"choices":[{"text":" a","finish_reason":null}],"usage":null}"#, Said::Part),
            (r#"data: {"choices":[{"text":"","finish_reason":null}]}"#, Said::Part),
            (r#"data:{"choices":[{"text":"","finish_reason":"length"}]}"#, Said::Finish),
            (r#"data: {"choices":[{"text":"a\n\"b","finish_reason":"stop"}]}"#, Said::Part),
            (r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Said::Nothing),
            (r#"data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}]}"#, Said::Part),
            (r#"data: {"choices":[{"delta":{"reasoning_content":"x"}}]}"#, Said::Part),
            (r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, Said::Part),
            (r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#, Said::Finish),
            (
                r#"data: {"error":{"message":"no","type":"server_error","code":null}}"#,
                Said::Fault("server_error: no".to_owned()),
            ),
            ("data: {", Said::Garbage),
            ("data: 7", Said::Garbage),
        ] {
            assert_eq!(read(line.as_bytes(), &mut usage), said, "{line}");
        }
        assert_eq!(usage, None);
        let last = br#"data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}"#;
        assert_eq!(read(last, &mut usage), Said::Nothing);
        assert_eq!(usage, Some(Usage { prompt_tokens: 5, completion_tokens: 7 }));
    }

    #[test]
    fn errors_of_any_shape_have_a_message() {
        for (error, text) in [
            (json!({"message": "m", "code": "c"}), "c: m"),
            (json!({"message": "m", "code": 404, "type": "t"}), "t: m"),
            (json!("plain\nwords"), "plain words"),
            (json!({"code": "c"}), "c"),
            (json!([1]), "[1]"),
        ] {
            assert_eq!(message(&error), text);
        }
    }
}
