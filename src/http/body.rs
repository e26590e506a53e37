//! From a request's body to typed fields: bounded in bytes and time, strict about what it says it is.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{FromRequest, FromRequestParts as _, Request},
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_TYPE},
    },
};
use futures_util::StreamExt;
use serde::de::{DeserializeOwned, DeserializeSeed};

use super::{
    app::App,
    auth::By,
    error::ApiError,
    places::Place,
    wire::unsupported::{Scan, Unsupported},
};
use crate::{tenant::TenantId, words};

/// How long a body may take to arrive: a slow sender holds a connection no longer.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Bodies up to so many bytes are read without further ado; connections are bounded.
const SMALL: u64 = 64 << 10;
/// Larger ones, and those of unknown size, are read side by side, at most so many, and of one tenant so many: who sends
/// slowly keeps nobody else waiting.
pub(super) const LARGE_BODIES: usize = 32;
pub(super) const LARGE_BODIES_EACH: usize = 16;

/// The bytes of a JSON body.
#[derive(Debug)]
pub(super) struct Payload(pub(super) Bytes);

impl FromRequest<App> for Payload {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (mut head, body) = request.into_parts();
        check_type(&head.headers)?;
        let By(caller) = By::from_request_parts(&mut head, app).await?;
        // Nothing is begun for a body that comes to its end during a shutdown: its sender need not be waited for.
        app.while_accepting(receive(body, caller.tenant, app)).await.map(Self)
    }
}

async fn receive(body: Body, tenant: TenantId, app: &App) -> Result<Bytes, ApiError> {
    let _place = place(app, tenant, body.size_hint().upper()).await?;
    let read = read(body, app.settings().body_limit);
    let bytes = tokio::time::timeout(BODY_TIME, read).await;
    bytes.unwrap_or_else(|_| Err(ApiError::slow_body()))
}

/// Waits until a body of at most so many bytes may be read: without places for them, slow senders could fill the memory with what is not yet complete.
async fn place(app: &App, tenant: TenantId, most: Option<u64>) -> Result<Option<Place>, ApiError> {
    if most.is_some_and(|bytes| bytes <= SMALL) {
        return Ok(None);
    }
    let place = tokio::time::timeout(BODY_TIME, app.large_bodies().take(tenant)).await;
    let place = place.map_err(|_| ApiError::overloaded("too many large requests are arriving"))?;
    Ok(Some(place))
}

/// Nothing but plain JSON. A browser sends that across origins only after a preflight, which is never granted.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(ApiError::wrong_type("a body with a Content-Encoding is not accepted"));
    }
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = value.split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::wrong_type("the body must be JSON: send Content-Type: application/json"))
}

/// Collects the body into one buffer, however many pieces it comes in.
async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    // A body that says it is too large is refused before any of it is read.
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::body_too_large(limit));
    }
    let mut bytes = Vec::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|_| ApiError::malformed("the body could not be read to its end"))?;
        if piece.len() > limit - bytes.len() {
            return Err(ApiError::body_too_large(limit));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// Reads the fields of a JSON object. A refusal names the field.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Derived readers would take a list for an object, its fields by position.
    if bytes.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(ApiError::malformed("the body must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.inner();
        match problem.classify() {
            serde_json::error::Category::Data if path != "." => {
                let message = format!("invalid value for '{path}': {}", words::of(problem));
                ApiError::invalid(&path, message)
            }
            _ => malformed(problem),
        }
    })?;
    json.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

/// Refuses a body that is no JSON object, or has a field that would change the answer and is not supported.
pub(super) fn refuse_unsupported(bytes: &[u8], lists: &[&[Unsupported]]) -> Result<(), ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    match Scan::new(lists).deserialize(&mut json).map_err(|error| malformed(&error))? {
        Some(field) => Err(ApiError::unsupported(field)),
        None => Ok(()),
    }
}

fn malformed(error: &serde_json::Error) -> ApiError {
    let problem = match error.classify() {
        serde_json::error::Category::Data => words::of(error),
        // These say where in the text.
        _ => error.to_string(),
    };
    ApiError::malformed(format!("the body is not the JSON object that is expected: {problem}"))
}

