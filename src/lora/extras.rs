//! What an adapter may bring besides its weights: the `chorus` object of `adapter_config.json`.
//!
//! PEFT knows no such key and passes it over. All of it is text and numbers here; who renders templates and draws tokens gives
//! them their meaning.
//!
//! ```json
//! "chorus": {
//!   "chat_template": "{% for message in messages %}..",
//!   "stop": ["###"],
//!   "sampling": {"temperature": 0.2, "max_tokens": 200},
//!   "smoke_test": {"prompt": "Which table has the orders?", "contains": "orders"}
//! }
//! ```

use std::ops::RangeInclusive;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::refusal::{Quoted, Refusal};
use crate::words;

/// Longest chat template, in bytes. That of a model with tools takes 10 kB.
const LONGEST_TEMPLATE: usize = 64 << 10;
/// Most stop strings.
const MOST_STOPS: usize = 16;
/// Longest stop string, in bytes.
const LONGEST_STOP: usize = 256;
/// Most messages of a smoke test, and their bytes together.
const MOST_MESSAGES: usize = 16;
const LONGEST_MESSAGES: usize = 16 << 10;
/// Longest text or pattern that a smoke test asks for, in bytes.
const LONGEST_EXPECTED: usize = 1024;
/// Most bytes that a pattern takes when it is compiled.
const PATTERN_BYTES: usize = 1 << 20;

/// Ranges of sampling, for an adapter's defaults and for a request's own.
pub mod ranges {
    use super::RangeInclusive;

    /// Below 0.00001 it is greedy.
    pub const TEMPERATURE: RangeInclusive<f64> = 0.0..=2.0;
    /// 0 means the likeliest token alone.
    pub const TOP_P: RangeInclusive<f64> = 0.0..=1.0;
    /// -1 and 0 mean all.
    pub const TOP_K: RangeInclusive<i64> = -1..=u32::MAX as i64;
    /// Of the likeliest token's probability.
    pub const MIN_P: RangeInclusive<f64> = 0.0..=1.0;
    /// 1 is none.
    pub const REPETITION_PENALTY: RangeInclusive<f64> = 0.01..=100.0;
    /// 0 is none.
    pub const PRESENCE_PENALTY: RangeInclusive<f64> = -2.0..=2.0;
    /// 0 is none.
    pub const FREQUENCY_PENALTY: RangeInclusive<f64> = -2.0..=2.0;
}

/// What an adapter brings besides its weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Extras {
    /// Renders its chats in the place of the base's own, as Jinja.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Strings that end its answers, besides those of a request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// What counts where a request says nothing.
    #[serde(skip_serializing_if = "Defaults::is_empty")]
    pub sampling: Defaults,
    /// Whether it still does its job on this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoke_test: Option<SmokeTest>,
}

/// How tokens are drawn where a request says nothing, each within its range of [`ranges`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "they are the fields of a request")]
pub struct Defaults {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

/// A question and what its answer must have. The answer is greedy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmokeTest {
    /// What a user asks. Either this or `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A chat.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Said>,
    /// The answer must contain this text. Either this or `matches`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// This regular expression must match somewhere in the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// Most tokens of the answer; 64 where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Extras {
    /// The value of the key `chorus`. Everything in it is understood and within its bounds.
    pub(super) fn read(value: &Value) -> Result<Self, Refusal> {
        no_lists_for_objects(value)?;
        let extras: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            refused(if path == "." { "" } else { &path }, &words::of(error.inner()))
        })?;
        extras.check()?;
        Ok(extras)
    }

    /// Nothing is brought.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self) -> Result<(), Refusal> {
        match &self.chat_template {
            Some(template) if template.is_empty() || template.len() > LONGEST_TEMPLATE => {
                let problem = format!("must have from 1 to {LONGEST_TEMPLATE} bytes");
                return Err(refused("chat_template", &problem));
            }
            _ => {}
        }
        if self.stop.len() > MOST_STOPS {
            return Err(refused("stop", &format!("has more than {MOST_STOPS} strings")));
        }
        if self.stop.iter().any(|stop| stop.is_empty() || stop.len() > LONGEST_STOP) {
            return Err(refused(
                "stop",
                &format!("has a string without or with more than {LONGEST_STOP} bytes"),
            ));
        }
        self.sampling.check()?;
        self.smoke_test.as_ref().map_or(Ok(()), SmokeTest::check)
    }
}

