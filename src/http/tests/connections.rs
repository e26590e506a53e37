//! A server on a port of its own: connections that break, stall or outlive it.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::{
    super::{
        app::Settings,
        body::LARGE_BODIES,
        double::{Play, Scripted, app, app_with},
        serve::{Listeners, serve, serve_patiently, starting},
        tls::Tls,
    },
    *,
};
use crate::engine::{Event, Finish};

/// How long anything may take that takes no time to speak of.
pub(super) const SOON: Duration = Duration::from_secs(10);
/// So small that little fits between a server that writes and a client that does not read.
const BUFFER: u32 = 4096;
const CLOSES: &str = "\r\nconnection: close\r\n";

pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) stop: oneshot::Sender<()>,
    pub(super) task: JoinHandle<io::Result<()>>,
}

impl Server {
    fn start(app: App) -> Self {
        Self::start_patiently(app, SOON * 100)
    }

    fn start_patiently(app: App, write_time: Duration) -> Self {
        Self::start_as(app, None, write_time)
    }

    pub(super) fn start_as(app: App, tls: Option<Tls>, write_time: Duration) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(BUFFER).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(8).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve_patiently(listener, tls, app, stopped, write_time).await
        });
        Self { address, stop, task }
    }

    /// A connection of its own over which these bytes were sent.
    async fn send(&self, bytes: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(BUFFER).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    async fn chat(&self, more: Value) -> TcpStream {
        let body = chat(more).to_string();
        self.send(&(head(body.len()) + &body)).await
    }
}

/// The head of a chat whose body has so many bytes.
pub(super) fn head(length: usize) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// All that comes until the server closes the connection.
pub(super) async fn rest(mut stream: impl AsyncRead + Unpin) -> String {
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.expect("the connection ends").unwrap();
    text
}

/// Waits for the server's end, which must not take the time that anybody is given.
pub(super) async fn ended(task: JoinHandle<io::Result<()>>) {
    timeout(SOON, task).await.expect("the server ends").unwrap().unwrap();
}

pub(super) fn jobs_begun(engine: &Scripted, count: usize) -> impl Fn() -> bool {
    move || engine.wanted() == count
}

#[tokio::test]
async fn a_broken_connection_cancels_its_jobs() {
    let (app, engine) = app([Play::hang("a"), Play::hang("b")]);
    let server = Server::start(app);
    let stream = server.chat(json!({"stream": true})).await;
    let whole = server.chat(json!({})).await;
    until(jobs_begun(&engine, 2)).await;
    drop(stream);
    until(jobs_begun(&engine, 1)).await;
    drop(whole);
    until(jobs_begun(&engine, 0)).await;
    server.stop.send(()).unwrap();
    ended(server.task).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let long = vec![Event::Token { id: 97, logprob: None }; 20_000];
    let (app, engine) = app([Play::Hang(long)]);
    let server = Server::start_patiently(app, Duration::from_millis(50));
    let _silent = server.chat(json!({"stream": true})).await;
    until(jobs_begun(&engine, 1)).await;
    until(jobs_begun(&engine, 0)).await;
}

#[tokio::test]
async fn a_stream_outlives_the_shutdown_signal() {
    let (app, engine) = app([Play::hang("a")]);
    let server = Server::start(app.clone());
    let stream = server.chat(json!({"stream": true})).await;
    let mut idle = server.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    idle.read_u8().await.unwrap();
    until(jobs_begun(&engine, 1)).await;
    server.stop.send(()).unwrap();
    rest(idle).await;
    assert!(app.accepting().is_err());
    assert_eq!(engine.wanted(), 1);
    engine.end(&Event::Finished(Finish::Stop));
    let text = rest(stream).await;
    assert!(text.contains("\"finish_reason\":\"stop\""), "{text}");
    assert!(text.contains("data: [DONE]\n\n"), "{text}");
    ended(server.task).await;
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// The status of an answer to a scraper, and what it read.
async fn scraped(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: 10.0.0.1:9090\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let text = rest(stream).await;
    (text["HTTP/1.1 ".len()..][..3].to_owned(), text)
}

/// The same for a body that does not say how long it is, up to its first chunk's bytes.
fn in_one_chunk(bytes: usize) -> String {
    head(0).replace(
        "Content-Length: 0\r\n\r\n",
        &format!("Transfer-Encoding: chunked\r\n\r\n{bytes:x}\r\n"),
    )
}

async fn listeners() -> (Listeners, [SocketAddr; 2]) {
    let bind = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (clients, watchers) = (bind().await, bind().await);
    let addresses = [&clients, &watchers].map(|listener| listener.local_addr().unwrap());
    (Listeners { clients, watchers: Some(watchers), tls: None }, addresses)
}

#[tokio::test]
async fn scrapers_see_a_server_start_and_drain_and_end() {
    let (listeners, [clients, watchers]) = listeners().await;
    let asked = async {
        assert_eq!(scraped(watchers, "/health").await.0, "200");
        assert_eq!(scraped(watchers, "/ready").await.0, "503");
    };
    starting(&listeners, asked).await;
    // One connection of a client is all that there may be.
    let settings = Settings { max_connections: 1, ..Settings::default() };
    let (app, engine) = app_with([Play::hang("a")], settings);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listeners, app, async { drop(stopped.await) }));
    let mut stream = TcpStream::connect(clients).await.unwrap();
    let body = chat(json!({"stream": true})).to_string();
    stream.write_all((head(body.len()) + &body).as_bytes()).await.unwrap();
    until(jobs_begun(&engine, 1)).await;
    assert_eq!(scraped(watchers, "/ready").await.0, "200");
    for path in ["/", "/v1/models", "/openapi.json", "/version"] {
        assert_eq!(scraped(watchers, path).await.0, "404", "{path}");
    }
    stop.send(()).unwrap();
    until(|| std::net::TcpStream::connect(clients).is_err()).await;
    assert_eq!(scraped(watchers, "/ready").await.0, "503");
    assert_eq!(scraped(watchers, "/health").await.0, "200");
    let (status, text) = scraped(watchers, "/metrics").await;
    assert!(status == "200" && text.contains("chorus_requests_running 3"), "{text}");
    engine.end(&Event::Finished(Finish::Stop));
    assert!(rest(stream).await.contains("data: [DONE]"));
    ended(task).await;
    assert!(TcpStream::connect(watchers).await.is_err());
}

