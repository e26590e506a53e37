//! What is sent to token ids: messages through the chat template, texts through the tokenizer.

use serde_json::{Map, Value};

use super::{
    error::ApiError,
    select::{Part, checked},
    wire::{
        common::AdapterPart,
        content::{MessageIn, Role},
        object::Object,
        prompt::Prompt,
        tools::{FunctionIn, ToolCallIn},
        unsupported::Weight,
    },
};
use crate::text::{Call, Ending, Framing, Message, Specials, Text};

/// The messages as templates take them. Only the assistant may say nothing.
pub(super) fn messages(sent: Vec<Object<MessageIn>>) -> Result<Vec<Message>, ApiError> {
    if sent.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' must have at least one message"));
    }
    sent.into_iter().enumerate().map(|(index, Object(message))| read(index, message)).collect()
}

fn read(index: usize, sent: MessageIn) -> Result<Message, ApiError> {
    let MessageIn { role, content, name, tool_calls, tool_call_id, function_call, audio } = sent;
    for (field, weight) in [("function_call", function_call), ("audio", audio)] {
        if !weight.as_ref().is_none_or(Weight::is_nothing) {
            return Err(ApiError::unsupported(&format!("messages[{index}].{field}")));
        }
    }
    let content = match (content, role) {
        (Some(content), _) => content.0,
        (None, Role::Assistant) => String::new(),
        (None, _) => {
            let field = format!("messages[{index}].content");
            return Err(ApiError::invalid(&field, format!("'{field}' is missing")));
        }
    };
    let tool_calls = tool_calls.unwrap_or_default();
    if role != Role::Assistant && !tool_calls.is_empty() {
        let field = format!("messages[{index}].tool_calls");
        let message = format!("'{field}': only the assistant calls tools");
        return Err(ApiError::invalid(&field, message));
    }
    let calls = tool_calls.into_iter().enumerate();
    let tool_calls = calls
        .map(|(at, Object(call))| self::call(&format!("messages[{index}].tool_calls[{at}]"), call))
        .collect::<Result<_, _>>()?;
    let tool_call_id = tool_call_id.filter(|_| role == Role::Tool);
    Ok(Message { role: role.in_template().to_owned(), content, name, tool_calls, tool_call_id })
}

/// A call of an earlier answer. Templates show its arguments as JSON, so that they have to be some.
fn call(field: &str, sent: ToolCallIn) -> Result<Call, ApiError> {
    let ToolCallIn { id, kind, function: Object(FunctionIn { name, arguments }) } = sent;
    if kind.is_some_and(|kind| kind != "function") {
        let field = format!("{field}.type");
        return Err(ApiError::invalid(&field, format!("'{field}' must be function")));
    }
    let arguments = self::arguments(&format!("{field}.function.arguments"), arguments)?;
    Ok(Call { id: id.unwrap_or_default(), name, arguments })
}

/// With what something was called.
pub(super) fn arguments(field: &str, sent: Option<String>) -> Result<Value, ApiError> {
    match sent.filter(|sent| !sent.is_empty()) {
        None => Ok(Value::Object(Map::new())),
        Some(sent) => serde_json::from_str(&sent)
            .map_err(|_| ApiError::invalid(field, format!("'{field}' is not JSON"))),
    }
}

/// The adapters that are to answer together.
pub(super) fn parts(sent: Option<Vec<Object<AdapterPart>>>) -> Result<Option<Vec<Part>>, ApiError> {
    #[expect(clippy::cast_possible_truncation, reason = "what is beyond is refused")]
    let part = |Object(AdapterPart { name, scale })| {
        let weight = scale.map_or(1.0, |scale| scale as f32);
        Part { name, weight }
    };
    let parts = sent.map(|sent| checked(sent.into_iter().map(part).collect(), "adapters"));
    parts.transpose()
}

/// What came of a call.
pub(super) fn result(call: String, content: String) -> Message {
    Message { tool_call_id: Some(call), ..message(Role::Tool, content) }
}

/// A message of text alone.
pub(super) fn message(role: Role, content: String) -> Message {
    Message::new(role.in_template(), content)
}

