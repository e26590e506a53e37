//! Request fields to the terms of an answer, each within its range.

use std::{
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    error::ApiError,
    form,
    wire::{common::Common, list::Strings, prompt::MAX_CHOICES, usage::UsageKey},
};
use crate::{
    adapter::{Defaults, Extras, ranges},
    engine::{Salt, Sampling},
    text::{Framing, Keep, Specials, Text, Walk},
};

/// Below it a temperature is greedy: dividing by it would overflow the logits (vLLM draws the line at the same place).
const GREEDY: f64 = 1e-5;
/// The most stop token ids of a request.
const MAX_STOP_IDS: usize = 128;
/// The longest stop string, in bytes: every one is compared at every position.
const MAX_STOP_BYTES: usize = 1024;
/// What may be added to the logit of a token: as much either way leaves it alone, or out.
const BIAS: RangeInclusive<f64> = -100.0..=100.0;
/// The longest salt, in characters.
const MAX_SALT: usize = 1024;
/// The most likely tokens that are listed beside a token.
pub(super) const MAX_TOP_LOGPROBS: usize = 20;

/// How an answer is made, whichever endpoint asked.
#[derive(Debug)]
pub(super) struct Terms {
    /// What the request says of `sampling`.
    asked: Asked,
    /// How tokens are drawn; several choices start from seeds counted on from this one.
    pub(super) sampling: Sampling,
    /// At most so many tokens, where the request says it.
    pub(super) max_tokens: Option<usize>,
    /// No choice ends before so many tokens.
    pub(super) min_tokens: usize,
    /// What each choice must look like.
    pub(super) form: Option<form::Asked>,
    /// The beginning of that form, once it is known who answers.
    pub(super) walk: Option<Walk>,
    /// Computed prefixes are shared among requests with the same.
    pub(super) salt: Salt,
    /// Choices per prompt, at least one.
    pub(super) choices: usize,
    /// Strings that end a choice.
    pub(super) stops: Vec<String>,
    /// Whether the stop string is part of the text.
    pub(super) keep: Keep,
    /// Tokens that end a choice besides the model's own.
    pub(super) stop_ids: Vec<u32>,
    /// What the model's own end tokens do.
    pub(super) ends: Ends,
    /// Whether special tokens are written out.
    pub(super) specials: Specials,
    /// How the answer is sent.
    pub(super) delivery: Delivery,
}

/// What the model's own end-of-sequence tokens do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// They end the choice.
    Honoured,
    /// They are tokens like others (`ignore_eos`).
    Ignored,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// When it is complete.
    Whole,
    /// As it grows.
    Stream,
    /// As it grows, with the usage at the end.
    StreamWithUsage,
}

impl Delivery {
    /// The `usage` key of a chunk that knows no usage.
    pub(super) fn usage_later(self) -> UsageKey {
        match self {
            Self::StreamWithUsage => UsageKey::Later,
            Self::Stream | Self::Whole => UsageKey::Absent,
        }
    }
}

