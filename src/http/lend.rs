//! A lease of the adapter that answers, for all jobs of a request.

use std::sync::Arc;

use super::{app::App, error::ApiError, select::Voice};
use crate::{
    adapter::{Adapter, Lease, Revision, Wanted},
    tenant::TenantId,
};

/// Waits until what `voice` runs through is in memory; the base needs nothing. `requested` is how the tenant asked for it.
pub(super) async fn lend(
    app: &App,
    tenant: TenantId,
    (voice, requested): (&Voice, &str),
) -> Result<Option<Arc<Lease>>, ApiError> {
    match voice {
        Voice::Base => Ok(None),
        Voice::Adapter(revision) => lend_one(app, tenant, (revision, requested)).await.map(Some),
        Voice::Mix(parts) => {
            let (mut leases, mut mixed) = (Vec::new(), Vec::new());
            for (revision, weight) in parts {
                let lease = lend_one(app, tenant, (revision, requested)).await?;
                mixed.push((Arc::clone(lease.adapter()), *weight));
                leases.push(lease);
            }
            let mix = Adapter::mix(mixed).map_err(|not| ApiError::not_mixable(&not))?;
            Ok(Some(Arc::new(Lease::new(Arc::new(mix), move || drop(leases)))))
        }
    }
}

async fn lend_one(
    app: &App,
    tenant: TenantId,
    (revision, requested): (&Revision, &str),
) -> Result<Arc<Lease>, ApiError> {
    let refusal = match app.adapters().lease(tenant, revision).await {
        Ok(lease) => return Ok(Arc::new(lease)),
        Err(refusal) => refusal,
    };
    if !refusal.is_gone() {
        return Err(ApiError::not_lent(&refusal, requested));
    }
    // Another server may have replaced or deleted it a moment ago.
    app.adapters().refresh().await.map_err(|error| ApiError::unreachable(&error))?;
    let resolve = |wanted| app.adapters().resolve(tenant, &wanted, None);
    let now = resolve(Wanted::Version(revision.name.clone(), revision.version))
        .or_else(|| resolve(Wanted::Active(revision.name.clone())));
    Err(match now {
        None => ApiError::model_not_found(requested),
        Some(now) if now != *revision => {
            ApiError::overloaded("the adapter was replaced meanwhile: ask again")
        }
        Some(_) => {
            tracing::error!(adapter = %revision, "the store has lost an adapter's files");
            ApiError::not_lent(&refusal, requested)
        }
    })
}

/// Another claim on what is lent: one lease from the cache serves all jobs of a request.
pub(super) fn share(lease: &Arc<Lease>) -> Lease {
    let held = Arc::clone(lease);
    Lease::new(Arc::clone(lease.adapter()), move || drop(held))
}
