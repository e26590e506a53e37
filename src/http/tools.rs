//! Tools in a chat: which the model may call, which it must, and calls in what it answers.

use serde::de::DeserializeSeed as _;
use serde_json::{Map, Value};

use super::{
    answer::End,
    error::ApiError,
    form, request_id,
    wire::{
        object::Object,
        tools::{FunctionOut, ToolCallOut, ToolChoiceIn, ToolIn},
        unsupported::{Scan, TOOL},
    },
};
use crate::text::{Calls, Dialect, Form, Listener, Number, Said, Text, Tool};

/// The most tools of one request, as OpenAI has it.
const MOST: usize = 128;
/// The longest name of one.
const NAME: usize = 64;
/// The field of all of them.
const FIELD: &str = "tools";

/// What a route's clients call the parts of a tool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// The type of a function.
    kind: &'static str,
    /// What the others stand below.
    above: &'static str,
    parameters: &'static str,
    /// Whether there is no function without parameters.
    demanded: bool,
}

impl Parts {
    /// In chats.
    pub(super) const NESTED: Self =
        Self { kind: "function", above: "function.", parameters: "parameters", demanded: false };
    /// In responses.
    pub(super) const FLAT: Self = Self { above: "", ..Self::NESTED };
    /// In messages.
    pub(super) const SCHEMA: Self =
        Self { kind: "custom", above: "", parameters: "input_schema", demanded: true };
}

/// What stands beside a tool's parts and is none: the model is not told.
const UNTOLD: [&str; 6] =
    ["allowed_callers", "async", "cache_control", "defer_loading", "eager_input_streaming", "type"];

/// The tools of a chat.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    /// Those that the model is told of.
    pub(super) told: Vec<Tool>,
    choice: Choice,
    number: Number,
}

/// None.
impl Default for Tools {
    fn default() -> Self {
        Self { told: Vec::new(), choice: Choice::None, number: Number::Several }
    }
}

/// What is to be done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    /// Nothing.
    None,
    /// What the model wants.
    Auto,
    /// One of them is called, or several.
    Required,
    /// This one is called.
    Named(String),
}

impl Tools {
    /// What is sent, whose fields are called as `parts` has it.
    pub(super) fn read(
        (sent, parts): (Option<Vec<Object<ToolIn>>>, Parts),
        choice: Option<ToolChoiceIn>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        let sent = sent.unwrap_or_default();
        if sent.len() > MOST {
            let message = format!("'{FIELD}' has {} tools, at most {MOST}", sent.len());
            return Err(ApiError::invalid(FIELD, message));
        }
        let sent = sent.into_iter().enumerate();
        let told: Vec<_> =
            sent.map(|(index, Object(sent))| tool(index, sent, parts)).collect::<Result<_, _>>()?;
        let choice = chosen(choice, &told)?;
        let number = if parallel == Some(false) { Number::One } else { Number::Several };
        Ok(Self { told, choice, number })
    }

    /// The same of tools whose parts stand beside their type.
    pub(super) fn read_flat(
        (sent, parts): (Vec<Map<String, Value>>, Parts),
        choice: Option<ToolChoiceIn>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        let sent = sent.into_iter().enumerate();
        let nested: Vec<_> = sent
            .map(|(index, sent)| nested(index, sent, parts).map(Object))
            .collect::<Result<_, _>>()?;
        Self::read((Some(nested), parts), choice, parallel)
    }

    /// The form of the answer, where calls are part of it.
    pub(super) fn form(
        &self,
        dialect: Dialect,
        asked: Option<form::Asked>,
    ) -> Result<Option<form::Asked>, ApiError> {
        let calls = |tools: Vec<Tool>, number| Calls { dialect, tools, number };
        let alone = |asked: Option<form::Asked>| asked.map_or(Ok(()), form::Asked::beside_calls);
        match (&self.choice, asked) {
            (Choice::None, asked) => Ok(asked),
            // Where no schema has to be followed, or nothing shows that a call begins, calls are what the model makes of them.
            (Choice::Auto, None) => {
                let strict = self.told.iter().any(Tool::is_strict) && dialect.opener().is_some();
                let offered = || Form::Offered(calls(self.told.clone(), self.number));
                Ok(strict.then(|| form::Asked::new(FIELD, offered())))
            }
            (Choice::Auto, Some(asked)) => {
                let calls = calls(self.told.clone(), self.number);
                asked.or_calls(calls).map(Some)
            }
            (Choice::Required, asked) => {
                alone(asked)?;
                let calls = calls(self.told.clone(), self.number);
                Ok(Some(form::Asked::new(FIELD, Form::Calls(calls, None))))
            }
            (Choice::Named(name), asked) => {
                alone(asked)?;
                let named = self.told.iter().filter(|tool| tool.name == *name).cloned();
                let calls = calls(named.collect(), Number::One);
                Ok(Some(form::Asked::new(FIELD, Form::Calls(calls, None))))
            }
        }
    }

