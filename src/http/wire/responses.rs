//! `/v1/responses` as it is written on the wire.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use utoipa::{
    ToSchema,
    openapi::schema::{ObjectBuilder, Type},
};

use super::{
    chat::TokenLogprob,
    content::{Role, TextRole, joined},
    object::Object,
    shape,
    tools::{Named, ToolChoiceIn},
    usage::Usage,
};

/// The longest string that an answer repeats, in characters.
const LABEL: usize = 512;
/// As many pairs as OpenAI takes.
const PAIRS: usize = 16;
/// Its longest key, in characters.
const KEY: usize = 64;

/// The fields that only responses have, but for those that come back.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ResponseFields {
    pub(in crate::http) input: Input,
    #[serde(default)]
    pub(in crate::http) include: Option<Vec<String>>,
    pub(in crate::http) previous_response_id: Option<Label>,
    /// Nothing is stored whatever it says.
    #[serde(rename = "store")]
    pub(in crate::http) _store: Option<bool>,
}

/// Fields that come back with the answer, filled in where they were left out.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct Echoed {
    pub(in crate::http) instructions: Option<String>,
    #[schema(minimum = 1)]
    pub(in crate::http) max_output_tokens: Option<usize>,
    pub(in crate::http) metadata: Option<Metadata>,
    pub(in crate::http) parallel_tool_calls: Option<bool>,
    pub(in crate::http) prompt_cache_key: Option<Label>,
    #[schema(value_type = Option<Reasoning>)]
    pub(in crate::http) reasoning: Option<Object<Reasoning>>,
    pub(in crate::http) safety_identifier: Option<Label>,
    #[schema(minimum = 0, maximum = 2)]
    pub(in crate::http) temperature: Option<f32>,
    #[schema(value_type = Option<TextConfig>)]
    pub(in crate::http) text: Option<Object<TextConfig>>,
    pub(in crate::http) tool_choice: Option<ToolChoice>,
    pub(in crate::http) tools: Option<Vec<FlatTool>>,
    #[schema(minimum = 0, maximum = 20)]
    pub(in crate::http) top_logprobs: Option<usize>,
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) top_p: Option<f32>,
    pub(in crate::http) truncation: Option<Truncation>,
    pub(in crate::http) user: Option<Label>,
}

/// What reasoning is asked for, of which there is none.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct Reasoning {
    effort: Option<Label>,
    summary: Option<Label>,
}

/// How the text is to be.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct TextConfig {
    #[serde(default)]
    #[schema(value_type = TextFormat)]
    pub(in crate::http) format: Object<TextFormat>,
    verbosity: Option<Label>,
}

/// `{"type": "text"}`, `{"type": "json_object"}` or `{"type": "json_schema", "name": "..", "schema": {..}}`
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct TextFormat {
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^(text|json_object|json_schema)$")]
    pub(in crate::http) kind: Label,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub(in crate::http) schema: Option<Value>,
    /// It changes nothing: what is answered always fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

impl Default for TextFormat {
    fn default() -> Self {
        let kind = Label::from("text");
        Self { kind, name: None, description: None, schema: None, strict: None }
    }
}

/// `{"type": "function", "name": "..", "description": "..", "parameters": {..}, "strict": true}`. It comes back as it is, with the
/// keys that clients look for.
#[derive(Clone, Debug)]
pub(in crate::http) struct FlatTool(pub(in crate::http) Map<String, Value>);

shape::shape!(
    FlatTool,
    "FlatTool",
    shape::object(
        [("type", shape::words(&["function"])), ("name", shape::name())],
        [
            ("description", shape::of::<Option<String>>()),
            ("parameters", shape::object_or_null()),
            ("strict", shape::of::<Option<bool>>()),
        ]
    )
);

impl<'de> Deserialize<'de> for FlatTool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(Self)
    }
}

