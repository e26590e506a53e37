//! What operators and their machines ask.

use axum::{
    Json, Router,
    extract::State,
    http::header::CONTENT_TYPE,
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::{app::App, auth::Watcher, dialect, error::ApiError, request_id};

/// The form that `prometheus-client` writes, which Prometheus reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All routes of a server whose base is still being fetched or read.
pub(super) fn starting() -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ping", get(health))
        .fallback(async || ApiError::overloaded("the server is starting"))
        .layer(from_fn(dialect::layer))
        .layer(from_fn(request_id::layer))
}

/// The process lives.
pub(super) async fn health() {}

/// The model is loaded, which it is before there is an [`App`], and requests are taken.
pub(super) async fn ready(State(app): State<App>) -> Result<(), ApiError> {
    app.accepting()
}

/// Which release this is.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// Everything counted that the caller may see, for Prometheus.
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
