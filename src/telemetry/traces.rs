//! Spans, sent by OTLP over HTTP to wherever the operator collects them.
//!
//! What the SDK of OpenTelemetry reads of the environment counts: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` and the like. Without [`Traces::start`] nothing is made or sent.

use std::{error::Error, thread, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};

/// What makes spans: OpenTelemetry's scope.
const SCOPE: &str = "chorus";
/// What the SDK calls a service that nobody has named begins with this.
const UNNAMED: &str = "unknown_service";
/// How long the collector may take over some spans.
const PATIENCE: Duration = Duration::from_secs(10);

/// The address cannot be sent to.
#[derive(Debug, thiserror::Error)]
#[error(
    "spans cannot be sent to {endpoint}; --otlp-traces-endpoint takes a URL such as http://127.0.0.1:4318/v1/traces"
)]
pub struct BadEndpoint {
    endpoint: String,
    source: Box<dyn Error + Send + Sync>,
}

/// Sends spans from a thread of its own, some at a time; what comes faster than it can be sent is dropped, and the log says so.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins to send to this URL, which is taken as it is.
    pub fn start(endpoint: &str) -> Result<Self, BadEndpoint> {
        let bad = |source| BadEndpoint { endpoint: endpoint.to_owned(), source };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client().map_err(bad)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .build()
            .map_err(|error| bad(error.into()))?;
        let builder = SdkTracerProvider::builder().with_batch_exporter(exporter);
        Ok(Self { provider: builder.with_resource(resource()).build() })
    }

    /// What makes them.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer(SCOPE)
    }

    /// Sends those that are left, for so long. Blocks.
    pub fn end(&self, patience: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(patience) {
            tracing::warn!(%error, "spans of the last requests were not sent");
        }
    }

    /// The same with another way to send them, at once.
    #[cfg(test)]
    pub(crate) fn with(exporter: impl opentelemetry_sdk::trace::SpanExporter + 'static) -> Self {
        Self { provider: SdkTracerProvider::builder().with_simple_exporter(exporter).build() }
    }
}

/// Sends to the collector and to nobody else: a redirect would take the headers that let it in, and what it is told of
/// tenants, to whomever it names.
fn client() -> Result<reqwest::blocking::Client, Box<dyn Error + Send + Sync>> {
    let build = || {
        let builder = reqwest::blocking::Client::builder();
        builder.redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE).build()
    };
    // What blocks must not be made where tasks run.
    let built = thread::scope(|scope| scope.spawn(build).join());
    Ok(built.map_err(|_| "its client could not be made")??)
}

/// Who sends them.
fn resource() -> Resource {
    let named = Resource::builder().build();
    let name = named.iter().find(|(key, _)| key.as_str() == "service.name");
    let is_named = name.is_some_and(|(_, name)| !name.as_str().starts_with(UNNAMED));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    if is_named { builder.build() } else { builder.with_service_name(SCOPE).build() }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::Tracer as _;

    use super::*;

    #[test]
    fn an_endpoint_that_is_no_url_is_named() {
        let error = Traces::start("http://[").unwrap_err().to_string();
        assert!(error.contains("http://[") && error.contains("--otlp-traces-endpoint"), "{error}");
    }

    #[test]
    fn spans_follow_no_redirect() {
        use std::io::{BufRead as _, BufReader, Write as _};
        let (here, there) = (listener(), listener());
        let endpoint = format!("http://{}/v1/traces", here.local_addr().unwrap());
        let traces = Traces::start(&endpoint).unwrap();
        let answer = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            there.local_addr().unwrap()
        );
        let collector = thread::spawn(move || {
            let (mut stream, _) = here.accept().unwrap();
            let mut first = String::new();
            BufReader::new(&stream).read_line(&mut first).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            first
        });
        drop(traces.tracer().start("a request"));
        traces.end(PATIENCE);
        assert_eq!(collector.join().unwrap(), "POST /v1/traces HTTP/1.1\r\n");
        there.set_nonblocking(true).unwrap();
        assert!(there.accept().is_err(), "nobody came");
    }

    fn listener() -> std::net::TcpListener {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn a_server_that_nobody_has_named_is_chorus() {
        let resource = resource();
        let find = |key: &str| resource.iter().find(|(known, _)| known.as_str() == key);
        assert_eq!(find("service.name").unwrap().1.as_str(), "chorus");
        assert_eq!(find("service.version").unwrap().1.as_str(), env!("CARGO_PKG_VERSION"));
    }
}
