//! `chorus usage`: what the ledger comes to, from a terminal.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use reqwest::Method;
use serde_json::Value;

use super::{
    error::CliError,
    remote::{Remote, RemoteError, text},
    runtime,
};

/// What is asked for, of which server, and by what right.
#[derive(Args, Clone, Debug)]
pub(crate) struct UsageArgs {
    /// Of one tenant; without it, of all. Only with the operator's key
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// From this day or time on, such as 2026-11-25 or 2026-11-25T08:00:00Z [default: 30 days ago]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Until this day or time, which is not meant itself [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How finely sums are told apart in time
    #[arg(long, value_name = "PERIOD", default_value = "day")]
    by: By,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// The operator's key; with it the usage of all tenants is shown, without it that of the API key's
    #[arg(
        long = "admin-key",
        env = "CHORUS_OPERATOR_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    operator: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// As the API has it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Hour,
    Day,
    Total,
}

impl By {
    fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Total => "total",
        }
    }
}

/// Prints it.
pub(crate) fn run(args: UsageArgs) -> Result<(), CliError> {
    let runtime = runtime()?;
    let shown = runtime.block_on(answer(args))?;
    write!(io::stdout(), "{shown}").map_err(CliError::Output)
}

async fn answer(args: UsageArgs) -> Result<String, RemoteError> {
    let UsageArgs { tenant, from, to, by, csv, operator, mut remote } = args;
    // Where there are no keys at all, whoever asks is the operator.
    let of_all = operator.is_some() || remote.key.is_none() || tenant.is_some();
    let path: &[&str] = if of_all { &["admin", "usage"] } else { &["usage"] };
    if of_all {
        remote.key = operator;
    }
    let format = if csv { "csv" } else { "json" };
    let mut query = vec![("by", by.word().to_owned()), ("format", format.to_owned())];
    let given = [("tenant", tenant), ("from", from), ("to", to)];
    query.extend(given.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let response = remote.send(remote.request(Method::GET, path, &query)).await?;
    if csv {
        return response.text().await.map_err(|error| RemoteError::Answer(error.to_string()));
    }
    remote.shown(response, table).await
}

fn table(answer: &Value) -> String {
    let head = format!(
        "{:<20} {:<16} {:<24} {:>9} {:>12} {:>12} {:>12} {:>14}\n",
        "from", "tenant", "adapter", "requests", "prompt", "cached", "generated", "uploaded bytes"
    );
    let rows = answer["data"].as_array().into_iter().flatten().map(|row| {
        let adapter = match (&row["adapter"], &row["version"]) {
            (Value::String(_), version) => format!("{}@v{version}", text(&row["adapter"])),
            _ => "(base)".to_owned(),
        };
        let count = |field: &str| row[field].as_u64().unwrap_or_default();
        format!(
            "{:<20} {:<16} {adapter:<24} {:>9} {:>12} {:>12} {:>12} {:>14}\n",
            text(&row["begin"]),
            text(&row["tenant"]),
            count("requests"),
            count("prompt_tokens"),
            count("cached_tokens"),
            count("generated_tokens"),
            count("upload_bytes"),
        )
    });
    [head].into_iter().chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_is_a_line() {
        let row = json!({"begin": "2026-11-25T00:00:00Z", "tenant": "acme", "adapter": "sql",
            "version": 2, "requests": 3, "prompt_tokens": 40, "generated_tokens": 5});
        let base = json!({"begin": "2026-11-25T00:00:00Z", "tenant": "acme", "adapter": null});
        let shown = table(&json!({"data": [row, base]}));
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("sql@v2") && lines[1].contains(" 40 "), "{shown}");
        assert!(lines[2].contains("(base)"), "{shown}");
    }
}
