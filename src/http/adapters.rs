//! `/v1/adapters`: what a tenant does with its own.

use std::{
    collections::BTreeSet,
    io,
    time::{Instant, SystemTime},
};

use axum::{
    Json,
    body::Body,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;

use super::{
    app::App,
    auth::{By, need},
    body::{Payload, parse},
    error::ApiError,
    openapi::{AdapterPath, Conditions, Refusals, Unchanged, UploadRequest},
    places::Place,
    rates,
    sampling::within,
    tally,
    trial::EngineTrial,
    upload,
    wire::adapters::{
        ActivateIn, AdapterList, AdapterOut, Deleted, NoQuery, PutQuery, Residency, Status,
        VersionIn, VersionOut, VersionQuery,
    },
};
use crate::{
    adapter::{
        AdapterName, Card, Digest, Expected, Kept, NotChanged, Part, Room, Target, Terms, Unfit,
        Upload, Version, Wanted,
    },
    ledger::Used,
    tenant::{Caller, Scope, TenantId},
};

/// The name in a path.
type Named = Result<Path<String>, PathRejection>;

/// All of the caller's.
#[utoipa::path(
    get, path = "/v1/adapters", tag = "adapters", operation_id = "list_adapters",
    responses((status = 200, description = "All of them", body = AdapterList), Refusals)
)]
pub(super) async fn list(
    State(app): State<App>,
    By(caller): By,
) -> Result<Json<AdapterList>, ApiError> {
    need(&caller, Scope::Infer)?;
    let cards = app.adapters().list(caller.tenant);
    let on_device = app.on_device();
    let data = cards.into_iter().map(|card| adapter(&app, card, &on_device, None)).collect();
    let tenant = app.tenants().name(caller.tenant).map(String::from);
    Ok(Json(AdapterList { object: "list", tenant, data }))
}

/// One, with its versions.
#[utoipa::path(
    get, path = "/v1/adapters/{name}", tag = "adapters", operation_id = "show_adapter",
    params(AdapterPath),
    responses((status = 200, description = "It, with its versions", body = AdapterOut), Refusals)
)]
pub(super) async fn show(
    State(app): State<App>,
    By(caller): By,
    named: Named,
    query: Result<Query<NoQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Infer)?;
    let name = name(&app, named)?;
    // It shows all versions.
    query.map_err(|error| bad_query(&error))?;
    shown(&app, &caller, &name).await
}

/// Takes an upload.
#[utoipa::path(
    put, path = "/v1/adapters/{name}", tag = "adapters", operation_id = "put_adapter",
    params(AdapterPath, PutQuery, Conditions),
    request_body(content = UploadRequest, content_type = "multipart/form-data"),
    responses((status = 200, description = "These bytes were there already", body = AdapterOut), (status = 201, description = "It is a new version", body = AdapterOut), Unchanged)
)]
pub(super) async fn put(
    State(app): State<App>,
    By(caller): By,
    named: Named,
    query: Result<Query<PutQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let body = upload::Incoming::new(&head.headers, body);
    let kept = async {
        need(&caller, Scope::Upload)?;
        let asked = Asked::by(&caller);
        let name = name(&app, named)?;
        let Query(PutQuery { activate }) = query.map_err(|error| bad_query(&error))?;
        let expected = expected(&head.headers)?;
        let refused = |error: NotChanged| ApiError::not_changed(&error, name.as_str());
        let target = asked.of(&name);
        app.accepting()?;
        app.adapters().expect(target, &expected).await.map_err(refused)?;
        // Last of what needs no byte of the body, so that what is refused before costs nothing.
        let admitted = app.tenants().admit_upload(caller.tenant, Instant::now());
        let rate = admitted.map_err(|over| ApiError::over_quota(&over))?;
        let place = app.uploads().take(caller.tenant).await?;
        let upload = app.adapters().upload();
        let upload = app.while_accepting(body.receive(upload)).await?;
        // It may have taken minutes.
        if !app.tenants().still_counts(&caller, SystemTime::now()) {
            return Err(ApiError::unidentified());
        }
        let how = How { expected, activate };
        let kept = keep(app.clone(), (asked, name.clone()), upload, how, place).await;
        let kept = kept.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
        Ok((kept, rate))
    };
    match kept.await {
        Ok((Kept { card, is_new }, rate)) => {
            let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            let tag = tag(card.revision.version);
            let mut response =
                (status, tag, Json(adapter(&app, card, &app.on_device(), None))).into_response();
            rates::write_uploads(rate, response.headers_mut());
            Ok(response)
        }
        Err(refusal) => {
            body.finish().await;
            Err(refusal)
        }
    }
}

