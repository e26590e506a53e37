//! `GET /openapi.json`: what the server takes and what it answers, as `OpenAPI` 3.1 has it.
//!
//! Each route is given to the router together with what is said of it here, so that none can be without. What a schema cannot say,
//! the text does: that a prompt and its answer must fit into the context, which names there are, which fields exclude each other.
//!
//! The files that the console loads are not in it: they are for browsers, not for clients.

mod refusals;
mod requests;

use std::sync::LazyLock;

use axum::{
    body::Bytes,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::wire::{
    accounts::Format as UsageFormat,
    error::{ErrorBody, LoraxError, MessagesError},
};
use crate::ledger::Period;

pub(super) use refusals::{LoraxUnanswered, MessagesUnanswered, Refusals, Unanswered, Unchanged};
pub(super) use requests::{
    AdapterPath, ChatRequest, Choosing, CompletionRequest, Conditions, CountRequest,
    MessagesRequest, OfTenant, ResponseRequest, Spans, TenantPath, UploadRequest,
};

/// What is said of the whole; paths and schemas come from the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "chorus",
        description = "One frozen base model, many voices: each tenant's LoRA adapters behind OpenAI's API.\n\n\
            A request names an adapter in `model` or in the header `X-Adapter`; the id of the base, or nothing, means the base. \
            A server with tenants asks for a key (`Authorization: Bearer KEY`, or `X-Api-Key: KEY`), and each tenant sees and \
            uses its own adapters alone. Unknown fields of a request are overlooked where routes are OpenAI's, LoRAX's or \
            Anthropic's; those that would change the answer and are not supported are refused with 400 and their name.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact()
    ),
    tags(
        (name = "answers", description = "Text that is generated, in the forms of OpenAI, Anthropic and LoRAX"),
        (name = "embeddings", description = "Vectors of texts"),
        (name = "tokens", description = "Texts as tokens"),
        (name = "models", description = "What requests may name"),
        (name = "adapters", description = "A tenant's own adapters: their versions, which of them answers, their files"),
        (name = "usage", description = "What was used"),
        (name = "operation", description = "For the operator's key, or on a server without keys for whoever sits at its machine"),
        (name = "process", description = "How the process is")
    ),
    security((), ("bearer" = []), ("x_api_key" = [])),
    components(schemas(
        ErrorBody<'static>, LoraxError<'static>, MessagesError<'static>, UsageFormat, Period
    )),
    modifiers(&Shared)
)]
pub(super) struct Document;

/// What operations have in common: where a key may stand, and how they refuse.
struct Shared;

impl Modify for Shared {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let header = ApiKey::Header(ApiKeyValue::new("X-Api-Key"));
        components.add_security_scheme("x_api_key", SecurityScheme::ApiKey(header));
        components
            .responses
            .extend(refusals::all().map(|(name, response)| (name, response.into())));
    }
}

/// The document as it is served.
static WRITTEN: LazyLock<Bytes> = LazyLock::new(|| written().into());

/// The document, as JSON with a line break at its end.
fn written() -> String {
    let (_, mut document) = super::app::routes().split_for_parts();
    // The router's sign for the rest of a path is not OpenAPI's.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths =
        paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    let mut document = serde_json::to_value(document).unwrap_or_default();
    bound(&mut document);
    events(&mut document);
    format!("{document:#}\n")
}

/// Says how large integers may be, which their formats alone do not.
fn bound(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(bound),
        Value::Object(fields) => {
            fields.values_mut().for_each(bound);
            // The formats' names are those of the registry, without utoipa's hyphen.
            let format = fields
                .get("format")
                .and_then(Value::as_str)
                .map(|name| name.replace("u-int", "uint"));
            if let Some(format) = &format {
                fields.insert("format".into(), format.as_str().into());
            }
            let (least, most) = match format.as_deref() {
                Some("uint8") => (0, u64::from(u8::MAX)),
                Some("uint32") => (0, u64::from(u32::MAX)),
                Some("uint64") => (0, u64::MAX),
                Some("int64") => (i64::MIN, i64::MAX.cast_unsigned()),
                None if fields.get("minimum") == Some(&0.into()) => (0, u64::MAX),
                _ => return,
            };
            fields.entry("minimum").or_insert(least.into());
            fields.entry("maximum").or_insert(most.into());
        }
        _ => {}
    }
}

/// Says of streams what one of their events is: the document of a schema is its data.
fn events(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(events),
        Value::Object(fields) => {
            if let Some(stream) = fields.get_mut("text/event-stream") {
                let data = stream["schema"].take();
                stream["schema"] = json!({
                    "type": "object", "required": ["data"],
                    "properties": {
                        "event": {"type": "string"},
                        "data": {
                            "type": "string", "contentMediaType": "application/json", "contentSchema": data,
                            "description": "A JSON document; the last event's may be `[DONE]`, or an error",
                        },
                    },
                });
            }
            fields.values_mut().for_each(events);
        }
        _ => {}
    }
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "process", operation_id = "openapi",
    responses((status = 200, description = "The document", body = Value), Refusals)
)]
pub(super) async fn show() -> Response {
    ([(CONTENT_TYPE, "application/json")], WRITTEN.clone()).into_response()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(&written()).unwrap()
    }

    #[test]
    fn the_committed_document_is_the_one_that_is_served() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        if fs::read_to_string(root.join("docs/openapi.json")).unwrap_or_default() != written() {
            fs::write(root.join("target/openapi.json"), written()).unwrap();
            panic!(
                "docs/openapi.json is not what the routes say: look at the difference to target/openapi.json, and copy that over it"
            );
        }
    }

    /// All `$ref`s below a value.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(name)) = fields.get("$ref") {
                    found.insert(name.clone());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_referred_to() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let there: BTreeSet<String> = ["schemas", "responses"]
            .into_iter()
            .flat_map(|kind| {
                let named = document["components"][kind].as_object().unwrap();
                named.keys().map(move |name| format!("#/components/{kind}/{name}"))
            })
            .collect();
        assert_eq!(found, there);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_how_it_refuses() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let mut names = BTreeSet::new();
        for (path, item) in paths {
            for (method, operation) in item.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{method} {path}: {name} is there twice");
                assert!(operation["summary"].is_string(), "{method} {path} has no summary");
                for status in ["200", "400", "401", "403", "500", "503"] {
                    let said = &operation["responses"];
                    let fits =
                        said[status].is_object() || status == "200" && said["201"].is_object();
                    assert!(
                        fits || name == "find_response" || name == "remove_response",
                        "{method} {path}: {status}"
                    );
                }
            }
        }
        assert!(names.len() > 40, "{names:?}");
    }
}
