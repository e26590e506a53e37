//! What can be said of a run, on the command line or in a scenario's file.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

use crate::{
    bench::{Api, BenchError, Key, Lengths, Order, Rate, Select, Slo, Spacing, Warmup},
    config::{Span, Switch},
};

/// A scenario is a page at most.
const MOST_FILE_BYTES: u64 = 1 << 20;

/// What the command line has beside the options that a file may have, too.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// TOML file with any of the other options as `name = value`, and tenants as `[[tenant]]`; flags go before it
    #[arg(long, short, value_name = "FILE")]
    pub(super) scenario: Option<PathBuf>,
    /// Compare reports that --json wrote, each with the first; nothing is asked
    #[arg(long, value_name = "FILE", num_args = 2.., conflicts_with = "scenario")]
    pub(super) compare: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) options: Options,
}

/// What was typed or written; what was left alone is `None`. One definition serves the command line and the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Options {
    /// What the report is called [default: the scenario's name]
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
    /// The server, with or without /v1 [default: `http://127.0.0.1:8080`]
    #[arg(long, env = "CHORUS_URL", value_name = "URL", help_heading = "Whom to ask")]
    pub(super) url: Option<String>,
    /// The API key; better given as a variable, because other users of this machine see arguments
    #[arg(
        long,
        env = "CHORUS_KEY",
        value_name = "KEY",
        hide_env_values = true,
        help_heading = "Whom to ask"
    )]
    pub(super) key: Option<Secret>,
    /// The base's name [default: the first that the server lists]
    #[arg(long, value_name = "NAME", help_heading = "Whom to ask")]
    pub(super) model: Option<String>,
    /// Adapters: `a,b`, `tenant-{0..999}`, `@FILE` with a name a line, or `@models` for all that the server lists; `base` is the base itself
    /// [default: base]
    #[arg(long, value_name = "NAMES", help_heading = "Whom to ask")]
    pub(super) adapters: Option<String>,
    /// In which order they are asked for: round, uniform, zipf or zipf:S, by which the k-th is asked for as often as 1/k^S says
    /// [default: uniform]
    #[arg(long, value_name = "ORDER", help_heading = "Whom to ask")]
    pub(super) order: Option<Typed<Order>>,
    /// Where a request says which adapter it is for: model, header, or lora for llama.cpp's server, which numbers them [default: model]
    #[arg(long, value_name = "WHERE", help_heading = "Whom to ask")]
    pub(super) select: Option<Typed<Select>>,
    /// The header of `--select header` [default: X-Adapter]
    #[arg(long, value_name = "NAME", help_heading = "Whom to ask")]
    pub(super) header_name: Option<String>,
    /// completions or chat [default: completions]
    #[arg(long, value_name = "ROUTE", help_heading = "Whom to ask")]
    pub(super) api: Option<Typed<Api>>,
    /// A tenant that asks, with its key if it has one; may be given again and again. In a file: `[[tenant]]` with name, key, share,
    /// adapters and order; here a name of the file's gets its key
    #[arg(long, value_name = "NAME=KEY", help_heading = "Whom to ask")]
    pub(super) tenant: Vec<TenantOption>,
    /// Tenants in a file that others need not see, a line of NAME=KEY each
    #[arg(long, value_name = "FILE", help_heading = "Whom to ask")]
    pub(super) tenants_file: Option<PathBuf>,
    /// A further header, `NAME: VALUE`; may be given again and again
    #[arg(long, value_name = "HEADER", help_heading = "Whom to ask")]
    pub(super) header: Vec<String>,
    /// Further fields of each request, as a JSON object; they go before ours
    #[arg(long, value_name = "JSON", help_heading = "Whom to ask")]
    pub(super) body: Option<Fields>,
    /// Closed loop: requests at once, of which each is followed by the next [default: 8, where no rate or trace is given]
    #[arg(long, short, value_name = "N", conflicts_with_all = ["rate", "trace"], help_heading = "When to ask")]
    pub(super) concurrency: Option<NonZeroUsize>,
    /// Open loop: requests a second, whatever becomes of them: `5`, or `1..20` to go from one to another over --duration
    #[arg(
        long,
        short,
        value_name = "RATE",
        conflicts_with = "trace",
        help_heading = "When to ask"
    )]
    pub(super) rate: Option<Typed<Rate>>,
    /// How requests of a rate lie to each other: poisson or fixed [default: poisson]
    #[arg(long, value_name = "HOW", help_heading = "When to ask")]
    pub(super) arrivals: Option<Typed<Spacing>>,
    /// Ask what was once asked: JSON lines, or CSV with a header, of t (seconds) and any of tenant, adapter, `prompt_tokens`,
    /// `output_tokens`; what --csv wrote is such a file
    #[arg(long, value_name = "FILE", help_heading = "When to ask")]
    pub(super) trace: Option<PathBuf>,
    /// How many times as fast as it once was [default: 1]
    #[arg(long, value_name = "FACTOR", help_heading = "When to ask")]
    pub(super) trace_speed: Option<f64>,
    /// How many requests [default: four times --concurrency, where no --duration is given]
    #[arg(long, short = 'n', value_name = "N", help_heading = "When to ask")]
    pub(super) requests: Option<u64>,
    /// For how long requests are sent; those under way are then waited for [default: 30s with --rate]
    #[arg(long, short, value_name = "TIME", help_heading = "When to ask")]
    pub(super) duration: Option<Span>,
    /// Requests before those that are measured, or `each` for one to every adapter, so that none is cold [default: 2]
    #[arg(long, value_name = "N|each", help_heading = "When to ask")]
    pub(super) warmup: Option<Typed<Warmup>>,
    /// Most requests under way in an open loop; further ones are sent late, and that is said [default: 1024]
    #[arg(long, value_name = "N", help_heading = "When to ask")]
    pub(super) max_in_flight: Option<NonZeroUsize>,
    /// Longest a request may take [default: 5m]
    #[arg(long, value_name = "TIME", help_heading = "When to ask")]
    pub(super) timeout: Option<Span>,
    /// How often a request is sent again that was refused with 429 or 503, after its Retry-After [default: 0]
    #[arg(long, value_name = "N", help_heading = "When to ask")]
    pub(super) retries: Option<u32>,
    /// Words of prompts: `64`, `16..256`, `normal:MEAN,SD`, `lognormal:MEDIAN,SIGMA[,MIN..MAX]`, `exponential:MEAN`,
    /// `mix:64x3,2048x1` [default: 64]
    #[arg(long, value_name = "LENGTHS", conflicts_with = "dataset", help_heading = "What to ask")]
    pub(super) prompt_words: Option<Typed<Lengths>>,
    /// Words that all prompts for one adapter begin with [default: 0]
    #[arg(long, value_name = "N", help_heading = "What to ask")]
    pub(super) prefix_words: Option<u32>,
    /// Prompts of a file: JSON lines with prompt or messages, or a list of chats as `ShareGPT` has them
    #[arg(long, value_name = "FILE", help_heading = "What to ask")]
    pub(super) dataset: Option<PathBuf>,
    /// Tokens of answers, written as --prompt-words is [default: 64]
    #[arg(long, value_name = "LENGTHS", help_heading = "What to ask")]
    pub(super) output_tokens: Option<Typed<Lengths>>,
    /// Ask servers that know `ignore_eos` for answers that are as long as they are to be [default: true]
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "What to ask")]
    pub(super) ignore_eos: Option<Switch>,
    /// How freely tokens are drawn [default: 0]
    #[arg(long, value_name = "T", help_heading = "What to ask")]
    pub(super) temperature: Option<f64>,
    /// All that is drawn is a function of it [default: 1]
    #[arg(long, value_name = "N", help_heading = "What to ask")]
    pub(super) seed: Option<u64>,
    /// What a request must keep to, as in ttft=500ms,itl=50ms,e2e=10s; itl is its mean time between tokens
    #[arg(long, value_name = "BOUNDS", help_heading = "What comes of it")]
    pub(super) slo: Option<Typed<Slo>>,
    /// Double the load until the SLO breaks, then find the place between
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "What comes of it")]
    pub(super) sweep: Option<Switch>,
    /// The part of requests that must keep to the SLO for a load to hold [default: 0.95]
    #[arg(long, value_name = "PART", help_heading = "What comes of it")]
    pub(super) slo_share: Option<f64>,
    /// Write the report as JSON; `-` prints it in place of the table
    #[arg(long, value_name = "FILE", help_heading = "What comes of it")]
    pub(super) json: Option<PathBuf>,
    /// Write a line for each request
    #[arg(long, value_name = "FILE", help_heading = "What comes of it")]
    pub(super) csv: Option<PathBuf>,
    /// Write the report, or the comparison, as one HTML file
    #[arg(long, value_name = "FILE", help_heading = "What comes of it")]
    pub(super) html: Option<PathBuf>,
    /// Threads that send and listen [default: 2]
    #[arg(long, value_name = "N", help_heading = "What comes of it")]
    pub(super) threads: Option<NonZeroUsize>,
}

