//! `/v1/admin/tenants`: what the operator does.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{
    app::App,
    auth::Operator,
    body::{Payload, parse},
    error::ApiError,
    openapi::{Refusals, TenantPath, Unchanged},
    wire::admin::{DefaultIn, KeyIn, KeyOut, OperatorKeyOut, TenantIn, TenantList, TenantOut},
};
use crate::{
    adapter::AdapterName,
    tenant::{Created, KeyCard, KeyId, NotDone, Quota, TenantCard, TenantName},
};

/// The name in a path.
type Named = Result<Path<String>, PathRejection>;

/// All tenants.
#[utoipa::path(
    get, path = "/v1/admin/tenants", tag = "operation", operation_id = "list_tenants",
    responses((status = 200, description = "All of them", body = TenantList), Refusals)
)]
pub(super) async fn list(_: Operator, State(app): State<App>) -> Json<TenantList> {
    let data = app.tenants().list().into_iter().map(tenant).collect();
    Json(TenantList { object: "list", data })
}

/// One tenant.
#[utoipa::path(
    get, path = "/v1/admin/tenants/{name}", tag = "operation", operation_id = "show_tenant",
    params(TenantPath),
    responses((status = 200, description = "The tenant", body = TenantOut), Refusals)
)]
pub(super) async fn show(
    _: Operator,
    State(app): State<App>,
    named: Named,
) -> Result<Json<TenantOut>, ApiError> {
    shown(&app, name(named)?)
}

/// A new tenant.
#[utoipa::path(
    post, path = "/v1/admin/tenants", tag = "operation", operation_id = "create_tenant",
    request_body = TenantIn,
    responses((status = 201, description = "The tenant", body = TenantOut), Unchanged)
)]
pub(super) async fn create(
    Operator(caller): Operator,
    State(app): State<App>,
    Payload(bytes): Payload,
) -> Result<Response, ApiError> {
    let TenantIn { name } = parse(&bytes)?;
    let name = parsed(&name)?;
    let created = app.tenants().create(&caller.to_string(), &name).await;
    let Created { card, operator } = created.map_err(|error| refused(&error))?;
    let operator_key = operator.map(|key| key.reveal().to_owned());
    let out = TenantOut { operator_key, ..tenant(card) };
    Ok((StatusCode::CREATED, Json(out)).into_response())
}

/// A new key for a tenant.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{name}/keys", tag = "operation", operation_id = "add_key",
    params(TenantPath),
    request_body = KeyIn,
    responses((status = 201, description = "The key, with its secret, once", body = KeyOut), Unchanged)
)]
pub(super) async fn add_key(
    Operator(caller): Operator,
    State(app): State<App>,
    named: Named,
    Payload(bytes): Payload,
) -> Result<Response, ApiError> {
    let name = name(named)?;
    let KeyIn { scope, expires } = parse(&bytes)?;
    let added = app.tenants().add_key(&caller.to_string(), &name, scope, expires).await;
    let (secret, card) = added.map_err(|error| refused(&error))?;
    let out = KeyOut { key: Some(secret.reveal().to_owned()), ..key(card) };
    Ok((StatusCode::CREATED, Json(out)).into_response())
}