    /// Finds calls in an answer, where there may be some.
    pub(super) fn listener(&self, dialect: Dialect) -> Option<Listener> {
        (self.choice != Choice::None).then(|| Listener::new(dialect, &self.told))
    }

    /// OpenAI's reason for the end of an answer that has calls: one that had to be the call of one tool has ended as any other.
    pub(super) fn reason(&self) -> &'static str {
        match self.choice {
            Choice::Named(_) => "stop",
            Choice::None | Choice::Auto | Choice::Required => "tool_calls",
        }
    }

    /// The special token that calls begin with, which has to be seen.
    pub(super) fn mark(&self, dialect: Dialect, text: &Text) -> Option<u32> {
        if self.choice == Choice::None { None } else { text.mark(dialect) }
    }
}

/// A tool whose parts stand beside its type, as one has it whose parts stand below `function`.
fn nested(index: usize, sent: Map<String, Value>, parts: Parts) -> Result<ToolIn, ApiError> {
    if let Ok(Some(field)) = Scan::new(&[TOOL]).deserialize(&sent) {
        return Err(ApiError::unsupported(&format!("{FIELD}[{index}].{field}")));
    }
    let kind = match sent.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        None | Some(Value::Null) => parts.kind.to_owned(),
        Some(_) => {
            let field = format!("{FIELD}[{index}].type");
            return Err(ApiError::invalid(&field, format!("'{field}' must be a string")));
        }
    };
    let mut function = sent;
    function.retain(|key, _| !UNTOLD.contains(&key.as_str()));
    if let Some(parameters) = function.shift_remove(parts.parameters) {
        function.insert("parameters".to_owned(), parameters);
    }
    let kind = if kind == parts.kind { "function".to_owned() } else { kind };
    Ok(ToolIn { kind, function: Some(function) })
}

fn tool(index: usize, sent: ToolIn, parts: Parts) -> Result<Tool, ApiError> {
    let invalid = |name: &str, problem: &str| {
        let field = format!("{FIELD}[{index}].{name}");
        ApiError::invalid(&field, format!("'{field}' {problem}"))
    };
    if sent.kind != "function" {
        let problem = "this server has no tools of its own, and calls none: send functions";
        return Err(invalid("type", &format!("is {:?}; {problem}", sent.kind)));
    }
    let function = sent.function.ok_or_else(|| invalid("function", "is missing"))?;
    let invalid = |name: &str, problem: &str| invalid(&format!("{}{name}", parts.above), problem);
    let name = match function.get("name") {
        Some(Value::String(name)) if is_name(name) => name.clone(),
        _ => return Err(invalid("name", "must have 1 to 64 letters, digits, _ or -")),
    };
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) if parts.demanded => {
            return Err(invalid(parts.parameters, "is missing"));
        }
        None | Some(Value::Null) => serde_json::json!({"type": "object", "properties": {}}),
        Some(Value::Object(parameters)) => of_objects(parameters)
            .ok_or_else(|| invalid(parts.parameters, "must be a schema of objects"))?,
        Some(_) => return Err(invalid(parts.parameters, "must be an object")),
    };
    if !matches!(function.get("description"), None | Some(Value::Null | Value::String(_))) {
        return Err(invalid("description", "must be a string"));
    }
    if !matches!(function.get("strict"), None | Some(Value::Null | Value::Bool(_))) {
        return Err(invalid("strict", "must be true or false"));
    }
    let mut whole = Map::new();
    whole.insert("type".to_owned(), sent.kind.into());
    whole.insert("function".to_owned(), function.into());
    Ok(Tool { name, parameters, sent: whole.into() })
}