/// How an upload is to be kept.
pub(super) struct How {
    pub(super) expected: Expected,
    pub(super) activate: bool,
}

/// Keeps an upload that has been received, and notes it. It goes on although the client leaves: what is kept is noted.
pub(super) async fn keep(
    app: App,
    (asked, name): (Asked, AdapterName),
    upload: Upload,
    How { expected, activate }: How,
    place: Place,
) -> Result<Kept, NotChanged> {
    let kept = tokio::spawn(async move {
        let _place = place;
        let trial = EngineTrial::new(&app);
        let quota = app.tenants().quota(asked.tenant);
        let room = Room { adapters: quota.adapters, bytes: quota.stored_bytes };
        let terms = Terms { expected: &expected, activate, room };
        let kept = app.adapters().put(asked.of(&name), upload, &terms, &trial).await?;
        if kept.is_new {
            let used = Used { name: name.to_string(), version: kept.card.revision.version };
            app.ledger().note(tally::upload(asked.tenant, used, kept.card.bytes)).await;
        }
        Ok(kept)
    });
    let lost = |error| NotChanged::Unfit(Unfit::BrokenOff(io::Error::other(error)));
    kept.await.map_err(lost)?
}

/// Makes the name point to one of its versions, or gives that version a share of the requests.
#[utoipa::path(
    post, path = "/v1/adapters/{name}/activate", tag = "adapters", operation_id = "activate_adapter",
    params(AdapterPath, Conditions),
    request_body = ActivateIn,
    responses((status = 200, description = "As it is now", body = AdapterOut), Unchanged)
)]
pub(super) async fn activate(
    State(app): State<App>,
    By(caller): By,
    named: Named,
    headers: HeaderMap,
    Payload(bytes): Payload,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Upload)?;
    let asked = Asked::by(&caller);
    let name = name(&app, named)?;
    let ActivateIn { version, percent } = parse(&bytes)?;
    within("percent", percent, 0..=100, 100)?;
    let expected = expected(&headers)?;
    let activated = app.adapters().activate(asked.of(&name), (version, percent), &expected).await;
    activated.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
    shown(&app, &caller, &name).await
}

/// Checks a version against the base that is served now.
#[utoipa::path(
    post, path = "/v1/adapters/{name}/validate", tag = "adapters", operation_id = "validate_adapter",
    params(AdapterPath),
    request_body = VersionIn,
    responses((status = 200, description = "As it is now", body = AdapterOut), Unchanged)
)]
pub(super) async fn validate(
    State(app): State<App>,
    By(caller): By,
    named: Named,
    Payload(bytes): Payload,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Upload)?;
    let asked = Asked::by(&caller);
    let name = name(&app, named)?;
    let VersionIn { version } = parse(&bytes)?;
    let _place = app.uploads().take(caller.tenant).await?;
    let trial = EngineTrial::new(&app);
    let validated = app.adapters().validate(asked.of(&name), version, &trial).await;
    validated.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
    shown(&app, &caller, &name).await
}

