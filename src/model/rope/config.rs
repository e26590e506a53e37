//! The rotary embedding as a `config.json` has it: `rope_theta` with `rope_scaling`, or both in `rope_parameters`.

use candle_transformers::models::llama::Llama3RopeConfig;
use serde_json::{Map, Value};

use super::{Horizon, Rope, Scaling, Yarn, mscale, stretched};

/// What the rest of the file says.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Given {
    /// `rope_theta` beside the scaling.
    pub(in crate::model) theta: Option<f32>,
    /// `max_position_embeddings`
    pub(in crate::model) context: usize,
    /// `original_max_position_embeddings` beside the scaling, as some bases with `longrope` have it.
    pub(in crate::model) original: Option<usize>,
}

/// Keys that every kind may have.
const COMMON: [&str; 5] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
];

/// Reads the scaling, where there is any; and the context, which some kinds of it change.
pub(in crate::model) fn read(
    written: Option<&Value>,
    given: Given,
) -> Result<(Rope, usize), String> {
    let theta = written.and_then(|written| written.get("rope_theta")).and_then(Value::as_f64);
    #[expect(clippy::cast_possible_truncation, reason = "a setting, used as f32 by transformers")]
    let theta = given.theta.or(theta.map(|theta| theta as f32)).unwrap_or(10_000.0);
    let Some(written) = written.filter(|written| !written.is_null()) else {
        return Ok((Rope { theta, scaling: Scaling::None, horizon: None }, given.context));
    };
    let Some(keys) = written.as_object() else {
        return Err(format!("its rope scaling {written} is not an object"));
    };
    let kind = keys.get("rope_type").or_else(|| keys.get("type")).and_then(Value::as_str);
    let keys = Keys { kind: kind.unwrap_or("default"), keys };
    if keys.number("partial_rotary_factor")?.is_some_and(|part| part < 1.0) {
        return Err("it turns only a part of each head (partial_rotary_factor)".to_owned());
    }
    let Read { scaling, context, horizon } = match keys.kind {
        "default" => Read { scaling: Scaling::None, context: given.context, horizon: None },
        "linear" => {
            let scaling = Scaling::Linear(keys.factor()?);
            Read { scaling, context: given.context, horizon: None }
        }
        "llama3" => Read { scaling: keys.llama3()?, context: given.context, horizon: None },
        "yarn" => keys.yarn(given)?,
        "dynamic" => keys.dynamic(given)?,
        "longrope" | "su" => keys.long(given)?,
        other => return Err(format!("rope scaling `{other}` is not supported")),
    };
    Ok((Rope { theta, scaling, horizon }, context))
}

/// What a scaling means.
struct Read {
    scaling: Scaling,
    context: usize,
    horizon: Option<Horizon>,
}

/// The object of a scaling.
#[derive(Clone, Copy)]
struct Keys<'a> {
    kind: &'a str,
    keys: &'a Map<String, Value>,
}

