//! Tools that a model may call: how they are told to it, how it writes a call, and calls found again in what it has written.
//!
//! Models differ in how they write calls, and their chat templates show it. A template that knows no tools is told of them in
//! words, and its model asked to write calls as Hermes does.

mod listener;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::listener::Listener;
use super::template::{Call, Message};

/// What begins and ends a call of [`Dialect::Tagged`].
const TAGS: [&str; 2] = ["<tool_call>", "</tool_call>"];
/// What begins calls of [`Dialect::Listed`].
const LIST: &str = "[TOOL_CALLS]";
/// What may begin calls of [`Dialect::Bare`].
const PYTHON: &str = "<|python_tag|>";
/// The most calls of one answer whose form is enforced.
const MOST_CALLS: usize = 16;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The schema of its arguments, an object.
    pub parameters: Value,
    /// As the request has it, which is what templates expect.
    pub sent: Value,
}

impl Tool {
    /// Whether the arguments of all its calls have to follow the schema.
    pub fn is_strict(&self) -> bool {
        self.sent["function"]["strict"] == true
    }
}

/// How a model writes that it calls a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>`, one after the other (Hermes, Qwen).
    Tagged,
    /// The answer is `{"name": .., "parameters": ..}` (Llama 3).
    Bare,
    /// `[TOOL_CALLS][{"name": .., "arguments": ..}, ..]` (Mistral).
    Listed,
}

/// A part of what the model has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// For people.
    Text(String),
    /// A tool is to be called.
    Call {
        /// Which.
        name: String,
        /// A JSON object.
        arguments: String,
    },
}

/// Which calls an answer must consist of.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// How they are written.
    pub dialect: Dialect,
    /// Of which tools.
    pub tools: Vec<Tool>,
    /// How many there may be.
    pub number: Number,
}

/// How many calls there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// One.
    One,
    /// One or several.
    Several,
}

impl Dialect {
    /// That of a model with this template.
    pub(super) fn of(template: &str) -> Self {
        if template.contains(TAGS[0]) || !knows_tools(template) {
            Self::Tagged
        } else if template.contains(LIST) {
            Self::Listed
        } else if template.contains(PYTHON) || template.contains("\"parameters\"") {
            Self::Bare
        } else {
            Self::Tagged
        }
    }

    /// A token of the model that calls begin with, where it has one.
    pub(super) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &TAGS,
            Self::Bare => &[PYTHON],
            Self::Listed => &[LIST],
        }
    }

    /// What a call begins with and nothing else does. Without it, a text that is JSON may be a call or an answer.
    pub fn opener(self) -> Option<&'static str> {
        match self {
            Self::Tagged => Some(TAGS[0]),
            Self::Listed => Some(LIST),
            Self::Bare => None,
        }
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Tagged | Self::Listed => "arguments",
            Self::Bare => "parameters",
        }
    }
}

/// Whether a template does something with tools.
pub(super) fn knows_tools(template: &str) -> bool {
    let mut words = template.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|word| word == "tools")
}

/// The chat for a template that knows no tools: they are described in the system message, calls and their results are texts.
pub(super) fn in_words(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
    let mut plain: Vec<Message> = messages.iter().map(plain).collect();
    if tools.is_empty() {
        return plain;
    }
    let described = describe(tools);
    match plain.first_mut().filter(|first| first.role == "system") {
        Some(system) => system.content = format!("{}\n\n{described}", system.content),
        None => plain.insert(0, Message::new("system", described)),
    }
    plain
}

fn plain(message: &Message) -> Message {
    if message.role == "tool" {
        let content = format!("<tool_response>\n{}\n</tool_response>", message.content);
        return Message::new("user", content);
    }
    let mut parts: Vec<String> = Vec::new();
    if !message.content.is_empty() || message.tool_calls.is_empty() {
        parts.push(message.content.clone());
    }
    for Call { name, arguments, .. } in &message.tool_calls {
        let [open, close] = TAGS;
        let call = json!({"name": name, "arguments": arguments});
        parts.push(format!("{open}\n{call}\n{close}"));
    }
    Message { content: parts.join("\n"), tool_calls: Vec::new(), ..message.clone() }
}

fn describe(tools: &[Tool]) -> String {
    let lines: Vec<_> = tools.iter().map(|tool| tool.sent.to_string()).collect();
    let [open, close] = TAGS;
    format!(
        "These functions can be called, each described by a line of JSON:\n<tools>\n{}\n</tools>\n\
         To call one, write its name and its arguments as JSON in such tags:\n\
         {open}\n{{\"name\": \"NAME\", \"arguments\": {{..}}}}\n{close}",
        lines.join("\n")
    )
}

