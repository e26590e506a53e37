//! Refusals by what lies in the store: adapters, tenants, keys, usage.

use std::io;

use axum::http::StatusCode;

use super::{ApiError, Retry};
use crate::{
    adapter::{LoadError, NotChanged, NotLent, NotMixable, Unfit, Unproved, Unreceived},
    ledger::NotSummed,
    store::StoreError,
    tenant::NotDone,
};

impl ApiError {
    fn adapter_unavailable() -> Self {
        let message =
            "the adapter cannot be used: its operator finds the reason in the server's log";
        let error =
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_code("adapter_unavailable");
        Self { retry: Retry::Never, ..error }
    }

    /// No adapter was lent to a request for `requested`.
    pub(in crate::http) fn not_lent(refusal: &NotLent, requested: &str) -> Self {
        match refusal {
            NotLent::Gone => Self::model_not_found(requested),
            NotLent::OtherBase => Self::incompatible(refusal.to_string()),
            NotLent::Failed(why) if matches!(**why, LoadError::Store(_)) => {
                Self::store_unavailable()
            }
            NotLent::Crowded { .. } | NotLent::TimedOut { .. } => {
                Self::overloaded("every place for adapters is in use")
            }
            NotLent::PortionInUse { .. } => {
                Self::too_much(refusal.to_string(), "requests", Retry::Soon)
            }
            NotLent::LargerThanPortion { .. } => Self::no_room(refusal.to_string()),
            NotLent::Failed(why) if matches!(**why, LoadError::NoMemory { .. }) => {
                Self::overloaded("the server has no memory for this adapter now")
            }
            // Said once for all, where it was found out: clients can ask as often as they like.
            NotLent::TooLarge { .. } | NotLent::Failed(_) => {
                tracing::debug!(adapter = requested, %refusal, "an adapter cannot be used");
                Self::adapter_unavailable()
            }
        }
    }

    /// The store may know a name, and cannot be asked.
    pub(in crate::http) fn unreachable(error: &StoreError) -> Self {
        tracing::debug!(%error, "a name could not be looked up");
        Self::store_unavailable()
    }

    /// The log of changes cannot be told.
    pub(in crate::http) fn unreadable_log(error: &StoreError) -> Self {
        tracing::error!(%error, "the log of changes cannot be read");
        match error {
            StoreError::Unavailable { .. } => Self::store_unavailable(),
            _ => Self::internal(),
        }
    }