#[cfg(test)]
mod tests {
    use axum::{http::StatusCode, response::IntoResponse};
    use futures_util::stream;

    use super::*;
    use crate::http::wire::{chat::ChatFields, completion::CompletionFields, unsupported};

    fn status(error: ApiError) -> u16 {
        error.into_response().status().as_u16()
    }

    fn pieces(count: usize) -> Body {
        let pieces =
            stream::iter((0..count).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(b"x"))));
        Body::from_stream(pieces)
    }

    #[tokio::test]
    async fn bodies_are_bounded_whether_they_say_their_length_or_not() {
        assert_eq!(read(Body::from("12345"), 5).await.unwrap(), "12345");
        assert_eq!(status(read(Body::from("123456"), 5).await.unwrap_err()), 413);
        assert_eq!(read(pieces(5), 5).await.unwrap(), "xxxxx");
        assert_eq!(status(read(pieces(6), 5).await.unwrap_err()), 413);
        assert_eq!(read(pieces(100_000), 100_000).await.unwrap().len(), 100_000);
    }

    #[test]
    fn only_plain_json_is_taken() {
        let check = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            check_type(&headers).map_err(|error| error.into_response().status())
        };
        let refused = Err(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(check(&[("content-type", "application/json")]), Ok(()));
        assert_eq!(check(&[("content-type", "Application/JSON; charset=utf-8")]), Ok(()));
        assert_eq!(check(&[]), refused);
        assert_eq!(check(&[("content-type", "text/plain")]), refused);
        assert_eq!(check(&[("content-type", "application/x-www-form-urlencoded")]), refused);
        assert_eq!(
            check(&[("content-type", "application/json"), ("content-encoding", "gzip")]),
            refused
        );
    }

    /// The message and the field of the refusal.
    fn refusal<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> (String, Option<String>) {
        let error = parse::<T>(json.as_bytes()).unwrap_err();
        let detail = error.body().error;
        (detail.message.to_owned(), detail.param.map(str::to_owned))
    }

    #[test]
    fn refusals_name_the_field() {
        let param = |json: &str| refusal::<ChatFields>(json).1.unwrap();
        assert_eq!(param(r#"{"messages":[{"role":"user","content":5}]}"#), "messages[0].content");
        assert_eq!(param(r#"{"messages":[{"role":"king","content":""}]}"#), "messages[0].role");
        assert_eq!(
            param(r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#),
            "messages[0].content[0].type"
        );
        assert_eq!(param(r#"{"messages":[{"role":5,"content":""}]}"#), "messages[0].role");
        assert_eq!(param(r#"{"messages":[],"logprobs":3}"#), "logprobs");
        let param = |json: &str| refusal::<CompletionFields>(json).1.unwrap();
        assert_eq!(param(r#"{"prompt":{}}"#), "prompt");
        assert_eq!(param(r#"{"prompt":[[1,-1]]}"#), "prompt[0][1]");
        assert!(refusal::<CompletionFields>("{}").0.contains("the field 'prompt' is missing"));
        assert_eq!(param(r#"{"prompt":[1,"a"]}"#), "prompt[1]");
    }

    #[test]
    fn what_is_no_json_has_no_field() {
        for json in ["", "{", "[1", "{\"prompt\":\"a\"} x", "{\"prompt\":\"\u{1}\"}", "nul"] {
            assert_eq!(refusal::<CompletionFields>(json).1, None, "{json}");
        }
        let deep = format!("{{\"prompt\":{}", "[".repeat(100_000));
        assert!(refusal::<CompletionFields>(&deep).0.len() < 600);
        let lists = &[unsupported::GENERATION, unsupported::CHAT, unsupported::RENDERED];
        assert_eq!(status(refuse_unsupported(b"[]", lists).unwrap_err()), 400);
        assert_eq!(status(refuse_unsupported(b"{\"functions\":[1]}", lists).unwrap_err()), 400);
        assert!(refuse_unsupported(b"{\"functions\":[]}", lists).is_ok());
    }

    #[test]
    fn a_huge_value_is_not_repeated() {
        let json = format!(r#"{{"prompt":"","logprobs":"{}"}}"#, "y".repeat(1 << 20));
        assert!(refusal::<CompletionFields>(&json).0.len() < 600);
    }
}