/// Keeps the active version in memory.
#[utoipa::path(
    post, path = "/v1/adapters/{name}/pin", tag = "adapters", operation_id = "pin_adapter",
    params(AdapterPath),
    responses((status = 200, description = "As it is now", body = AdapterOut), Unchanged)
)]
pub(super) async fn pin(
    State(app): State<App>,
    By(caller): By,
    named: Named,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Admin)?;
    let asked = Asked::by(&caller);
    let name = name(&app, named)?;
    let pinned = app.adapters().pin(asked.of(&name)).await;
    pinned.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
    shown(&app, &caller, &name).await
}

/// Lets it be evicted again.
#[utoipa::path(
    post, path = "/v1/adapters/{name}/unpin", tag = "adapters", operation_id = "unpin_adapter",
    params(AdapterPath),
    responses((status = 200, description = "As it is now", body = AdapterOut), Unchanged)
)]
pub(super) async fn unpin(
    State(app): State<App>,
    By(caller): By,
    named: Named,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Admin)?;
    let asked = Asked::by(&caller);
    let name = name(&app, named)?;
    let unpinned = app.adapters().unpin(asked.of(&name)).await;
    unpinned.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
    shown(&app, &caller, &name).await
}

/// Loads the active version, and answers when it is in memory.
#[utoipa::path(
    post, path = "/v1/adapters/{name}/prefetch", tag = "adapters", operation_id = "prefetch_adapter",
    params(AdapterPath),
    responses((status = 200, description = "As it is now", body = AdapterOut), Unchanged)
)]
pub(super) async fn prefetch(
    State(app): State<App>,
    By(caller): By,
    named: Named,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Upload)?;
    let name = name(&app, named)?;
    let wanted = Wanted::Active(name.clone());
    let resolve = || app.adapters().resolve(caller.tenant, &wanted, None);
    let revision = found(&app, &caller, &name, resolve).await?;
    let lease = app.adapters().lease(caller.tenant, &revision).await;
    drop(lease.map_err(|error| ApiError::not_lent(&error, name.as_str()))?);
    shown(&app, &caller, &name).await
}

/// Takes a name away, or one version of it.
#[utoipa::path(
    delete, path = "/v1/adapters/{name}", tag = "adapters", operation_id = "remove_adapter",
    params(AdapterPath, VersionQuery, Conditions),
    responses((status = 200, description = "It is gone", body = Deleted), Unchanged)
)]
pub(super) async fn remove(
    State(app): State<App>,
    By(caller): By,
    named: Named,
    query: Result<Query<VersionQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Deleted>, ApiError> {
    need(&caller, Scope::Admin)?;
    let asked = Asked::by(&caller);
    let name = name(&app, named)?;
    let Query(VersionQuery { version }) = query.map_err(|error| bad_query(&error))?;
    let removed = app.adapters().remove(asked.of(&name), version, &expected(&headers)?).await;
    removed.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
    let id = match version {
        Some(version) => format!("{name}@v{version}"),
        None => name.to_string(),
    };
    Ok(Json(Deleted { id, object: "adapter", deleted: true }))
}

/// The caller's own bytes.
#[utoipa::path(
    get, path = "/v1/adapters/{name}/files/{file}", tag = "adapters", operation_id = "show_adapter_file",
    params(AdapterPath, ("file" = String, Path, description = "`adapter_config.json` or `adapter_model.safetensors`", pattern = r"^adapter_(config\.json|model\.safetensors)$"), VersionQuery),
    responses((status = 200, description = "Its bytes", content((serde_json::Value = "application/json"), (Vec<u8> = "application/octet-stream"))), Refusals)
)]
pub(super) async fn file(
    State(app): State<App>,
    By(caller): By,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Result<Query<VersionQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Upload)?;
    let asked = Asked::by(&caller);
    let Path((name, file)) = path.map_err(|_| bad_path())?;
    let name = self::name(&app, Ok(Path(name)))?;
    let Query(VersionQuery { version }) = query.map_err(|error| bad_query(&error))?;
    let Some(part) = Part::of_file(&file) else {
        let message = "an adapter has the files adapter_config.json and adapter_model.safetensors";
        return Err(ApiError::invalid("file", message));
    };
    let found = app.adapters().file(asked.of(&name), version, part).await;
    let found = found.map_err(|error| ApiError::not_changed(&error, name.as_str()))?;
    let kind = match part {
        Part::Config => "application/json",
        Part::Weights => "application/octet-stream",
    };
    let pieces = found.pieces.inspect(|piece| {
        if let Err(error) = piece {
            tracing::warn!(%error, "a file that was asked for breaks off");
        }
    });
    let headers =
        [(CONTENT_TYPE, HeaderValue::from_static(kind)), (CONTENT_LENGTH, found.bytes.into())];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

