//! `GET /v1/models` and `GET /v1/models/{id}`: the base and the caller's adapters, by content, never by path.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use super::{
    app::App,
    auth::{By, need},
    error::ApiError,
    openapi::Refusals,
    select::Voice,
    wire::models::{Model, ModelList},
};
use crate::{
    adapter::{Card, Revision},
    tenant::{Caller, Scope},
};

/// Who the base belongs to.
const SERVER: &str = "chorus";

/// All of them, the base first.
#[utoipa::path(
    get, path = "/v1/models", tag = "models", operation_id = "list_models",
    responses((status = 200, description = "All of them", body = ModelList), Refusals)
)]
pub(super) async fn list(
    State(app): State<App>,
    By(caller): By,
) -> Result<Json<ModelList>, ApiError> {
    need(&caller, Scope::Infer)?;
    let cards = app.adapters().list(caller.tenant);
    let reachable = |card: &&Card| card.active && !app.reserves(card.revision.name.as_str());
    let owner = owner(&app, &caller);
    let adapters = cards.iter().filter(reachable).map(|card| {
        let names = (card.revision.name.to_string(), owner.clone());
        adapter(&app, names, (&card.revision, card.created))
    });
    let base = base(&app, app.base().id.clone());
    Ok(Json(ModelList { object: "list", data: [base].into_iter().chain(adapters).collect() }))
}

/// One, under any name that requests may use for it. An id may have slashes, as they are or encoded.
#[utoipa::path(
    get, path = "/v1/models/{*id}", tag = "models", operation_id = "show_model",
    params(("id" = String, Path, description = "What a request's `model` may be")),
    responses((status = 200, description = "What the name points to", body = Model), Refusals)
)]
pub(super) async fn show(
    State(app): State<App>,
    By(caller): By,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    need(&caller, Scope::Infer)?;
    let Path(id) = id.map_err(|_| ApiError::malformed("the path is not percent-encoded UTF-8"))?;
    match app.with_names(caller.tenant, None, |names| names.in_model(&id)).await? {
        // A mix has no name.
        None | Some(Voice::Mix(_)) => Err(ApiError::model_not_found(&id)),
        Some(Voice::Base) => Ok(Json(base(&app, id))),
        Some(Voice::Adapter(revision)) => {
            let card = app.adapters().card(caller.tenant, &revision.name);
            let card = card.ok_or_else(|| ApiError::model_not_found(&id))?;
            let names = (id, owner(&app, &caller));
            Ok(Json(adapter(&app, names, (&revision, card.created))))
        }
    }
}

/// What the caller's tenant is called.
fn owner(app: &App, caller: &Caller) -> String {
    app.tenants().name(caller.tenant).map(String::from).unwrap_or_default()
}

fn base(app: &App, id: String) -> Model {
    Model {
        id,
        object: "model",
        created: app.base().created,
        owned_by: SERVER.to_owned(),
        root: format!("sha256:{}", app.base().digest),
        parent: None,
        max_model_len: app.generator().context(),
    }
}

fn adapter(
    app: &App,
    (id, owned_by): (String, String),
    (revision, created): (&Revision, u64),
) -> Model {
    Model {
        id,
        object: "model",
        created,
        owned_by,
        root: format!("sha256:{}", revision.digest),
        parent: Some(app.base().id.clone()),
        max_model_len: app.generator().context(),
    }
}
