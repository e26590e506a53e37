//! Tools in a chat: which the model may call, which it must, and calls in what it answers.

use serde_json::{Map, Value};

use super::{
    error::ApiError,
    form, request_id,
    wire::tools::{FunctionOut, ToolCallOut, ToolChoiceIn, ToolIn},
};
use crate::text::{Calls, Dialect, Form, Listener, Number, Said, Text, Tool};

/// The most tools of one request, as OpenAI has it.
const MOST: usize = 128;
/// The longest name of one.
const NAME: usize = 64;
/// The field of all of them.
const FIELD: &str = "tools";

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
    pub(super) fn read(
        sent: Option<Vec<ToolIn>>,
        choice: Option<ToolChoiceIn>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        let sent = sent.unwrap_or_default();
        if sent.len() > MOST {
            let message = format!("'{FIELD}' has {} tools, at most {MOST}", sent.len());
            return Err(ApiError::invalid(FIELD, message));
        }
        let told: Vec<_> = sent.into_iter().enumerate().map(tool).collect::<Result<_, _>>()?;
        let choice = chosen(choice, &told)?;
        let number = if parallel == Some(false) { Number::One } else { Number::Several };
        Ok(Self { told, choice, number })
    }

    /// The form of the answer, where calls are part of it.
    pub(super) fn form(
        &self,
        dialect: Dialect,
        asked: Option<form::Asked>,
    ) -> Result<Option<form::Asked>, ApiError> {
        let calls = |tools: Vec<Tool>, number| Calls { dialect, tools, number };
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
            (Choice::Required, _) => {
                let calls = calls(self.told.clone(), self.number);
                Ok(Some(form::Asked::new(FIELD, Form::Calls(calls, None))))
            }
            (Choice::Named(name), _) => {
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

fn tool((index, sent): (usize, ToolIn)) -> Result<Tool, ApiError> {
    let field = |name: &str| format!("{FIELD}[{index}].{name}");
    let invalid = |name: &str, problem: &str| {
        let field = field(name);
        Err(ApiError::invalid(&field, format!("'{field}' {problem}")))
    };
    if sent.kind != "function" {
        return invalid("type", "must be function");
    }
    let Some(function) = sent.function else { return invalid("function", "is missing") };
    let name = match function.get("name") {
        Some(Value::String(name)) if is_name(name) => name.clone(),
        _ => return invalid("function.name", "must have 1 to 64 letters, digits, _ or -"),
    };
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => serde_json::json!({"type": "object", "properties": {}}),
        Some(parameters @ Value::Object(_)) => parameters.clone(),
        Some(_) => return invalid("function.parameters", "must be an object"),
    };
    let mut whole = Map::new();
    whole.insert("type".to_owned(), sent.kind.into());
    whole.insert("function".to_owned(), function.into());
    Ok(Tool { name, parameters, sent: whole.into() })
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

    /// Takes a piece of the text, the last one where it `ends`.
    pub(super) fn hear(&mut self, text: String, last: Last) -> Heard {
        let Some(listener) = &mut self.listener else {
            return Heard { text, calls: Vec::new() };
        };
        let mut said = listener.push(&text);
        if last == Last::Yes {
            said.extend(listener.finish());
        }
        let mut heard = Heard::default();
        for said in said {
            match said {
                Said::Text(text) => heard.text.push_str(&text),
                Said::Call { name, arguments } => {
                    let function = FunctionOut { name: Some(name), arguments };
                    heard.calls.push(ToolCallOut {
                        index: Some(self.calls),
                        id: Some(format!("call_{}", request_id::unique())),
                        kind: Some("function"),
                        function,
                    });
                    self.calls += 1;
                }
            }
        }
        heard
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
