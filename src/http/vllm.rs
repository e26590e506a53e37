//! `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them, for whoever has scripts that call them.
//!
//! What is loaded is taken into the store as an upload would be, with the same checks, and stays there when the server is
//! started again; unloading deletes it. The folder that it was loaded from is not needed any more and not touched.

use std::time::Instant;

use axum::extract::State;

use super::{
    adapters::{Asked, How, keep},
    app::App,
    auth::Operator,
    body::{Payload, parse},
    error::ApiError,
    openapi::Unchanged,
    wire::vllm::{LoadIn, UnloadIn},
};
use crate::{
    adapter::{AdapterName, BadFile, Card, Expected, LoraRoot, NotChanged, NotTaken, Smoke},
    tenant::{NotDone, TenantId, TenantName},
};

/// Takes an adapter in from a folder of this machine.
#[utoipa::path(
    post, path = "/v1/load_lora_adapter", tag = "operation", operation_id = "load_lora_adapter",
    request_body = LoadIn,
    responses((status = 200, description = "It is there", body = String), Unchanged)
)]
pub(super) async fn load(
    Operator(caller): Operator,
    State(app): State<App>,
    Payload(bytes): Payload,
) -> Result<String, ApiError> {
    let root = root(&app)?.clone();
    let LoadIn { lora_name, lora_path, load_inplace, tenant, .. } = parse(&bytes)?;
    let (text, path) = (given("lora_name", lora_name)?, given("lora_path", lora_path)?);
    let name = name(&app, &text)?;
    let tenant = self::tenant(&app, tenant.as_deref()).await?;
    let asked = Asked { tenant, by: caller.to_string() };
    let expected = if load_inplace { Expected::Anything } else { Expected::New };
    let refused = |error: NotChanged| match error {
        NotChanged::Stale { .. } => loaded_already(&name),
        error => ApiError::not_changed(&error, name.as_str()),
    };
    app.accepting()?;
    app.adapters().expect(asked.of(&name), &expected).await.map_err(refused)?;
    let admitted = app.tenants().admit_upload(tenant, Instant::now());
    admitted.map_err(|over| ApiError::over_quota(&over))?;
    let place = app.uploads().take(tenant).await?;
    let upload = app.adapters().upload();
    let taken = async { root.take(&path, upload).await.map_err(|error| not_taken(&error)) };
    let upload = app.while_accepting(taken).await?;
    let how = How { expected, activate: true };
    let kept = keep(app.clone(), (asked, name.clone()), upload, how, place).await;
    answers_well(&kept.map_err(refused)?.card)?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// Refuses where a version is kept for people to look at and answers nobody, because its smoke test failed.
fn answers_well(Card { revision, active, smoke, .. }: &Card) -> Result<(), ApiError> {
    match smoke {
        Some(Smoke { passed: false, answer }) if !active => {
            let message = format!(
                "version {} is stored and not active, because its smoke test failed: it answers {answer:?}",
                revision.version
            );
            Err(ApiError::unfit("smoke_test_failed", message))
        }
        _ => Ok(()),
    }
}

/// Deletes an adapter with all its versions.
#[utoipa::path(
    post, path = "/v1/unload_lora_adapter", tag = "operation", operation_id = "unload_lora_adapter",
    request_body = UnloadIn,
    responses((status = 200, description = "It is gone", body = String), Unchanged)
)]
pub(super) async fn unload(
    Operator(caller): Operator,
    State(app): State<App>,
    Payload(bytes): Payload,
) -> Result<String, ApiError> {
    root(&app)?;
    let UnloadIn { lora_name, tenant, .. } = parse(&bytes)?;
    let text = given("lora_name", lora_name)?;
    let name = name(&app, &text)?;
    let tenant = self::tenant(&app, tenant.as_deref()).await?;
    let asked = Asked { tenant, by: caller.to_string() };
    let removed = app.adapters().remove(asked.of(&name), None, &Expected::Anything).await;
    removed.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

/// Where adapters may be loaded from; without it both routes are off.
fn root(app: &App) -> Result<&LoraRoot, ApiError> {
    app.settings().lora_root.as_ref().ok_or_else(|| {
        ApiError::turned_off(
            "this server takes no adapters by their path: its operator allows it with --lora-root DIR; uploads go to PUT /v1/adapters/{name}",
        )
    })
}

fn given(field: &str, value: Option<String>) -> Result<String, ApiError> {
    let value = value.filter(|value| !value.is_empty());
    value.ok_or_else(|| ApiError::invalid(field, format!("'{field}' must be provided")))
}

fn name(app: &App, text: &str) -> Result<AdapterName, ApiError> {
    let name = AdapterName::parse(text).map_err(|bad| ApiError::bad_name(bad.to_string()))?;
    if app.reserves(name.as_str()) {
        return Err(ApiError::bad_name("the name is reserved for the base model"));
    }
    Ok(name)
}

/// The tenant of this name; `default` where none is named.
async fn tenant(app: &App, named: Option<&str>) -> Result<TenantId, ApiError> {
    let Some(named) = named else { return Ok(TenantId::DEFAULT) };
    let bad = |bad: crate::tenant::BadTenantName| ApiError::invalid("tenant", bad.to_string());
    let name = TenantName::parse(named).map_err(bad)?;
    app.tenant(&name).await?.ok_or_else(|| ApiError::not_done(&NotDone::NoTenant(name)))
}

fn loaded_already(name: &AdapterName) -> ApiError {
    ApiError::invalid(
        "lora_name",
        format!(
            "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
        ),
    )
}

fn not_taken(error: &NotTaken) -> ApiError {
    let message = error.to_string();
    match error {
        NotTaken::Malformed => ApiError::invalid("lora_path", message),
        NotTaken::Absent => ApiError::no_folder(message),
        NotTaken::File(BadFile::Missing { .. }) => ApiError::unfit("missing_file", message),
        NotTaken::File(BadFile::Pickle { .. }) => ApiError::unfit("pickle", message),
        NotTaken::File(_) => ApiError::unfit("unusable_file", message),
        NotTaken::Unreceived(why) => ApiError::unreceived(why),
    }
}