async fn shown(app: &App, caller: &Caller, name: &AdapterName) -> Result<Response, ApiError> {
    let tenant = caller.tenant;
    let card = found(app, caller, name, || app.adapters().card(tenant, name)).await?;
    let versions = app.adapters().versions(tenant, name).into_iter();
    let on_device = app.on_device();
    let versions = versions.map(|one| version(one, &on_device)).collect();
    let tag = card.active.then(|| tag(card.revision.version));
    Ok((tag, Json(adapter(app, card, &on_device, Some(versions)))).into_response())
}

/// What is looked for under a name, here or, where another server may have made it, once the store was asked.
async fn found<T>(
    app: &App,
    caller: &Caller,
    name: &AdapterName,
    look: impl Fn() -> Option<T>,
) -> Result<T, ApiError> {
    if let Some(found) = look() {
        return Ok(found);
    }
    let sought = app.adapters().seek(caller.tenant, name).await;
    sought.map_err(|error| ApiError::unreachable(&error.0))?;
    look().ok_or_else(|| ApiError::model_not_found(name.as_str()))
}

fn adapter(
    app: &App,
    card: Card,
    on_device: &BTreeSet<Digest>,
    versions: Option<Vec<VersionOut>>,
) -> AdapterOut {
    let (status, residency) = standing(&card, on_device);
    AdapterOut {
        id: card.revision.name.to_string(),
        object: "adapter",
        name: card.revision.name.to_string(),
        version: card.revision.version,
        digest: format!("sha256:{}", card.revision.digest),
        bytes: card.bytes,
        rank: card.rank,
        targets: card.targets,
        parent: app.base().id.clone(),
        created: card.created,
        status,
        residency,
        pinned: card.pinned,
        canary: card.canary,
        memory: card.memory,
        leases: card.leases,
        hits: card.hits,
        last_used: card.last_used,
        smoke_test: card.smoke,
        versions,
    }
}

fn version(Version { card, stored }: Version, on_device: &BTreeSet<Digest>) -> VersionOut {
    let (status, residency) = standing(&card, on_device);
    VersionOut {
        version: card.revision.version,
        digest: format!("sha256:{}", card.revision.digest),
        bytes: card.bytes,
        rank: card.rank,
        targets: card.targets,
        created: card.created,
        status,
        residency,
        read_only: !stored,
        smoke_test: card.smoke,
    }
}

fn standing(card: &Card, on_device: &BTreeSet<Digest>) -> (Status, Residency) {
    let status = match (card.compatible, card.active) {
        (false, _) => Status::Incompatible,
        (true, true) => Status::Active,
        (true, false) => Status::Inactive,
    };
    let residency = match card.resident {
        true if on_device.contains(&card.revision.digest) => Residency::Device,
        true => Residency::Host,
        false => Residency::Disk,
    };
    (status, residency)
}

/// Who asks, as the log of changes has it.
pub(super) struct Asked {
    pub(super) tenant: TenantId,
    pub(super) by: String,
}

impl Asked {
    fn by(caller: &Caller) -> Self {
        Self { tenant: caller.tenant, by: caller.to_string() }
    }

