//! What a response answers: a string, or items that were said or done.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use crate::http::wire::{
    content::{Role, TextRole, joined},
    object::Object,
    shape,
};

/// A string, which is what the user says, or a list of items.
#[derive(Debug)]
pub(in crate::http) struct Input(pub(in crate::http) Vec<Item>);

/// What was said or done, in order.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) enum Item {
    /// `{"type": "message", "role": .., "content": ..}`, the type of which may be left out.
    Message { role: Role, content: String },
    /// `{"type": "function_call", "call_id": .., "name": .., "arguments": "{..}"}`
    Call { id: String, name: String, arguments: String },
    /// `{"type": "function_call_output", "call_id": .., "output": ..}`
    Output { id: String, output: String },
}

/// An item as it is sent.
#[derive(Deserialize)]
struct ItemIn {
    #[serde(rename = "type")]
    kind: Option<ItemKind>,
    role: Option<TextRole>,
    content: Option<ItemContent>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<ItemContent>,
}

impl ItemIn {
    fn item<E: Error>(self) -> Result<Item, E> {
        let missing = E::missing_field;
        Ok(match self.kind.unwrap_or(ItemKind::Message) {
            ItemKind::Message => Item::Message {
                role: self.role.ok_or_else(|| missing("role"))?.0,
                content: self.content.ok_or_else(|| missing("content"))?.0,
            },
            ItemKind::Call => Item::Call {
                id: self.call_id.ok_or_else(|| missing("call_id"))?,
                name: self.name.ok_or_else(|| missing("name"))?,
                arguments: self.arguments.ok_or_else(|| missing("arguments"))?,
            },
            ItemKind::Output => Item::Output {
                id: self.call_id.ok_or_else(|| missing("call_id"))?,
                output: self.output.ok_or_else(|| missing("output"))?.0,
            },
        })
    }
}

shape::shape!(Item, "Item", {
    let content = || shape::content(&["input_text", "output_text"]);
    let kind = |kind| ("type", shape::words(&[kind]));
    let message = [("role", TextRole::schema()), ("content", content())];
    let call = [
        kind("function_call"),
        ("call_id", shape::text()),
        ("name", shape::text()),
        ("arguments", shape::text()),
    ];
    let output = [kind("function_call_output"), ("call_id", shape::text()), ("output", content())];
    shape::any_of([
        shape::object(message, [("type", shape::word_or_null("message"))]),
        shape::object(call, []),
        shape::object(output, []),
    ])
});

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::<ItemIn>::deserialize(deserializer)?.0.item()
    }
}

/// What an item is.
enum ItemKind {
    Message,
    Call,
    Output,
}

impl<'de> Deserialize<'de> for ItemKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "message" => Ok(Self::Message),
            "function_call" => Ok(Self::Call),
            "function_call_output" => Ok(Self::Output),
            other => Err(Error::unknown_variant(
                other,
                &["message", "function_call", "function_call_output"],
            )),
        }
    }
}

/// A string, or a list of parts of text that went in or came out.
#[derive(Debug)]
pub(in crate::http) struct ItemContent(pub(in crate::http) String);

impl<'de> Deserialize<'de> for ItemContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        joined::<PartKind, D>(deserializer).map(Self)
    }
}

/// `"input_text"` or `"output_text"`
struct PartKind;

impl<'de> Deserialize<'de> for PartKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "input_text" | "output_text" => Ok(Self),
            other => Err(Error::unknown_variant(other, &["input_text", "output_text"])),
        }
    }
}

shape::shape!(
    Input,
    "Input",
    shape::any_of([shape::text(), shape::list(Item::schema(), Some(1), None)])
);

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of items")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input(vec![Item::Message { role: Role::User, content: text.to_owned() }]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        let mut input = Vec::new();
        while let Some(item) = items.next_element()? {
            input.push(item);
        }
        Ok(Input(input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(json: &str) -> Result<Vec<Item>, String> {
        let input = serde_json::from_str::<Input>(json);
        input.map(|input| input.0).map_err(|error| error.to_string())
    }

    fn message((role, content): (Role, &str)) -> Item {
        Item::Message { role, content: content.into() }
    }

    #[test]
    fn input_is_a_string_or_items() {
        assert_eq!(said(r#""hi""#), Ok(vec![message((Role::User, "hi"))]));
        let items = r#"[
            {"role":"developer","content":"a"},
            {"type":"message","role":"user","content":[{"type":"input_text","text":"b"},{"type":"input_text","text":"c"}]},
            {"id":"msg_1","type":"message","status":"completed","role":"assistant",
             "content":[{"type":"output_text","text":"d","annotations":[],"logprobs":[]}]}]"#;
        let expected = [(Role::Developer, "a"), (Role::User, "b\nc"), (Role::Assistant, "d")];
        assert_eq!(said(items), Ok(expected.map(message).into()));
        let items = r#"[
            {"type":"function_call","id":"fc_1","call_id":"1","name":"f","arguments":"{}","status":"completed"},
            {"type":"function_call_output","call_id":"1","output":[{"type":"input_text","text":"x"}]}]"#;
        let call = Item::Call { id: "1".into(), name: "f".into(), arguments: "{}".into() };
        let output = Item::Output { id: "1".into(), output: "x".into() };
        assert_eq!(said(items), Ok(vec![call, output]));
        for wrong in [
            r#"[{"type":"function_call","name":"f","arguments":"{}"}]"#,
            r#"[{"type":"function_call","call_id":"1","arguments":"{}"}]"#,
            r#"[{"type":"function_call","call_id":"1","name":"f"}]"#,
            r#"[{"type":"function_call","call_id":"1","name":"f","arguments":{}}]"#,
            r#"[{"type":"function_call_output","call_id":"1"}]"#,
            r#"[{"type":"function_call_output","output":"x"}]"#,
            r#"[{"type":"reasoning","summary":[]}]"#,
            r#"[{"type":"item_reference","id":"msg_1"}]"#,
            r#"[{"role":"user","content":[{"type":"input_image","image_url":"x"}]}]"#,
            r#"[{"role":"user","content":[{"type":"text","text":"x"}]}]"#,
            r#"[{"role":"user"}]"#,
            r#"["hi"]"#,
            "{}",
            "null",
        ] {
            assert!(said(wrong).is_err(), "{wrong}");
        }
    }
}
