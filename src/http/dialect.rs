//! In which shape a refusal is written: as the clients of its route read it. Its status, and what it says, are the same in all.
//!
//! | routes | body |
//! |---|---|
//! | `POST /`, `/generate`, `/generate_stream` | `{"error": .., "error_type": ..}`, LoRAX's |
//! | `/v1/messages` and below | `{"type": "error", "error": {"type": .., "message": ..}}`, Anthropic's |
//! | all others | OpenAI's |

use axum::{
    body::Body,
    extract::Request,
    http::{Method, StatusCode, header::CONTENT_LENGTH},
    middleware::Next,
    response::Response,
};

use super::{
    error::ApiError,
    sse::Data,
    wire::error::{LoraxError, MessagesError, MessagesErrorDetail},
};

/// Whose clients a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// OpenAI's.
    OpenAi,
    /// LoRAX's.
    Lorax,
    /// Anthropic's.
    Anthropic,
}

impl Dialect {
    pub(super) fn of(method: &Method, path: &str) -> Self {
        match path {
            "/" if method == Method::POST => Self::Lorax,
            "/generate" | "/generate_stream" => Self::Lorax,
            _ if path == "/v1/messages" || path.starts_with("/v1/messages/") => Self::Anthropic,
            _ => Self::OpenAi,
        }
    }

    /// The refusal, as a body or as the data of a stream's last event.
    pub(super) fn write(self, error: &ApiError) -> Data {
        let message = error.message();
        match self {
            Self::OpenAi => Data::json(&error.body()),
            Self::Lorax => {
                Data::json(&LoraxError { error: message, error_type: lorax_type(error) })
            }
            Self::Anthropic => {
                let error = MessagesErrorDetail { kind: messages_type(error), message };
                Data::named("error", &MessagesError { kind: "error", error })
            }
        }
    }
}

/// Four of these words are exceptions of LoRAX's client; with others it goes by the status.
fn lorax_type(error: &ApiError) -> &'static str {
    match error.status() {
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "authorization",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded",
        StatusCode::GATEWAY_TIMEOUT => "incomplete_generation",
        status if status.is_client_error() => "validation",
        _ => "generation",
    }
}

/// Anthropic's own words, one for each status.
fn messages_type(error: &ApiError) -> &'static str {
    match error.status() {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}

/// Puts refusals, wherever on their way they were made, into the shape of the route that was asked.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.method(), request.uri().path());
    let mut response = next.run(request).await;
    let error = response.extensions().get::<ApiError>().cloned();
    if let Some(error) = error.filter(|_| dialect != Dialect::OpenAi) {
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Body::from(dialect.write(&error).into_line());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_their_clients() {
        for (path, post, get) in [
            ("/", Dialect::Lorax, Dialect::OpenAi),
            ("/generate", Dialect::Lorax, Dialect::Lorax),
            ("/generate_stream", Dialect::Lorax, Dialect::Lorax),
            ("/v1/messages", Dialect::Anthropic, Dialect::Anthropic),
            ("/v1/messages/count_tokens", Dialect::Anthropic, Dialect::Anthropic),
            ("/v1/messages_of_others", Dialect::OpenAi, Dialect::OpenAi),
            ("/v1/chat/completions", Dialect::OpenAi, Dialect::OpenAi),
            ("/v1/responses", Dialect::OpenAi, Dialect::OpenAi),
        ] {
            assert_eq!(Dialect::of(&Method::POST, path), post, "{path}");
            assert_eq!(Dialect::of(&Method::GET, path), get, "{path}");
        }
    }

    #[test]
    fn each_shape_has_its_words() {
        for (error, lorax, messages) in [
            (ApiError::malformed("m"), "validation", "invalid_request_error"),
            (ApiError::unidentified(), "authorization", "authentication_error"),
            (ApiError::not_allowed("m"), "authorization", "permission_error"),
            (ApiError::model_not_found("m"), "not_found", "not_found_error"),
            (ApiError::body_too_large(1), "validation", "request_too_large"),
            (ApiError::overloaded("m"), "overloaded", "overloaded_error"),
            (ApiError::deadline(), "incomplete_generation", "timeout_error"),
            (ApiError::internal(), "generation", "api_error"),
        ] {
            let message = error.message();
            assert_eq!(
                Dialect::Lorax.write(&error).into_line(),
                serde_json::json!({"error": message, "error_type": lorax}).to_string()
            );
            assert_eq!(
                Dialect::Anthropic.write(&error).into_line(),
                serde_json::json!({"type": "error", "error": {"type": messages, "message": message}})
                    .to_string()
            );
        }
    }
}
