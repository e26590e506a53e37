//! `chorus tenant`: what the operator does, from a terminal.

use std::{
    io::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    error::CliError,
    remote::{NO_QUERY, Remote, RemoteError, text},
    runtime,
};
use crate::config::{ByteSize, Span};

const TENANTS: [&str; 2] = ["admin", "tenants"];

/// Which server, by what right, and how its answers are shown.
#[derive(Args, Clone, Debug)]
pub(crate) struct Admin {
    /// The server
    #[arg(long, env = "CHORUS_URL", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The operator's key; better given as a variable, because other users of this machine see arguments
    #[arg(
        long = "admin-key",
        env = "CHORUS_OPERATOR_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    key: Option<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a tenant. With the first one the server asks everybody for a key from then on, and prints the operator's
    Create {
        /// Its name: a-z, 0-9 and -
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// List the tenants
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Show a tenant and its keys
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Choose the adapter that a tenant gets for the model `default`
    Default {
        /// The tenant's name
        name: String,
        /// The adapter's name; without it, the base
        adapter: Option<String>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Say what a tenant may use; what is not given stays as it is, and without any option it is shown
    Quota {
        /// The tenant's name
        name: String,
        #[command(flatten)]
        quota: QuotaArgs,
        #[command(flatten)]
        admin: Admin,
    },
    /// Make a new operator's key; the one that came with the first tenant ends, and one that a server has from its environment
    /// does not
    OperatorKey {
        #[command(flatten)]
        admin: Admin,
    },
    /// Make and revoke a tenant's keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

/// What may be used.
#[derive(Args, Clone, Debug)]
pub(crate) struct QuotaArgs {
    /// Requests for answers in a minute, of each server
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute, of each server
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u32>,
    /// Requests at once, of each server
    #[arg(long, value_name = "N")]
    concurrent: Option<u32>,
    /// Adapters in the store
    #[arg(long, value_name = "N")]
    adapters: Option<u32>,
    /// Bytes of all versions of all adapters
    #[arg(long, value_name = "SIZE")]
    stored_bytes: Option<ByteSize>,
    /// Bytes of memory that adapters of others leave to its loaded ones, of each server
    #[arg(long, value_name = "SIZE")]
    resident_min_bytes: Option<ByteSize>,
    /// Bytes of memory that its loaded adapters may take, of each server
    #[arg(long, value_name = "SIZE")]
    resident_max_bytes: Option<ByteSize>,
    /// Uploads in a minute, of each server
    #[arg(long, value_name = "N")]
    uploads_per_minute: Option<u32>,
    /// Take away all bounds that are not given
    #[arg(long, visible_alias = "clear")]
    none: bool,
}

/// What is to be done with keys.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key; it is shown this once
    New {
        /// The tenant's name
        tenant: String,
        /// What it allows
        #[arg(long, default_value = "infer")]
        scope: Scope,
        /// How long it counts, such as 30d or 12h; without it, until it is revoked
        #[arg(long, value_name = "TIME")]
        expires: Option<Span>,
        #[command(flatten)]
        admin: Admin,
    },
    /// End a key
    Revoke {
        /// The tenant's name
        tenant: String,
        /// The key's id, as `chorus tenant show` has it
        id: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Make a new key with the scope of an old one, and end the old one
    Rotate {
        /// The tenant's name
        tenant: String,
        /// The old key's id
        id: String,
        #[command(flatten)]
        admin: Admin,
    },
}

/// What a key allows.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Scope {
    /// To use the base and the tenant's adapters
    Infer,
    /// To upload and activate adapters as well
    Upload,
    /// To delete and pin them as well
    Admin,
}

/// Does it.
pub(crate) fn run(command: TenantCommand) -> Result<(), CliError> {
    let runtime = runtime()?;
    let text = runtime.block_on(answer(command))?;
    write!(io::stdout(), "{text}").map_err(CliError::Output)
}

impl Admin {
    pub(super) fn remote(self) -> Remote {
        Remote { url: self.url, key: self.key, json: self.json }
    }
}

/// What is printed.
async fn answer(command: TenantCommand) -> Result<String, RemoteError> {
    let [admin_, tenants] = TENANTS;
    match command {
        TenantCommand::Create { name, admin } => {
            let remote = admin.remote();
            let request = remote.request(Method::POST, &TENANTS, NO_QUERY);
            let request = request.json(&json!({ "name": name }));
            remote.shown(remote.send(request).await?, created).await
        }
        TenantCommand::List { admin } => {
            let remote = admin.remote();
            let request = remote.request(Method::GET, &TENANTS, NO_QUERY);
            remote.shown(remote.send(request).await?, list).await
        }
        TenantCommand::Show { name, admin } => {
            let remote = admin.remote();
            let request = remote.request(Method::GET, &[admin_, tenants, &name], NO_QUERY);
            remote.shown(remote.send(request).await?, whole).await
        }
        TenantCommand::Default { name, adapter, admin } => {
            let remote = admin.remote();
            let path = [admin_, tenants, &name, "default"];
            let request = remote.request(Method::POST, &path, NO_QUERY);
            let request = request.json(&json!({ "adapter": adapter }));
            remote.shown(remote.send(request).await?, whole).await
        }
        TenantCommand::Quota { name, quota, admin } => {
            let remote = admin.remote();
            let path = [admin_, tenants, &name, "quota"];
            let request = if quota.is_nothing() {
                remote.request(Method::GET, &path[..3], NO_QUERY)
            } else {
                let set = merged(&remote, &name, &quota).await?;
                remote.request(Method::POST, &path, NO_QUERY).json(&set)
            };
            remote.shown(remote.send(request).await?, bounds).await
        }
        TenantCommand::OperatorKey { admin } => {
            let remote = admin.remote();
            let request = remote.request(Method::POST, &[admin_, "operator-key"], NO_QUERY);
            remote.shown(remote.send(request).await?, operator_key).await
        }
        TenantCommand::Key { command } => key(command).await,
    }
}

async fn key(command: KeyCommand) -> Result<String, RemoteError> {
    match command {
        KeyCommand::New { tenant, scope, expires, admin } => {
            let scope = match scope {
                Scope::Infer => "infer",
                Scope::Upload => "upload",
                Scope::Admin => "admin",
            };
            let expires = expires.map(|Span(time)| (now() + time).as_secs());
            make(&admin.remote(), &tenant, &json!({ "scope": scope, "expires": expires })).await
        }
        KeyCommand::Revoke { tenant, id, admin } => {
            let remote = admin.remote();
            remote.shown(revoke(&remote, &tenant, &id).await?, whole).await
        }
        KeyCommand::Rotate { tenant, id, admin } => {
            let remote = admin.remote();
            let shown = shown(&remote, &tenant).await?;
            let mut keys = shown["keys"].as_array().into_iter().flatten();
            let Some(old) = keys.find(|key| key["id"] == *id) else {
                let message = format!("the tenant {tenant} has no key {id}");
                return Err(RemoteError::Refused { status: 404, message });
            };
            if old["expires"].as_u64().is_some_and(|expires| expires <= now().as_secs()) {
                return Err(RemoteError::ExpiredKey { id, tenant });
            }
            // The new one first: whatever breaks off between, nobody is locked out.
            let new = json!({ "scope": old["scope"], "expires": old["expires"] });
            let made = make(&remote, &tenant, &new).await?;
            Ok(match revoke(&remote, &tenant, &id).await {
                Ok(_) => made,
                // The new key is shown whatever happens: nobody could find it again.
                Err(error) => format!("{made}\nThe old key still counts: {error}\n"),
            })
        }
    }
}

/// Since the beginning of unix time.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl QuotaArgs {
    /// The bounds that were given, by their names in the API.
    fn bounds(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let bounds = [
            ("requests_per_minute", self.requests_per_minute.map(u64::from)),
            ("tokens_per_minute", self.tokens_per_minute.map(u64::from)),
            ("concurrent", self.concurrent.map(u64::from)),
            ("adapters", self.adapters.map(u64::from)),
            ("stored_bytes", self.stored_bytes.map(|ByteSize(bytes)| bytes)),
            ("resident_min_bytes", self.resident_min_bytes.map(|ByteSize(bytes)| bytes)),
            ("resident_max_bytes", self.resident_max_bytes.map(|ByteSize(bytes)| bytes)),
            ("uploads_per_minute", self.uploads_per_minute.map(u64::from)),
        ];
        bounds.into_iter().filter_map(|(field, bound)| Some((field, bound?)))
    }

    /// Nothing is to be changed.
    fn is_nothing(&self) -> bool {
        !self.none && self.bounds().next().is_none()
    }
}

/// The quota as it is, with what was given.
async fn merged(remote: &Remote, tenant: &str, given: &QuotaArgs) -> Result<Value, RemoteError> {
    let mut quota =
        if given.none { json!({}) } else { shown(remote, tenant).await?["quota"].clone() };
    for (field, bound) in given.bounds() {
        quota[field] = bound.into();
    }
    Ok(quota)
}

/// A tenant as the server has it.
async fn shown(remote: &Remote, tenant: &str) -> Result<Value, RemoteError> {
    let [admin, tenants] = TENANTS;
    let request = remote.request(Method::GET, &[admin, tenants, tenant], NO_QUERY);
    let answer = remote.send(request).await?.json().await;
    answer.map_err(|error| RemoteError::Answer(error.to_string()))
}

async fn make(remote: &Remote, tenant: &str, key: &Value) -> Result<String, RemoteError> {
    let [admin, tenants] = TENANTS;
    let path = [admin, tenants, tenant, "keys"];
    let request = remote.request(Method::POST, &path, NO_QUERY).json(key);
    let shown = |key: &Value| {
        format!("{}\n\nIt is shown this once; its id is {}.\n", text(&key["key"]), text(&key["id"]))
    };
    remote.shown(remote.send(request).await?, shown).await
}

async fn revoke(remote: &Remote, tenant: &str, id: &str) -> Result<reqwest::Response, RemoteError> {
    let [admin, tenants] = TENANTS;
    let path = [admin, tenants, tenant, "keys", id];
    remote.send(remote.request(Method::DELETE, &path, NO_QUERY)).await
}

fn created(tenant: &Value) -> String {
    let operator = tenant.get("operator_key").map(|key| {
        format!(
            "\nFrom now on every request needs a key. The operator's, shown this once:\n{}\n\
             Keep it in CHORUS_OPERATOR_KEY, and make the tenant's first key:\n\
             chorus tenant key new {}\n",
            text(key),
            text(&tenant["name"])
        )
    });
    format!("{}\n{}", line(tenant), operator.unwrap_or_default())
}

fn operator_key(made: &Value) -> String {
    let other = match made["environment_key"].as_bool() {
        Some(true) => {
            "\nThis server was given an operator's key in its environment, too (CHORUS_OPERATOR_KEY), and that one still counts\n\
             there. To end it, start the server without it or with another. Other servers may have been given one as well.\n"
        }
        _ => "",
    };
    format!("{}\n\nIt is shown this once.\n{other}", text(&made["key"]))
}

fn list(answer: &Value) -> String {
    let tenants = answer["data"].as_array().into_iter().flatten();
    tenants.map(|tenant| line(tenant) + "\n").collect()
}

fn line(tenant: &Value) -> String {
    let keys = tenant["keys"].as_array().map_or(0, Vec::len);
    let default = match &tenant["default_adapter"] {
        Value::String(_) => format!(", default adapter {}", text(&tenant["default_adapter"])),
        _ => String::new(),
    };
    let s = if keys == 1 { "" } else { "s" };
    format!("{:<24} {keys} key{s}{default}", text(&tenant["name"]))
}

fn whole(tenant: &Value) -> String {
    let keys = tenant["keys"].as_array().into_iter().flatten().map(|key| {
        let expires = match key["expires"].as_u64() {
            Some(at) => format!(", expires at {at} (unix time)"),
            None => String::new(),
        };
        format!("  {} {}{expires}\n", text(&key["id"]), text(&key["scope"]))
    });
    [line(tenant) + "\n"].into_iter().chain(keys).chain(quota(tenant)).collect()
}

/// What the tenant may use, a line each.
fn quota(tenant: &Value) -> impl Iterator<Item = String> {
    let bounds = tenant["quota"].as_object().into_iter().flatten();
    bounds.filter_map(|(field, bound)| {
        let (kind, what) = match field.as_str() {
            "resident_min_bytes" => ("keeps", "bytes of memory".to_owned()),
            "resident_max_bytes" => ("at most", "bytes of memory".to_owned()),
            field => ("at most", field.replace('_', " ")),
        };
        Some(format!("  {kind} {} {what}\n", bound.as_u64()?))
    })
}

/// The same, and that there is none where there is none.
fn bounds(tenant: &Value) -> String {
    let bounds: String = quota(tenant).collect();
    let bounds = if bounds.is_empty() { "  without any bound\n" } else { &bounds };
    format!("{}\n{bounds}", line(tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_says_what_to_do_next() {
        let tenant = json!({
            "name": "acme", "default_adapter": "sql", "operator_key": "chorus-abc",
            "keys": [{"id": "0a0b0c0d", "scope": "infer", "expires": 7}],
            "quota": {"adapters": 3, "concurrent": null, "resident_max_bytes": 9, "resident_min_bytes": 5},
        });
        let shown = created(&tenant);
        for part in ["acme", "chorus-abc", "CHORUS_OPERATOR_KEY", "chorus tenant key new acme"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let shown = whole(&tenant);
        assert!(shown.contains("1 key, default adapter sql"), "{shown}");
        assert!(shown.contains("0a0b0c0d infer, expires at 7"), "{shown}");
        assert!(shown.contains("at most 3 adapters") && !shown.contains("concurrent"), "{shown}");
        assert!(shown.contains("at most 9 bytes of memory"), "{shown}");
        assert!(shown.contains("keeps 5 bytes of memory"), "{shown}");
        assert_eq!(list(&json!({"data": [tenant, {}]})).lines().count(), 2);
    }

    #[test]
    fn a_quota_of_which_nothing_is_given_is_shown_and_not_changed() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            quota: QuotaArgs,
        }
        let given = |words: &[&str]| {
            use clap::Parser as _;
            Line::try_parse_from([&["quota"], words].concat()).unwrap().quota
        };
        assert!(given(&[]).is_nothing());
        for words in
            [&["--none"][..], &["--clear"], &["--adapters", "0"], &["--stored-bytes", "1KiB"]]
        {
            assert!(!given(words).is_nothing(), "{words:?}");
        }
        let tenant = |quota: Value| json!({"name": "acme", "keys": [], "quota": quota});
        let none = bounds(&tenant(json!({"adapters": null})));
        assert!(none.contains("acme") && none.contains("without any bound"), "{none}");
        let some = bounds(&tenant(json!({"adapters": 0, "concurrent": null})));
        assert!(some.contains("at most 0 adapters") && !some.contains("without"), "{some}");
    }

    #[test]
    fn an_operators_key_that_a_server_was_given_is_said_to_count_on() {
        let made =
            |other: Value| operator_key(&json!({"key": "chorus-abc", "environment_key": other}));
        let both = made(true.into());
        assert!(both.contains("chorus-abc") && both.contains("still counts"), "{both}");
        assert!(both.contains("CHORUS_OPERATOR_KEY"), "{both}");
        for one in [made(false.into()), made(Value::Null)] {
            assert_eq!(one, "chorus-abc\n\nIt is shown this once.\n");
        }
    }
}
