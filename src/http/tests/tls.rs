//! Clients that speak TLS, and some that do not.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    super::{
        double::{Play, app},
        tls::{Tls, fixture::Issued},
    },
    connections::{SOON, Server, ended, head, jobs_begun, rest},
    *,
};
use crate::engine::{Event, Finish};

const PROBE: &str = "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn start(app: App, tls: &Tls) -> Server {
    Server::start_as(app, Some(tls.clone()), SOON * 100)
}

/// What a client has who trusts this certificate alone.
async fn connect(
    server: &Server,
    trusted: &CertificateDer<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn chat_over(stream: &mut TlsStream<TcpStream>) {
    let body = chat(json!({"stream": true})).to_string();
    stream.write_all((head(body.len()) + &body).as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_stream_goes_on_while_the_certificate_is_renewed_and_the_server_ends() {
    let mut issued = Issued::new();
    let tls = Tls::open(issued.files()).unwrap();
    let (app, engine) = app([Play::hang("a")]);
    let server = start(app, &tls);
    let mut stream = connect(&server, &issued.certificate).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    chat_over(&mut stream).await;
    until(jobs_begun(&engine, 1)).await;
    let old = issued.certificate.clone();
    issued.renew();
    assert!(tls.renew().unwrap());
    let mut later = connect(&server, &issued.certificate).await.unwrap();
    later.write_all(PROBE.as_bytes()).await.unwrap();
    assert!(rest(later).await.starts_with("HTTP/1.1 200 "));
    assert!(connect(&server, &old).await.is_err(), "who trusts the old one alone is not deceived");
    server.stop.send(()).unwrap();
    until(|| std::net::TcpStream::connect(server.address).is_err()).await;
    engine.end(&Event::Finished(Finish::Stop));
    assert!(rest(stream).await.contains("data: [DONE]"));
    ended(server.task).await;
}

#[tokio::test]
async fn who_speaks_plainly_is_told_so() {
    let issued = Issued::new();
    let (app, engine) = app([]);
    let server = start(app, &Tls::open(issued.files()).unwrap());
    for more in ["", "a body that is larger than it says"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let body = chat(json!({})).to_string();
        let sent =
            head(body.len()).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n") + &body + more;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let text = rest(stream).await;
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("https://"), "{text}");
    }
    assert_eq!(engine.wanted(), 0);
    server.stop.send(()).unwrap();
    ended(server.task).await;
}

#[tokio::test]
async fn who_begins_and_breaks_off_costs_nobody_anything() {
    let issued = Issued::new();
    let (app, _) = app([]);
    let server = start(app, &Tls::open(issued.files()).unwrap());
    let mut broken = TcpStream::connect(server.address).await.unwrap();
    broken.write_all(b"\x16\x03\x01\x00\x05hello and more than that").await.unwrap();
    let mut left = Vec::new();
    timeout(SOON, broken.read_to_end(&mut left)).await.expect("it is closed").unwrap();
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"\x16\x03\x01").await.unwrap();
    drop(TcpStream::connect(server.address).await.unwrap());
    let mut stream = connect(&server, &issued.certificate).await.unwrap();
    stream.write_all(PROBE.as_bytes()).await.unwrap();
    assert!(rest(stream).await.starts_with("HTTP/1.1 200 "));
    // Nor is the end kept waiting, which takes less than half hellos may.
    server.stop.send(()).unwrap();
    timeout(Duration::from_secs(5), server.task).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_in_the_midst_of_a_stream_ends_its_job() {
    let issued = Issued::new();
    let (app, engine) = app([Play::hang("a")]);
    let server = start(app, &Tls::open(issued.files()).unwrap());
    let mut stream = connect(&server, &issued.certificate).await.unwrap();
    chat_over(&mut stream).await;
    until(jobs_begun(&engine, 1)).await;
    drop(stream);
    until(jobs_begun(&engine, 0)).await;
    server.stop.send(()).unwrap();
    ended(server.task).await;
}