impl Terms {
    /// Reads the fields that both endpoints share.
    pub(super) fn read(common: &Common) -> Result<Self, ApiError> {
        let stops = common.stop.clone().unwrap_or_default();
        let stop_ids = common.stop_token_ids.clone().unwrap_or_default();
        if stop_ids.len() > MAX_STOP_IDS {
            let message = format!("'stop_token_ids' has more than {MAX_STOP_IDS} ids");
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        let asked = Asked::of(common);
        Ok(Self {
            sampling: asked.sampling()?,
            asked,
            max_tokens: common.max_tokens,
            min_tokens: common.min_tokens.unwrap_or(0),
            form: form::Asked::read(common)?,
            walk: None,
            salt: salt(common.cache_salt.as_deref())?,
            choices: within("n", common.n, 1..=MAX_CHOICES, 1)?,
            stops: stop_strings(stops)?,
            keep: choose(common.include_stop_str_in_output, Keep::Include, Keep::Cut),
            stop_ids,
            ends: choose(common.ignore_eos, Ends::Ignored, Ends::Honoured),
            specials: choose(
                common.skip_special_tokens.or(Some(true)),
                Specials::Hide,
                Specials::Show,
            ),
            delivery: delivery(common),
        })
    }

    /// Writes a special token out, although others may be hidden.
    pub(super) fn show(&mut self, special: u32) {
        if self.specials == Specials::Hide {
            self.specials = Specials::HideBut(special);
        }
    }

    /// Takes from an adapter what the request leaves open, and its stop strings besides the request's; and begins the form.
    pub(super) fn follow(&mut self, extras: &Extras, text: &Text) -> Result<(), ApiError> {
        if !extras.is_empty() {
            self.take_over(extras, text)?;
        }
        if let Some((id, _)) =
            self.sampling.bias.iter().find(|(id, _)| text.token_bytes(*id).is_none())
        {
            let message = format!("the vocabulary of {} tokens has no token {id}", text.vocab());
            return Err(ApiError::invalid("logit_bias", message));
        }
        if let Some(id) = self.stop_ids.iter().find(|id| text.token_bytes(**id).is_none()) {
            let message = format!("the vocabulary of {} tokens has no token {id}", text.vocab());
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        self.walk = self.form.as_ref().map(|form| form.begin(text)).transpose()?;
        Ok(())
    }

    /// A stop string that is one token, as special tokens are, ends a choice as that token too: it may not be shown.
    fn take_over(&mut self, extras: &Extras, text: &Text) -> Result<(), ApiError> {
        self.sampling = self.asked.or(&extras.sampling).sampling()?;
        for stop in &extras.stop {
            if let [id] = *text.encode(stop, Framing::Bare)? {
                self.stop_ids.push(id);
            }
            self.stops.push(stop.clone());
        }
        Ok(())
    }

    /// Refuses an answer that is to be longer than it may be, by whichever field that is said.
    pub(super) fn check_length(&self) -> Result<(), ApiError> {
        match self.max_tokens {
            Some(most) if most < self.min_tokens => {
                let least = self.min_tokens;
                let message =
                    format!("'min_tokens' is {least}, more than the answer may have: {most}");
                Err(ApiError::invalid("min_tokens", message))
            }
            _ => Ok(()),
        }
    }

    /// How the choice of this number is sampled.
    pub(super) fn sampling_of(&self, choice: usize) -> Sampling {
        let seed = self.sampling.seed.wrapping_add(choice as u64);
        Sampling { seed, ..self.sampling.clone() }
    }
}

/// The field's value where it is there and within its range, `default` where it is absent.
pub(super) fn within<T: PartialOrd + Copy + std::fmt::Display>(
    field: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
    default: T,
) -> Result<T, ApiError> {
    match value {
        None => Ok(default),
        Some(value) if range.contains(&value) => Ok(value),
        Some(value) => {
            let (low, high) = (range.start(), range.end());
            let message = format!("'{field}' must be from {low} to {high}, not {value}");
            Err(ApiError::invalid(field, message))
        }
    }
}

/// `yes` where the flag is set.
fn choose<T>(flag: Option<bool>, yes: T, no: T) -> T {
    if flag == Some(true) { yes } else { no }
}

/// What keeps computed prefixes apart, where the request says something.
pub(super) fn salt(given: Option<&str>) -> Result<Salt, ApiError> {
    let Some(given) = given else { return Ok(Salt::default()) };
    if given.is_empty() || given.chars().count() > MAX_SALT {
        let message = format!("'cache_salt' must have from 1 to {MAX_SALT} characters");
        return Err(ApiError::invalid("cache_salt", message));
    }
    Ok(Salt(Sha256::digest(given).into()))
}

fn delivery(common: &Common) -> Delivery {
    let usage = common.stream_options.as_ref().and_then(|options| options.0.include_usage);
    match (common.stream, usage) {
        (Some(true), Some(true)) => Delivery::StreamWithUsage,
        (Some(true), _) => Delivery::Stream,
        _ => Delivery::Whole,
    }
}

/// How tokens are to be drawn, as far as somebody says it.
#[derive(Clone, Debug)]
struct Asked {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    bias: Arc<[(u32, f64)]>,
    seed: u64,
}

impl Asked {
    fn of(common: &Common) -> Self {
        Self {
            temperature: common.temperature,
            top_p: common.top_p,
            top_k: common.top_k,
            min_p: common.min_p,
            repetition_penalty: common.repetition_penalty,
            presence_penalty: common.presence_penalty,
            frequency_penalty: common.frequency_penalty,
            bias: common
                .logit_bias
                .as_ref()
                .map_or_else(|| [].into(), |given| given.0.as_slice().into()),
            seed: common.seed.map_or_else(random_seed, i64::cast_unsigned),
        }
    }

    /// These, and where one is open, the default.
    fn or(&self, defaults: &Defaults) -> Self {
        Self {
            temperature: self.temperature.or(defaults.temperature),
            top_p: self.top_p.or(defaults.top_p),
            top_k: self.top_k.or(defaults.top_k),
            min_p: self.min_p.or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(defaults.frequency_penalty),
            bias: Arc::clone(&self.bias),
            seed: self.seed,
        }
    }

    fn sampling(&self) -> Result<Sampling, ApiError> {
        for (_, bias) in &*self.bias {
            within("logit_bias", Some(*bias), BIAS, 0.0)?;
        }
        let temperature = within("temperature", self.temperature, ranges::TEMPERATURE, 1.0)?;
        let top_p = within("top_p", self.top_p, ranges::TOP_P, 1.0)?;
        let top_k = within("top_k", self.top_k, ranges::TOP_K, 0)?;
        let range = ranges::REPETITION_PENALTY;
        let repetition = within("repetition_penalty", self.repetition_penalty, range, 1.0)?;
        let range = ranges::PRESENCE_PENALTY;
        let presence = within("presence_penalty", self.presence_penalty, range, 0.0)?;
        let range = ranges::FREQUENCY_PENALTY;
        let frequency = within("frequency_penalty", self.frequency_penalty, range, 0.0)?;
        Ok(Sampling {
            temperature: narrow(if temperature < GREEDY { 0.0 } else { temperature }),
            top_k: usize::try_from(top_k).unwrap_or(0), // -1 is another way to say all
            // 0 is sent by people who mean the likeliest token only
            top_p: narrow(top_p).max(f32::MIN_POSITIVE),
            min_p: narrow(within("min_p", self.min_p, ranges::MIN_P, 0.0)?),
            repetition_penalty: narrow(repetition),
            presence_penalty: narrow(presence),
            frequency_penalty: narrow(frequency),
            bias: self.bias.iter().map(|(id, bias)| (*id, narrow(*bias))).collect(),
            seed: self.seed,
        })
    }
}

/// To the precision that logits have.
#[expect(clippy::cast_possible_truncation, reason = "the nearest f32 of a checked range is meant")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// Differs from request to request.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

fn stop_strings(Strings(strings): Strings) -> Result<Vec<String>, ApiError> {
    if strings.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "a stop string must not be empty"));
    }
    if strings.iter().any(|string| string.len() > MAX_STOP_BYTES) {
        let message = format!("a stop string has at most {MAX_STOP_BYTES} bytes");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(strings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::parse;

    fn read(json: &str) -> Result<Terms, String> {
        let common: Common = parse(json.as_bytes()).map_err(|error| param(&error))?;
        Terms::read(&common).map_err(|error| param(&error))
    }

    fn param(error: &ApiError) -> String {
        error.body().error.param.unwrap_or("-").to_owned()
    }

    #[test]
    fn what_is_absent_or_null_has_openais_defaults() {
        for json in ["{}", r#"{"temperature":null,"n":null,"stop":null,"stream":null,"seed":null}"#]
        {
            let terms = read(json).unwrap();
            assert_eq!(Sampling { seed: 0, ..terms.sampling }, Sampling::default());
            assert_eq!((terms.choices, terms.max_tokens), (1, None));
            assert_eq!((terms.keep, terms.ends), (Keep::Cut, Ends::Honoured));
            assert_eq!((terms.specials, terms.delivery), (Specials::Hide, Delivery::Whole));
        }
    }

    #[test]
    fn each_field_has_its_meaning() {
        let terms = read(
            r#"{"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"repetition_penalty":1.1,
                "presence_penalty":-1,"frequency_penalty":2,"seed":-1,"n":3,"stop":["a","b"],
                "stop_token_ids":[7],"include_stop_str_in_output":true,"ignore_eos":true,
                "skip_special_tokens":false,"stream":true,"stream_options":{"include_usage":true},
                "max_tokens":9,"response_format":{"type":"text"},"user":"x","metadata":{"a":[1]}}"#,
        )
        .unwrap();
        let expected = Sampling {
            temperature: 0.5,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            bias: [].into(),
            seed: u64::MAX,
        };
        assert_eq!(terms.sampling, expected);
        assert_eq!(terms.sampling_of(0), expected);
        assert_eq!(terms.sampling_of(1).seed, 0);
        assert_eq!((terms.choices, terms.max_tokens), (3, Some(9)));
        assert_eq!((terms.stops, terms.stop_ids), (vec!["a".into(), "b".into()], vec![7]));
        assert_eq!((terms.keep, terms.ends), (Keep::Include, Ends::Ignored));
        assert_eq!((terms.specials, terms.delivery), (Specials::Show, Delivery::StreamWithUsage));
    }

    #[test]
    fn what_is_out_of_range_or_of_another_type_is_refused_by_name() {
        for (field, values) in [
            ("temperature", &["-0.1", "2.1", "1e39", "\"hot\"", "[]", "true"][..]),
            ("top_p", &["-0.1", "1.1"]),
            ("top_k", &["-2", "1.5"]),
            ("min_p", &["-1", "2"]),
            ("repetition_penalty", &["0", "-1", "1e9"]),
            ("presence_penalty", &["-2.1", "2.1"]),
            ("frequency_penalty", &["-2.1", "2.1"]),
            ("seed", &["1.5", "\"1\"", "9223372036854775808"]),
            ("n", &["0", "-1", "129", "1000000000", "1.0"]),
            ("max_tokens", &["-1", "1.5", "\"9\""]),
            ("stop", &["\"\"", "[\"\"]", "7"]),
            ("stop_token_ids", &["7"]),
            ("stream", &["1", "\"true\""]),
            ("ignore_eos", &["0"]),
            ("model", &["7"]),
            ("min_tokens", &["-1", "1.5"]),
            ("cache_salt", &["\"\"", "7"]),
            ("logit_bias", &[r#"{"1":101}"#, r#"{"1":-100.5}"#]),
        ] {
            for value in values {
                assert_eq!(
                    read(&format!(r#"{{"{field}":{value}}}"#)).unwrap_err(),
                    field,
                    "{value}"
                );
            }
        }
        assert_eq!(read(r#"{"stop":["a",1]}"#).unwrap_err(), "stop[1]");
        assert_eq!(
            read(r#"{"stream_options":{"include_usage":1}}"#).unwrap_err(),
            "stream_options.include_usage"
        );
    }

    #[test]
    fn edges_of_greed() {
        for json in [r#"{"temperature":0}"#, r#"{"temperature":1e-30}"#] {
            assert_eq!(read(json).unwrap().sampling.temperature.to_bits(), 0, "{json}");
        }
        assert_eq!(read(r#"{"top_k":-1}"#).unwrap().sampling.top_k, 0);
        assert!(read(r#"{"top_p":0}"#).unwrap().sampling.top_p > 0.0);
    }

    #[test]
    fn seeds_differ_unless_they_are_sent() {
        let seed = || read("{}").unwrap().sampling.seed;
        assert_ne!(seed(), seed());
        assert_eq!(read(r#"{"seed":5}"#).unwrap().sampling.seed, 5);
    }
}
