//! `/v1/admin/audit`: every change to adapters and tenants, with who made it and when.
//!
//! The records of the store are the audit log. There are two, each with an order of its own; here they are one list, in the
//! order of their clocks as far as that keeps each log's own.

use std::{fmt, iter::Peekable};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};

use super::{
    app::App,
    auth::Operator,
    error::ApiError,
    openapi::Refusals,
    wire::audit::{AuditQuery, ChangeList, ChangeOut},
};
use crate::{
    adapter,
    tenant::{self, NotDone, TenantId, TenantName},
    text::utc,
};

/// Changes of one page, where the request does not say, and at most.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// A change of either log.
enum Changed {
    Adapter(adapter::Changed),
    Tenant(tenant::Changed),
}

/// How far both logs were read; written `ADAPTERS.TENANTS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    adapters: u64,
    tenants: u64,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (adapters, tenants) = text.split_once('.')?;
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            if plain { digits.parse().ok() } else { None }
        };
        Some(Self { adapters: number(adapters)?, tenants: number(tenants)? })
    }

    /// Once this change was read, too.
    fn after(self, change: &Changed) -> Self {
        match change {
            Changed::Adapter(change) => Self { adapters: change.number, ..self },
            Changed::Tenant(change) => Self { tenants: change.number, ..self },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.adapters, self.tenants)
    }
}

/// One page of it.
#[utoipa::path(
    get, path = "/v1/admin/audit", tag = "operation", operation_id = "list_changes",
    params(AuditQuery),
    responses((status = 200, description = "One page", body = ChangeList), Refusals)
)]
pub(super) async fn list(
    _: Operator,
    State(app): State<App>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<ChangeList>, ApiError> {
    let Query(AuditQuery { tenant, after, limit }) = query.map_err(|error| {
        ApiError::malformed(format!("the query string is not understood: {error}"))
    })?;
    let place = match &after {
        None => Place::default(),
        Some(text) => Place::parse(text).ok_or_else(|| {
            ApiError::invalid("after", "'after' must be the id of a change, such as 12.3")
        })?,
    };
    let limit = limit.unwrap_or(PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        let message = format!("'limit' must be from 1 to {LARGEST_PAGE}");
        return Err(ApiError::invalid("limit", message));
    }
    // Tenants that other servers have made are known by their names then.
    app.tenants().refresh().await.map_err(|error| ApiError::unreachable(&error))?;
    let wanted = tenant.as_deref().map(|name| tenant_of(&app, name)).transpose()?;
    // One more than is told says whether there are more.
    let adapters = app.adapters().changes_after(place.adapters, limit + 1).await;
    let tenants = app.tenants().changes_after(place.tenants, limit + 1).await;
    let adapters = adapters.map_err(|error| ApiError::unreadable_log(&error))?.into_iter();
    let tenants = tenants.map_err(|error| ApiError::unreadable_log(&error))?.into_iter();
    let mut both = Merged { adapters: adapters.peekable(), tenants: tenants.peekable() };
    let (mut place, mut data) = (place, Vec::new());
    for change in both.by_ref().take(limit) {
        place = place.after(&change);
        if wanted.is_none_or(|wanted| change.tenant() == Some(wanted)) {
            data.push(shown(&app, place, change));
        }
    }
    let has_more = both.next().is_some();
    Ok(Json(ChangeList { object: "list", data, last_id: place.to_string(), has_more }))
}

fn tenant_of(app: &App, name: &str) -> Result<TenantId, ApiError> {
    let name =
        TenantName::parse(name).map_err(|bad| ApiError::invalid("tenant", bad.to_string()))?;
    let card = app.tenants().card(&name);
    card.map(|card| card.id).ok_or_else(|| ApiError::not_done(&NotDone::NoTenant(name)))
}

/// Both logs as one.
struct Merged<A: Iterator, T: Iterator> {
    adapters: Peekable<A>,
    tenants: Peekable<T>,
}

impl<A, T> Iterator for Merged<A, T>
where
    A: Iterator<Item = adapter::Changed>,
    T: Iterator<Item = tenant::Changed>,
{
    type Item = Changed;

    fn next(&mut self) -> Option<Changed> {
        let tenants_next = match (self.adapters.peek(), self.tenants.peek()) {
            // Of what has one time, the tenant comes before its adapters.
            (Some(adapter), Some(tenant)) => tenant.at <= adapter.at,
            (adapter, _) => adapter.is_none(),
        };
        if tenants_next {
            self.tenants.next().map(Changed::Tenant)
        } else {
            self.adapters.next().map(Changed::Adapter)
        }
    }
}

impl Changed {
    fn tenant(&self) -> Option<TenantId> {
        match self {
            Self::Adapter(change) => Some(change.tenant),
            Self::Tenant(change) => change.tenant,
        }
    }
}

fn shown(app: &App, place: Place, change: Changed) -> ChangeOut {
    let tenant = change.tenant().and_then(|id| app.tenants().name(id)).map(String::from);
    let id = place.to_string();
    match change {
        Changed::Adapter(change) => ChangeOut {
            id,
            object: "change",
            log: "adapters",
            number: change.number,
            at: change.at,
            time: utc(change.at / 1000),
            by: change.by,
            tenant,
            change: change.what,
            adapter: Some(change.name.to_string()),
            version: change.version,
            digest: change.digest.map(|digest| format!("sha256:{digest}")),
            key: None,
            summary: change.summary,
        },
        Changed::Tenant(change) => ChangeOut {
            id,
            object: "change",
            log: "tenants",
            number: change.number,
            at: change.at,
            time: utc(change.at / 1000),
            by: change.by,
            tenant,
            change: change.what,
            adapter: None,
            version: None,
            digest: None,
            key: change.key.map(|key| key.to_string()),
            summary: change.summary,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_and_read_back() {
        let place = Place { adapters: 12, tenants: 3 };
        assert_eq!(Place::parse(&place.to_string()), Some(place));
        for bad in
            ["", "12", "12.", ".3", "12.-3", "12.3.4", "12.+3", "a.b", "99999999999999999999.1"]
        {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn both_logs_are_told_in_the_order_of_their_clocks_and_each_in_its_own() {
        let adapter = |number, at| adapter::Changed {
            number,
            at,
            by: String::new(),
            tenant: TenantId::DEFAULT,
            name: adapter::AdapterName::parse("sql").unwrap(),
            what: "pinned",
            version: None,
            digest: None,
            summary: String::new(),
        };
        let tenant = |number, at| tenant::Changed {
            number,
            at,
            by: String::new(),
            tenant: None,
            what: "created",
            key: None,
            summary: String::new(),
        };
        let both = Merged {
            // The clock of one server was set back.
            adapters: [adapter(1, 10), adapter(2, 30), adapter(3, 5)].into_iter().peekable(),
            tenants: [tenant(1, 10), tenant(2, 40)].into_iter().peekable(),
        };
        let mut place = Place::default();
        let places: Vec<_> = both
            .map(|change| {
                place = place.after(&change);
                place.to_string()
            })
            .collect();
        assert_eq!(places, ["0.1", "1.1", "2.1", "3.1", "3.2"]);
    }
}