    /// What was used is not told.
    pub(in crate::http) fn not_summed(error: &NotSummed) -> Self {
        match error {
            NotSummed::AskedAlready => Self::too_much(error.to_string(), "requests", Retry::Soon),
            NotSummed::Store(StoreError::Unavailable { .. }) => {
                tracing::debug!(%error, "usage cannot be summed");
                Self::store_unavailable()
            }
            NotSummed::Store(StoreError::Damaged { .. }) => {
                tracing::error!(%error, "usage cannot be summed");
                let message = "a part of the ledger is damaged, or of a newer release: its operator finds which in the server's log";
                let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, message);
                Self { retry: Retry::Never, ..error.with_code("ledger_unreadable") }
            }
            NotSummed::Store(_) => {
                tracing::error!(%error, "usage cannot be summed");
                Self::internal()
            }
        }
    }

    fn store_unavailable() -> Self {
        let message = "the store does not answer; adapters in memory are served";
        Self { code: Some("store_unavailable"), ..Self::overloaded(message) }
    }

    fn store_full() -> Self {
        let message = "the store of adapters is full: nothing was kept";
        let error = Self::new(StatusCode::INSUFFICIENT_STORAGE, message).with_code("store_full");
        Self { retry: Retry::Never, ..error }
    }

    /// The request and the state of things exclude each other; it will be no different the next time.
    fn conflict(message: impl Into<String>) -> Self {
        Self { retry: Retry::Never, ..Self::new(StatusCode::CONFLICT, message) }
    }

    /// Adapters of which there can be no sum.
    pub(in crate::http) fn not_mixable(not: &NotMixable) -> Self {
        Self::malformed(not.to_string()).with_code("adapter_not_mixable")
    }

    fn incompatible(message: impl Into<String>) -> Self {
        Self::conflict(message).with_code("adapter_incompatible")
    }

    /// An upload, or a part of it, is no adapter that can be served.
    pub(in crate::http) fn unfit(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message).with_code(code)
    }

    /// Tenants or keys were not changed.
    pub(in crate::http) fn not_done(error: &NotDone) -> Self {
        let message = error.to_string();
        match error {
            NotDone::NoTenant(_) => {
                Self::new(StatusCode::NOT_FOUND, message).with_code("tenant_not_found")
            }
            NotDone::NoKey(_) => {
                Self::new(StatusCode::NOT_FOUND, message).with_code("key_not_found")
            }
            NotDone::Taken(_) => Self::conflict(message).with_code("tenant_exists"),
            NotDone::Expired => Self::invalid("expires", message),
            NotDone::Quota(_) => Self::invalid("resident_min_bytes", message),
            NotDone::Store(StoreError::Full { why }) => {
                tracing::error!(why, "the store is full");
                Self::store_full()
            }
            NotDone::Store(error @ StoreError::Unavailable { .. }) => {
                tracing::warn!(%error, "tenants were not changed");
                Self::store_unavailable()
            }
            NotDone::Store(StoreError::Damaged { .. }) => Self::outdated(),
            NotDone::Store(error) => {
                tracing::error!(%error, "tenants were not changed");
                Self::internal()
            }
        }
    }

    /// An adapter of this name was not changed.
    pub(in crate::http) fn not_changed(error: &NotChanged, name: &str) -> Self {
        let message = || error.to_string();
        match error {
            NotChanged::Unknown => Self::model_not_found(name),
            NotChanged::NoVersion(_) => {
                Self::new(StatusCode::NOT_FOUND, message()).with_code("version_not_found")
            }
            NotChanged::Stale { .. } => Self::new(StatusCode::PRECONDITION_FAILED, message())
                .with_code("precondition_failed"),
            NotChanged::NotActive => Self::conflict(message()).with_code("no_active_version"),
            NotChanged::InUse(_) => Self::conflict(message()).with_code("version_in_use"),
            NotChanged::OtherBase(_) => Self::incompatible(message()),
            NotChanged::TooMuchPinned { .. } => {
                Self::conflict(message()).with_code("too_much_pinned")
            }
            NotChanged::NoRoomForName(_) | NotChanged::NoRoomForBytes { .. } => {
                Self::no_room(message())
            }
            NotChanged::ActiveAlready(_) => Self::conflict(message()).with_code("version_active"),
            NotChanged::Unreceived(why) => Self::unreceived(why),
            NotChanged::Unfit(why) => Self::unfit_upload(why),
            NotChanged::Store(StoreError::Full { why }) => {
                tracing::error!(why, "the store is full");
                Self::store_full()
            }
            NotChanged::Store(why @ StoreError::Unavailable { .. }) => {
                tracing::warn!(%why, "an adapter was not changed");
                Self::store_unavailable()
            }
            // A change is decided on all records before it, and one of them is not understood.
            NotChanged::Store(StoreError::Damaged { .. }) => Self::outdated(),
            // The record is there, and a file that it refers to is not.
            NotChanged::Store(why @ StoreError::NotFound { .. }) => {
                tracing::error!(%why, name, "a file of an adapter is lost");
                Self::adapter_unavailable()
            }
        }
    }

    /// The files of an upload did not arrive as they should.
    pub(in crate::http) fn unreceived(why: &Unreceived) -> Self {
        let message = why.to_string();
        match why {
            Unreceived::Twice(_) => Self::malformed(message).with_code("repeated_file"),
            Unreceived::Missing(_) => Self::unfit("missing_file", message),
            Unreceived::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("file_too_large")
            }
            Unreceived::Spool(error) => {
                tracing::error!(%error, "an upload cannot be spooled");
                match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::store_full(),
                    _ => Self::internal(),
                }
            }
        }
    }

    fn unfit_upload(why: &Unfit) -> Self {
        let message = why.to_string();
        match why {
            Unfit::Refused(refusal) => Self::unfit(refusal.code(), message),
            Unfit::TooLarge { .. } => Self::unfit("adapter_too_large", message),
            Unfit::Unproved(Unproved::Template(_)) => Self::unfit("chat_template", message),
            Unfit::Smoke { .. } => Self::unfit("smoke_test_failed", message),
            Unfit::Unproved(Unproved::NoEffect) => Self::unfit("no_effect", message),
            Unfit::Unproved(Unproved::NotFinite) => Self::unfit("numbers_overflow", message),
            Unfit::Unproved(Unproved::NotNow(_)) | Unfit::NoMemory { .. } => {
                tracing::warn!(message, "an upload could not be tried");
                Self::overloaded("the server cannot try the adapter now")
            }
            Unfit::BrokenOff(_) => {
                tracing::error!(message, "an upload could not be checked");
                Self::internal()
            }
        }
    }
}
