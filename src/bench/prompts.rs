//! What is asked.

use std::{fs, path::Path, sync::Arc};

use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{error::BenchError, lengths::Lengths, weights::below};

/// Common words, each of which is one token of most vocabularies.
const WORDS: [&str; 34] = [
    "the", "customer", "wrote", "that", "order", "arrived", "late", "and", "box", "was", "open",
    "so", "we", "need", "to", "check", "what", "happened", "before", "any", "refund", "can", "be",
    "made", "please", "read", "this", "note", "with", "care", "then", "answer", "in", "short",
];

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Random words, so that no two are alike: about as many tokens as words.
    Words(Lengths),
    /// Those of a file, in random order.
    Dataset(Arc<Dataset>),
}

/// One prompt: a text or a chat.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Prompt {
    Text(String),
    Chat(Arc<Value>),
}

impl Prompt {
    /// For the route that takes a text; of a chat, what its messages say.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Chat(messages) => {
                let said = messages.as_array().into_iter().flatten();
                said.filter_map(|message| message["content"].as_str())
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        }
    }

    /// For the route that takes a chat; a text is one message.
    pub(super) fn messages(&self) -> Value {
        match self {
            Self::Text(text) => json!([{"role": "user", "content": text}]),
            Self::Chat(messages) => Value::clone(messages),
        }
    }
}

/// So many random words.
pub(super) fn words(count: u32, rng: &mut ChaCha8Rng) -> String {
    let mut text = String::new();
    for _ in 0..count {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[below(rng, WORDS.len())]);
    }
    text
}

/// Prompts of a file, with lengths of their answers where it has them.
#[derive(Clone, Debug)]
pub struct Dataset {
    records: Vec<Record>,
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) prompt: Prompt,
    /// Tokens its answer is to have.
    pub(super) output: Option<u32>,
}

impl Dataset {
    /// Reads JSON lines, or one JSON list, of records that are each a text, or have `prompt`, `messages` (OpenAI's) or
    /// `conversations` (`ShareGPT`'s, of which the first question is asked), and perhaps `output_tokens`.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let text = fs::read_to_string(path)
            .map_err(|source| BenchError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|what| BenchError::File { path: path.to_owned(), what })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let records = if text.trim_start().starts_with('[') {
            let list: Vec<Value> =
                serde_json::from_str(text).map_err(|why| format!("it is no JSON: {why}"))?;
            // Lists of chats have some without a question, which nobody can ask.
            list.iter().filter_map(record).collect::<Vec<_>>()
        } else {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let records = lines.map(|(number, line)| {
                let value = serde_json::from_str(line)
                    .map_err(|why| format!("line {} is no JSON: {why}", number + 1))?;
                record(&value).ok_or_else(|| {
                    format!("line {} has no prompt, messages or conversations", number + 1)
                })
            });
            records.collect::<Result<_, _>>()?
        };
        if records.is_empty() {
            return Err("it has no prompts".to_owned());
        }
        Ok(Self { records })
    }

    pub(super) fn draw(&self, rng: &mut ChaCha8Rng) -> &Record {
        &self.records[below(rng, self.records.len())]
    }

    /// How many prompts it has.
    pub fn count(&self) -> usize {
        self.records.len()
    }
}

fn record(value: &Value) -> Option<Record> {
    let output = ["output_tokens", "max_tokens"].iter().find_map(|name| value[name].as_u64());
    let output = output.and_then(|tokens| u32::try_from(tokens).ok()).filter(|tokens| *tokens > 0);
    let prompt = if let Some(text) = value.as_str().or_else(|| value["prompt"].as_str()) {
        Prompt::Text(text.to_owned())
    } else if let Some(messages) = value["messages"].as_array() {
        let last = messages.iter().rposition(|message| message["role"] == "user")?;
        Prompt::Chat(Arc::new(Value::from(&messages[..=last])))
    } else {
        let mut turns = value["conversations"].as_array()?.iter();
        let question = turns.find(|turn| turn["from"] == "human" || turn["from"] == "user")?;
        Prompt::Text(question["value"].as_str()?.to_owned())
    };
    Some(Record { prompt, output })
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn words_are_as_many_as_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let text = words(100, &mut rng);
        assert_eq!(text.split(' ').count(), 100);
        assert_ne!(text, words(100, &mut rng));
        assert_eq!(text, words(100, &mut ChaCha8Rng::seed_from_u64(1)));
    }

    #[test]
    fn records_of_all_shapes_are_read() {
        let lines = r#"
            "as it is"
            {"prompt": "a", "output_tokens": 12}
            {"messages": [{"role":"user","content":"b"},{"role":"assistant","content":"c"}], "max_tokens": 0}
            {"conversations": [{"from":"system","value":"s"},{"from":"human","value":"d"},{"from":"gpt","value":"e"}]}
        "#;
        let dataset = Dataset::parse(lines).unwrap();
        let texts: Vec<_> = dataset.records.iter().map(|record| record.prompt.text()).collect();
        assert_eq!(texts, ["as it is", "a", "b", "d"]);
        let outputs: Vec<_> = dataset.records.iter().map(|record| record.output).collect();
        assert_eq!(outputs, [None, Some(12), None, None]);
        assert_eq!(dataset.records[3].prompt.messages(), json!([{"role":"user","content":"d"}]));
        let list = r#"[{"conversations": [{"from":"human","value":"d"}]}, {"conversations": []}]"#;
        assert_eq!(Dataset::parse(list).unwrap().count(), 1);
    }

    #[test]
    fn files_that_are_none_say_where() {
        for (text, why) in [
            ("", "no prompts"),
            ("[]", "no prompts"),
            ("[", "no JSON"),
            ("{\"prompt\": \"a\"}\n{\"x\": 1}", "line 2 has no prompt"),
            ("{\"prompt\": \"a\"}\n\nnone", "line 3 is no JSON"),
        ] {
            let error = Dataset::parse(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
