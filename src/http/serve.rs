//! Connections: accepted up to a bound, given little time to say what they want, and finished before the server goes.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    app::App,
    guard::{Guard, Reach},
    linger::{Linger, Unread},
    ops,
    progress::Progress,
};

/// How long a client may take over a request's head, and how long an idle connection is kept.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Connections at once before there is a server, and of those who watch it.
const FEW_CONNECTIONS: usize = 64;
/// How long the last of them may take: each gets a few bytes.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);
/// How long a client may take nothing of what is written to it.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long the end of answers that are given up may take: a step of the engine, and the way to the client.
const FAREWELL: Duration = Duration::from_secs(2);
/// Pause after an error that accepting again at once would only repeat, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come in.
#[derive(Debug)]
pub struct Listeners {
    /// Everybody's.
    pub clients: TcpListener,
    /// That of those who only watch, where they have one of their own: `/metrics`, `/health` and `/ready`. It ends last, so
    /// that a server which drains can still be seen.
    pub watchers: Option<TcpListener>,
}

impl Listeners {
    /// The next connection to any of them.
    async fn accept(&self, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
        let Some(watchers) = &self.watchers else { return accept(&self.clients, places).await };
        tokio::select! {
            accepted = accept(&self.clients, places) => accepted,
            accepted = accept(watchers, places) => accepted,
        }
    }
}

/// Answers for a server that is not there yet: `/health` with 200, everything else with 503, until `started` is ready.
///
/// Whoever watches the process then sees it live while a base is fetched or read.
pub async fn starting<T>(listeners: &Listeners, started: impl Future<Output = T>) -> T {
    let mut connections = Connections::new(ops::starting(), WRITE_TIME);
    let places = Arc::new(Semaphore::new(FEW_CONNECTIONS));
    let mut started = pin!(started);
    let started = loop {
        tokio::select! {
            started = &mut started => break started,
            (stream, place) = listeners.accept(&places) => connections.add(stream, place),
        }
    };
    connections.finish(SHORT_PATIENCE, || Duration::ZERO).await;
    started
}

/// Answers requests until `shutdown` is ready, then finishes those that have begun, for at most [`Settings::drain`](super::Settings::drain).
///
/// HTTP/1.1 only: without TLS there is no agreement on HTTP/2, and telling the two apart by their first bytes would let
/// a silent client wait for ever.
pub async fn serve(
    Listeners { clients, watchers }: Listeners,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let Some(watchers) = watchers else {
        return serve_patiently(clients, app, shutdown, WRITE_TIME).await;
    };
    let (served, is_served) = oneshot::channel::<()>();
    let watching = watch(watchers, app.clone(), async { drop(is_served.await) });
    let serving = async {
        let result = serve_patiently(clients, app, shutdown, WRITE_TIME).await;
        drop(served);
        result
    };
    let (served, watched) = tokio::join!(serving, watching);
    served.and(watched)
}

/// Answers those who watch, until `end` is ready. Their connections are few, and do not count among those of clients: a server
/// that is full of these can still be looked at.
async fn watch(listener: TcpListener, app: App, end: impl Future<Output = ()>) -> io::Result<()> {
    let guard = Guard::of_watchers(reach(&listener)?, app.settings().allowed_hosts.clone());
    let mut connections = Connections::new(app.watched(guard), WRITE_TIME);
    connections.take(&listener, FEW_CONNECTIONS, end).await;
    drop(listener);
    connections.finish(SHORT_PATIENCE, || Duration::ZERO).await;
    Ok(())
}

/// The same as [`serve`] for clients alone, with another bound than [`WRITE_TIME`].
pub(super) async fn serve_patiently(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()>,
    write_time: Duration,
) -> io::Result<()> {
    let guard = Guard::new(reach(&listener)?, app.settings().allowed_hosts.clone());
    let mut connections = Connections::new(app.clone().router(guard), write_time);
    connections.take(&listener, app.settings().max_connections, shutdown).await;
    app.drain();
    drop(listener);
    let give_up = || {
        app.stop();
        FAREWELL
    };
    connections.finish(app.settings().drain, give_up).await;
    Ok(())
}

fn reach(listener: &TcpListener) -> io::Result<Reach> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    Ok(if loopback { Reach::Loopback } else { Reach::Network })
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // The peer is gone already: nothing is wrong here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Those that are open.
struct Connections {
    protocol: http1::Builder,
    service: TowerToHyperService<Router>,
    write_time: Duration,
    graceful: GracefulShutdown,
    tasks: JoinSet<()>,
}

impl Connections {
    fn new(router: Router, write_time: Duration) -> Self {
        let mut protocol = http1::Builder::new();
        protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        let service = TowerToHyperService::new(router);
        let (graceful, tasks) = (GracefulShutdown::new(), JoinSet::new());
        Self { protocol, service, write_time, graceful, tasks }
    }

    /// Adds those that come, so many at once, until `end` is ready.
    async fn take(&mut self, listener: &TcpListener, most: usize, end: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(most));
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                (stream, place) = accept(listener, &places) => self.add(stream, place),
            }
        }
    }

    fn add(&mut self, stream: TcpStream, place: OwnedSemaphorePermit) {
        while self.tasks.try_join_next().is_some() {}
        // Without it a token's few bytes would wait for the acknowledgement of the last one's.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was lost before it began");
        }
        let unread = Unread::default();
        let stream = Linger::new(Progress::new(stream, self.write_time), unread.clone());
        let service = self.service.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            service.call(request.map(|body| Body::new(unread.watch(body))))
        });
        let connection = self.protocol.serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }

    /// Lets requests end, idle connections at once. What takes longer than `patience` is given up, and cut off after the time
    /// that `give_up` says its end may take.
    async fn finish(self, patience: Duration, give_up: impl FnOnce() -> Duration) {
        let Self { graceful, mut tasks, .. } = self;
        let mut finished = pin!(graceful.shutdown());
        if timeout(patience, &mut finished).await.is_err() {
            tracing::warn!(connections = tasks.len(), "giving up what did not end in time");
            if timeout(give_up(), finished).await.is_err() {
                tracing::warn!("cutting off clients that do not take the end of their answers");
            }
        }
        tasks.shutdown().await;
    }
}
