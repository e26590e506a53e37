//! `chorus audit`: who changed what, and when.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::{
    error::CliError,
    remote::{Remote, RemoteError, text},
    runtime,
    tenant::Admin,
};

/// Changes that are asked for at once.
const PAGE: &str = "500";
/// How often `--follow` asks.
const PAUSE: Duration = Duration::from_secs(1);

/// Which changes are shown.
#[derive(Args, Clone, Debug)]
pub(crate) struct AuditArgs {
    /// Only what concerns this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Only what comes after the change of this id, such as 12.3
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Go on with changes as they are made, until it is ended
    #[arg(long)]
    follow: bool,
    /// Of --json every change is a line of its own
    #[command(flatten)]
    admin: Admin,
}

/// Shows them.
pub(crate) fn run(args: AuditArgs) -> Result<(), CliError> {
    let runtime = runtime()?;
    let AuditArgs { tenant, after, follow, admin } = args;
    let remote = admin.remote();
    let mut after = after.unwrap_or_default();
    loop {
        let page = runtime.block_on(page(&remote, tenant.as_deref(), &after))?;
        let changes = page["data"].as_array().into_iter().flatten();
        let lines: String = changes.map(|change| shown(&remote, change) + "\n").collect();
        let mut out = io::stdout();
        out.write_all(lines.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)?;
        match page["last_id"].as_str() {
            Some(last) => last.clone_into(&mut after),
            None => return Err(RemoteError::Answer("it has no last_id".to_owned()).into()),
        }
        match (page["has_more"] == true, follow) {
            (true, _) => {}
            (false, true) => runtime.block_on(tokio::time::sleep(PAUSE)),
            (false, false) => return Ok(()),
        }
    }
}

async fn page(remote: &Remote, tenant: Option<&str>, after: &str) -> Result<Value, RemoteError> {
    let mut query = vec![("limit", PAGE)];
    query.extend(tenant.map(|tenant| ("tenant", tenant)));
    query.extend(Some(after).filter(|after| !after.is_empty()).map(|after| ("after", after)));
    let request = remote.request(Method::GET, &["admin", "audit"], &query);
    let answer = remote.send(request).await?.json().await;
    answer.map_err(|error| RemoteError::Answer(error.to_string()))
}

fn shown(remote: &Remote, change: &Value) -> String {
    if remote.json { change.to_string() } else { line(change) }
}

/// One change on one line.
fn line(change: &Value) -> String {
    let or_dash = |field: &str| match &change[field] {
        Value::String(_) => text(&change[field]),
        _ => "-".to_owned(),
    };
    format!(
        "{} {:<8} {:<14} {:<16} {:<24} {}",
        text(&change["time"]),
        text(&change["id"]),
        text(&change["by"]),
        or_dash("tenant"),
        or_dash("adapter"),
        text(&change["summary"]),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_one_line_whatever_the_server_says() {
        let change = json!({
            "id": "12.3", "time": "2026-11-25T08:00:00Z", "by": "key 0a0b0c0d", "tenant": "acme",
            "adapter": "sql\u{1b}[31m\n", "summary": "version 2 activated",
        });
        let shown = line(&change);
        assert!(!shown.contains(['\n', '\u{1b}']), "{shown:?}");
        for part in ["2026-11-25T08:00:00Z 12.3 ", "key 0a0b0c0d", "acme", "version 2 activated"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(line(&json!({"tenant": null})).contains(" - "));
    }
}
