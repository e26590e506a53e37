//! `/v1/usage` and `/v1/admin/usage`: what the ledger comes to.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat};

use super::{
    app::App,
    auth::{By, Operator, need},
    error::ApiError,
    openapi::{OfTenant, Spans, Unanswered},
    wire::accounts::{Format, UsageList, UsageQuery, UsageRow},
};
use crate::{
    ledger::{Account, Asker, Spent},
    tenant::{NotDone, Scope, TenantId, TenantName},
};

/// How far back sums go where nothing else is said, in seconds.
const SPAN: u64 = 30 * 24 * 3600;

type Asked = Result<Query<UsageQuery>, QueryRejection>;

/// The caller's own.
#[utoipa::path(
    get, path = "/v1/usage", tag = "usage", operation_id = "show_usage",
    params(Spans),
    responses((status = 200, description = "Sums", content((UsageList = "application/json"), (String = "text/csv"))), Unanswered)
)]
pub(super) async fn own(
    State(app): State<App>,
    By(caller): By,
    asked: Asked,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Admin)?;
    let query = read(asked)?;
    if query.tenant.is_some() {
        let message = "a tenant's key shows its own usage; the operator's at /v1/admin/usage shows that of all";
        return Err(ApiError::invalid("tenant", message));
    }
    answer(&app, &query, Asker::Tenant(caller.tenant), Some(caller.tenant)).await
}

/// All tenants', or one's.
#[utoipa::path(
    get, path = "/v1/admin/usage", tag = "operation", operation_id = "show_usage_of_all",
    params(Spans, OfTenant),
    responses((status = 200, description = "Sums", content((UsageList = "application/json"), (String = "text/csv"))), Unanswered)
)]
pub(super) async fn of_all(
    _: Operator,
    State(app): State<App>,
    asked: Asked,
) -> Result<Response, ApiError> {
    let query = read(asked)?;
    let tenant = query.tenant.as_deref().map(|name| tenant(&app, name)).transpose()?;
    answer(&app, &query, Asker::Operator, tenant).await
}

fn read(asked: Asked) -> Result<UsageQuery, ApiError> {
    let refused = |error| {
        let problem = format!("the query string is not understood: {error}");
        ApiError::malformed(problem)
    };
    asked.map(|Query(query)| query).map_err(refused)
}

fn tenant(app: &App, name: &str) -> Result<TenantId, ApiError> {
    let name =
        TenantName::parse(name).map_err(|bad| ApiError::invalid("tenant", bad.to_string()))?;
    let card = app.tenants().card(&name);
    card.map(|card| card.id).ok_or_else(|| ApiError::not_done(&NotDone::NoTenant(name)))
}

async fn answer(
    app: &App,
    query: &UsageQuery,
    asker: Asker,
    tenant: Option<TenantId>,
) -> Result<Response, ApiError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let time =
        |field, text: &Option<String>| text.as_deref().map(|text| moment(field, text)).transpose();
    let to = time("to", &query.to)?.unwrap_or(now + 1);
    let from = time("from", &query.from)?.unwrap_or(to.saturating_sub(SPAN));
    // From the beginning of its hour, which is as fine as it is known.
    let from = from / 3600 * 3600;
    let wanted = |account: &Account| tenant.is_none_or(|tenant| account.tenant == tenant);
    let sums = app.ledger().sums(asker, (from, to), query.by, wanted).await;
    let sums = sums.map_err(|error| ApiError::not_summed(&error))?;
    let rows = sums.rows().map(|(at, account, spent)| row(app, at, account, spent));
    Ok(match query.format {
        Format::Json => {
            let (from, to) = (written(from), written(to));
            Json(UsageList { object: "list", from, to, data: rows.collect() }).into_response()
        }
        Format::Csv => {
            let lines = rows.map(|row| row.line() + "\r\n");
            let text: String =
                [UsageRow::COLUMNS.to_owned() + "\r\n"].into_iter().chain(lines).collect();
            ([(CONTENT_TYPE, "text/csv; charset=utf-8; header=present")], text).into_response()
        }
    })
}

fn row(app: &App, at: u64, account: &Account, spent: &Spent) -> UsageRow {
    let (adapter, version) = match &account.adapter {
        Some(used) => (Some(used.name.clone()), Some(used.version)),
        None => (None, None),
    };
    // A tenant never goes; one that another server has made a moment ago has only its number.
    let tenant = match app.tenants().name(account.tenant) {
        Some(name) => name.into(),
        None => format!("#{}", account.tenant.number()),
    };
    UsageRow {
        begin: written(at),
        tenant,
        adapter,
        version,
        requests: spent.requests,
        prompt_tokens: spent.prompt_tokens,
        cached_tokens: spent.cached_tokens,
        generated_tokens: spent.generated_tokens,
        uploads: spent.uploads,
        upload_bytes: spent.upload_bytes,
    }
}

/// Unix seconds from one of the forms that people write.
fn moment(field: &str, text: &str) -> Result<u64, ApiError> {
    let day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let time = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp());
    let seconds = text
        .parse()
        .ok()
        .or_else(|| Some(day()?.and_time(NaiveTime::MIN).and_utc().timestamp()))
        .or_else(time);
    seconds.and_then(|seconds: i64| u64::try_from(seconds).ok()).ok_or_else(|| {
        let message = format!(
            "'{field}' must be a day such as 2026-11-25, a time such as 2026-11-25T08:00:00Z, or unix seconds"
        );
        ApiError::invalid(field, message)
    })
}

/// In RFC 3339, UTC.
fn written(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|at| DateTime::from_timestamp(at, 0));
    time.map_or_else(|| seconds.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form_and_written_in_one() {
        for text in
            ["1764028800", "2025-11-25", "2025-11-25T00:00:00Z", "2025-11-25T01:00:00+01:00"]
        {
            assert_eq!(moment("from", text).unwrap(), 1_764_028_800, "{text}");
        }
        assert_eq!(written(1_764_028_800), "2025-11-25T00:00:00Z");
        for bad in ["", "yesterday", "2025-13-01", "-5", "1.5", "2025-11-25 00:00"] {
            assert!(moment("from", bad).is_err(), "{bad}");
        }
    }
}
