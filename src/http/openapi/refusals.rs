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

/// In whose shape.
#[derive(Clone, Copy)]
enum Shape {
    OpenAi,
    Lorax,
    Messages,
}

impl Shape {
    const ALL: [Self; 3] = [Self::OpenAi, Self::Lorax, Self::Messages];

    /// What such a refusal is called in the document.
    fn name(self, status: u16) -> String {
        match self {
            Self::OpenAi => format!("Refused{status}"),
            Self::Lorax => format!("LoraxRefused{status}"),
            Self::Messages => format!("MessagesRefused{status}"),
        }
    }

    fn body(self) -> Ref {
        Ref::from_schema_name(match self {
            Self::OpenAi => ErrorBody::name(),
            Self::Lorax => LoraxError::name(),
            Self::Messages => MessagesError::name(),
        })
    }
}

/// All that operations refer to.
pub(super) fn all() -> impl Iterator<Item = (String, Response)> {
    let statuses = || [ANY, SENT, CHANGED].into_iter().flatten();
    Shape::ALL.into_iter().flat_map(move |shape| {
        // Nothing is changed in the shapes of others.
        let few = !matches!(shape, Shape::OpenAi);
        let left_out = move |status: &u16| few && CHANGED.iter().any(|(other, _)| other == status);
        statuses().filter(move |(status, _)| !left_out(status)).map(move |(status, description)| {
            let content = ContentBuilder::new().schema(Some(shape.body())).build();
            let response = ResponseBuilder::new().description(*description);
            (shape.name(*status), response.content("application/json", content).build())
        })
    })
}

fn responses(shape: Shape, statuses: &[&Statuses]) -> BTreeMap<String, RefOr<Response>> {
    let response = |(status, _): &(u16, &str)| {
        (status.to_string(), Ref::from_response_name(shape.name(*status)).into())
    };
    statuses.iter().copied().flatten().map(response).collect()
}

macro_rules! refusals {
    ($(#[$doc:meta])* $name:ident, $shape:expr, $statuses:expr) => {
        $(#[$doc])*
        pub(in crate::http) struct $name;
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                responses($shape, &$statuses)
            }
        }
    };
}

refusals!(
    /// Of what only shows.
    Refusals, Shape::OpenAi, [ANY]
);
refusals!(
    /// Of what computes.
    Unanswered, Shape::OpenAi, [ANY, SENT]
);
refusals!(
    /// Of what changes something.
    Unchanged, Shape::OpenAi, [ANY, SENT, CHANGED]
);
refusals!(
    /// In LoRAX's shape.
    LoraxUnanswered, Shape::Lorax, [ANY, SENT]
);
refusals!(
    /// In Anthropic's shape.
    MessagesUnanswered, Shape::Messages, [ANY, SENT]
);
