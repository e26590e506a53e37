//! What requests have besides their bodies, and bodies that are read in several passes.

#![expect(dead_code, reason = "these types are nothing but their schemas")]

use utoipa::{
    IntoParams, ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

use crate::{
    http::wire::{
        accounts::Format as UsageFormat,
        chat::ChatFields,
        common::Common,
        completion::CompletionFields,
        messages::MessageFields,
        responses::{Echoed, ResponseFields},
    },
    ledger::Period,
};

/// Who is to answer, and until when.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(in crate::http) struct Choosing {
    /// The adapter: a name, `NAME@vN`, `NAME@sha256:HEX`, `default`, or a mix such as `a:0.7,b:0.3`. The operator may give the
    /// header another name.
    #[param(rename = "X-Adapter", nullable = false, min_length = 1, example = "sql")]
    adapter: Option<String>,
    /// Seconds until the answer is of no use.
    #[param(rename = "X-Request-Timeout", nullable = false, exclusive_minimum = 0, example = 30)]
    timeout: Option<f64>,
}

/// How things must stand (RFC 9110, section 13.1).
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(in crate::http) struct Conditions {
    /// `*`, or the tags of versions one of which must be active, such as `"v3"`.
    #[param(
        rename = "If-Match",
        example = "\"v3\"",
        nullable = false,
        pattern = r#"^(\*|"v[0-9]{1,9}"(, "v[0-9]{1,9}")*)$"#
    )]
    matching: Option<String>,
    /// `*`: there must be none.
    #[param(rename = "If-None-Match", schema_with = star)]
    unmatched: Option<String>,
}

fn star() -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["*"])).build()
}

/// The adapter that is meant.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::http) struct AdapterPath {
    /// Letters, digits, and `.`, `_`, `-` after the first; not the base's id, nor `default`.
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    name: String,
}

/// The tenant that is meant.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(in crate::http) struct TenantPath {
    /// Small letters, digits, and `-` after the first.
    #[param(pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    name: String,
}

/// Which sums are asked for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Spans {
    /// A day such as 2026-11-25, a time such as 2026-11-25T08:00:00Z, or unix seconds; thirty days before `to` where it is left out.
    #[param(
        nullable = false,
        pattern = r"^([0-9]{1,10}|[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2}))?)$"
    )]
    from: Option<String>,
    /// The first moment that is not meant, in the same forms.
    #[param(
        nullable = false,
        pattern = r"^([0-9]{1,10}|[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2}))?)$"
    )]
    to: Option<String>,
    #[param(nullable = false)]
    by: Option<Period>,
    #[param(nullable = false)]
    format: Option<UsageFormat>,
}

/// Whose.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OfTenant {
    /// The name of a tenant; all of them where it is left out.
    #[param(nullable = false, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    tenant: Option<String>,
}

/// A chat to be continued.
#[derive(ToSchema)]
pub(in crate::http) struct ChatRequest {
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    fields: ChatFields,
}

/// Texts to be continued.
#[derive(ToSchema)]
pub(in crate::http) struct CompletionRequest {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    fields: CompletionFields,
}

/// What the model is to answer.
#[derive(ToSchema)]
pub(in crate::http) struct ResponseRequest {
    #[schema(minimum = 1, maximum = 1)]
    n: Option<usize>,
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    fields: ResponseFields,
    #[serde(flatten)]
    echoed: Echoed,
}

/// A conversation to be continued, as Anthropic writes it.
#[derive(ToSchema)]
pub(in crate::http) struct MessagesRequest {
    #[schema(minimum = 1)]
    max_tokens: usize,
    #[serde(flatten)]
    rest: CountRequest,
}

/// The same, to be counted.
#[derive(ToSchema)]
pub(in crate::http) struct CountRequest {
    #[schema(minimum = 1, maximum = 1)]
    n: Option<usize>,
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    fields: MessageFields,
}

/// The two files that PEFT writes.
#[derive(ToSchema)]
pub(in crate::http) struct UploadRequest {
    #[schema(rename = "adapter_config.json", format = Binary)]
    config: String,
    #[schema(rename = "adapter_model.safetensors", format = Binary)]
    weights: String,
}
