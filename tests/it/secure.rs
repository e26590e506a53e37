//! TLS with a certificate that is renewed, SIGHUP, and traces, as an operator has them.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Certificate, Client};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    uploads::question,
    world::{Server, fixtures},
};

/// Puts another certificate for this machine, which signs itself, and its key into the folder.
fn issue(folder: &Path) -> Certificate {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let issued = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(folder.join("tls.key"), issued.signing_key.serialize_pem()).unwrap();
    fs::write(folder.join("tls.crt"), issued.cert.pem()).unwrap();
    Certificate::from_pem(issued.cert.pem().as_bytes()).unwrap()
}

/// A client who trusts this certificate and no other, over new connections.
fn trusting(certificate: &Certificate) -> Client {
    let builder = Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(20));
    builder.tls_certs_only([certificate.clone()]).build().unwrap()
}

/// A tiny base, served by TLS.
fn serve(folder: &Path, more: &[&str]) -> Server {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let adapters = fixtures().join("models/tied/adapters");
    let mut arguments = vec![
        "--tls-cert",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
        "--adapters",
        adapters.to_str().unwrap(),
    ];
    arguments.extend(more);
    Server::start_on(&fixtures().join("models/tied"), "tiny", &arguments)
}

async fn until_reached(client: &Client, server: &Server) {
    for _ in 0..200 {
        if client.get(format!("{}/health", server.url)).send().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} shows no certificate that is trusted", server.url);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_at_a_signal_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let first = issue(folder.path());
    let server = serve(folder.path(), &["--log", "off"]);
    assert!(server.url.starts_with("https://"), "{}", server.plan);
    let old = trusting(&first);
    let chat = format!("{}/v1/chat/completions", server.url);
    let answer = old.post(&chat).json(&question("tiny", 4)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let plain = Client::new().get(server.url.replace("https", "http")).send().await.unwrap();
    assert_eq!(plain.status(), 400);
    assert!(plain.text().await.unwrap().contains("https://"));
    // A certificate whose key has not come yet is not shown.
    let (second, key) = (issue(folder.path()), fs::read(folder.path().join("tls.key")).unwrap());
    fs::write(folder.path().join("tls.key"), "").unwrap();
    server.signal("HUP");
    tokio::time::sleep(Duration::from_millis(300)).await;
    until_reached(&old, &server).await;
    fs::write(folder.path().join("tls.key"), key).unwrap();
    server.signal("HUP");
    let new = trusting(&second);
    until_reached(&new, &server).await;
    // A client of its own: one that was here before goes on with what it agreed on then, and looks at no certificate.
    assert!(trusting(&first).get(&chat).send().await.is_err());
    server.signal("TERM");
    assert!(server.wait().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_reach_a_server_whose_certificate_they_are_told_to_trust() {
    let folder = tempfile::tempdir().unwrap();
    let _ = issue(folder.path());
    let server = serve(folder.path(), &[]);
    let list = |trusted: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chorus"));
        command.args(["adapter", "list", "--url", &server.url]).env_remove("SSL_CERT_FILE");
        if let Some(trusted) = trusted {
            command.env("SSL_CERT_FILE", trusted);
        }
        command.output().unwrap()
    };
    let trusted = list(Some(&folder.path().join("tls.crt")));
    assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stderr));
    let stranger = list(None);
    let told = String::from_utf8_lossy(&stranger.stderr);
    assert!(!stranger.status.success() && told.contains("certificate"), "{told}");
}

#[test]
fn a_start_with_files_that_are_no_pair_says_which() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _ = (issue(folder.path()), issue(other.path()));
    let start = |certificate: &Path, key: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chorus"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--model"]);
        command.arg(fixtures().join("models/tied"));
        command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
        let output = command.current_dir(folder.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let certificate = folder.path().join("tls.crt");
    for (key, words) in [
        (other.path().join("tls.key"), "cannot be used together"),
        (certificate.clone(), "has no private key as PEM"),
        (folder.path().join("absent"), "--tls-key must name"),
    ] {
        let (code, told) = start(&certificate, &key);
        assert!(code == Some(2) && told.contains(words), "{told}");
        assert_eq!(told.trim().lines().count(), 1, "{told}");
    }
}

/// What was sent to a collector of spans, as it takes them.
async fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let taken = Arc::<Mutex<Vec<u8>>>::default();
    let all = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                let mut part = [0; 4096];
                // Until its client has sent all that it said it would.
                while let Ok(count @ 1..) = stream.read(&mut part).await {
                    bytes.extend_from_slice(&part[..count]);
                    if is_whole(&bytes) {
                        all.lock().unwrap().append(&mut bytes);
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
    (url, taken)
}

fn is_whole(request: &[u8]) -> bool {
    let Some(head) = request.windows(4).position(|at| at == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| request.len() == head + 4 + length.parse::<usize>().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_sends_the_spans_that_are_left() {
    let (url, taken) = collector().await;
    let adapters = fixtures().join("models/tied/adapters");
    let arguments = ["--adapters", adapters.to_str().unwrap(), "--otlp-traces-endpoint", &url];
    let server = Server::start_on(&fixtures().join("models/tied"), "tiny", &arguments);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = server.client.post(format!("{}/v1/chat/completions", server.url));
    let request = request.header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
    let answer = request.json(&question("tiny", 4)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap();
    server.signal("TERM");
    assert!(server.wait().success());
    let taken = taken.lock().unwrap();
    let has = |part: &[u8]| taken.windows(part.len()).any(|at| at == part);
    let id: Vec<u8> =
        (0..16).map(|at| u8::from_str_radix(&trace[2 * at..][..2], 16).unwrap()).collect();
    assert!(has(&id), "its trace's id is among {} bytes", taken.len());
    for part in
        ["POST /v1/traces", "chat base", "gen_ai.usage.output_tokens", "service.name", "prefill"]
    {
        assert!(has(part.as_bytes()), "{part}");
    }
}