impl Keys<'_> {
    /// Refuses keys that are not understood: they may change the frequencies.
    fn only(&self, known: &[&str]) -> Result<(), String> {
        let set = self.keys.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| &**key);
        let mut unknown = set.filter(|key| !known.contains(key) && !COMMON.contains(key));
        match unknown.next() {
            None => Ok(()),
            Some(key) => Err(format!("`{key}` of its rope scaling `{}` is not known", self.kind)),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64();
        number.map(Some).ok_or_else(|| format!("`{key}` of its rope scaling is no number: {value}"))
    }

    /// A number that is as good as absent where it is 0, as transformers has it.
    fn number_above_0(&self, key: &str) -> Result<Option<f64>, String> {
        Ok(self.number(key)?.filter(|number| *number != 0.0))
    }

    fn needed(&self, key: &str) -> Result<f64, String> {
        let missing = || format!("its rope scaling `{}` has no {key}", self.kind);
        self.number(key)?.ok_or_else(missing)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let flag = value.as_bool();
        flag.map(Some).ok_or_else(|| {
            format!("`{key}` of its rope scaling is neither true nor false: {value}")
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "a setting, used as f32 by transformers")]
    fn factor(&self) -> Result<f32, String> {
        Ok(self.needed("factor")? as f32)
    }

    fn factors(&self, key: &str) -> Result<Vec<f32>, String> {
        let wrong = || format!("its rope scaling `{}` has no list of numbers {key}", self.kind);
        let list = self.value(key).and_then(Value::as_array).ok_or_else(wrong)?;
        #[expect(clippy::cast_possible_truncation, reason = "used as f32 by transformers")]
        let numbers = list.iter().map(|number| number.as_f64().map(|number| number as f32));
        numbers.collect::<Option<_>>().ok_or_else(wrong)
    }

    /// The context of the first training.
    fn original(&self) -> Result<Option<usize>, String> {
        const KEY: &str = "original_max_position_embeddings";
        let Some(value) = self.value(KEY) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        // Also as 4096.0.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count below 2^24"
        )]
        let whole = || {
            let whole = value.as_f64().filter(|count| count.fract() == 0.0);
            whole.filter(|count| (0.0..16_777_216.0).contains(count)).map(|count| count as usize)
        };
        match count.or_else(whole) {
            None => Err(format!("`{KEY}` of its rope scaling is no count: {value}")),
            Some(count) => Ok(Some(count).filter(|count| *count > 0)),
        }
    }

    fn llama3(&self) -> Result<Scaling, String> {
        let mut keys = self.keys.clone();
        keys.insert("rope_type".to_owned(), "llama3".into());
        let config = serde_json::from_value::<Llama3RopeConfig>(Value::Object(keys));
        let config =
            config.map_err(|why| format!("its llama3 rope scaling is incomplete: {why}"))?;
        Ok(config.into())
    }

    fn yarn(&self, given: Given) -> Result<Read, String> {
        // The first `YaRN` models say `finetuned`, which no frequency depends on.
        self.only(&[
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "finetuned",
        ])?;
        let factor = self.needed("factor")?;
        let weights = (self.number_above_0("mscale")?, self.number_above_0("mscale_all_dim")?);
        let attention = match (self.number("attention_factor")?, weights) {
            (Some(attention), _) => attention,
            (None, (Some(some), Some(all))) => mscale(factor, some) / mscale(factor, all),
            (None, _) => mscale(factor, 1.0),
        };
        let original = self.original()?;
        let yarn = Yarn {
            factor,
            original: original.unwrap_or(given.context) as f64,
            fast: self.number_above_0("beta_fast")?.unwrap_or(32.0),
            slow: self.number_above_0("beta_slow")?.unwrap_or(1.0),
            truncate: self.flag("truncate")?.unwrap_or(true),
            attention,
        };
        let context = given.context.max(original.map_or(0, |original| stretched(original, factor)));
        Ok(Read { scaling: Scaling::Yarn(yarn), context, horizon: None })
    }

    /// Up to its context nothing is scaled.
    fn dynamic(&self, given: Given) -> Result<Read, String> {
        self.only(&["factor"])?;
        self.needed("factor")?;
        let positions = self.original()?.unwrap_or(given.context).min(given.context);
        let horizon = Some(Horizon { kind: "dynamic", positions });
        Ok(Read { scaling: Scaling::None, context: positions, horizon })
    }

    /// Up to the context of the first training, the short factors.
    fn long(&self, given: Given) -> Result<Read, String> {
        self.only(&["factor", "attention_factor", "short_factor", "long_factor"])?;
        let factors = self.factors("short_factor")?;
        self.factors("long_factor")?;
        let known = given.original.or(self.original()?);
        let original = known.unwrap_or(given.context);
        let attention = match self.number("attention_factor")? {
            Some(attention) => attention,
            None => self.long_attention(known, given.context)?,
        };
        let positions = original.min(given.context);
        let horizon = Some(Horizon { kind: "longrope", positions });
        Ok(Read { scaling: Scaling::Long { factors, attention }, context: positions, horizon })
    }

    /// What follows from how much longer the context was made.
    fn long_attention(&self, original: Option<usize>, context: usize) -> Result<f64, String> {
        let written = self.number("factor")?;
        let (factor, original) = match original.filter(|original| *original > 0) {
            Some(original) => (context as f64 / original as f64, original),
            None => (self.needed("factor")?, context),
        };
        // Whoever reads the file takes the one or the other.
        if written.is_some_and(|written| (written - factor).abs() > 1e-6 * factor) {
            return Err(format!(
                "`factor` of its rope scaling is {}, but its contexts are {context} and {original}: \
                 give it an attention_factor",
                written.unwrap_or_default()
            ));
        }
        let stretched = factor > 1.0;
        Ok(if stretched { (1.0 + factor.ln() / (original as f64).ln()).sqrt() } else { 1.0 })
    }
}