impl Serialize for FlatTool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sent = self.0.iter().map(|(key, value)| (key.as_str(), value));
        let missing = ["parameters", "strict"].into_iter().filter(|key| !self.0.contains_key(*key));
        serializer.collect_map(sent.chain(missing.map(|key| (key, &Value::Null))))
    }
}

/// `"auto"`, or `{"type": "function", "name": ".."}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(in crate::http) enum ToolChoice {
    Word(Label),
    Named {
        #[serde(rename = "type")]
        kind: Label,
        name: Option<Label>,
    },
}

shape::shape!(ToolChoice, "FlatToolChoice", {
    let named = [("type", shape::words(&["function"])), ("name", shape::name())];
    shape::any_of([shape::words(&["auto", "none", "required"]), shape::object(named, [])])
});

impl From<ToolChoice> for ToolChoiceIn {
    fn from(choice: ToolChoice) -> Self {
        match choice {
            ToolChoice::Word(Label(word)) => Self::Word(word),
            ToolChoice::Named { kind: Label(kind), name } => {
                Self::Named { kind, function: name.map(|Label(name)| Named { name }) }
            }
        }
    }
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ToolChoiceVisitor)
    }
}

struct ToolChoiceVisitor;

impl<'de> Visitor<'de> for ToolChoiceVisitor {
    type Value = ToolChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word or an object that names a function")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<ToolChoice, E> {
        bounded(word.to_owned(), LABEL).map(|word| ToolChoice::Word(Label(word)))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ToolChoice, A::Error> {
        #[derive(Deserialize)]
        struct Choice {
            #[serde(rename = "type")]
            kind: Label,
            name: Option<Label>,
        }
        let Choice { kind, name } = Choice::deserialize(MapAccessDeserializer::new(entries))?;
        Ok(ToolChoice::Named { kind, name })
    }
}

/// What is to be done with too long an input. It is refused in any case.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Truncation {
    /// Leave out what does not fit.
    Auto,
    /// Refuse it.
    #[default]
    Disabled,
}

impl<'de> Deserialize<'de> for Truncation {
    // Derived, a value that is no string would be taken for broken JSON.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(Self::Auto),
            "disabled" => Ok(Self::Disabled),
            other => Err(Error::unknown_variant(other, &["auto", "disabled"])),
        }
    }
}

/// A string that comes back: a short one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Label(pub(in crate::http) String);

impl From<&str> for Label {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

shape::shape!(Label, "Label", shape::short(LABEL));

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(String::deserialize(deserializer)?, LABEL).map(Self)
    }
}

fn bounded<E: Error>(text: String, most: usize) -> Result<String, E> {
    if text.chars().nth(most).is_some() {
        return Err(E::custom(format!("it has more than {most} characters")));
    }
    Ok(text)
}

/// Whatever the client wants back.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Metadata(BTreeMap<String, String>);

shape::shape!(Metadata, "Metadata", {
    let key = ObjectBuilder::new().schema_type(Type::String).max_length(Some(KEY)).build();
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property_names(Some(key))
        .additional_properties(Some(shape::short(LABEL)))
        .max_properties(Some(PAIRS))
        .into()
});

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {PAIRS} strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Metadata, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry()? {
            pairs.insert(bounded(key, KEY)?, bounded(value, LABEL)?);
            if pairs.len() > PAIRS {
                return Err(A::Error::custom(format!("it has more than {PAIRS} pairs")));
            }
        }
        Ok(Metadata(pairs))
    }
}

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

/// `response`: the answer, or as much as there is of it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseBody<'a> {
    pub(in crate::http) id: &'a str,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) created_at: u64,
    pub(in crate::http) status: &'static str,
    pub(in crate::http) background: bool,
    pub(in crate::http) error: Option<ResponseError<'a>>,
    pub(in crate::http) incomplete_details: Option<IncompleteDetails>,
    pub(in crate::http) max_tool_calls: Option<usize>,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) output: Vec<OutputItem<'a>>,
    pub(in crate::http) previous_response_id: Option<&'a str>,
    pub(in crate::http) service_tier: &'static str,
    pub(in crate::http) store: bool,
    pub(in crate::http) usage: Option<ResponseUsage>,
    #[serde(flatten)]
    pub(in crate::http) echoed: &'a Echoed,
}