/// How the rendered chat ends. An answer begins anew unless the final message is to be continued.
pub(super) fn ending(
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
) -> Result<Ending, ApiError> {
    match (add_generation_prompt, continue_final_message == Some(true)) {
        (Some(true), true) => Err(ApiError::invalid(
            "continue_final_message",
            "'add_generation_prompt' and 'continue_final_message' exclude each other",
        )),
        (_, true) => Ok(Ending::Continue),
        (Some(false), false) => Ok(Ending::Open),
        (_, false) => Ok(Ending::Prompt),
    }
}

/// Whether encoding adds tokens around the text.
pub(super) fn framing(add_special_tokens: Option<bool>, default: Framing) -> Framing {
    match add_special_tokens {
        None => default,
        Some(true) => Framing::Framed,
        Some(false) => Framing::Bare,
    }
}

/// Where texts become tokens, and how many of these there may be.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    pub(super) text: Text,
    /// Most tokens of one sequence.
    pub(super) context: usize,
}

impl Encoder {
    /// Refuses what cannot fit whatever its tokens are, before any work is done for it.
    pub(super) fn check_room(&self, prompt: &str) -> Result<(), ApiError> {
        let least = self.text.least_tokens(prompt);
        if least > self.context {
            return Err(ApiError::far_too_long(least, self.context));
        }
        Ok(())
    }

    /// Tokens of a text that may fit.
    pub(super) fn text(&self, prompt: &str, framing: Framing) -> Result<Vec<u32>, ApiError> {
        self.check_room(prompt)?;
        Ok(self.text.encode(prompt, framing)?)
    }

    /// Tokens of what a client sent. Ids are taken as they are; the engine refuses those that the model does not have.
    pub(super) fn ids(&self, prompt: &Prompt, framing: Framing) -> Result<Vec<u32>, ApiError> {
        match prompt {
            Prompt::Text(prompt) => self.text(prompt, framing),
            Prompt::Ids(ids) => Ok(ids.clone()),
        }
    }

    /// Tokens of a prompt, of which there is at least one.
    pub(super) fn prompt(&self, prompt: &Prompt, framing: Framing) -> Result<Vec<u32>, ApiError> {
        let ids = self.ids(prompt, framing)?;
        if ids.is_empty() {
            return Err(ApiError::invalid("prompt", "the prompt must have at least one token"));
        }
        Ok(ids)
    }
}

/// A prompt that is sent back before its continuation, with where each of its tokens begins in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) text: String,
    /// Characters of `text`.
    pub(super) length: usize,
    pub(super) ids: Vec<u32>,
    /// One for each id, in characters, none beyond `length`.
    pub(super) offsets: Vec<usize>,
}