/// A key, of which nothing is shown.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "String")]
pub(crate) struct Secret(pub(super) Key);

impl From<String> for Secret {
    fn from(key: String) -> Self {
        Self(Key::new(key))
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(key: &str) -> Result<Self, String> {
        if key.is_empty() { Err("a key is expected".to_owned()) } else { Ok(key.to_owned().into()) }
    }
}

/// A value that a file has as it is typed.
#[derive(Clone, Debug)]
pub(crate) struct Typed<T>(pub(super) T);

impl<T: FromStr<Err = String>> FromStr for Typed<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "text or a number is expected")]
enum Scalar {
    Whole(i64),
    Decimal(f64),
    Text(String),
}

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Typed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Scalar::deserialize(deserializer)? {
            Scalar::Whole(number) => number.to_string(),
            Scalar::Decimal(number) => number.to_string(),
            Scalar::Text(text) => text,
        };
        text.parse().map_err(|why| de::Error::custom(format!("`{text}`: {why}")))
    }
}

/// A JSON object, or a TOML table.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Fields(pub(super) Map<String, Value>);

impl FromStr for Fields {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields = serde_json::from_str(text);
        fields
            .map(Self)
            .map_err(|why| format!("a JSON object is expected, such as {{\"top_k\": 5}}: {why}"))
    }
}