/// A key is none any more.
#[utoipa::path(
    delete, path = "/v1/admin/tenants/{name}/keys/{id}", tag = "operation", operation_id = "revoke_key",
    params(TenantPath, ("id" = String, Path, description = "The id of a key, not its secret")),
    responses((status = 200, description = "The tenant as it is now", body = TenantOut), Unchanged)
)]
pub(super) async fn revoke_key(
    Operator(caller): Operator,
    State(app): State<App>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<TenantOut>, ApiError> {
    let Path((name, id)) = path.map_err(|_| bad_path())?;
    let name = parsed(&name)?;
    let revoked = app.tenants().revoke_key(&caller.to_string(), &name, &KeyId::named(&id)).await;
    revoked.map_err(|error| refused(&error))?;
    shown(&app, name)
}

/// Says what `default` means to a tenant as a model. Whether there is such an adapter is looked at when it is asked for.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{name}/default", tag = "operation", operation_id = "set_default_adapter",
    params(TenantPath),
    request_body = DefaultIn,
    responses((status = 200, description = "The tenant as it is now", body = TenantOut), Unchanged)
)]
pub(super) async fn set_default(
    Operator(caller): Operator,
    State(app): State<App>,
    named: Named,
    Payload(bytes): Payload,
) -> Result<Json<TenantOut>, ApiError> {
    let name = name(named)?;
    let DefaultIn { adapter } = parse(&bytes)?;
    if let Some(adapter) = &adapter {
        AdapterName::parse(adapter).map_err(|bad| ApiError::bad_name(bad.to_string()))?;
        if app.reserves(adapter) {
            return Err(ApiError::bad_name("the name is reserved for the base model"));
        }
    }
    let set = app.tenants().set_default_adapter(&caller.to_string(), &name, adapter).await;
    Ok(Json(tenant(set.map_err(|error| refused(&error))?)))
}

/// Another key for the operator. `environment_key` says that this server was given one, too, which counts on.
#[utoipa::path(
    post, path = "/v1/admin/operator-key", tag = "operation", operation_id = "replace_operator_key",
    responses((status = 201, description = "The new key, once", body = OperatorKeyOut), Unchanged)
)]
pub(super) async fn replace_operator(
    Operator(caller): Operator,
    State(app): State<App>,
) -> Result<Response, ApiError> {
    if app.tenants().are_open() {
        return Err(ApiError::malformed("there is no operator's key yet: make a tenant first"));
    }
    let replaced = app.tenants().replace_operator(&caller.to_string()).await;
    let key = replaced.map_err(|error| refused(&error))?;
    let out = OperatorKeyOut {
        object: "operator_key",
        key: key.reveal().to_owned(),
        environment_key: app.tenants().has_own_operator(),
    };
    Ok((StatusCode::CREATED, Json(out)).into_response())
}

/// Says what a tenant may use from now on, all of it: what is left out is without bound.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{name}/quota", tag = "operation", operation_id = "set_quota",
    params(TenantPath),
    request_body = Quota,
    responses((status = 200, description = "The tenant as it is now", body = TenantOut), Unchanged)
)]
pub(super) async fn set_quota(
    Operator(caller): Operator,
    State(app): State<App>,
    named: Named,
    Payload(bytes): Payload,
) -> Result<Json<TenantOut>, ApiError> {
    let name = name(named)?;
    let quota: Quota = parse(&bytes)?;
    let set = app.tenants().set_quota(&caller.to_string(), &name, quota).await;
    Ok(Json(tenant(set.map_err(|error| refused(&error))?)))
}

fn shown(app: &App, name: TenantName) -> Result<Json<TenantOut>, ApiError> {
    let card = app.tenants().card(&name);
    card.map(|card| Json(tenant(card))).ok_or_else(|| refused(&NotDone::NoTenant(name)))
}

fn tenant(card: TenantCard) -> TenantOut {
    TenantOut {
        id: card.id.number(),
        object: "tenant",
        name: card.name.into(),
        created: card.created,
        default_adapter: card.default_adapter,
        keys: card.keys.into_iter().map(key).collect(),
        quota: card.quota,
        operator_key: None,
    }
}

fn key(card: KeyCard) -> KeyOut {
    let KeyCard { id, scope, created, expires } = card;
    KeyOut { id: id.to_string(), scope, created, expires, key: None }
}

fn name(named: Named) -> Result<TenantName, ApiError> {
    let Path(text) = named.map_err(|_| bad_path())?;
    parsed(&text)
}

fn parsed(text: &str) -> Result<TenantName, ApiError> {
    TenantName::parse(text).map_err(|bad| ApiError::invalid("name", bad.to_string()))
}

fn bad_path() -> ApiError {
    ApiError::malformed("the path is not percent-encoded UTF-8")
}

fn refused(error: &NotDone) -> ApiError {
    ApiError::not_done(error)
}
