//! A server on a port of its own: connections that break, stall or outlive it.

use super::{
    super::{
        app::Settings,
        double::{Play, Scripted, app, app_with},
    },
    *,
};

/// A server on a port of its own.
struct Server {
    address: std::net::SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn start(app: App) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        crate::http::serve(listener, app, stopped).await
    });
    Server { address, stop, task }
}

/// Sends a chat over a connection of its own.
async fn connect(server: &Server, request: &Value) -> tokio::net::TcpStream {
    use tokio::io::AsyncWriteExt;
    let body = request.to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    stream
}

fn jobs_begun(engine: &Scripted, count: usize) -> impl Fn() -> bool {
    move || engine.wanted() == count
}

#[tokio::test]
async fn a_broken_connection_cancels_its_jobs() {
    let (app, engine) = app([Play::hang("a"), Play::hang("b")]);
    let server = start(app).await;
    let stream = connect(&server, &chat(json!({"stream": true}))).await;
    let whole = connect(&server, &chat(json!({}))).await;
    until(jobs_begun(&engine, 2)).await;
    drop(stream);
    until(jobs_begun(&engine, 1)).await;
    drop(whole);
    until(jobs_begun(&engine, 0)).await;
    server.stop.send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_outlives_the_shutdown_signal() {
    let settings = Settings { drain: Duration::from_millis(300), ..Settings::default() };
    let (app, engine) = app_with([Play::hang("a")], settings);
    let server = start(app.clone()).await;
    let began = std::time::Instant::now();
    let _stream = connect(&server, &chat(json!({"stream": true}))).await;
    let _idle = tokio::net::TcpStream::connect(server.address).await.unwrap();
    until(jobs_begun(&engine, 1)).await;
    server.stop.send(()).unwrap();
    until(|| app.accepting().is_err()).await;
    assert_eq!(engine.wanted(), 1);
    server.task.await.unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(engine.wanted(), 0);
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}
