//! Messages to a prompt: the model's own chat template.
//!
//! The template is the model's or an adapter's, never a request's; but what it does depends on the messages, so its
//! work, its time and its output are bounded.

use super::{
    clock,
    error::Error,
    json,
    tools::{self, Dialect, Tool},
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io;
use std::time::{Duration, Instant};

/// The name under which template errors are reported.
const NAME: &str = "chat template";
/// What one rendering may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Work: an instruction costs one, as do 64 bytes. Real templates take about 50 for a message.
    fuel: u64,
    /// Time, checked whenever it writes; a backstop, fuel runs out before.
    time: Duration,
    /// Bytes of the prompt.
    pub(super) output: usize,
}

/// For the base's own template. The prompt is far above any context.
pub(super) const OWN: Bounds =
    Bounds { fuel: 4_000_000, time: Duration::from_secs(1), output: 10 << 20 };
/// For one that a customer has brought: still thousands of messages.
pub(super) const BROUGHT: Bounds =
    Bounds { fuel: 1_000_000, time: Duration::from_millis(250), output: 4 << 20 };
/// Deepest nesting of calls and blocks; real templates stay below ten.
const RECURSION: usize = 100;
/// Put behind the final message to find its end in the rendered text, as transformers does.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// What is rendered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// What was said, in order.
    pub messages: Vec<Message>,
    /// What the model may call.
    pub tools: Vec<Tool>,
}

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// The speaker's name, for templates that use it.
    pub name: Option<String>,
    /// What the assistant has called.
    pub tool_calls: Vec<Call>,
    /// The call that this is the result of.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// One that is only text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

impl From<Vec<Message>> for Chat {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, tools: Vec::new() }
    }
}

/// A tool that was called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Names the call.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// An object.
    pub arguments: serde_json::Value,
}

/// How a rendered chat ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// With the opening of the assistant's answer (`add_generation_prompt`).
    Prompt,
    /// After the final message.
    Open,
    /// Within the final message, which the model is to continue (`continue_final_message`).
    Continue,
}

/// A compiled chat template.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    bounds: Bounds,
    dialect: Dialect,
    knows_tools: bool,
}

impl Template {
    /// Compiles `source`; `tokens` are the names and texts of the model's special tokens
    /// (`bos_token`, `<s>`) that the template may use.
    pub(super) fn compile(
        source: &str,
        tokens: impl IntoIterator<Item = (impl Into<Cow<'static, str>>, String)>,
        bounds: Bounds,
    ) -> Result<Self, minijinja::Error> {
        let mut environment = Environment::new();
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(bounds.fuel));
        environment.set_recursion_limit(RECURSION);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        for (name, text) in tokens {
            environment.add_global(name, text);
        }
        environment.add_template_owned(NAME, without_generation_blocks(source))?;
        let (dialect, knows_tools) = (Dialect::of(source), tools::knows_tools(source));
        Ok(Self { environment, bounds, dialect, knows_tools })
    }

    /// How its model writes calls of tools.
    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Renders the messages.
    pub(super) fn render(&self, chat: &Chat, ending: Ending) -> Result<String, Error> {
        let in_words;
        let (messages, tools) = if self.knows_tools {
            (&chat.messages, sent(&chat.tools))
        } else {
            in_words = tools::in_words(&chat.messages, &chat.tools);
            (&in_words, Value::from(()))
        };
        let mut values: Vec<Value> = messages.iter().map(|m| value(m, "")).collect();
        if ending != Ending::Continue {
            return self.evaluate((values, tools), ending);
        }
        let (last, tagged) = messages.last().zip(values.last_mut()).ok_or(Error::NotContinuable)?;
        *tagged = value(last, TAG);
        cut_at_tag(self.evaluate((values, tools), ending)?, &last.content)
    }

    fn evaluate(
        &self,
        (messages, tools): (Vec<Value>, Value),
        ending: Ending,
    ) -> Result<String, Error> {
        let template = self.environment.get_template(NAME).expect("it is added on construction");
        let globals = context! {
            messages => messages,
            add_generation_prompt => ending == Ending::Prompt,
            tools => tools,
            documents => Value::from(()),
        };
        let Bounds { time, output, .. } = self.bounds;
        let late = Instant::now() + time;
        let mut page = Page { text: Vec::new(), late, most: output, refusal: None };
        match template.render_captured_to(globals, &mut page) {
            Ok(_) => Ok(String::from_utf8(page.text).expect("templates write strings only")),
            Err(error) => Err(page.refusal.unwrap_or_else(|| failure(&error))),
        }
    }
}

