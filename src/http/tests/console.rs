//! The page for people: that it is there, for everybody, and brings nothing in.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS,
};

use super::{
    super::{
        console::{ICON, PAGE, SCRIPT, STYLE},
        double::app,
    },
    *,
};
use crate::tenant::TenantName;

const FILES: [(&str, &str); 4] = [
    (PAGE, "text/html; charset=utf-8"),
    (STYLE, "text/css; charset=utf-8"),
    (SCRIPT, "text/javascript; charset=utf-8"),
    (ICON, "image/svg+xml"),
];

fn request(method: &str, path: &str, host: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).header(HOST, host).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn the_page_is_served_and_may_load_nothing_else() {
    let (app, _) = app([]);
    for (path, kind) in FILES {
        let response = get(&app, path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let headers = response.headers().clone();
        assert_eq!(headers[CONTENT_TYPE], kind);
        assert!(
            headers[CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'self';")
        );
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[CACHE_CONTROL], "no-cache");
        let served = text(response).await;
        assert!(!served.is_empty());
        let head = send(&app, request("HEAD", path, "localhost")).await;
        assert_eq!(
            (head.status(), &head.headers()[CONTENT_TYPE]),
            (StatusCode::OK, &headers[CONTENT_TYPE])
        );
        assert_eq!(text(head).await, "");
        // What the browser has is not sent again.
        let tag = headers[ETAG].to_str().unwrap();
        for (tag, status) in [(tag, 304), ("\"x\"", 200)] {
            let again = with_header(request("GET", path, "localhost"), "if-none-match", tag);
            let again = send(&app, again).await;
            assert_eq!((again.status().as_u16(), &again.headers()[ETAG]), (status, &headers[ETAG]));
            assert_eq!(text(again).await.is_empty(), status == 304);
        }
    }
}

#[tokio::test]
async fn the_page_brings_neither_markup_of_others_nor_their_addresses() {
    let (app, _) = app([]);
    for (path, _) in FILES {
        let served = text(get(&app, path).await).await;
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!served.contains(word), "{path}: {word}");
        }
        let own = served.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains("http://") && !own.contains("https://"), "{path}");
    }
    let page = text(get(&app, PAGE).await).await;
    for inline in
        ["style=", "<style", "<script>", "javascript:", "onclick=", "onload=", "onsubmit="]
    {
        assert!(!page.contains(inline), "{inline}");
    }
}

#[tokio::test]
async fn the_page_needs_no_key_and_what_it_asks_does() {
    let (app, _) = app([]);
    app.tenants().create("me", &TenantName::parse("acme").unwrap()).await.unwrap();
    for (path, _) in FILES {
        for method in ["GET", "HEAD"] {
            let status = send(&app, request(method, path, "localhost")).await.status();
            assert_eq!(status, StatusCode::OK, "{method} {path}");
        }
    }
    for path in ["/v1/adapters", "/v1/models", "/v1/admin/tenants", "/console", "/console/other"] {
        assert_eq!(get(&app, path).await.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    // LoRAX's route at the same path is as closed as it was, and so is what is at none.
    assert_eq!(ask(&app, PAGE, json!({"inputs": "hi"})).await.0, 401);
    for method in ["PUT", "DELETE"] {
        let status = send(&app, request(method, PAGE, "localhost")).await.status();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method}");
    }
}

#[tokio::test]
async fn what_is_posted_to_the_page_is_for_lorax() {
    let (app, _) = app([super::super::double::Play::say("abc")]);
    let (status, answer) = ask(&app, PAGE, json!({"inputs": "hi"})).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.to_string().contains("generated_text"), "{answer}");
    let (status, refusal) = ask(&app, PAGE, json!({})).await;
    assert!((400..500).contains(&status) && refusal["error_type"].is_string(), "{refusal}");
}

#[tokio::test]
async fn the_page_is_not_served_under_foreign_names() {
    let (app, _) = app([]);
    for (path, _) in FILES {
        let status = send(&app, request("GET", path, "evil.example")).await.status();
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
    }
}
