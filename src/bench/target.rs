//! The server that is asked, and how a request for it is written.

use std::{fmt, str::FromStr, sync::Arc};

use serde_json::{Map, Value, json};

use super::prompts::Prompt;

/// Patterns that stand for more names than this are a typing mistake.
const MOST_NAMES: usize = 1_000_000;
/// Of a number in such a pattern, with its zeros: as many as the largest has.
const MOST_DIGITS: usize = 20;

/// An API key, which is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// As it is sent.
    pub fn new(key: String) -> Self {
        Self(key)
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Which of OpenAI's two routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`: the prompt is all that the model sees.
    #[default]
    Completions,
    /// `/v1/chat/completions`: one user message, in the model's template.
    Chat,
}

impl FromStr for Api {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "completions" => Ok(Self::Completions),
            "chat" => Ok(Self::Chat),
            _ => Err("choose completions or chat".to_owned()),
        }
    }
}

/// Where a request says which adapter it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// In the field `model` (chorus, vLLM, LoRAX).
    #[default]
    Model,
    /// In a header (chorus).
    Header,
    /// In the field `lora`, by number (llama.cpp's server).
    Lora,
}

impl FromStr for Select {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "model" => Ok(Self::Model),
            "header" => Ok(Self::Header),
            "lora" => Ok(Self::Lora),
            _ => Err("choose model, header or lora".to_owned()),
        }
    }
}

/// One adapter of a tenant's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// As the server knows it.
    pub name: Arc<str>,
    /// Its number, where adapters are chosen by number: the name, if that is one, or else its place in the list.
    pub number: usize,
}

impl Adapter {
    /// The adapter at a place of the list; `base` is none.
    pub fn at(place: usize, name: &str) -> Option<Arc<Self>> {
        let number = name.parse().unwrap_or(place);
        (name != "base").then(|| Arc::new(Self { name: name.into(), number }))
    }
}

/// A server and what is the same in all requests.
#[derive(Clone, Debug)]
pub struct Target {
    /// Without `/v1`.
    pub url: String,
    /// The route.
    pub api: Api,
    /// How adapters are chosen.
    pub select: Select,
    /// The header's name, where they are chosen by one.
    pub header_name: String,
    /// What `model` is where it does not name an adapter.
    pub model: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Further fields, which go before ours.
    pub body: Map<String, Value>,
    /// 0 takes the likeliest tokens.
    pub temperature: f64,
    /// Whether answers go on until they are as long as they are to be. OpenAI's own servers do not know the field.
    pub ignore_eos: bool,
}

impl Target {
    /// A server by the URL that people give, with or without `/v1`.
    pub fn root(url: &str) -> &str {
        let url = url.trim_end_matches('/');
        url.strip_suffix("/v1").unwrap_or(url)
    }

    /// Where requests go.
    pub(super) fn route(&self) -> String {
        let path = match self.api {
            Api::Completions => "completions",
            Api::Chat => "chat/completions",
        };
        format!("{}/v1/{path}", self.url)
    }

    /// The header that names the adapter, where it is named by one.
    pub(super) fn selecting<'a>(
        &'a self,
        adapter: Option<&'a Adapter>,
    ) -> Option<(&'a str, &'a str)> {
        let by_header = self.select == Select::Header;
        adapter.filter(|_| by_header).map(|adapter| (self.header_name.as_str(), &*adapter.name))
    }

    /// One request's JSON.
    pub(super) fn json(&self, adapter: Option<&Adapter>, prompt: &Prompt, output: u32) -> Vec<u8> {
        let mut body = Map::new();
        let model = match adapter {
            Some(adapter) if self.select == Select::Model => &*adapter.name,
            _ => self.model.as_str(),
        };
        body.insert("model".to_owned(), model.into());
        match self.api {
            Api::Completions => body.insert("prompt".to_owned(), prompt.text().into()),
            Api::Chat => body.insert("messages".to_owned(), prompt.messages()),
        };
        body.insert("max_tokens".to_owned(), output.into());
        body.insert("temperature".to_owned(), self.temperature.into());
        body.insert("stream".to_owned(), true.into());
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        if self.ignore_eos {
            body.insert("ignore_eos".to_owned(), true.into());
        }
        if self.select == Select::Lora {
            // An empty list turns off what the server was started with.
            let of = |adapter: &Adapter| json!({"id": adapter.number, "scale": 1.0});
            body.insert("lora".to_owned(), adapter.map(of).into_iter().collect());
            // Its cached prompts know no adapter.
            body.insert("cache_prompt".to_owned(), false.into());
        }
        body.extend(self.body.clone());
        Value::Object(body).to_string().into_bytes()
    }
}