/// The rendered text while it grows, up to its bounds.
struct Page {
    text: Vec<u8>,
    late: Instant,
    /// Bytes.
    most: usize,
    /// Why writing was refused; the engine reports only that it was.
    refusal: Option<Error>,
}

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.most {
            self.refusal = Some(Error::RenderedTooLong { max: self.most });
        } else if Instant::now() > self.late {
            self.refusal = Some(Error::TooMuchWork);
        }
        if self.refusal.is_some() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let raised = Raised(message);
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised").with_source(raised))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    clock::strftime(format, clock::now())
        .map_err(|problem| minijinja::Error::new(ErrorKind::InvalidOperation, problem))
}

/// What a failed rendering means to the client.
fn failure(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return Error::Refused(message.clone());
        }
        let kind = inner.downcast_ref().map(minijinja::Error::kind);
        if kind == Some(ErrorKind::OutOfFuel) {
            return Error::TooMuchWork;
        }
        cause = inner.source();
    }
    Error::Unrenderable(error.to_string())
}

fn value(message: &Message, tag: &str) -> Value {
    let mut fields = vec![
        ("role", Value::from(message.role.as_str())),
        ("content", Value::from(format!("{}{tag}", message.content))),
    ];
    if let Some(name) = &message.name {
        fields.push(("name", Value::from(name.as_str())));
    }
    if !message.tool_calls.is_empty() {
        fields.push(("tool_calls", message.tool_calls.iter().map(call).collect::<Vec<_>>().into()));
    }
    if let Some(id) = &message.tool_call_id {
        fields.push(("tool_call_id", Value::from(id.as_str())));
    }
    Value::from_pairs(fields)
}

/// As transformers has it: arguments are an object, not its text.
fn call(Call { id, name, arguments }: &Call) -> Value {
    let function = serde_json::json!({"name": name, "arguments": arguments});
    json::value(&serde_json::json!({"id": id, "type": "function", "function": function}))
}

/// `none` where there are none: templates ask whether there are.
fn sent(tools: &[Tool]) -> Value {
    let tools: Vec<_> = tools.iter().map(|tool| json::value(&tool.sent)).collect();
    if tools.is_empty() { Value::from(()) } else { Value::from(tools) }
}

/// Ends the rendered text where the tagged final message ends; without the spaces behind it if the
/// template trims messages.
fn cut_at_tag(mut text: String, content: &str) -> Result<String, Error> {
    if !text.contains(content.trim()) {
        return Err(Error::NotContinuable);
    }
    let end = text.rfind(TAG.trim_end()).ok_or(Error::NotContinuable)?;
    let kept = if text[end..].starts_with(TAG) { end } else { text[..end].trim_end().len() };
    text.truncate(kept);
    Ok(text)
}

