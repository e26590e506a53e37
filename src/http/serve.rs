//! Connections: accepted up to a bound, given little time to say what they want, and finished before the server goes.

use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{
        HeaderValue,
        header::{CONNECTION, EXPECT},
    },
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::JoinSet,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::server::TlsStream;

use super::{
    app::App,
    guard::{Guard, Reach},
    linger::{Linger, Unread},
    ops,
    progress::Progress,
    tls::{Greeting, Tls},
};

/// How long a client may take over a request's head, or over agreeing on keys, and how long an idle connection is kept.
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
    /// What clients speak, where it is not plain HTTP. Those who watch speak that in any case.
    pub tls: Option<Tls>,
}

impl Listeners {
    /// The next connection to any of them.
    async fn accept(&self, places: &Arc<Semaphore>) -> Accepted {
        let clients = accept(&self.clients, self.tls.as_ref(), places);
        let Some(watchers) = &self.watchers else { return clients.await };
        tokio::select! {
            accepted = clients => accepted,
            accepted = accept(watchers, None, places) => accepted,
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
            accepted = listeners.accept(&places) => connections.add(accepted),
        }
    };
    connections.finish(SHORT_PATIENCE, || Duration::ZERO).await;
    started
}

/// Answers requests until `shutdown` is ready, then finishes those that have begun, for at most [`Settings::drain`](super::Settings::drain).
///
/// HTTP/1.1 only: without TLS there is no agreement on HTTP/2, and telling the two apart by their first bytes would let
/// a silent client wait for ever. With TLS nothing else is offered either, so that both are one protocol with the same bounds.
pub async fn serve(
    Listeners { clients, watchers, tls }: Listeners,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let Some(watchers) = watchers else {
        return serve_patiently(clients, tls, app, shutdown, WRITE_TIME).await;
    };
    let (served, is_served) = oneshot::channel::<()>();
    let watching = watch(watchers, app.clone(), async { drop(is_served.await) });
    let serving = async {
        let result = serve_patiently(clients, tls, app, shutdown, WRITE_TIME).await;
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
    connections.take(&listener, None, FEW_CONNECTIONS, end).await;
    drop(listener);
    connections.finish(SHORT_PATIENCE, || Duration::ZERO).await;
    Ok(())
}

/// The same as [`serve`] for clients alone, with another bound than [`WRITE_TIME`].
pub(super) async fn serve_patiently(
    listener: TcpListener,
    tls: Option<Tls>,
    app: App,
    shutdown: impl Future<Output = ()>,
    write_time: Duration,
) -> io::Result<()> {
    let guard = Guard::new(reach(&listener)?, app.settings().allowed_hosts.clone());
    let mut connections = Connections::new(app.clone().router(guard), write_time);
    connections.take(&listener, tls.as_ref(), app.settings().max_connections, shutdown).await;
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

/// A connection, and its place among those that are open.
struct Accepted {
    stream: TcpStream,
    /// What is spoken over it, where that is not plain HTTP.
    tls: Option<Tls>,
    place: OwnedSemaphorePermit,
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, tls: Option<&Tls>, places: &Arc<Semaphore>) -> Accepted {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Accepted { stream, tls: tls.cloned(), place },
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
    protocol: Protocol,
    write_time: Duration,
    graceful: GracefulShutdown,
    /// Dropped when no more is to be begun: for those that have not come to HTTP yet.
    going_on: watch::Sender<()>,
    tasks: JoinSet<()>,
}

/// HTTP as it is spoken over each of them.
#[derive(Clone)]
struct Protocol {
    http: http1::Builder,
    service: TowerToHyperService<Router>,
}

impl Protocol {
    fn new(router: Router) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        Self { http, service: TowerToHyperService::new(router) }
    }

    /// Answers what is asked over one connection, until it ends.
    async fn speak<S>(self, stream: S, watcher: Watcher) -> Result<(), Broken>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let unread = Unread::default();
        let stream = Linger::new(stream, unread.clone());
        let Self { http, service } = self;
        let service = service_fn(move |request: Request<Incoming>| {
            // Who asks first whether to send a body does not send it with its head, and hears of the refusal instead.
            let asks_first = request.headers().contains_key(EXPECT);
            let (head, body) = request.into_parts();
            let (body, rest) = unread.watch(body);
            let answering = service.call(Request::from_parts(head, Body::new(body)));
            let unread = unread.clone();
            async move {
                let mut answer = answering.await?;
                if !asks_first {
                    rest.take().await;
                }
                if unread.is_so() {
                    // Or the client would send its next request on it (RFC 9112, section 9.6).
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        Ok(watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await?)
    }

    /// The same with a client that should speak TLS.
    async fn speak_secretly(
        self,
        stream: TcpStream,
        (tls, write_time): (Tls, Duration),
        (watcher, mut ending): (Watcher, watch::Receiver<()>),
    ) -> Result<(), Broken> {
        let agreed = async {
            let greeting = Tls::greeting(&stream).await?;
            let stream = Progress::new(stream, write_time);
            Ok::<_, io::Error>(match greeting {
                Greeting::Tls => Agreed::Secret(Box::new(tls.accept(stream).await?)),
                Greeting::Plain => Agreed::Plain(stream),
            })
        };
        let agreed = tokio::select! {
            agreed = timeout(HEAD_TIME, agreed) => agreed??,
            // Nothing has been asked yet.
            _ = ending.changed() => return Ok(()),
        };
        match agreed {
            Agreed::Secret(stream) => self.speak(stream, watcher).await,
            Agreed::Plain(stream) => Self::new(ops::without_tls()).speak(stream, watcher).await,
        }
    }
}

/// What is spoken over a connection whose client should speak TLS.
enum Agreed {
    Secret(Box<TlsStream<Progress<TcpStream>>>),
    Plain(Progress<TcpStream>),
}

/// Why a connection ended before it was over.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Stream(#[from] io::Error),
    #[error("the client did not say in time what it wants")]
    Slow(#[from] Elapsed),
}

impl Connections {
    fn new(router: Router, write_time: Duration) -> Self {
        let (graceful, tasks) = (GracefulShutdown::new(), JoinSet::new());
        let (going_on, _) = watch::channel(());
        Self { protocol: Protocol::new(router), write_time, graceful, going_on, tasks }
    }

    /// Adds those that come, so many at once, until `end` is ready.
    async fn take(
        &mut self,
        listener: &TcpListener,
        tls: Option<&Tls>,
        most: usize,
        end: impl Future<Output = ()>,
    ) {
        let places = Arc::new(Semaphore::new(most));
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                accepted = accept(listener, tls, &places) => self.add(accepted),
            }
        }
    }

    fn add(&mut self, Accepted { stream, tls, place }: Accepted) {
        while self.tasks.try_join_next().is_some() {}
        // Without it a token's few bytes would wait for the acknowledgement of the last one's.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was lost before it began");
        }
        let (protocol, write_time) = (self.protocol.clone(), self.write_time);
        let (watcher, ending) = (self.graceful.watcher(), self.going_on.subscribe());
        self.tasks.spawn(async move {
            let spoken = match tls {
                Some(tls) => {
                    protocol.speak_secretly(stream, (tls, write_time), (watcher, ending)).await
                }
                None => protocol.speak(Progress::new(stream, write_time), watcher).await,
            };
            if let Err(error) = spoken {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }

    /// Lets requests end, idle connections at once. What takes longer than `patience` is given up, and cut off after the time
    /// that `give_up` says its end may take.
    async fn finish(self, patience: Duration, give_up: impl FnOnce() -> Duration) {
        let Self { graceful, going_on, mut tasks, .. } = self;
        drop(going_on);
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
