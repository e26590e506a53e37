//! What operators and their machines ask.

use axum::{
    Json, Router,
    extract::State,
    http::header::CONTENT_TYPE,
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    app::App, auth::Watcher, dialect, error::ApiError, openapi::Refusals, request_id,
    wire::version::Release,
};

/// The form that `prometheus-client` writes, which Prometheus reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All routes of a server whose base is still being fetched or read.
pub(super) fn starting() -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ping", get(ping))
        .fallback(async || ApiError::overloaded("the server is starting"))
        .layer(from_fn(dialect::layer))
        .layer(from_fn(request_id::layer))
}

/// What is said to those who speak plain HTTP where TLS is spoken.
pub(super) fn without_tls() -> Router {
    Router::new()
        .fallback(async || ApiError::malformed("this port speaks TLS: ask for https:// there"))
        .layer(from_fn(dialect::layer))
        .layer(from_fn(request_id::layer))
}

/// The process lives.
#[utoipa::path(
    get, path = "/health", tag = "process", operation_id = "health",
    responses((status = 200, description = "It lives"), Refusals)
)]
pub(super) async fn health() {}

/// The process lives.
#[utoipa::path(
    get, path = "/ping", tag = "process", operation_id = "ping",
    responses((status = 200, description = "It lives"), Refusals)
)]
pub(super) async fn ping() {}

/// The model is loaded, which it is before there is an [`App`], and requests are taken.
#[utoipa::path(
    get, path = "/ready", tag = "process", operation_id = "ready",
    responses((status = 200, description = "Requests are taken"), Refusals)
)]
pub(super) async fn ready(State(app): State<App>) -> Result<(), ApiError> {
    app.accepting()
}

/// Which release this is.
#[utoipa::path(
    get, path = "/version", tag = "process", operation_id = "version",
    responses((status = 200, description = "The release", body = Release), Refusals)
)]
pub(super) async fn version() -> Json<Release> {
    Json(Release { version: env!("CARGO_PKG_VERSION") })
}

/// Everything counted that the caller may see, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "process", operation_id = "metrics",
    responses((status = 200, description = "In the text format of OpenMetrics 1.0", body = String, content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"), Refusals)
)]
pub(super) async fn metrics(
    Watcher(detail): Watcher,
    State(app): State<App>,
) -> Result<Response, ApiError> {
    let text = app.metrics().encode(detail).map_err(|error| {
        tracing::error!(%error, "the metrics could not be written");
        ApiError::internal()
    })?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}