#[tokio::test]
async fn answers_that_outlive_the_drain_time_are_told_so() {
    let settings = Settings { drain: Duration::ZERO, ..Settings::default() };
    let (app, engine) = app_with([Play::hang("a"), Play::hang("b")], settings);
    let server = Server::start(app);
    let stream = server.chat(json!({"stream": true})).await;
    until(jobs_begun(&engine, 1)).await;
    let whole = server.chat(json!({})).await;
    until(jobs_begun(&engine, 2)).await;
    server.stop.send(()).unwrap();
    let text = rest(stream).await;
    let (_, error) = text.split_once("data: {\"error\":").expect("an error event");
    assert!(error.contains("\"code\":\"overloaded\""), "{text}");
    assert!(error.contains("data: [DONE]\n\n"), "{text}");
    let text = rest(whole).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    assert!(text.contains("\"code\":\"overloaded\""), "{text}");
    ended(server.task).await;
}

#[tokio::test]
async fn a_body_half_sent_is_not_waited_for_at_the_end() {
    let (app, _) = app([]);
    let server = Server::start(app.clone());
    // Larger ones take a place, which shows that the server has begun to read it.
    let stream = server.send(&(head(1 << 20) + "{\"model\":")).await;
    until(|| app.large_bodies().free() < LARGE_BODIES).await;
    server.stop.send(()).unwrap();
    let text = rest(stream).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    ended(server.task).await;
}

#[tokio::test]
async fn a_refusal_that_is_known_before_a_small_body_is_there_keeps_the_connection() {
    let (app, _) = app([]);
    let server = Server::start(app);
    let probe = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for (head, status) in [
        (head(20).replace(CHAT, "/v1/nowhere"), 404),
        (head(20).replace("application/json", "text/plain"), 415),
        (head(20).replace("localhost", "elsewhere"), 403),
        (head(20).replace("Content-Length: 20", "Transfer-Encoding: chunked"), 400),
    ] {
        let is_chunked = head.contains("chunked");
        let body = if is_chunked { "2\r\n{}\r\n0\r\n\r\n".to_owned() } else { " ".repeat(20) };
        let mut stream = server.send(&head).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all((body + probe).as_bytes()).await.unwrap();
        let text = rest(stream).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert!(text.contains("HTTP/1.1 200 "), "{text}");
    }
    // Who asks first is told without a delay, and sends nothing.
    let expects = head(20).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let stream = server.send(&expects.replace(CHAT, "/v1/nowhere")).await;
    let text = rest(stream).await;
    assert!(text.starts_with("HTTP/1.1 404 ") && text.contains(CLOSES), "{text}");
    server.stop.send(()).unwrap();
    ended(server.task).await;
}

#[tokio::test]
async fn a_client_that_is_still_sending_learns_why_it_is_refused() {
    let settings = Settings { body_limit: 1 << 20, ..Settings::default() };
    let (app, _) = app_with([], settings);
    let server = Server::start(app);
    for (head, status) in [
        (head(8 << 20), 413),
        (head(8 << 20).replace(CHAT, "/v1/nowhere"), 404),
        (head(8 << 20).replace("application/json", "text/plain"), 415),
        (in_one_chunk(9 << 20).replace(CHAT, "/v1/nowhere"), 404),
    ] {
        let mut stream = server.send(&head).await;
        // It sends all before it reads.
        timeout(SOON, stream.write_all(&vec![b' '; 8 << 20])).await.unwrap().unwrap();
        let text = rest(stream).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        // Nothing more is read on it.
        assert!(text.contains(CLOSES), "{text}");
    }
    server.stop.send(()).unwrap();
    ended(server.task).await;
}