impl Calls {
    /// The grammar of such an answer, in llguidance's Lark; `token` gives the id of a text that is one special token.
    ///
    /// Where there is `otherwise`, JSON that this schema describes is an answer as well.
    pub(super) fn lark(
        &self,
        otherwise: Option<&Value>,
        token: impl Fn(&str) -> Option<u32>,
    ) -> String {
        let mark = |text: &str| token(text).map_or_else(|| quoted(text), |id| format!("<[{id}]>"));
        let more = match self.number {
            Number::One => String::new(),
            Number::Several => format!("{{1,{MOST_CALLS}}}"),
        };
        let calls = match (self.dialect, self.number) {
            (Dialect::Tagged, _) => {
                let [open, close] = TAGS.map(mark);
                format!("answer: one{more}\none: {open} \"\\n\" call \"\\n\" {close}\n")
            }
            (Dialect::Bare, _) => "answer: call\n".to_owned(),
            (Dialect::Listed, Number::One) => format!("answer: {} \"[\" call \"]\"\n", mark(LIST)),
            (Dialect::Listed, Number::Several) => format!(
                "answer: {} \"[\" call more{{0,{}}} \"]\"\nmore: \", \" call\n",
                mark(LIST),
                MOST_CALLS - 1
            ),
        };
        let lark = calls + &self.lark_of_one(|tool| tool.parameters.clone());
        match otherwise {
            Some(schema) => {
                let body = super::grammar::compact(schema);
                format!("start: answer | other\nother: %json {body}\n{lark}")
            }
            None => format!("start: answer\n{lark}"),
        }
    }

    /// The same of a call, or a list of calls, that has begun: what comes behind [`Dialect::opener`]. Only arguments of strict tools
    /// have to follow their schema, others are any object.
    pub(super) fn lark_behind_opener(&self, token: impl Fn(&str) -> Option<u32>) -> String {
        let start = match (self.dialect, self.number) {
            (Dialect::Tagged, _) => {
                let close = TAGS[1];
                let close = token(close).map_or_else(|| quoted(close), |id| format!("<[{id}]>"));
                format!("start: \"\\n\"? call \"\\n\"? {close}\n")
            }
            (Dialect::Bare, _) => "start: call\n".to_owned(),
            (Dialect::Listed, Number::One) => "start: \"[\" call \"]\"\n".to_owned(),
            (Dialect::Listed, Number::Several) => {
                let more = MOST_CALLS - 1;
                format!("start: \"[\" call more{{0,{more}}} \"]\"\nmore: \", \" call\n")
            }
        };
        let any = json!({"type": "object"});
        start
            + &self.lark_of_one(|tool| {
                if tool.is_strict() { tool.parameters.clone() } else { any.clone() }
            })
    }

    /// The rule `call`, of one call, whose arguments follow these schemas.
    fn lark_of_one(&self, schema: impl Fn(&Tool) -> Value) -> String {
        let names: Vec<_> = (0..self.tools.len()).map(|at| format!("t{at}")).collect();
        let rule = |(at, tool): (usize, &Tool)| {
            let key = self.dialect.arguments();
            let head = format!("{{\"name\": {}, \"{key}\": ", Value::from(&*tool.name));
            let body = super::grammar::compact(&schema(tool));
            format!("t{at}: {} a{at} \"}}\"\na{at}: %json {body}\n", quoted(&head))
        };
        let rules: String = self.tools.iter().enumerate().map(rule).collect();
        format!("call: {}\n{rules}", names.join(" | "))
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn tool(name: &str) -> Tool {
        let parameters = json!({"type": "object", "properties": {}});
        let sent = json!({"type": "function", "function": {"name": name}});
        Tool { name: name.to_owned(), parameters, sent }
    }

    #[test]
    fn templates_show_their_dialect() {
        for (template, dialect, knows) in [
            ("{{ messages }}", Dialect::Tagged, false),
            ("{% if tools %}<tool_call>{% endif %}", Dialect::Tagged, true),
            ("{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS]{% endif %}", Dialect::Listed, true),
            ("{% if tools is not none %}\"parameters\": {% endif %}", Dialect::Bare, true),
            ("{% if builtin_tools %}x{% endif %}", Dialect::Tagged, false),
        ] {
            assert_eq!(
                (Dialect::of(template), knows_tools(template)),
                (dialect, knows),
                "{template}"
            );
        }
    }

    #[test]
    fn a_template_without_tools_is_told_in_words() {
        let called = Call { id: "1".into(), name: "look".into(), arguments: json!({"at": "sky"}) };
        let mut messages = vec![
            Message::new("system", "Be brief."),
            Message::new("user", "Weather?"),
            Message { tool_calls: vec![called], ..Message::new("assistant", "") },
            Message::new("tool", "sunny"),
        ];
        let plain = in_words(&messages, &[tool("look")]);
        assert_eq!(plain.len(), 4);
        assert!(
            plain[0].content.starts_with("Be brief.\n\n") && plain[0].content.contains("\"look\"")
        );
        assert_eq!(
            plain[2].content,
            "<tool_call>\n{\"name\":\"look\",\"arguments\":{\"at\":\"sky\"}}\n</tool_call>"
        );
        assert_eq!((&*plain[3].role, plain[3].content.contains("sunny")), ("user", true));
        messages.remove(0);
        assert_eq!(in_words(&messages, &[tool("look")])[0].role, "system");
        assert_eq!(in_words(&messages[..1], &[]), messages[..1]);
    }
}
