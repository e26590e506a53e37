//! Keeps browsers from being used against the server.
//!
//! A page that a user merely visits can make the browser send requests to `localhost`, and by DNS rebinding can do so under a
//! name of its own. So:
//! - on a loopback listener `Host` must be a loopback name, or one that the operator allowed (a proxy in front passes its own);
//! - on any other listener every `Host` is right, unless the operator allowed some: then only those and the loopback names;
//! - an `Origin`, which only browsers send, must be a loopback or allowed name, or, on a listener that is not loopback, the very `Host`.
//!
//! Scrapers ask by an address, which none of these need know: their listener answers to every IP address besides. A page has no such
//! name: rebinding turns a name into an address of ours, and what the browser then asks for is the name.
//!
//! Of several `Origin`s each must be right. Several `Host`s are no request: whoever reads the other one is deceived.
//!
//! No CORS header is ever sent.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, Uri,
        header::{HOST, ORIGIN},
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::error::ApiError;

/// Which names a listener answers to.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    reach: Reach,
    door: Door,
    allowed: Vec<String>,
}

/// Whom a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Everybody.
    Clients,
    /// Those who watch the process, in a network that its operator has chosen for that.
    Watchers,
}

/// Where connections can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// From this machine only.
    Loopback,
    /// From the network.
    Network,
}

impl Guard {
    /// `allowed` are host names without port.
    pub(super) fn new(reach: Reach, allowed: Vec<String>) -> Self {
        Self { reach, door: Door::Clients, allowed }
    }

    /// The same for the listener of those who watch.
    pub(super) fn of_watchers(reach: Reach, allowed: Vec<String>) -> Self {
        Self { door: Door::Watchers, ..Self::new(reach, allowed) }
    }

    fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
        if headers.get_all(HOST).iter().count() > 1 {
            return Err(ApiError::invalid("Host", "the header Host is there more than once"));
        }
        let host = host(headers, uri);
        let restricted = self.reach == Reach::Loopback || !self.allowed.is_empty();
        if restricted && !host.as_ref().is_some_and(|host| self.knows(host.host())) {
            let message = "the request names no host that this server answers to: its operator \
                           adds further ones with --allowed-hosts";
            return Err(ApiError::forbidden(message));
        }
        for origin in headers.get_all(ORIGIN) {
            let origin = origin.to_str().ok().and_then(authority_of_origin);
            let same = self.reach == Reach::Network && origin.is_some() && origin == host;
            if !same && !origin.is_some_and(|origin| self.knows(origin.host())) {
                let message = "requests from pages of another origin are not accepted";
                return Err(ApiError::forbidden(message));
            }
        }
        Ok(())
    }

    fn knows(&self, host: &str) -> bool {
        is_loopback(host)
            || self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
            || self.door == Door::Watchers && address(host).is_some()
    }
}

/// Whether a request to a loopback listener is from this machine, as far as it tells: it asks for a loopback name, and no proxy
/// says that it speaks for somebody.
pub(super) fn is_direct(headers: &HeaderMap, uri: &Uri) -> bool {
    let speaks_for = |name: &str| {
        ["forwarded", "x-real-ip", "via"].contains(&name) || name.starts_with("x-forwarded-")
    };
    host(headers, uri).is_some_and(|host| is_loopback(host.host()))
        && !headers.keys().any(|name| speaks_for(name.as_str()))
}

/// `localhost`, 127.0.0.0/8 or `[::1]`.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || address(host).is_some_and(|address| address.is_loopback())
}

/// The address that a host is, where it is no name.
fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The host that the request is for: in the request line where it is there, as a proxy's is, else in the header.
fn host(headers: &HeaderMap, uri: &Uri) -> Option<Authority> {
    if let Some(authority) = uri.authority() {
        return Some(authority.clone());
    }
    headers.get(HOST)?.to_str().ok().and_then(authority)
}

/// `SCHEME://HOST[:PORT]`; `null` and the like have no host.
fn authority_of_origin(origin: &str) -> Option<Authority> {
    origin.split_once("://").and_then(|(_, rest)| authority(rest))
}

/// A host with or without port, and nothing before it.
fn authority(text: &str) -> Option<Authority> {
    text.parse().ok().filter(|authority: &Authority| !authority.as_str().contains('@'))
}