/// The schema with objects alone, which arguments are; `None` where it allows none. Many schemas do not say it.
fn of_objects(schema: &Map<String, Value>) -> Option<Value> {
    let allows = match schema.get("type") {
        None => true,
        Some(Value::Array(types)) => types.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
    };
    let mut schema = schema.clone();
    schema.insert("type".to_owned(), "object".into());
    allows.then_some(schema.into())
}

fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=NAME).contains(&name.len()) && name.bytes().all(fine)
}

fn chosen(choice: Option<ToolChoiceIn>, told: &[Tool]) -> Result<Choice, ApiError> {
    let field = "tool_choice";
    let refuse = |message: String| Err(ApiError::invalid(field, message));
    let choice = match choice {
        None if told.is_empty() => Choice::None,
        None => Choice::Auto,
        Some(ToolChoiceIn::Word(word)) => match word.as_str() {
            "none" => Choice::None,
            "auto" if told.is_empty() => Choice::None,
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            other => {
                return refuse(format!(
                    "'{field}' must be none, auto, required or a function, not {other:?}"
                ));
            }
        },
        Some(ToolChoiceIn::Named { kind, function }) => match function {
            Some(function) if kind == "function" => Choice::Named(function.name),
            _ => return refuse(format!("'{field}' must name a function")),
        },
    };
    match &choice {
        Choice::Required if told.is_empty() => refuse(format!("'{field}' needs '{FIELD}'")),
        Choice::Named(name) if !told.iter().any(|tool| tool.name == *name) => {
            refuse(format!("'{field}' names {name:?}, which is not among '{FIELD}'"))
        }
        _ => Ok(choice),
    }
}

/// What one choice says, as it grows.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    listener: Option<Listener>,
    /// Calls so far.
    calls: usize,
}

/// What a piece of an answer adds to it.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) text: String,
    pub(super) calls: Vec<ToolCallOut>,
}

impl Speaker {
    pub(super) fn new(listener: Option<Listener>) -> Self {
        Self { listener, calls: 0 }
    }

    /// Takes a piece of the text, and says in which order it has texts and calls.
    pub(super) fn listen(&mut self, text: String, last: Last) -> Vec<Said> {
        let Some(listener) = &mut self.listener else {
            return if text.is_empty() { Vec::new() } else { vec![Said::Text(text)] };
        };
        let mut said = listener.push(&text);
        if last == Last::Yes {
            said.extend(listener.finish());
        }
        self.calls += said.iter().filter(|said| matches!(said, Said::Call { .. })).count();
        said
    }

    /// Takes a piece of the text as chats tell it, calls behind all text.
    pub(super) fn hear(&mut self, text: String, last: Last) -> Heard {
        let mut heard = Heard::default();
        let before = self.calls;
        for said in self.listen(text, last) {
            match said {
                Said::Text(text) => heard.text.push_str(&text),
                Said::Call { name, arguments } => {
                    let function = FunctionOut { name: Some(name), arguments };
                    heard.calls.push(ToolCallOut {
                        index: Some(before + heard.calls.len()),
                        id: Some(request_id::new("call_")),
                        kind: Some("function"),
                        function,
                    });
                }
            }
        }
        heard
    }

    /// Whether it may call something, so that a text is not known as such at once.
    pub(super) fn may_call(&self) -> bool {
        self.listener.is_some()
    }

    /// Whether it has called anything.
    pub(super) fn has_called(&self) -> bool {
        self.calls > 0
    }
}

/// Whether a piece is the last of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Yes,
    No,
}

impl Last {
    /// An answer's last piece is the one that has its end.
    pub(super) fn with(end: Option<End>) -> Self {
        if end.is_some() { Self::Yes } else { Self::No }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_objects_whatever_their_schema_leaves_open() {
        let of = |schema: Value| of_objects(schema.as_object().unwrap());
        assert_eq!(of(json!({})), Some(json!({"type": "object"})));
        let fields = json!({"a": {"type": "integer"}});
        assert_eq!(
            of(json!({"properties": fields})),
            Some(json!({"properties": fields, "type": "object"}))
        );
        assert_eq!(of(json!({"type": ["null", "object"]})), Some(json!({"type": "object"})));
        for none in [json!("boolean"), json!(["string", "null"]), json!([])] {
            assert_eq!(of(json!({"type": none})), None);
        }
    }
}