/// Why a response has failed.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseError<'a> {
    pub(in crate::http) code: &'static str,
    pub(in crate::http) message: &'a str,
}

/// Why a response is incomplete.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct IncompleteDetails {
    pub(in crate::http) reason: &'static str,
}

/// What the assistant says, or calls.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum OutputItem<'a> {
    Message(OutputMessage<'a>),
    Call(OutputCall<'a>),
}

/// What the assistant calls. `arguments` is JSON in a string.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OutputCall<'a> {
    pub(in crate::http) id: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) status: &'static str,
    pub(in crate::http) call_id: &'a str,
    pub(in crate::http) name: &'a str,
    pub(in crate::http) arguments: &'a str,
}

/// What the assistant says.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OutputMessage<'a> {
    pub(in crate::http) id: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) status: &'static str,
    pub(in crate::http) role: &'static str,
    pub(in crate::http) content: Vec<OutputText<'a>>,
}

/// Its text.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OutputText<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) text: &'a str,
    #[schema(value_type = Vec<Value>)]
    pub(in crate::http) annotations: [(); 0],
    pub(in crate::http) logprobs: &'a [TokenLogprob],
}

/// What a response cost.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputTokens,
    output_tokens: usize,
    output_tokens_details: OutputTokens,
    total_tokens: usize,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct InputTokens {
    cached_tokens: usize,
    /// What is kept for others is not counted.
    cache_write_tokens: usize,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct OutputTokens {
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt(),
            input_tokens_details: InputTokens {
                cached_tokens: usage.cached(),
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion(),
            output_tokens_details: OutputTokens { reasoning_tokens: 0 },
            total_tokens: usage.prompt() + usage.completion(),
        }
    }
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseEvent<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    /// Counted from 0.
    pub(in crate::http) sequence_number: usize,
    #[serde(flatten)]
    pub(in crate::http) what: Told<'a>,
}

/// What events tell of.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum Told<'a> {
    /// All of the response.
    Response { response: ResponseBody<'a> },
    /// One of its items.
    Item { output_index: usize, item: OutputItem<'a> },
    /// The only part of a message.
    Part { item_id: &'a str, output_index: usize, content_index: usize, part: OutputText<'a> },
    /// Text that this part gets.
    Delta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        logprobs: &'a [TokenLogprob],
    },
    /// All text that it has.
    Text {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        logprobs: &'a [TokenLogprob],
    },
    /// Arguments that a call gets.
    ArgumentsDelta { item_id: &'a str, output_index: usize, delta: &'a str },
    /// All arguments that it has.
    Arguments { item_id: &'a str, output_index: usize, name: &'a str, arguments: &'a str },
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

    #[test]
    fn what_comes_back_is_bounded() {
        let metadata = |json: String| serde_json::from_str::<Metadata>(&json).is_ok();
        let pairs = |count: usize| {
            let pairs: BTreeMap<_, _> = (0..count).map(|n| (n.to_string(), "x")).collect();
            serde_json::to_string(&pairs).unwrap()
        };
        assert!(metadata(pairs(PAIRS)) && !metadata(pairs(PAIRS + 1)));
        let pair = |key: usize, value: usize| {
            format!(r#"{{"{}":"{}"}}"#, "\u{e4}".repeat(key), "\u{e4}".repeat(value))
        };
        assert!(metadata(pair(KEY, LABEL)));
        assert!(!metadata(pair(KEY + 1, 1)) && !metadata(pair(1, LABEL + 1)));
        assert!(!metadata(r#"{"a":1}"#.into()));
        let label =
            |length| serde_json::from_str::<Label>(&format!("\"{}\"", "x".repeat(length))).is_ok();
        assert!(label(LABEL) && !label(LABEL + 1));
    }
}