/// Refuses what the guard does not let through, and tells the rest where it may come from.
pub(super) async fn layer(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    match guard.check(request.headers(), request.uri()) {
        Ok(()) => {
            request.extensions_mut().insert(guard.reach);
            request.extensions_mut().insert(guard.door);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(guard: &Guard, hosts: &[&str], origins: &[&str]) -> Result<(), ApiError> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        for origin in origins {
            headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        guard.check(&headers, &Uri::from_static("/v1/models"))
    }

    fn passes(guard: &Guard, hosts: &[&str], origin: Option<&str>) -> bool {
        check(guard, hosts, origin.as_slice()).is_ok()
    }

    #[test]
    fn a_loopback_listener_answers_to_loopback_names() {
        let guard = Guard::new(Reach::Loopback, vec![]);
        for host in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "127.1.2.3",
        ] {
            assert!(passes(&guard, &[host], None), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:8080",
            "127.0.0.1.evil.example",
            "evil@localhost",
            "localhost@evil.example",
            "0.0.0.0",
            "10.0.0.1:8080",
            "",
            "localhost/",
        ] {
            assert!(!passes(&guard, &[host], None), "{host}");
        }
        assert!(!passes(&guard, &[], None));
    }

    #[test]
    fn several_hosts_are_malformed_wherever_the_listener_is() {
        let open = Guard::new(Reach::Network, vec![]);
        for guard in [Guard::new(Reach::Loopback, vec![]), open] {
            for hosts in [["localhost", "evil.example"], ["localhost", "localhost"]] {
                let refusal = check(&guard, &hosts, &[]).unwrap_err().into_response();
                assert_eq!(refusal.status().as_u16(), 400);
            }
        }
    }

    #[test]
    fn every_origin_must_be_right() {
        let (own, foreign) = ("http://localhost:3000", "http://evil.example");
        let guard = Guard::new(Reach::Loopback, vec![]);
        assert!(check(&guard, &["localhost"], &[own, own]).is_ok());
        for origins in [[own, foreign], [foreign, own]] {
            assert!(check(&guard, &["localhost"], &origins).is_err());
        }
    }

    #[test]
    fn a_foreign_origin_is_refused() {
        let guard = Guard::new(Reach::Loopback, vec![]);
        for origin in ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"] {
            assert!(passes(&guard, &["localhost:8080"], Some(origin)), "{origin}");
        }
        for origin in
            ["http://evil.example", "null", "file://", "", "https://localhost.evil.example"]
        {
            assert!(!passes(&guard, &["localhost:8080"], Some(origin)), "{origin}");
        }
    }

    #[test]
    fn allowed_names_are_added() {
        let guard = Guard::new(Reach::Loopback, vec!["api.example.com".into()]);
        assert!(passes(&guard, &["API.example.com"], None));
        assert!(passes(&guard, &["api.example.com:443"], Some("https://api.example.com")));
        assert!(!passes(&guard, &["other.example.com"], None));
        let guard = Guard::new(Reach::Network, vec!["api.example.com".into()]);
        assert!(passes(&guard, &["api.example.com"], None));
        assert!(!passes(&guard, &["evil.example"], None));
    }

    #[test]
    fn on_the_network_only_the_origin_counts() {
        let guard = Guard::new(Reach::Network, vec![]);
        assert!(passes(&guard, &["anything.example"], None));
        assert!(passes(&guard, &["a.example:8080"], Some("http://a.example:8080")));
        assert!(!passes(&guard, &["a.example:8080"], Some("http://a.example:9090")));
        assert!(!passes(&guard, &["a.example"], Some("http://b.example")));
        assert!(!passes(&guard, &["a.example"], Some("null")));
        assert!(!passes(&guard, &[], Some("null")));
    }

    #[test]
    fn scrapers_ask_by_any_address_and_by_no_foreign_name() {
        let allowed = || vec!["api.example.com".to_owned()];
        for guard in [
            Guard::of_watchers(Reach::Loopback, vec![]),
            Guard::of_watchers(Reach::Network, allowed()),
        ] {
            for host in ["10.0.0.1:9090", "[fd00::1]:9090", "localhost:9090", "127.0.0.1"] {
                assert!(passes(&guard, &[host], None), "{host}");
            }
            assert!(!passes(&guard, &["evil.example"], None));
            assert!(!passes(&guard, &["10.0.0.1:9090"], Some("http://evil.example")));
        }
        let named = Guard::of_watchers(Reach::Network, allowed());
        assert!(passes(&named, &["api.example.com:9090"], None));
        let any = Guard::of_watchers(Reach::Network, vec![]);
        assert!(passes(&any, &["chorus.namespace.svc:9090"], None));
    }

    #[test]
    fn what_a_proxy_passes_on_is_told_from_what_is_asked_here() {
        let direct = |host: &str, more: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
            for name in more {
                headers.insert(*name, HeaderValue::from_static("203.0.113.7"));
            }
            is_direct(&headers, &Uri::from_static("/metrics"))
        };
        assert!(direct("localhost:8080", &[]) && direct("[::1]", &["x-request-id"]));
        assert!(!direct("api.example.com", &[]));
        for name in ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "via"] {
            assert!(!direct("127.0.0.1:8080", &[name]), "{name}");
        }
    }

    #[test]
    fn a_request_line_with_a_host_counts_before_the_header() {
        let guard = Guard::new(Reach::Loopback, vec![]);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        assert!(guard.check(&headers, &Uri::from_static("http://evil.example/v1/models")).is_err());
        assert!(
            guard.check(&headers, &Uri::from_static("http://localhost:8080/v1/models")).is_ok()
        );
    }
}