impl Defaults {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self) -> Result<(), Refusal> {
        for (field, value, range) in [
            ("temperature", self.temperature, ranges::TEMPERATURE),
            ("top_p", self.top_p, ranges::TOP_P),
            ("min_p", self.min_p, ranges::MIN_P),
            ("repetition_penalty", self.repetition_penalty, ranges::REPETITION_PENALTY),
            ("presence_penalty", self.presence_penalty, ranges::PRESENCE_PENALTY),
            ("frequency_penalty", self.frequency_penalty, ranges::FREQUENCY_PENALTY),
        ] {
            if value.is_some_and(|value| !range.contains(&value)) {
                let problem = format!("must be from {} to {}", range.start(), range.end());
                return Err(refused(&format!("sampling.{field}"), &problem));
            }
        }
        if self.top_k.is_some_and(|top| !ranges::TOP_K.contains(&top)) {
            return Err(refused("sampling.top_k", "must be -1 or more"));
        }
        if self.max_tokens == Some(0) {
            return Err(refused("sampling.max_tokens", "must be at least 1"));
        }
        Ok(())
    }
}

impl SmokeTest {
    /// Tokens of the answer where the test does not say.
    const TOKENS: u32 = 64;
    /// Most tokens of the answer.
    const MOST_TOKENS: u32 = 256;

    /// Most tokens of the answer.
    pub fn tokens(&self) -> usize {
        self.max_tokens.unwrap_or(Self::TOKENS) as usize
    }

    /// The chat that is to be answered.
    pub fn chat(&self) -> Vec<Said> {
        match &self.prompt {
            Some(prompt) => vec![Said { role: "user".to_owned(), content: prompt.clone() }],
            None => self.messages.clone(),
        }
    }

    /// Whether an answer has what it must have.
    pub fn accepts(&self, answer: &str) -> bool {
        self.contains.as_ref().is_none_or(|text| answer.contains(text))
            && self.matches.as_ref().is_none_or(|pattern| {
                compile(pattern).is_ok_and(|pattern| pattern.is_match(answer))
            })
    }

    fn check(&self) -> Result<(), Refusal> {
        let refuse =
            |field: &str, problem: &str| Err(refused(&format!("smoke_test{field}"), problem));
        if self.prompt.is_some() != self.messages.is_empty() {
            return refuse("", "must have either `prompt` or `messages`");
        }
        let chat = self.chat();
        let bytes: usize = chat.iter().map(|said| said.content.len()).sum();
        if chat.len() > MOST_MESSAGES || bytes > LONGEST_MESSAGES || bytes == 0 {
            let problem = format!(
                "must ask something, in at most {MOST_MESSAGES} messages of together at most {LONGEST_MESSAGES} bytes"
            );
            return refuse("", &problem);
        }
        let roles = ["system", "user", "assistant"];
        if chat.iter().any(|said| !roles.contains(&&*said.role)) {
            return refuse(".messages", "have the roles system, user and assistant");
        }
        let expected = [&self.contains, &self.matches].into_iter().flatten();
        if expected.clone().count() != 1 {
            return refuse("", "must have either `contains` or `matches`");
        }
        if expected.into_iter().any(|text| text.is_empty() || text.len() > LONGEST_EXPECTED) {
            let problem = format!("must expect a text of 1 to {LONGEST_EXPECTED} bytes");
            return refuse("", &problem);
        }
        if let Some(Err(error)) = self.matches.as_deref().map(compile) {
            // The last line of several says what is wrong.
            let error = error.to_string();
            return refuse(".matches", error.lines().last().unwrap_or_default());
        }
        match self.max_tokens {
            Some(tokens) if !(1..=Self::MOST_TOKENS).contains(&tokens) => {
                refuse(".max_tokens", &format!("must be from 1 to {}", Self::MOST_TOKENS))
            }
            _ => Ok(()),
        }
    }
}

/// Derived readers would take a list for an object, its fields by position.
fn no_lists_for_objects(value: &Value) -> Result<(), Refusal> {
    let (sampling, test) = (value.get("sampling"), value.get("smoke_test"));
    let messages = test.and_then(|test| test.get("messages")?.as_array()).into_iter().flatten();
    let messages = messages.enumerate();
    let messages = messages.map(|(at, said)| (format!("smoke_test.messages[{at}]"), said));
    let objects = [("", Some(value)), ("sampling", sampling), ("smoke_test", test)];
    let objects = objects.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?)));
    match objects.chain(messages).find(|(_, value)| value.is_array()) {
        Some((field, _)) => Err(refused(&field, "an object is expected, not a list")),
        None => Ok(()),
    }
}

/// A pattern that is matched in time linear in the answer.
fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build()
}