/// The names of a list such as `base,pirate,tenant-{0..999}`; `{00..15}` writes its numbers with as many digits.
pub fn names(list: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let Some((before, rest)) = item.split_once('{') else {
            names.push(item.to_owned());
            continue;
        };
        let wrong = || format!("`{item}`: a pattern is written as in tenant-{{0..999}}");
        let (range, after) = rest.split_once('}').ok_or_else(wrong)?;
        let (first, last) = range.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| match text.parse::<usize>() {
            Ok(number) if text.len() <= MOST_DIGITS => Ok(number),
            _ => Err(wrong()),
        };
        let numbers = number(first)?..=number(last)?;
        if numbers.is_empty()
            || numbers.end() - numbers.start() >= MOST_NAMES.saturating_sub(names.len())
        {
            return Err(format!("`{item}` stands for no names, or for more than {MOST_NAMES}"));
        }
        let digits = if first.starts_with('0') { first.len() } else { 1 };
        names.extend(numbers.map(|number| format!("{before}{number:0digits$}{after}")));
    }
    if names.is_empty() {
        return Err("names are expected, such as pirate,sql or tenant-{0..999}".to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(select: Select) -> Target {
        Target {
            url: "http://127.0.0.1:1".to_owned(),
            api: Api::Completions,
            select,
            header_name: "X-Adapter".to_owned(),
            model: "small".to_owned(),
            headers: Vec::new(),
            body: Map::new(),
            temperature: 0.0,
            ignore_eos: true,
        }
    }

    fn body(target: &Target, adapter: Option<&Adapter>) -> Value {
        let prompt = Prompt::Text("a b".to_owned());
        serde_json::from_slice(&target.json(adapter, &prompt, 7)).unwrap()
    }

    #[test]
    fn the_adapter_is_where_the_server_looks_for_it() {
        let adapter = Adapter::at(3, "pirate");
        let adapter = adapter.as_deref();
        let by_model = body(&target(Select::Model), adapter);
        assert_eq!((&by_model["model"], by_model.get("lora")), (&json!("pirate"), None));
        assert_eq!(body(&target(Select::Model), None)["model"], "small");
        let header = target(Select::Header);
        assert_eq!(header.selecting(adapter), Some(("X-Adapter", "pirate")));
        assert_eq!(header.selecting(None), None);
        assert_eq!(body(&header, adapter)["model"], "small");
        let by_number = body(&target(Select::Lora), adapter);
        assert_eq!(by_number["lora"], json!([{"id": 3, "scale": 1.0}]));
        assert_eq!(body(&target(Select::Lora), None)["lora"], json!([]));
        assert_eq!(Adapter::at(3, "12").map(|adapter| adapter.number), Some(12));
        assert_eq!(Adapter::at(0, "base"), None);
    }

    #[test]
    fn fields_that_are_given_go_before_ours() {
        let mut target = target(Select::Model);
        target.body = json!({"temperature": 1, "top_k": 5}).as_object().cloned().unwrap();
        let body = body(&target, None);
        assert_eq!((&body["temperature"], &body["top_k"]), (&json!(1), &json!(5)));
        assert_eq!((&body["max_tokens"], &body["ignore_eos"]), (&json!(7), &json!(true)));
    }

    #[test]
    fn urls_may_end_as_people_write_them() {
        for url in ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"] {
            assert_eq!(Target::root(url), "http://a:1");
        }
    }

    #[test]
    fn patterns_stand_for_their_names() {
        let joined = |list: &str| names(list).map(|names| names.join(" "));
        assert_eq!(
            joined("base, a,t-{8..11}-x"),
            Ok("base a t-8-x t-9-x t-10-x t-11-x".to_owned())
        );
        assert_eq!(joined("r{08..10}"), Ok("r08 r09 r10".to_owned()));
        for list in ["", ",", "a{", "a{1}", "a{x..y}", "a{3..1}", "a{0..99999999}", "a{-1..2}"] {
            assert!(names(list).is_err(), "{list}");
        }
        // No width that cannot be written, and no fewer names than none.
        assert!(names(&format!("a{{{}1..2}}", "0".repeat(70_000))).is_err());
        assert!(names(&("a,".repeat(MOST_NAMES + 1) + "a{0..1}")).is_err());
    }

    #[test]
    fn keys_are_not_shown() {
        assert_eq!(format!("{:?}", Key::new("sk-1".to_owned())), "Key(..)");
    }
}
