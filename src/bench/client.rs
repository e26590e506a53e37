//! One attempt at one request.

use std::{
    error::Error as _,
    io::ErrorKind,
    time::{Duration, Instant},
};

use reqwest::{
    Client, Response,
    header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER},
};
use serde_json::Value;

use super::{
    draw::Wish,
    measure::Outcome,
    plan::Plan,
    stream::{self, Lines, Said, Usage},
};

/// How long the end of a stream, after its `[DONE]`, is waited for.
const LINGER: Duration = Duration::from_secs(1);
/// What a refusal says is read up to here.
const MOST_REFUSAL: usize = 64 << 10;

/// What came of it.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) outcome: Outcome,
    /// When each part of the answer was there.
    pub(super) parts: Vec<Instant>,
    /// When it was over.
    pub(super) end: Instant,
    pub(super) usage: Option<Usage>,
    /// How often it was sent.
    pub(super) sends: u32,
    /// What a refusal asks for.
    pub(super) retry_after: Option<Duration>,
}

impl Attempt {
    /// One that was given up.
    pub(super) fn unfinished() -> Self {
        Self {
            outcome: Outcome::Unfinished,
            parts: Vec::new(),
            end: Instant::now(),
            usage: None,
            sends: 1,
            retry_after: None,
        }
    }
}

/// What the whole run sends with.
#[derive(Debug)]
pub(super) struct Clients {
    /// Keeps connections open and uses them again, as OpenAI's clients do.
    keeping: Client,
    /// Opens a connection for each request.
    fresh: Client,
}

impl Clients {
    pub(super) fn new(plan: &Plan) -> Result<Self, reqwest::Error> {
        Ok(Self { keeping: client(plan, usize::MAX)?, fresh: client(plan, 0)? })
    }
}

fn client(plan: &Plan, most_idle: usize) -> Result<Client, reqwest::Error> {
    Client::builder()
        .http1_only()
        .pool_max_idle_per_host(most_idle)
        // What is measured is what was asked: once, and of this server.
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(plan.timeout)
        .build()
}

/// Writes the request that a wish stands for.
pub(super) fn request(clients: &Clients, plan: &Plan, wish: &Wish) -> reqwest::RequestBuilder {
    let target = &plan.target;
    let adapter = wish.adapter.as_deref();
    let mut request = clients.keeping.post(target.route()).header(CONTENT_TYPE, "application/json");
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    if let Some((name, value)) = target.selecting(adapter) {
        request = request.header(name, value);
    }
    if let Some(key) = &plan.tenants[wish.tenant].key {
        request = request.bearer_auth(key.secret());
    }
    request.body(target.json(adapter, &wish.prompt, wish.output))
}

/// Sends it and reads the answer to its end. `heard` is told of each part as it comes, and how many came before it.
pub(super) async fn attempt(
    request: reqwest::RequestBuilder,
    clients: &Clients,
    timeout: Duration,
    heard: impl Fn(usize),
) -> Attempt {
    let mut attempt = Attempt::unfinished();
    let exchange = exchange(request, clients, &mut attempt, &heard);
    let outcome = tokio::time::timeout(timeout, exchange).await;
    attempt.end = Instant::now();
    attempt.outcome = outcome.unwrap_or_else(|_| Outcome::failed("timeout", "no end in time"));
    attempt
}

async fn exchange(
    request: reqwest::RequestBuilder,
    clients: &Clients,
    attempt: &mut Attempt,
    heard: &impl Fn(usize),
) -> Outcome {
    // Bodies are bytes, which can always be sent again.
    let spare = request.try_clone();
    let mut sent = request.send().await;
    // A server may close a connection that it has said it keeps, just when the next request is on its way. Clients send that again,
    // and here it is done on a connection of its own, as others that are kept may be about to be closed as well.
    if let Some(again) = spare.filter(|_| is_unheard(&sent)) {
        attempt.sends += 1;
        sent = match again.build() {
            Ok(again) => clients.fresh.execute(again).await,
            Err(why) => Err(why),
        };
    }
    let response = match sent {
        Ok(response) => response,
        Err(why) if why.is_builder() => return Outcome::failed("not a request", &causes(&why)),
        Err(why) if why.is_connect() => {
            return Outcome::failed(Outcome::UNREACHABLE, &causes(&why));
        }
        Err(why) => return Outcome::failed("no answer", &causes(&why)),
    };
    if !response.status().is_success() {
        attempt.retry_after = retry_after(response.headers());
        return refusal(response).await;
    }
    listen(response, attempt, heard).await
}

/// Whether the connection was closed before there was a head of an answer.
fn is_unheard(sent: &Result<Response, reqwest::Error>) -> bool {
    let Err(why) = sent else { return false };
    if why.is_connect() {
        return false;
    }
    let mut cause = why.source();
    while let Some(error) = cause {
        let by_http = error.downcast_ref::<hyper::Error>();
        let by_system = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if by_http.is_some_and(|error| error.is_incomplete_message() || error.is_canceled())
            || by_system.is_some_and(is_closed)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// `UnexpectedEof` is what TLS says of a connection that is closed without a word.
fn is_closed(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
    )
}

/// Reads a stream to its end.
async fn listen(mut response: Response, attempt: &mut Attempt, heard: &impl Fn(usize)) -> Outcome {
    let mut lines = Lines::default();
    let mut finished = false;
    loop {
        let bytes = match response.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) if finished && !attempt.parts.is_empty() => return Outcome::Done,
            Ok(None) => {
                return Outcome::failed("cut off", "the stream ended before the answer did");
            }
            Err(why) => return Outcome::failed("cut off", &causes(&why)),
        };
        // All that these bytes say was there now.
        let now = Instant::now();
        if lines.push(&bytes).is_err() {
            return Outcome::failed("no stream", "a line has no end");
        }
        while let Some(line) = lines.next() {
            match stream::read(line, &mut attempt.usage) {
                Said::Nothing => {}
                Said::Part => {
                    heard(attempt.parts.len());
                    attempt.parts.push(now);
                }
                Said::Finish => finished = true,
                Said::End if attempt.parts.is_empty() => {
                    return Outcome::failed("empty", "the answer has no text");
                }
                Said::End => {
                    drain(response);
                    return Outcome::Done;
                }
                Said::Fault(why) => return Outcome::failed("fault in the stream", &why),
                Said::Garbage => return Outcome::failed("no stream", "an event is no JSON"),
            }
        }
    }
}

/// A connection is used again only if its answer was read to the very end, which follows `[DONE]`.
fn drain(mut response: Response) {
    let rest = async move { while let Ok(Some(_)) = response.chunk().await {} };
    tokio::spawn(tokio::time::timeout(LINGER, rest));
}

async fn refusal(mut response: Response) -> Outcome {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while body.len() < MOST_REFUSAL {
        match response.chunk().await {
            Ok(Some(bytes)) => body.extend_from_slice(&bytes),
            Ok(None) | Err(_) => break,
        }
    }
    if matches!(status, 429 | 503) {
        return Outcome::Refused { status };
    }
    let error: Value = serde_json::from_slice(&body).unwrap_or_default();
    let error = if error["error"].is_null() { error } else { error["error"].clone() };
    let why = match &error {
        Value::Null => stream::printable(&String::from_utf8_lossy(&body)),
        error => stream::message(error),
    };
    Outcome::failed(&format!("status {status}"), &why)
}

/// In seconds; a date, which the header may have instead, is none.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// An error and what caused it, without the URL.
pub(super) fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = error.source();
    }
    if text.is_empty() { "the connection failed".to_owned() } else { text }
}