/// `{% generation %}` marks for training what the assistant says. Rendering has no use for it and
/// the engine does not know it: an `if` that holds trims and nests the same way.
fn without_generation_blocks(source: &str) -> String {
    let tag = |name| {
        let pattern = format!(r"(\{{%[-+]?\s*){name}(\s*[-+]?%\}})");
        Regex::new(&pattern).expect("the pattern is a constant")
    };
    let opened = tag("generation").replace_all(source, "${1}if true${2}");
    tag("endgeneration").replace_all(&opened, "${1}endif${2}").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}";

    fn compiled(source: &str) -> Template {
        let tokens = [("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
        Template::compile(source, tokens, OWN).unwrap()
    }

    fn message(role: &str, content: &str) -> Message {
        Message::new(role, content)
    }

    fn chat() -> Chat {
        vec![message("user", "Hi <b>&amp;"), message("assistant", "Hello ")].into()
    }

    /// Renders an empty chat.
    fn rendered(source: &str) -> Result<String, Error> {
        compiled(source).render(&Chat::default(), Ending::Open)
    }

    #[test]
    fn the_endings_differ_as_in_transformers() {
        let template = compiled(CHATML);
        let user = "<|im_start|>user\nHi <b>&amp;<|im_end|>\n";
        let open = format!("{user}<|im_start|>assistant\nHello <|im_end|>\n");
        assert_eq!(template.render(&chat(), Ending::Open).unwrap(), open);
        assert_eq!(
            template.render(&chat(), Ending::Prompt).unwrap(),
            format!("{open}<|im_start|>assistant\n")
        );
        assert_eq!(
            template.render(&chat(), Ending::Continue).unwrap(),
            format!("{user}<|im_start|>assistant\nHello ")
        );
    }

    #[test]
    fn a_continued_message_ends_where_a_trimming_template_ends_it() {
        let template = compiled("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}");
        assert_eq!(template.render(&chat(), Ending::Continue).unwrap(), "[Hi <b>&amp;][Hello");
        let repeated = [message("user", "a"), message("assistant", "a")];
        assert_eq!(
            template.render(&Chat::from(repeated.to_vec()), Ending::Continue).unwrap(),
            "[a][a"
        );
        let empty = [message("assistant", "")];
        assert_eq!(template.render(&Chat::from(empty.to_vec()), Ending::Continue).unwrap(), "[");
    }

    #[test]
    fn a_message_that_is_not_rendered_cannot_be_continued() {
        for source in ["fixed", "{{ messages[-1].content | upper }}", "{{ messages[-1].role }}"] {
            let template = compiled(source);
            assert_eq!(template.render(&chat(), Ending::Continue), Err(Error::NotContinuable));
        }
        assert_eq!(
            compiled(CHATML).render(&Chat::default(), Ending::Continue),
            Err(Error::NotContinuable)
        );
    }

    #[test]
    fn blocks_are_trimmed_as_in_transformers() {
        let source = "{{ bos_token }}\n  {% if true %}\n  a\n  {% endif %}\n{{ eos_token }}\n";
        assert_eq!(rendered(source).unwrap(), "<s>\n  a\n</s>");
    }

    #[test]
    fn python_methods_loop_controls_and_missing_values_work() {
        let source = "{% for p in 'a, b,c'.split(',') %}{% if p == 'c' %}{% break %}{% endif %}\
            {{ p.strip() }}{% endfor %}{{ nothing }}{{ tools is none }}{{ 'ab'[::-1] }}\
            {{ messages | length }}{{ {'a': 1}.get('b', 2) }}{{ 'x'.startswith('x') }}";
        assert_eq!(rendered(source).unwrap(), "abTrueba02True");
    }

    #[test]
    fn names_reach_the_template_only_when_given() {
        let template = compiled("{% for m in messages %}{{ m.name or '-' }}{% endfor %}");
        let mut messages = chat();
        messages.messages[1].name = Some("Ann".to_owned());
        assert_eq!(template.render(&messages, Ending::Open).unwrap(), "-Ann");
    }

    #[test]
    fn generation_blocks_are_transparent() {
        let source = "a\n{% generation %}\nb\n{%- endgeneration -%}\n c";
        assert_eq!(rendered(source).unwrap(), "a\nbc");
    }

    #[test]
    fn what_a_template_raises_is_told_as_it_is() {
        let source = "{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}\
            {{ m() }}";
        assert_eq!(rendered(source), Err(Error::Refused("roles must alternate".to_owned())));
    }

    #[test]
    fn what_a_template_cannot_do_is_told_with_its_line() {
        let Err(Error::Unrenderable(problem)) = rendered("\n{{ messages[3].content }}") else {
            panic!("an attribute of nothing was rendered");
        };
        assert!(problem.contains("chat template:2"), "{problem}");
        assert!(
            Template::compile("{% if %}", Vec::<(String, String)>::new(), OWN)
                .unwrap_err()
                .to_string()
                .contains(":1")
        );
    }

    #[test]
    fn endless_work_ends() {
        let start = Instant::now();
        let bodies = [
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='ab') %}{% for i in range(99) %}\
                {% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{% set l = ['x' * 1000000] * 100000 %}{{ l | tojson }}",
        ];
        for body in bodies {
            assert_eq!(rendered(body), Err(Error::TooMuchWork), "{body}");
        }
        // Four renderings, each within its time; the rest tells them from work that does not end.
        assert!(start.elapsed() < OWN.time * 4 * 30, "took {:?}", start.elapsed());
    }

    #[test]
    fn endless_output_and_recursion_end() {
        let long = "{% set s = 'x' * 100000 %}{% for i in range(200) %}{{ s }}{% endfor %}";
        assert_eq!(rendered(long), Err(Error::RenderedTooLong { max: OWN.output }));
        let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(matches!(rendered(deep), Err(Error::Unrenderable(_))));
    }

    #[test]
    fn chats_render_as_by_transformers() {
        // Made by make.py beside it.
        let fixture = include_str!("../../tests/fixtures/text/templates.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let cases = fixture["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 300);
        for case in cases {
            let name = case["template"].as_str().unwrap();
            let template = compiled(fixture["templates"][name].as_str().unwrap());
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let messages = case["messages"].as_array().unwrap().iter();
            let messages: Vec<Message> =
                messages.map(|m| message(&text(&m["role"]), &text(&m["content"]))).collect();
            let messages = Chat::from(messages);
            let ending = match case["ending"].as_str().unwrap() {
                "prompt" => Ending::Prompt,
                "open" => Ending::Open,
                "continue" => Ending::Continue,
                other => panic!("unknown ending {other:?}"),
            };
            let rendered = template.render(&messages, ending);
            assert_eq!(rendered.ok().as_deref(), case["rendered"].as_str(), "{case}");
        }
    }

    #[test]
    fn a_long_chat_is_well_within_the_bounds() {
        let messages = Chat::from(vec![message("user", &"word ".repeat(200)); 5000]);
        let text = compiled(CHATML).render(&messages, Ending::Prompt).unwrap();
        assert!(text.len() > 5_000_000);
    }
}