/// Who asks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantOption {
    pub(super) name: String,
    #[serde(default)]
    pub(super) key: Option<Secret>,
    /// Its part of the load is this in the sum of all [default: 1].
    #[serde(default)]
    pub(super) share: Option<f64>,
    /// Those of all, where it has none of its own.
    #[serde(default)]
    pub(super) adapters: Option<String>,
    #[serde(default)]
    pub(super) order: Option<Typed<Order>>,
}

impl FromStr for TenantOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = match text.split_once('=') {
            Some((name, key)) => (name.trim(), Some(key.trim().parse()?)),
            None => (text.trim(), None),
        };
        if name.is_empty() {
            return Err("a tenant is expected as NAME=KEY, or NAME".to_owned());
        }
        Ok(Self { name: name.to_owned(), key, share: None, adapters: None, order: None })
    }
}

macro_rules! each_or {
    ($flags:ident or $file:ident, $($rest:ident: $value:expr),+; $($field:ident),+) => {
        Options { $($field: $flags.$field.or($file.$field),)+ $($rest: $value,)+ }
    };
}

impl Options {
    /// Reads a scenario.
    pub(super) fn read(path: &Path) -> Result<Self, BenchError> {
        let unreadable = |source| BenchError::Unreadable { path: path.to_owned(), source };
        let wrong = |what| BenchError::File { path: path.to_owned(), what };
        if fs::metadata(path).map_err(unreadable)?.len() > MOST_FILE_BYTES {
            return Err(wrong("it is longer than 1 MiB".to_owned()));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |at| 1 + text[..at.start].matches('\n').count());
            format!("line {line}: {}", error.message().replace('\n', " "))
        })
    }

    /// These options where they are given, and else a file's.
    pub(super) fn or(self, mut file: Self) -> Self {
        let flags = self;
        // One of these in place of another.
        if flags.concurrency.is_some() || flags.rate.is_some() || flags.trace.is_some() {
            file.concurrency = None;
            file.rate = None;
            file.trace = None;
        }
        if flags.dataset.is_some() || flags.prompt_words.is_some() {
            file.dataset = None;
            file.prompt_words = None;
        }
        let tenant = tenants(file.tenant, flags.tenant);
        let mut header = file.header;
        header.extend(flags.header);
        each_or!(flags or file, tenant: tenant, header: header;
            label, url, key, model, adapters, order, select, header_name, api, tenants_file, body, concurrency, rate, arrivals,
            trace, trace_speed, requests, duration, warmup, max_in_flight, timeout, retries, prompt_words, prefix_words, dataset,
            output_tokens, ignore_eos, temperature, seed, slo, sweep, slo_share, json, csv, html, threads)
    }
}

