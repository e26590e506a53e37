//! What operators and their machines ask.

use axum::{
    Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{app::App, error::ApiError};

/// The form that `prometheus-client` writes, which Prometheus reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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

/// Everything counted, for Prometheus.
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let text = app.metrics().encode().map_err(|error| {
        tracing::error!(%error, "the metrics could not be written");
        ApiError::internal()
    })?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}
