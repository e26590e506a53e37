//! Work that must not get in the way of those who are being answered.

use std::{io, thread};

/// Does `work` on a thread of its own, of lower priority. Where no thread can be had, `work` is dropped.
///
/// Reading, checking and repacking an adapter keeps a core busy for tens of milliseconds, while running requests need
/// all cores for every token.
pub(super) fn aside(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("adapter".to_owned());
    thread.spawn(move || {
        give_way();
        work();
    })?;
    Ok(())
}

/// Lowers the priority of this thread for good; it still gets a share of cores that are taken.
fn give_way() {
    // Elsewhere, and where it is forbidden, work goes on as it is.
    #[cfg(target_os = "linux")]
    {
        // From weight 1024 to 335 in Linux's scheduler.
        const NICER: i32 = 5;
        if let Err(error) = rustix::process::nice(NICER) {
            tracing::debug!(%error, "work aside keeps its priority");
        }
    }
}
