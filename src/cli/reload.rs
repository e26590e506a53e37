//! What a running server reads again: its certificate, and what the store says of tenants, keys, quotas and adapters.
//!
//! The store is looked at all the time, so that SIGHUP only makes it sooner. Certificates are renewed by programs that may not know
//! of us: their files are looked at once a minute as well.

use std::time::Duration;

use tokio::time::timeout;

use super::signals::Hangups;
use crate::{
    adapter::Adapters,
    http::{Tls, TlsError},
    tenant::Tenants,
};

/// How long a new certificate may go unseen without a signal.
const LOOK: Duration = Duration::from_mins(1);

/// How long reading it may take before that is said.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that can be read again.
#[derive(Debug)]
pub(crate) struct Reloaded {
    pub(crate) tls: Option<Tls>,
    pub(crate) tenants: Tenants,
    pub(crate) adapters: Adapters,
}

/// Why it is looked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    Asked,
    Time,
}

/// Reads all again at each signal, and certificates besides; does not end by itself.
pub(crate) async fn reload_on(mut hangups: Hangups, reloaded: Reloaded) {
    let mut told = None;
    loop {
        let occasion = tokio::select! {
            () = hangups.next() => Occasion::Asked,
            () = tokio::time::sleep(LOOK), if reloaded.tls.is_some() => Occasion::Time,
        };
        if let Some(tls) = &reloaded.tls {
            renew(tls.clone(), occasion, &mut told).await;
        }
        if occasion == Occasion::Asked {
            look(&reloaded).await;
        }
    }
}

/// `told` is the fault that the log has had: one that stays is told once, or when somebody asks.
async fn renew(tls: Tls, occasion: Occasion, told: &mut Option<String>) {
    let renewing = tokio::task::spawn_blocking(move || tls.renew());
    let renewed = match timeout(PATIENCE, renewing).await {
        Ok(Ok(renewed)) => renewed,
        Ok(Err(error)) => return tracing::error!(%error, "the certificate could not be looked at"),
        // It goes on reading, and whenever it is done the certificate is what it has read.
        Err(_) => return tracing::error!("the files of the certificate cannot be read in time"),
    };
    let is_asked = occasion == Occasion::Asked;
    match &renewed {
        Ok(true) => tracing::info!("clients are shown another certificate"),
        Ok(false) if is_asked => tracing::info!("the certificate is the same"),
        Err(error) if is_asked || told.as_ref() != Some(&said(error)) => {
            tracing::error!(%error, "clients are still shown the certificate of before");
        }
        Ok(false) | Err(_) => {}
    }
    *told = renewed.err().as_ref().map(said);
}

fn said(error: &TlsError) -> String {
    error.to_string()
}

async fn look(Reloaded { tenants, adapters, .. }: &Reloaded) {
    let looked = match tenants.refresh().await {
        Ok(()) => adapters.refresh().await,
        failed => failed,
    };
    match looked {
        Ok(()) => tracing::info!("tenants, keys, quotas and adapters are as the store has them"),
        Err(error) => tracing::error!(%error, "the store could not be looked at"),
    }
}
