//! What goes on without being asked for, until the last handle is gone.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Adapters, Shared};
use crate::store::StoreError;

/// How long after the start files that nothing refers to are first looked for, and how often from then on.
const FIRST_SWEEP: Duration = Duration::from_mins(1);
const SWEEP: Duration = Duration::from_mins(30);
/// How old such files must be: whoever has put them may be about to refer to them.
pub(super) const GRACE: Duration = Duration::from_hours(1);

/// Takes in what other servers write.
pub(super) async fn refresh(adapters: Weak<Shared>, every: Duration) {
    let mut reachable = true;
    loop {
        sleep(every).await;
        let Some(shared) = adapters.upgrade() else { return };
        let refreshed = Adapters { shared }.refresh().await;
        match &refreshed {
            // Said where it is noted.
            Err(StoreError::Damaged { .. }) => {}
            Err(error) if reachable => {
                tracing::error!(%error, "the store cannot be read: adapters in memory are served on");
            }
            Ok(()) if !reachable => tracing::info!("the store can be read again"),
            _ => {}
        }
        reachable = refreshed.is_ok();
    }
}

/// Keeps in memory what is pinned: at once what has changed here, what others have changed with the next turn.
pub(super) async fn hold_pins(adapters: Weak<Shared>, changed: Arc<Notify>, every: Duration) {
    while let Some(shared) = adapters.upgrade() {
        Adapters { shared }.hold_pins().await;
        drop(timeout(every, changed.notified()).await);
    }
}

/// Erases files that nothing refers to.
pub(super) async fn sweep(adapters: Weak<Shared>) {
    sleep(FIRST_SWEEP).await;
    while let Some(shared) = adapters.upgrade() {
        match (Adapters { shared }).sweep(GRACE).await {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "files that nothing refers to are erased"),
            Err(error) => tracing::warn!(%error, "files that nothing refers to stay"),
        }
        sleep(SWEEP).await;
    }
}
