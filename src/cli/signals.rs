//! SIGTERM and SIGINT: the first asks for a graceful end, the second ends at once. SIGHUP: what was read is read again.

use std::{io, process};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The two signals by which people and supervisors end a program.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }

    /// Waits for one of them; a further one, whenever it comes, ends the process.
    pub(crate) async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            let second = self.next().await;
            exit_at_once(second);
        });
    }
}

/// SIGHUP, by which supervisors ask for that.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// From here on the signal no longer ends the process by itself.
    pub(crate) fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        // A stream of signals has no end as long as there is a runtime.
        self.0.recv().await;
    }
}

#[expect(clippy::exit, reason = "a second signal means: without waiting for anything")]
fn exit_at_once(second: SignalKind) -> ! {
    process::exit(128 + second.as_raw_value())
}
