//! A claim on a loaded adapter.

use std::{fmt, ops::Deref, sync::Arc};

use super::Adapter;

/// Keeps an adapter in memory while a request needs it, and tells whoever lent it when it no longer does.
///
/// Dropping the lease is the only way to give it back.
pub struct Lease {
    /// `None` only inside `drop`.
    adapter: Option<Arc<Adapter>>,
    returned: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Lease {
    /// Lends `adapter`; `returned` runs once, after the lease's own reference is gone.
    pub fn new(adapter: Arc<Adapter>, returned: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { adapter: Some(adapter), returned: Some(Box::new(returned)) }
    }

    /// The adapter itself, for as long as the lease lives.
    #[expect(clippy::missing_panics_doc, reason = "it is taken only in `drop`")]
    pub fn adapter(&self) -> &Arc<Adapter> {
        self.adapter.as_ref().expect("taken only in drop")
    }
}

impl Deref for Lease {
    type Target = Adapter;

    fn deref(&self) -> &Adapter {
        self.adapter()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.adapter.take());
        if let Some(returned) = self.returned.take() {
            returned();
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.adapter().digest()).finish()
    }
}
