//! What a server says it has.

use reqwest::{Client, Response};
use serde_json::Value;

use super::{
    error::BenchError,
    target::{Key, Select, Target},
};

/// The names in `/v1/models`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Models {
    /// Those that have no parent.
    pub bases: Vec<String>,
    /// Those that have one.
    pub adapters: Vec<String>,
}

impl Models {
    fn of(answer: &Value) -> Option<Self> {
        let mut models = Self::default();
        for model in answer["data"].as_array()? {
            let id = model["id"].as_str()?.to_owned();
            let list =
                if model["parent"].is_string() { &mut models.adapters } else { &mut models.bases };
            list.push(id);
        }
        Some(models)
    }
}

/// Asks a server for its models; where adapters are chosen by number, for those too.
pub async fn models(url: &str, select: Select, key: Option<&Key>) -> Result<Models, BenchError> {
    let url = Target::root(url);
    let client = Client::builder().build().map_err(BenchError::Client)?;
    let listed = get(&client, &format!("{url}/v1/models"), key).await?;
    let none = |why: String| BenchError::NoModels { url: url.to_owned(), why };
    let status = listed.status();
    if !status.is_success() {
        return Err(none(status.to_string()));
    }
    let answer: Value = listed.json().await.map_err(|why| none(why.to_string()))?;
    let mut models = Models::of(&answer).ok_or_else(|| none("it is no list".to_owned()))?;
    if select == Select::Lora {
        let listed = get(&client, &format!("{url}/lora-adapters"), key).await?;
        let answer: Value = listed.json().await.map_err(|why| none(why.to_string()))?;
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
        assert_eq!(Models::of(&json!({"error": "none"})), None);
    }
}
