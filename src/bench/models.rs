//! What a server says it has.

use std::time::Duration;

use reqwest::{Client, Response, redirect::Policy};
use serde_json::Value;

use super::{
    client::causes,
    error::BenchError,
    target::{Key, Select, Target},
};

/// How long a server may take to tell.
const PATIENCE: Duration = Duration::from_secs(10);
/// Some million names.
const MOST_BYTES: usize = 256 << 20;

/// The names in `/v1/models`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Models {
    /// Those that have no parent.
    pub bases: Vec<String>,
    /// Those that have one.
    pub adapters: Vec<String>,
}

impl Models {
    fn of(answer: &Value) -> Result<Self, &'static str> {
        let none = "it is no list";
        let mut models = Self::default();
        for model in answer["data"].as_array().ok_or(none)? {
            let id = model["id"].as_str().ok_or(none)?.to_owned();
            if id.contains(char::is_control) {
                return Err("a name in it has control characters");
            }
            let list =
                if model["parent"].is_string() { &mut models.adapters } else { &mut models.bases };
            list.push(id);
        }
        Ok(models)
    }
}

/// Asks a server for its models; where adapters are chosen by number, for those too.
pub async fn models(url: &str, select: Select, key: Option<&Key>) -> Result<Models, BenchError> {
    let url = Target::root(url);
    let client = Client::builder().redirect(Policy::none()).timeout(PATIENCE).build();
    let client = client.map_err(BenchError::Client)?;
    let listed = get(&client, &format!("{url}/v1/models"), key).await?;
    let none = |why: String| BenchError::NoModels { url: url.to_owned(), why };
    let status = listed.status();
    if !status.is_success() {
        return Err(none(status.to_string()));
    }
    let answer = json(listed).await.map_err(none)?;
    let mut models = Models::of(&answer).map_err(|why| none(why.to_owned()))?;
    if select == Select::Lora {
        let listed = get(&client, &format!("{url}/lora-adapters"), key).await?;
        let answer = json(listed).await.map_err(none)?;
        let ids = answer.as_array().into_iter().flatten();
        models.adapters =
            ids.filter_map(|adapter| Some(adapter["id"].as_u64()?.to_string())).collect();
    }
    Ok(models)
}

async fn get(client: &Client, url: &str, key: Option<&Key>) -> Result<Response, BenchError> {
    let request = client.get(url);
    let request = match key {
        Some(key) => request.bearer_auth(key.secret()),
        None => request,
    };
    request.send().await.map_err(|source| BenchError::Unreachable { url: url.to_owned(), source })
}

/// What an answer says, if it comes to an end.
async fn json(mut answer: Response) -> Result<Value, String> {
    let mut body = Vec::new();
    while let Some(bytes) = answer.chunk().await.map_err(|why| causes(&why))? {
        body.extend_from_slice(&bytes);
        if body.len() > MOST_BYTES {
            return Err("its answer does not end".to_owned());
        }
    }
    serde_json::from_slice(&body).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn adapters_are_those_with_a_parent() {
        let answer = json!({"data": [
            {"id": "small", "parent": null}, {"id": "sql", "parent": "small"}, {"id": "other"}
        ]});
        let models = Models::of(&answer).unwrap();
        assert_eq!(models.bases, ["small", "other"]);
        assert_eq!(models.adapters, ["sql"]);
        assert!(Models::of(&json!({"error": "none"})).is_err());
        assert!(Models::of(&json!({"data": [{"id": "a\u{1b}[2J"}]})).is_err());
    }
}
