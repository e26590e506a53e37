//! `GET /`: the console, a page for people.
//!
//! Its files are part of the binary, and it loads nothing from anywhere else. It says nothing about anybody, so it needs no key: what
//! it shows it asks of the routes that clients use, with the key that is typed into it. That key stays in the browser's tab.

use std::{array, sync::LazyLock};

use axum::{
    Router,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

use super::{app::App, openapi::Refusals};

/// Where the page is. A `POST` there is `LoRAX`'s.
pub(super) const PAGE: &str = "/";
/// What the page loads.
pub(super) const STYLE: &str = "/console/style.css";
pub(super) const SCRIPT: &str = "/console/console.js";
pub(super) const ICON: &str = "/console/icon.svg";

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// A file of the page.
#[derive(Clone, Copy, Debug)]
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const INDEX: File =
    File { path: PAGE, kind: "text/html; charset=utf-8", text: include_str!("console/index.html") };

/// All of them.
const FILES: [File; 4] = [
    INDEX,
    File { path: STYLE, kind: "text/css; charset=utf-8", text: include_str!("console/style.css") },
    File {
        path: SCRIPT,
        kind: "text/javascript; charset=utf-8",
        text: include_str!("console/console.js"),
    },
    File { path: ICON, kind: "image/svg+xml", text: include_str!("console/icon.svg") },
];

/// The entity tag of all files: each changes with any of them.
static TAG: LazyLock<HeaderValue> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for File { text, .. } in FILES {
        hash.update(text);
    }
    let digest = hash.finalize();
    let half = u128::from_be_bytes(array::from_fn(|at| digest[at]));
    HeaderValue::from_str(&format!("\"{half:032x}\"")).expect("digits may stand in a header")
});

/// A console, for people.
#[utoipa::path(
    get, path = "/", tag = "process", operation_id = "console",
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 304, description = "It is the one that `If-None-Match` names"),
        Refusals,
    )
)]
pub(super) async fn page(headers: HeaderMap) -> Response {
    INDEX.answer(&headers)
}

/// What the page loads.
pub(super) fn files() -> Router<App> {
    FILES.into_iter().filter(|file| file.path != PAGE).fold(Router::new(), |router, file| {
        router.route(file.path, get(async move |headers: HeaderMap| file.answer(&headers)))
    })
}

impl File {
    /// The file, or that the browser has it already. It asks each time: a page must fit the server that it came from.
    fn answer(self, headers: &HeaderMap) -> Response {
        let fixed = [
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-cache"),
        ];
        let tag = [(ETAG, TAG.clone())];
        if is_kept(headers) {
            return (StatusCode::NOT_MODIFIED, fixed, tag).into_response();
        }
        (fixed, tag, [(CONTENT_TYPE, self.kind)], self.text).into_response()
    }
}

/// Whether `If-None-Match` names what would be sent (RFC 9110, section 13.1.2).
fn is_kept(headers: &HeaderMap) -> bool {
    let tags = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let own = TAG.to_str().unwrap_or_default();
    tags.flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == own || tag == "*")
}