    pub(super) fn of<'a>(&'a self, name: &'a AdapterName) -> Target<'a> {
        Target { tenant: self.tenant, name, by: &self.by }
    }
}

/// The name of a path, which must be one that an adapter can have.
fn name(app: &App, named: Named) -> Result<AdapterName, ApiError> {
    let Path(text) = named.map_err(|_| bad_path())?;
    let name = AdapterName::parse(&text).map_err(|bad| ApiError::bad_name(bad.to_string()))?;
    if app.reserves(name.as_str()) {
        return Err(ApiError::bad_name("the name is reserved for the base model"));
    }
    Ok(name)
}

fn bad_path() -> ApiError {
    ApiError::malformed("the path is not percent-encoded UTF-8")
}

fn bad_query(error: &QueryRejection) -> ApiError {
    ApiError::malformed(format!("the query string is not understood: {error}"))
}

/// The entity tag of a version.
fn tag(version: u32) -> [(HeaderName, HeaderValue); 1] {
    let value = HeaderValue::from_str(&format!("\"v{version}\""));
    [(ETAG, value.expect("digits may stand in a header"))]
}

/// What `If-Match` or `If-None-Match` asks for (RFC 9110, sections 13.1.1 and 13.1.2).
fn expected(headers: &HeaderMap) -> Result<Expected, ApiError> {
    let value = |header: HeaderName| {
        let mut values = headers.get_all(&header).iter();
        let first = values.next().map(|value| value.to_str().map(str::trim));
        match (first, values.next()) {
            (None, _) => Ok(None),
            (Some(Ok(value)), None) => Ok(Some(value)),
            _ => Err(ApiError::malformed(format!("the header {header} cannot be read"))),
        }
    };
    match (value(IF_MATCH)?, value(IF_NONE_MATCH)?) {
        (None, None) => Ok(Expected::Anything),
        (Some("*"), None) => Ok(Expected::There),
        (None, Some("*")) => Ok(Expected::New),
        (Some(tags), None) => {
            let versions = tags.split(',').map(|tag| {
                let version = tag.trim().strip_prefix("\"v")?.strip_suffix('"')?;
                let plain = version.bytes().all(|byte| byte.is_ascii_digit());
                if plain { version.parse().ok() } else { None }
            });
            let versions = versions.collect::<Option<_>>().ok_or_else(|| {
                ApiError::invalid(
                    "If-Match",
                    "If-Match must be *, or tags of versions such as \"v3\"",
                )
            })?;
            Ok(Expected::Active(versions))
        }
        (None, Some(_)) => Err(ApiError::invalid("If-None-Match", "If-None-Match can only be *")),
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("If-Match", "If-Match and If-None-Match exclude each other"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Option<Expected> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        expected(&headers).ok()
    }

    #[test]
    fn conditions_are_read_as_they_are_written() {
        assert_eq!(read(&[]), Some(Expected::Anything));
        assert_eq!(read(&[("if-match", "*")]), Some(Expected::There));
        assert_eq!(read(&[("if-none-match", "*")]), Some(Expected::New));
        assert_eq!(read(&[("if-match", "\"v3\"")]), Some(Expected::Active(vec![3])));
        assert_eq!(read(&[("if-match", "\"v3\", \"v14\"")]), Some(Expected::Active(vec![3, 14])));
        for bad in
            ["v3", "\"3\"", "W/\"v3\"", "\"v-3\"", "\"v\"", "\"v3\",", "\"v99999999999\"", ""]
        {
            assert_eq!(read(&[("if-match", bad)]), None, "{bad}");
        }
        assert_eq!(read(&[("if-none-match", "\"v3\"")]), None);
        assert_eq!(read(&[("if-match", "*"), ("if-none-match", "*")]), None);
        assert_eq!(read(&[("if-match", "*"), ("if-match", "*")]), None);
    }
}