fn refused(field: &str, problem: &str) -> Refusal {
    let dot = if field.is_empty() { "" } else { "." };
    Refusal::Extras {
        field: Quoted::new(&format!("chorus{dot}{field}")),
        problem: Quoted::new(problem),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(value: &Value) -> String {
        Extras::read(value).unwrap_err().to_string()
    }

    #[test]
    fn everything_is_understood_and_written_as_it_was_read() {
        let value = json!({
            "chat_template": "{{ messages }}", "stop": ["###"],
            "sampling": {"temperature": 0.5, "top_k": -1, "max_tokens": 7},
            "smoke_test": {"prompt": "Hi", "matches": "(?i)arr+", "max_tokens": 9},
        });
        let extras = Extras::read(&value).unwrap();
        assert_eq!(serde_json::to_value(&extras).unwrap(), value);
        let test = extras.smoke_test.unwrap();
        assert_eq!((test.tokens(), test.chat().len()), (9, 1));
        assert!(test.accepts("ARRR matey") && !test.accepts("Hello"));
        assert!(Extras::read(&json!({})).unwrap().is_empty());
        let contains = json!({"smoke_test": {"messages": [{"role": "user", "content": "x"}], "contains": "Ahoy"}});
        let test = Extras::read(&contains).unwrap().smoke_test.unwrap();
        assert!(test.accepts("Ahoy!") && !test.accepts("ahoy"));
        assert_eq!(test.tokens(), 64);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |test: Value| json!({"smoke_test": test});
        for (value, field, problem) in [
            (json!(7), "chorus", "an object is expected, not 7"),
            (json!({"speed": 1}), "chorus.speed", "not known here"),
            (json!({"stop": "###"}), "chorus.stop", "a list is expected"),
            (json!({"stop": [""]}), "chorus.stop", "without"),
            (json!({"stop": vec!["a"; 17]}), "chorus.stop", "more than 16"),
            (json!({"chat_template": ""}), "chorus.chat_template", "from 1 to"),
            (json!({"sampling": {"temperature": 3}}), "chorus.sampling.temperature", "from 0 to 2"),
            (json!({"sampling": {"seed": 3}}), "chorus.sampling.seed", "not known here"),
            (json!({"sampling": {"top_k": -2}}), "chorus.sampling.top_k", "-1 or more"),
            (json!({"sampling": {"max_tokens": 0}}), "chorus.sampling.max_tokens", "at least 1"),
            (with(json!({"contains": "x"})), "chorus.smoke_test", "either `prompt`"),
            (with(json!({"prompt": "x"})), "chorus.smoke_test", "either `contains`"),
            (with(json!({"prompt": "x", "contains": ""})), "chorus.smoke_test", "1 to 1024"),
            (with(json!({"prompt": "", "contains": "x"})), "chorus.smoke_test", "must ask"),
            (with(json!({"prompt": "x", "matches": "("})), "chorus.smoke_test.matches", "unclosed"),
            (
                with(json!({"prompt": "x", "matches": "(a{999}){999}"})),
                "chorus.smoke_test.matches",
                "size",
            ),
            (
                with(json!({"prompt": "x", "contains": "x", "max_tokens": 257})),
                "chorus.smoke_test.max_tokens",
                "from 1 to 256",
            ),
            (
                with(json!({"messages": [{"role": "robot", "content": "x"}], "contains": "x"})),
                "chorus.smoke_test.messages",
                "roles",
            ),
        ] {
            let refusal = refusal(&value);
            assert!(refusal.contains(&format!("`{field}`")), "{refusal} for {value}");
            assert!(refusal.contains(problem), "{refusal} for {value}");
        }
    }

    #[test]
    fn a_list_is_not_taken_for_an_object_by_the_places_of_its_values() {
        for (value, field) in [
            (json!([]), "chorus"),
            (json!([null, ["###"]]), "chorus"),
            (json!({"sampling": [0.5, null]}), "chorus.sampling"),
            (json!({"smoke_test": ["Hello?"]}), "chorus.smoke_test"),
            (
                json!({"smoke_test": {"messages": [["user", "Hello?"]], "contains": "x"}}),
                "chorus.smoke_test.messages[0]",
            ),
        ] {
            let refusal = refusal(&value);
            assert!(refusal.contains(&format!("`{field}`")), "{refusal} for {value}");
            assert!(refusal.contains("an object is expected, not a list"), "{refusal}");
        }
    }

    #[test]
    fn no_refusal_has_a_word_of_rust() {
        let values = [
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!("x"),
            json!([1]),
            json!([[]]),
            json!({"x": 1}),
        ];
        let fields = ["chat_template", "stop", "sampling", "smoke_test"];
        let samplings = ["temperature", "top_k", "max_tokens", "seed"];
        let tests = ["prompt", "messages", "contains", "matches", "max_tokens"];
        let mut refusals = 0;
        for value in values {
            let whole = [value.clone()].into_iter();
            let first = fields.map(|field| json!({field: value.clone()}));
            let sampling = samplings.map(|field| json!({"sampling": {field: value.clone()}}));
            let test = tests.map(|field| json!({"smoke_test": {field: value.clone()}}));
            for extras in whole.chain(first).chain(sampling).chain(test) {
                let Err(refusal) = Extras::read(&extras) else { continue };
                refusals += 1;
                let refusal = refusal.to_string();
                for word in ["struct", "u32", "i64", "f64", "sequence", "map,", "invalid type"] {
                    assert!(!refusal.contains(word), "{refusal} for {extras}");
                }
            }
        }
        assert!(refusals > 60, "{refusals}");
    }
}