/// Some tenants and more: a name that is there already gets what is said of it.
pub(super) fn tenants(mut known: Vec<TenantOption>, more: Vec<TenantOption>) -> Vec<TenantOption> {
    let mut places: BTreeMap<String, usize> =
        known.iter().enumerate().map(|(place, tenant)| (tenant.name.clone(), place)).collect();
    for tenant in more {
        if let Some(place) = places.get(&tenant.name) {
            known[*place].key = tenant.key.or_else(|| known[*place].key.take());
        } else {
            places.insert(tenant.name.clone(), known.len());
            known.push(tenant);
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches as _};

    use super::*;

    #[test]
    fn the_shipped_scenarios_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/scenarios");
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            Options::read(&path).unwrap_or_else(|why| panic!("{why}"));
            count += 1;
        }
        assert!(count >= 5);
    }

    #[test]
    fn what_is_wrong_with_a_scenario_is_said_with_its_line() {
        for (text, parts) in [
            ("rate = 5\nspeed = 3\n", &["line 2", "unknown field `speed`"][..]),
            ("\n\noutput-tokens = \"many\"", &["line 3", "`many`: a length is expected"]),
            ("rate = -1", &["line 1", "`-1`: requests a second"]),
            ("[[tenant]]\nname = \"a\"\nkeys = \"x\"", &["line 3", "unknown field `keys`"]),
            ("[[tenant]]\nshare = 2", &["line 1", "missing field `name`"]),
            ("concurrency = 0", &["line 1", "nonzero"]),
            ("rate = ", &["line 1"]),
            ("duration = \"soon\"", &["line 1", "`soon`: a time above 0"]),
            ("body = 7", &["line 1"]),
        ] {
            let error = Options::parse(text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part} is not in {error}");
            }
        }
    }

    /// Every option of the command line is one of the file, but those that are about files and comparisons.
    #[test]
    fn a_file_has_every_option() {
        let command = Options::augment_args(Command::new("x"));
        for option in command.get_arguments() {
            let name = option.get_long().unwrap();
            let value = match name {
                "tenant" => "[{name = \"a\"}]",
                "header" => "[\"A: b\"]",
                "body" => "{top_k = 5}",
                "concurrency" | "rate" | "requests" | "max-in-flight" | "retries"
                | "prefix-words" | "seed" | "threads" | "trace-speed" | "temperature"
                | "slo-share" | "output-tokens" | "prompt-words" => "1",
                "order" => "\"zipf:1.1\"",
                "select" => "\"lora\"",
                "api" => "\"chat\"",
                "arrivals" => "\"fixed\"",
                "duration" | "timeout" => "\"10s\"",
                "warmup" => "\"each\"",
                "ignore-eos" | "sweep" => "true",
                "slo" => "\"ttft=1s\"",
                _ => "\"text\"",
            };
            let line = format!("{name} = {value}");
            Options::parse(&line).unwrap_or_else(|why| panic!("{line}: {why}"));
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let file = Options::parse(
            "rate = 5\nseed = 7\nduration = \"10s\"\n[[tenant]]\nname = \"a\"\nshare = 3\n[[tenant]]\nname = \"b\"",
        );
        let command = Options::augment_args(Command::new("x"));
        let words =
            ["x", "--concurrency", "4", "--seed", "9", "--tenant", "b=key", "--tenant", "c"];
        let flags = Options::from_arg_matches(&command.get_matches_from(words)).unwrap();
        let options = flags.or(file.unwrap());
        assert_eq!(options.concurrency, NonZeroUsize::new(4));
        assert!(options.rate.is_none() && options.duration.is_some());
        assert_eq!(options.seed, Some(9));
        let names: Vec<_> = options.tenant.iter().map(|tenant| tenant.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let keys: Vec<_> = options.tenant.iter().map(|tenant| tenant.key.is_some()).collect();
        assert_eq!(keys, [false, true, false]);
        assert_eq!(options.tenant[0].share, Some(3.0));
    }
}
