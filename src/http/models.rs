//! `GET /v1/models` and `GET /v1/models/{id}`: the base and the caller's adapters, by content, never by path.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use super::{
    app::App,
    error::ApiError,
    select::Voice,
    wire::models::{Model, ModelList},
};
use crate::{
    adapter::{Card, Revision},
    tenant::TenantId,
};

/// Who the base belongs to.
const SERVER: &str = "chorus";
/// What the only tenant is called.
const TENANT: &str = "default";

/// All of them, the base first.
pub(super) async fn list(State(app): State<App>) -> Json<ModelList> {
    let cards = app.adapters().list(TenantId::DEFAULT);
    let reachable = |card: &&Card| card.active && !app.reserves(card.revision.name.as_str());
    let adapters = cards
        .iter()
        .filter(reachable)
        .map(|card| adapter(&app, card.revision.name.to_string(), (&card.revision, card.created)));
    let base = base(&app, app.base().id.clone());
    Json(ModelList { object: "list", data: [base].into_iter().chain(adapters).collect() })
}

/// One, under any name that requests may use for it. An id may have slashes, as they are or encoded.
pub(super) async fn show(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::malformed("the path is not percent-encoded UTF-8"))?;
    match app.with_names(|names| names.in_model(&id)).await? {
        None => Err(ApiError::model_not_found(&id)),
        Some(Voice::Base) => Ok(Json(base(&app, id))),
        Some(Voice::Adapter(revision)) => {
            let card = app.adapters().card(TenantId::DEFAULT, &revision.name);
            let card = card.ok_or_else(|| ApiError::model_not_found(&id))?;
            Ok(Json(adapter(&app, id, (&revision, card.created))))
        }
    }
}

fn base(app: &App, id: String) -> Model {
    Model {
        id,
        object: "model",
        created: app.base().created,
        owned_by: SERVER,
        root: format!("sha256:{}", app.base().digest),
        parent: None,
        max_model_len: app.generator().context(),
    }
}

fn adapter(app: &App, id: String, (revision, created): (&Revision, u64)) -> Model {
    Model {
        id,
        object: "model",
        created,
        owned_by: TENANT,
        root: format!("sha256:{}", revision.digest),
        parent: Some(app.base().id.clone()),
        max_model_len: app.generator().context(),
    }
}