impl Echo {
    /// A text comes back as it was sent, without what encoding put around it; ids come back decoded.
    pub(super) fn new(text: &Text, prompt: &Prompt, ids: &[u32], specials: Specials) -> Self {
        let specials = if matches!(prompt, Prompt::Text(_)) { Specials::Show } else { specials };
        let mut detok = text.detok(specials);
        let mut decoded = String::new();
        let mut starts = Vec::with_capacity(ids.len());
        let mut characters = 0;
        for id in ids {
            starts.push(characters + detok.before(*id));
            let piece = detok.push(*id);
            characters += piece.chars().count();
            decoded.push_str(&piece);
        }
        // A character that the ids leave unfinished is their continuation's to complete.
        let (echo, lead) = match prompt {
            Prompt::Ids(_) => (decoded, 0),
            Prompt::Text(sent) => {
                let before = decoded.find(sent.as_str()).unwrap_or(0);
                (sent.clone(), decoded[..before].chars().count())
            }
        };
        let length = echo.chars().count();
        let offsets =
            starts.into_iter().map(|start: usize| start.saturating_sub(lead).min(length)).collect();
        Self { text: echo, length, ids: ids.to_vec(), offsets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{body::parse, double, wire::chat::ChatFields};

    fn encoder() -> Encoder {
        Encoder { text: double::text(), context: double::CONTEXT }
    }

    fn read(json: &str) -> Result<Vec<Message>, String> {
        let fields: ChatFields = parse(json.as_bytes()).unwrap();
        messages(fields.messages).map_err(|e| e.body().error.param.unwrap_or("-").to_owned())
    }

    #[test]
    fn messages_are_read_for_the_template() {
        let read = read(
            r#"{"messages":[{"role":"developer","content":"be brief"},
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"eve"},
                {"role":"assistant","content":null,"tool_calls":[],"refusal":null}]}"#,
        )
        .unwrap();
        let said: Vec<_> =
            read.iter().map(|m| (&*m.role, &*m.content, m.name.as_deref())).collect();
        assert_eq!(
            said,
            [("system", "be brief", None), ("user", "a\nb", Some("eve")), ("assistant", "", None)]
        );
    }

    #[test]
    fn messages_that_cannot_be_rendered_are_refused_by_name() {
        assert_eq!(read(r#"{"messages":[]}"#).unwrap_err(), "messages");
        assert_eq!(read(r#"{"messages":[{"role":"user"}]}"#).unwrap_err(), "messages[0].content");
        assert_eq!(
            read(r#"{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}]}"#)
                .unwrap_err(),
            "messages[0].tool_calls[0].function.arguments"
        );
    }

    #[test]
    fn one_ending_at_a_time() {
        assert_eq!(ending(None, None).unwrap(), Ending::Prompt);
        assert_eq!(ending(Some(true), Some(false)).unwrap(), Ending::Prompt);
        assert_eq!(ending(Some(false), None).unwrap(), Ending::Open);
        assert_eq!(ending(None, Some(true)).unwrap(), Ending::Continue);
        assert_eq!(ending(Some(false), Some(true)).unwrap(), Ending::Continue);
        assert!(ending(Some(true), Some(true)).is_err());
    }

    #[test]
    fn a_text_is_echoed_as_it_was_sent() {
        let text = double::text();
        let prompt = Prompt::Text("a\u{20ac}b".into());
        let ids = encoder().prompt(&prompt, Framing::Framed).unwrap();
        let echo = Echo::new(&text, &prompt, &ids, Specials::Hide);
        assert_eq!((&*echo.text, echo.length), ("a\u{20ac}b", 3));
        assert_eq!(echo.offsets, [0, 1, 1, 1, 2]);
    }

    #[test]
    fn what_encoding_adds_is_not_echoed() {
        let text = double::text();
        let prompt = Prompt::Text("ab".into());
        let ids = [double::SPECIAL, u32::from(b'a'), u32::from(b'b')];
        let echo = Echo::new(&text, &prompt, &ids, Specials::Hide);
        assert_eq!((&*echo.text, echo.offsets), ("ab", vec![0, 0, 1]));
    }

    #[test]
    fn ids_are_echoed_as_they_read() {
        let text = double::text();
        let ids = vec![u32::from(b'a'), double::SPECIAL, u32::from(b'b')];
        let prompt = Prompt::Ids(ids.clone());
        let hidden = Echo::new(&text, &prompt, &ids, Specials::Hide);
        assert_eq!((&*hidden.text, hidden.offsets), ("ab", vec![0, 1, 1]));
        let shown = Echo::new(&text, &prompt, &ids, Specials::Show);
        assert_eq!((&*shown.text, shown.length), ("a<|end|>b", 9));
    }

    #[test]
    fn an_echo_leaves_an_unfinished_character_to_the_answer() {
        let ids = vec![0xe2, u32::from(b'a'), 0xe2, 0x82];
        let echo = Echo::new(&double::text(), &Prompt::Ids(ids.clone()), &ids, Specials::Hide);
        assert_eq!((&*echo.text, echo.offsets), ("\u{fffd}a", vec![0, 1, 2, 2]));
    }

    #[test]
    fn an_empty_prompt_is_refused() {
        for prompt in [Prompt::Text(String::new()), Prompt::Ids(vec![])] {
            assert!(encoder().prompt(&prompt, Framing::Bare).is_err());
        }
    }
}
