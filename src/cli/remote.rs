//! A server that is spoken to from a terminal.

use std::{io, path::PathBuf, time::Duration};

use clap::Args;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may say nothing that is asked for what it has.
const SILENCE: Duration = Duration::from_secs(30);
/// The same where it has something to do first: what is uploaded is checked and tried.
const WORK: Duration = Duration::from_mins(10);

/// Which server, and how its answers are shown.
#[derive(Args, Clone, Debug)]
pub(crate) struct Remote {
    /// The server
    #[arg(long, env = "CHORUS_URL", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
    /// The API key; better given as a variable, because other users of this machine see arguments
    #[arg(long, env = "CHORUS_KEY", value_name = "KEY", hide_env_values = true)]
    pub(super) key: Option<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Why a command on a server did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("{url} does not answer; is `chorus serve` running there? --url names another server")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{status}: {message}")]
    Refused { status: u16, message: String },
    #[error("the server's answer is none of chorus: {0}")]
    Answer(String),
    #[error(
        "version {version} is stored but not active, because its smoke test failed: it answered {answer:?}"
    )]
    SmokeTest { version: String, answer: String },
    #[error("version {version} fails its smoke test on this server's base: it answers {answer:?}")]
    FailsHere { version: String, answer: String },
    #[error("the key {id} has expired: make a new one with `chorus tenant key new {tenant}`")]
    ExpiredKey { id: String, tenant: String },
    #[error("{} cannot be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} cannot be written", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{} is {what}", path.display())]
    Unexpected { path: PathBuf, what: String },
    #[error("{what}; the reasons are above, and the same command tries again what is missing")]
    Incomplete { what: String },
}

pub(super) const NO_QUERY: &[(&str, bool)] = &[];

impl Remote {
    /// A request for a path, whose parts may be any text.
    pub(super) fn request<V: serde::Serialize>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, V)],
    ) -> RequestBuilder {
        let mut url = format!("{}/v1", self.url.trim_end_matches('/'));
        for part in path {
            url.push('/');
            // Names that need it are none; the server says so better than a URL that cannot be parsed.
            url.extend(part.bytes().map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            }));
        }
        let silence = if method == Method::GET { SILENCE } else { WORK };
        let client = Client::builder().connect_timeout(CONNECT).read_timeout(silence).build();
        let request = client.unwrap_or_default().request(method, url);
        let request = if query.is_empty() { request } else { request.query(query) };
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// The answer, if it is not a refusal.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, RemoteError> {
        let sent = request.send().await;
        let response =
            sent.map_err(|source| RemoteError::Unreachable { url: self.url.clone(), source })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().await.unwrap_or_default();
        let error = serde_json::from_str::<Value>(&body).unwrap_or_default();
        let message = match (&error["error"]["message"], &error["error"]["code"]) {
            (Value::String(message), Value::String(code)) => format!("{message} ({code})"),
            (Value::String(message), _) => message.clone(),
            _ => status.canonical_reason().unwrap_or("the server refused").to_owned(),
        };
        Err(RemoteError::Refused { status: status.as_u16(), message: printable(&message) })
    }

    /// What a path has.
    pub(super) async fn json(&self, path: &[&str]) -> Result<Value, RemoteError> {
        answered(self.send(self.request(Method::GET, path, NO_QUERY)).await?).await
    }

    /// The answer as it is printed: for people, or as it came.
    pub(super) async fn shown(
        &self,
        response: Response,
        for_people: impl FnOnce(&Value) -> String,
    ) -> Result<String, RemoteError> {
        Ok(self.told(&answered(response).await?, for_people))
    }

    /// An answer as it is printed.
    pub(super) fn told(&self, answer: &Value, for_people: impl FnOnce(&Value) -> String) -> String {
        if self.json { format!("{answer}\n") } else { for_people(answer) }
    }
}

/// The JSON of an answer.
pub(super) async fn answered(response: Response) -> Result<Value, RemoteError> {
    response.json().await.map_err(|error| RemoteError::Answer(error.to_string()))
}

/// A text of an answer, safe to print.
pub(super) fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or("?"))
}

/// Without what could change a terminal.
pub(super) fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_url() {
        let remote = Remote { url: "http://127.0.0.1:1/".to_owned(), key: None, json: false };
        let path = ["adapters", "../a/b?c d"];
        let request = remote.request(Method::GET, &path, NO_QUERY).build().unwrap();
        assert_eq!(request.url().as_str(), "http://127.0.0.1:1/v1/adapters/..%2Fa%2Fb%3Fc%20d");
    }
}
