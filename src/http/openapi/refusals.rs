//! Which statuses refuse, and in which shape.

use std::collections::BTreeMap;

use utoipa::{
    IntoResponses, ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, response::Response},
};

use crate::http::wire::error::{ErrorBody, LoraxError, MessagesError};

type Statuses = [(u16, &'static str)];

/// Of every route.
const ANY: &Statuses = &[
    (
        400,
        "Something in the request is malformed, out of range, or not supported: `param` names it",
    ),
    (401, "No API key, or none that counts"),
    (403, "The key does not allow this, or the request comes from a page of another origin"),
    (404, "There is no such thing for this caller"),
    (500, "Something of the server's broke; what, its log says"),
    (
        503,
        "Too much to do, shutting down, or the store does not answer: try again after `Retry-After`",
    ),
];

/// Besides, where there is a body, or something is computed.
const SENT: &Statuses = &[
    (408, "The body did not arrive in time"),
    (413, "The body is too large"),
    (415, "The body is not JSON"),
    (
        429,
        "More than the tenant's quota: try again after `Retry-After`, unless `x-should-retry` is `false`",
    ),
    (504, "The request's own deadline has passed"),
];

/// Besides, where something is changed.
const CHANGED: &Statuses = &[
    (409, "It cannot be done as things stand"),
    (412, "Things do not stand as `If-Match` or `If-None-Match` expects"),
    (422, "It is no adapter for this base: `code` is the rule that it breaks"),
    (507, "The store is full"),
];

fn responses(schema: &str, statuses: &[&Statuses]) -> BTreeMap<String, RefOr<Response>> {
    let content =
        || ContentBuilder::new().schema(Some(Ref::from_schema_name(schema.to_owned()))).build();
    let response = |(status, description): &(u16, &str)| {
        let response =
            ResponseBuilder::new().description(*description).content("application/json", content());
        (status.to_string(), response.build().into())
    };
    statuses.iter().copied().flatten().map(response).collect()
}

macro_rules! refusals {
    ($(#[$doc:meta])* $name:ident, $body:ty, $statuses:expr) => {
        $(#[$doc])*
        pub(in crate::http) struct $name;
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                responses(&<$body as ToSchema>::name(), &$statuses)
            }
        }
    };
}

refusals!(
    /// Of what only shows.
    Refusals, ErrorBody<'static>, [ANY]
);
refusals!(
    /// Of what computes.
    Unanswered, ErrorBody<'static>, [ANY, SENT]
);
refusals!(
    /// Of what changes something.
    Unchanged, ErrorBody<'static>, [ANY, SENT, CHANGED]
);
refusals!(
    /// In LoRAX's shape.
    LoraxUnanswered, LoraxError<'static>, [ANY, SENT]
);
refusals!(
    /// In Anthropic's shape.
    MessagesUnanswered, MessagesError<'static>, [ANY, SENT]
);
