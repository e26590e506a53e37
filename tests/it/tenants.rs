//! Tenants side by side: none sees, guesses or touches what is another's.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    uploads::{body, files, form, mini, question},
    world::{Server, shipped_adapters},
};

const CHAT: &str = "/v1/chat/completions";

/// Somebody with a key.
pub(crate) struct Holder<'a> {
    pub(crate) server: &'a Server,
    pub(crate) key: String,
}

impl Holder<'_> {
    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.server.url);
        self.server.client.request(method, url).bearer_auth(&self.key)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        body(self.ask(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, json: &Value) -> (u16, Value) {
        body(self.ask(Method::POST, path).json(json).send().await.unwrap()).await
    }

    pub(crate) async fn put(&self, name: &str, files: [Vec<u8>; 2]) -> (u16, Value) {
        let request = self.ask(Method::PUT, &format!("/v1/adapters/{name}"));
        body(request.multipart(form(files)).send().await.unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        body(self.ask(Method::DELETE, path).send().await.unwrap()).await
    }

    pub(crate) async fn new_key(&self, tenant: &str, scope: &str) -> (String, String) {
        let path = format!("/v1/admin/tenants/{tenant}/keys");
        let (status, key) = self.post(&path, &json!({ "scope": scope })).await;
        assert_eq!(status, 201, "{key}");
        let text = |field: &str| key[field].as_str().unwrap().to_owned();
        (text("key"), text("id"))
    }
}

/// Makes the first tenant as an operator does, and returns the operator.
pub(crate) async fn operator<'a>(server: &'a Server, first: &str) -> Holder<'a> {
    let nobody = Holder { server, key: "none".to_owned() };
    let (status, tenant) = nobody.post("/v1/admin/tenants", &json!({ "name": first })).await;
    assert_eq!(status, 201, "{tenant}");
    Holder { server, key: tenant["operator_key"].as_str().unwrap().to_owned() }
}

pub(crate) async fn tenant<'a>(operator: &Holder<'a>, name: &str) -> Holder<'a> {
    operator.post("/v1/admin/tenants", &json!({ "name": name })).await;
    Holder { server: operator.server, key: operator.new_key(name, "admin").await.0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_first_tenant_everybody_needs_a_key_and_each_key_has_its_scope() {
    let server = Server::start(&[]);
    assert!(server.plan.contains("no keys are asked for"), "{}", server.plan);
    assert_eq!(server.post(CHAT, &question("pirate", 2)).await.status(), 200);
    let operator = operator(&server, "acme").await;
    for path in ["/v1/models", "/v1/adapters", "/v1/admin/tenants", "/nowhere"] {
        for request in [
            server.client.get(format!("{}{path}", server.url)),
            server.client.get(format!("{}{path}", server.url)).bearer_auth("wrong"),
        ] {
            let (status, answer) = body(request.send().await.unwrap()).await;
            assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_api_key")));
        }
    }
    let answer = server.post(CHAT, &question("base", 2)).await;
    assert_eq!(answer.status(), 401);
    for path in ["/health", "/ready", "/version", "/metrics"] {
        let response = server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    // Who has used what is the operator's, and behind a proxy all of it.
    let metrics = async |key: &str, host: &str| {
        let request = server.client.get(format!("{}/metrics", server.url)).bearer_auth(key);
        let response = request.header("x-forwarded-host", host).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let plain = server.client.get(format!("{}/metrics", server.url)).send().await.unwrap();
    let plain = plain.text().await.unwrap();
    assert!(plain.contains("chorus_steps_total") && !plain.contains("pirate"), "{plain}");
    assert_eq!(metrics("wrong", "api.example.com").await.0, 401);
    let (status, all) = metrics(&operator.key, "api.example.com").await;
    assert!(status == 200 && all.contains("adapter=\"pirate\""), "{all}");
    // The operator's key is no tenant's.
    assert_eq!(operator.post(CHAT, &question("base", 2)).await.0, 403);
    let key = async |scope: &str| Holder {
        server: &server,
        key: operator.new_key("acme", scope).await.0,
    };
    let (infer, upload, admin) = (key("infer").await, key("upload").await, key("admin").await);
    for holder in [&infer, &upload, &admin] {
        assert_eq!(holder.post(CHAT, &question("base", 2)).await.0, 200);
        assert_eq!(holder.get("/v1/adapters").await.0, 200);
        let (status, answer) = holder.get("/v1/admin/tenants").await;
        assert_eq!((status, &answer["error"]["code"]), (403, &json!("insufficient_scope")));
    }
    assert_eq!(infer.put("a", mini(1)).await.0, 403);
    assert_eq!(upload.put("a", mini(1)).await.0, 201);
    let config = "/v1/adapters/a/files/adapter_config.json";
    assert_eq!(infer.get(config).await.0, 403);
    assert_eq!(upload.get(config).await.0, 200);
    assert_eq!(upload.delete("/v1/adapters/a").await.0, 403);
    assert_eq!(upload.post("/v1/adapters/a/pin", &json!({})).await.0, 403);
    assert_eq!(admin.post("/v1/adapters/a/pin", &json!({})).await.0, 200);
    assert_eq!(admin.delete("/v1/adapters/a").await.0, 200);
    // Revoked at once; a key that is none any more and one that never was are answered alike.
    let (secret, id) = operator.new_key("acme", "infer").await;
    let short = Holder { server: &server, key: secret };
    assert_eq!(short.post(CHAT, &question("base", 2)).await.0, 200);
    let (status, shown) = operator.delete(&format!("/v1/admin/tenants/acme/keys/{id}")).await;
    assert_eq!(status, 200);
    assert!(!shown.to_string().contains(&short.key));
    let wrong = Holder { server: &server, key: "wrong".to_owned() };
    assert_eq!(short.get("/v1/models").await, wrong.get("/v1/models").await);
    assert_eq!(short.get("/v1/models").await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_reaches_what_is_anothers() {
    let server = Server::start(&[]);
    let operator = operator(&server, "t0").await;
    let mut tenants = Vec::new();
    for number in 0..4u32 {
        let holder = tenant(&operator, &format!("t{number}")).await;
        // One name that all have, and one that only this tenant has.
        for name in ["shared".to_owned(), format!("own{number}")] {
            let (status, answer) = holder.put(&name, mini(10 + number)).await;
            assert_eq!(status, 201, "{answer}");
        }
        tenants.push(holder);
    }
    for (at, holder) in tenants.iter().enumerate() {
        let (_, listed) = holder.get("/v1/models").await;
        let listed: Vec<_> = listed["data"].as_array().unwrap().iter().collect();
        let names: Vec<_> = listed.iter().map(|model| model["id"].as_str().unwrap()).collect();
        assert_eq!(names, ["smollm2-135m-instruct", &format!("own{at}"), "shared"]);
        assert_eq!(listed[1]["owned_by"], format!("t{at}"));
        let (_, own) = holder.get("/v1/adapters/shared").await;
        for other in (0..4).filter(|other| *other != at) {
            let (_, theirs) = tenants[other].get("/v1/adapters/shared").await;
            assert_ne!(own["digest"], theirs["digest"]);
            // Not by name, version, digest, base and name, or the folder's names, which are the default tenant's.
            let digest = theirs["digest"].as_str().unwrap();
            for (foreign, unknown) in [
                (format!("own{other}"), "xxx9".to_owned()),
                (format!("own{other}@v1"), "xxx9@v1".to_owned()),
                (format!("shared@{digest}"), format!("shared@sha256:{}", "0".repeat(64))),
                (
                    format!("smollm2-135m-instruct:own{other}"),
                    "smollm2-135m-instruct:xxx9".to_owned(),
                ),
                ("pirate".to_owned(), "xxxxxx".to_owned()),
            ] {
                same_refusal(holder, (&foreign, &unknown)).await;
            }
            let path = |name: &str| format!("/v1/adapters/{name}");
            for (method, end) in [
                (Method::GET, ""),
                (Method::DELETE, ""),
                (Method::POST, "/pin"),
                (Method::POST, "/prefetch"),
                (Method::GET, "/files/adapter_config.json"),
            ] {
                let mut answers = Vec::new();
                for name in [format!("own{other}"), "xxx9".to_owned()] {
                    let request = holder.ask(method.clone(), &(path(&name) + end));
                    let (status, answer) = body(request.send().await.unwrap()).await;
                    assert_eq!(status, 404, "{answer}");
                    answers.push(answer.to_string().replace(&name, "NAME"));
                }
                assert_eq!(answers[0], answers[1]);
            }
        }
    }
    for (at, holder) in tenants.iter().enumerate() {
        assert_eq!(holder.post(CHAT, &question(&format!("own{at}"), 2)).await.0, 200);
    }
}

/// A foreign name and an unknown one get the same bytes, by header and by model.
async fn same_refusal(holder: &Holder<'_>, (foreign, unknown): (&str, &str)) {
    let mut answers = Vec::new();
    for name in [foreign, unknown] {
        let by_model = holder.ask(Method::POST, CHAT).json(&question(name, 2));
        let mut named = question("base", 2);
        named.as_object_mut().unwrap().remove("model");
        let by_header = holder.ask(Method::POST, CHAT).json(&named).header("x-adapter", name);
        for request in [by_model, by_header] {
            let (status, answer) = body(request.send().await.unwrap()).await;
            assert_eq!(
                (status, &answer["error"]["code"]),
                (404, &json!("model_not_found")),
                "{answer}"
            );
            answers.push(answer.to_string().replace(name, "NAME"));
        }
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_share_bytes_and_nothing_that_tells_of_it() {
    let server = Server::start(&[]);
    let operator = operator(&server, "one").await;
    let (one, two) = (tenant(&operator, "one").await, tenant(&operator, "two").await);
    let pirate = files(&shipped_adapters().join("pirate"));
    let (status, first) = one.put("mine", pirate.clone()).await;
    let (again, second) = two.put("theirs", pirate.clone()).await;
    assert_eq!((status, again), (201, 201), "the second is new to its tenant");
    assert_eq!(first["digest"], second["digest"]);
    let long = "The order came late, the box was open, and nobody answered. ".repeat(8);
    let ask = json!({
        "messages": [{"role": "user", "content": long}], "max_tokens": 8, "temperature": 0,
    });
    let said = async |holder: &Holder<'_>, model: &str| {
        let mut ask = ask.clone();
        ask["model"] = model.into();
        let (status, answer) = holder.post(CHAT, &ask).await;
        assert_eq!(status, 200, "{answer}");
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (answer["choices"][0]["message"]["content"].clone(), cached)
    };
    let (text, none) = said(&one, "mine").await;
    assert_eq!(none, 0);
    let (same, own) = said(&one, "mine").await;
    assert!(own > 0 && same == text);
    let (same, foreign) = said(&two, "theirs").await;
    assert_eq!((same, foreign), (text, 0), "what one has computed tells the other nothing");
    assert_eq!(one.delete("/v1/adapters/mine").await.0, 200);
    assert_eq!(said(&two, "theirs").await.1, own, "one's deletion takes nothing from the other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_is_what_the_operator_has_chosen() {
    let server = Server::start(&[]);
    let operator = operator(&server, "acme").await;
    let acme = tenant(&operator, "acme").await;
    assert_eq!(acme.put("a", mini(1)).await.0, 201);
    let from = async || {
        let request = acme.ask(Method::POST, CHAT).json(&question("default", 2));
        let response = request.send().await.unwrap();
        let header = response.headers().get("x-chorus-adapter").cloned();
        header.map(|header| header.to_str().unwrap().split(';').next().unwrap().to_owned())
    };
    assert_eq!(from().await.as_deref(), Some("base"));
    let set = |adapter: Value| json!({ "adapter": adapter });
    let path = "/v1/admin/tenants/acme/default";
    assert_eq!(operator.post(path, &set(json!("a"))).await.0, 200);
    assert_eq!(from().await.as_deref(), Some("a@v1"));
    assert_eq!(acme.delete("/v1/adapters/a").await.0, 200);
    assert_eq!(acme.post(CHAT, &question("default", 2)).await.0, 404, "not the base instead");
    assert_eq!(operator.post(path, &set(Value::Null)).await.0, 200);
    assert_eq!(from().await.as_deref(), Some("base"));
    assert_eq!(operator.post(path, &set(json!("../a"))).await.0, 400);
}

/// The bytes of an upload's form, to be sent by hand.
fn form_bytes([config, weights]: [Vec<u8>; 2]) -> Vec<u8> {
    let part = |name: &str, bytes: &[u8]| {
        let head = format!(
            "--x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n"
        );
        [head.as_bytes(), bytes, b"\r\n"].concat()
    };
    let (config, weights) =
        (part("adapter_config.json", &config), part("adapter_model.safetensors", &weights));
    [config, weights, b"--x--\r\n".to_vec()].concat()
}

/// A key that ends while an upload is under way ends the upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_under_a_key_that_is_revoked_meanwhile_is_not_kept() {
    let server = Server::start(&[]);
    let operator = operator(&server, "acme").await;
    let (secret, id) = operator.new_key("acme", "upload").await;
    let holder = Holder { server: &server, key: secret };
    let bytes = form_bytes(mini(1));
    let half = bytes.len() / 2;
    let (first, second) = (bytes[..half].to_vec(), bytes[half..].to_vec());
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let pieces = futures_util::stream::unfold((Some(first), Some((wait, second))), |state| async {
        match state {
            (Some(first), rest) => Some((Ok::<_, std::io::Error>(first), (None, rest))),
            (None, Some((wait, second))) => {
                wait.await.unwrap();
                Some((Ok(second), (None, None)))
            }
            (None, None) => None,
        }
    });
    let request = holder.ask(Method::PUT, "/v1/adapters/a");
    let request = request.header("content-type", "multipart/form-data; boundary=x");
    let upload = tokio::spawn(request.body(reqwest::Body::wrap_stream(pieces)).send());
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(operator.delete(&format!("/v1/admin/tenants/acme/keys/{id}")).await.0, 200);
    go.send(()).unwrap();
    assert_eq!(upload.await.unwrap().unwrap().status(), 401);
    let other = Holder { server: &server, key: operator.new_key("acme", "infer").await.0 };
    assert_eq!(other.get("/v1/adapters/a").await.0, 404);
}

/// Eight slow senders of one tenant once kept everybody else from uploading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenants_slow_uploads_keep_nobody_else_from_uploading() {
    let server = Server::start(&[]);
    let operator = operator(&server, "slow").await;
    let (slow, other) = (tenant(&operator, "slow").await, tenant(&operator, "other").await);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let pieces = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let request = slow.ask(Method::PUT, "/v1/adapters/a");
        let request = request.header("content-type", "multipart/form-data; boundary=x");
        waiting.push(tokio::spawn(request.body(reqwest::Body::wrap_stream(pieces)).send()));
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(slow.put("b", mini(1)).await.0, 503);
    assert_eq!(other.put("b", mini(1)).await.0, 201);
    for upload in waiting {
        upload.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_are_a_tenants_own_and_say_when_to_come_back() {
    let server = Server::start(&[]);
    let operator = operator(&server, "small").await;
    let (small, other) = (tenant(&operator, "small").await, tenant(&operator, "other").await);
    let set = async |quota: Value| {
        assert_eq!(operator.post("/v1/admin/tenants/small/quota", &quota).await.0, 200);
    };
    let ask = async |holder: &Holder<'_>, tokens: usize| {
        let request = holder.ask(Method::POST, CHAT).json(&question("base", tokens));
        request.send().await.unwrap()
    };
    set(json!({"requests_per_minute": 2})).await;
    let first = ask(&small, 1).await;
    assert_eq!(
        (first.status().as_u16(), &first.headers()["x-ratelimit-remaining-requests"]),
        (200, &"1".parse().unwrap())
    );
    assert_eq!(first.headers()["x-ratelimit-limit-requests"], "2");
    assert_eq!(ask(&small, 1).await.status(), 200);
    let over = ask(&small, 1).await;
    let wait: u64 = over.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((20..=30).contains(&wait), "{wait}");
    assert_eq!(over.headers()["x-ratelimit-limit-requests"], "2");
    assert_eq!(over.headers()["x-ratelimit-remaining-requests"], "0");
    assert!(over.headers().contains_key("x-ratelimit-reset-requests"));
    let (status, answer) = body(over).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(answer["error"]["type"], "requests");
    assert_eq!(small.post("/tokenize", &json!({"model": "base", "prompt": "a"})).await.0, 429);
    assert_eq!(ask(&other, 1).await.status(), 200, "others are not concerned");
    assert!(ask(&other, 1).await.headers().get("x-ratelimit-limit-requests").is_none());

    set(json!({"tokens_per_minute": 60})).await;
    assert_eq!(ask(&small, 30).await.status(), 200, "what an answer costs is known at its end");
    let (status, answer) = body(ask(&small, 1).await).await;
    assert_eq!((status, &answer["error"]["type"]), (429, &json!("tokens")));
    set(json!({"tokens_per_minute": 1_000_000})).await;
    assert_eq!(
        ask(&small, 1).await.status(),
        200,
        "who owes some tokens pays them at the new rate"
    );

    set(json!({"concurrent": 1})).await;
    let mut long = question("base", 400);
    long["stream"] = true.into();
    long["ignore_eos"] = true.into();
    let stream = small.ask(Method::POST, CHAT).json(&long).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    assert_eq!(ask(&small, 1).await.status(), 429);
    drop(stream);
    let begun = std::time::Instant::now();
    while ask(&small, 1).await.status() != 200 {
        assert!(begun.elapsed().as_secs() < 5, "who leaves gives the place back");
    }

    set(json!({"adapters": 1, "stored_bytes": 100_000})).await;
    assert_eq!(small.put("a", mini(1)).await.0, 201);
    let (status, answer) = small.put("b", mini(2)).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("insufficient_quota")), "{answer}");
    assert_eq!(small.put("a", mini(2)).await.0, 201);
    assert_eq!(small.put("a", mini(3)).await.0, 201);
    let (status, answer) = small.put("a", mini(4)).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("insufficient_quota")), "{answer}");
    assert_eq!(small.delete("/v1/adapters/a?version=1").await.0, 200);
    assert_eq!(small.put("a", mini(4)).await.0, 201);
    let unknown = json!({"requests_per_second": 1});
    assert_eq!(operator.post("/v1/admin/tenants/small/quota", &unknown).await.0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_nothing_says_so_and_not_when_to_come_back() {
    let server = Server::start(&[]);
    let operator = operator(&server, "small").await;
    let small = tenant(&operator, "small").await;
    for none in ["requests_per_minute", "tokens_per_minute", "concurrent"] {
        let quota = json!({ none: 0 });
        assert_eq!(operator.post("/v1/admin/tenants/small/quota", &quota).await.0, 200);
        let request = small.ask(Method::POST, CHAT).json(&question("base", 1));
        let refused = request.send().await.unwrap();
        assert!(!refused.headers().contains_key("retry-after"), "{none}");
        assert_eq!(refused.headers()["x-should-retry"], "false");
        let (status, answer) = body(refused).await;
        assert_eq!((status, &answer["error"]["code"]), (429, &json!("insufficient_quota")));
        assert!(answer.to_string().contains("quota allows no"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_memory_is_a_tenants_own_and_says_what_is_used_up() {
    let server = Server::start(&["--adapter-wait", "1s"]);
    let operator = operator(&server, "small").await;
    let (small, other) = (tenant(&operator, "small").await, tenant(&operator, "other").await);
    let set = async |quota: Value| operator.post("/v1/admin/tenants/small/quota", &quota).await;
    for holder in [&small, &other] {
        for (name, number) in [("a", 1), ("b", 2)] {
            assert_eq!(holder.put(name, mini(number)).await.0, 201);
        }
    }
    let residency = async |holder: &Holder<'_>| {
        let (_, listed) = holder.get("/v1/adapters").await;
        [0, 1].map(|at| listed["data"][at]["residency"].as_str().unwrap().to_owned())
    };
    let ask = async |holder: &Holder<'_>, name: &str| {
        let request = holder.ask(Method::POST, CHAT).json(&question(name, 1));
        request.send().await.unwrap()
    };
    let memory = small.get("/v1/adapters/a").await.1["memory"].as_u64().unwrap();
    assert_eq!(set(json!({ "resident_max_bytes": memory })).await.0, 200);
    for name in ["a", "b"] {
        assert_eq!(ask(&other, name).await.status(), 200);
        assert_eq!(residency(&small).await, ["disk", "disk"], "what others use is not told");
    }
    for (name, tiers) in [("a", ["host", "disk"]), ("b", ["disk", "host"])] {
        assert_eq!(ask(&small, name).await.status(), 200);
        assert_eq!(residency(&small).await, tiers);
    }
    assert_eq!(residency(&other).await, ["host", "host"], "others are not concerned");
    let host = server.metric("chorus_adapter_tier_adapters{tier=\"host\"}").await;
    assert!((host - 2.0).abs() < 0.1, "two tenants, and one copy of each");

    let mut long = question("b", 1000);
    long["stream"] = true.into();
    long["ignore_eos"] = true.into();
    let stream = small.ask(Method::POST, CHAT).json(&long).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let held = ask(&small, "a").await;
    assert_eq!(
        (held.status().as_u16(), &held.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    let (_, answer) = body(held).await;
    assert_eq!(answer["error"]["code"], "rate_limit_exceeded");
    assert!(answer.to_string().contains("resident_max_bytes"), "{answer}");
    assert_eq!(ask(&other, "a").await.status(), 200);
    drop(stream);
    let begun = std::time::Instant::now();
    while ask(&small, "a").await.status() != 200 {
        assert!(begun.elapsed().as_secs() < 5, "who leaves gives its memory back");
    }

    assert_eq!(set(json!({ "resident_max_bytes": memory - 1 })).await.0, 200);
    let (status, answer) = body(ask(&small, "a").await).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("insufficient_quota")), "{answer}");
    let (status, answer) = set(json!({ "resident_min_bytes": 9, "resident_max_bytes": 8 })).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("resident_min_bytes")));
    let (status, shown) = set(json!({ "resident_min_bytes": 8 })).await;
    assert_eq!((status, &shown["quota"]["resident_min_bytes"]), (200, &json!(8)));
    assert_eq!(shown["quota"]["resident_max_bytes"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_beyond_the_rate_are_refused_before_they_are_received() {
    let server = Server::start(&[]);
    let operator = operator(&server, "small").await;
    let (small, other) = (tenant(&operator, "small").await, tenant(&operator, "other").await);
    let quota = json!({ "uploads_per_minute": 2 });
    assert_eq!(operator.post("/v1/admin/tenants/small/quota", &quota).await.0, 200);
    for left in ["1", "0"] {
        let request = small.ask(Method::PUT, "/v1/adapters/a").multipart(form(mini(1)));
        let kept = request.send().await.unwrap();
        assert!(kept.status().is_success());
        assert_eq!(kept.headers()["x-ratelimit-limit-uploads"], "2");
        assert_eq!(kept.headers()["x-ratelimit-remaining-uploads"], left);
    }
    // Of this one nothing ever comes.
    let pieces = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let request = small.ask(Method::PUT, "/v1/adapters/a").header("expect", "100-continue");
    let request = request.header("content-type", "multipart/form-data; boundary=x");
    let request = request.body(reqwest::Body::wrap_stream(pieces)).send();
    let over = tokio::time::timeout(std::time::Duration::from_secs(5), request).await;
    let over = over.expect("it is not waited for").unwrap();
    let wait: u64 = over.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((20..=30).contains(&wait), "{wait}");
    let head = over.headers().clone();
    let (status, answer) = body(over).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(answer.to_string().contains("2 uploads per minute"), "{answer}");
    assert_eq!(head["x-ratelimit-limit-uploads"], "2");
    assert_eq!(head["x-ratelimit-remaining-uploads"], "0");
    assert_eq!(other.put("a", mini(1)).await.0, 201);
}

/// Runs a command on a server, by a key; whether it did its work, and what it printed.
fn run(server: &Server, words: &[&str], key: Option<&str>) -> (bool, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_chorus"));
    command.args(words).env("CHORUS_URL", &server.url);
    command.env_remove("CHORUS_OPERATOR_KEY").env_remove("CHORUS_KEY");
    if let Some(key) = key {
        command.env("CHORUS_OPERATOR_KEY", key).env("CHORUS_KEY", key);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.success(), text)
}

/// The key that a command has printed.
fn key_in(text: &str) -> String {
    let key = text.lines().find(|line| line.starts_with("chorus-"));
    key.unwrap_or_else(|| panic!("no key in {text}")).to_owned()
}

#[test]
fn a_key_that_has_expired_is_not_rotated_and_the_operators_old_one_ends() {
    let server = Server::start(&[]);
    let run = |words: &[&str], key: Option<&str>| run(&server, words, key);
    let operator = key_in(&run(&["tenant", "create", "acme"], None).1);
    let new = ["tenant", "key", "new", "acme", "--expires", "5s"];
    let (success, text) = run(&new, Some(&operator));
    assert!(success, "{text}");
    let id = text.split("its id is ").nth(1).unwrap().trim().trim_end_matches('.').to_owned();
    let short = key_in(&text);
    let begun = std::time::Instant::now();
    while run(&["adapter", "list"], Some(&short)).0 {
        assert!(begun.elapsed().as_secs() < 60, "the key expires");
    }
    let (success, text) = run(&["tenant", "key", "rotate", "acme", &id], Some(&operator));
    assert!(!success && text.contains("has expired: make a new one"), "{text}");
    // This server was given no operator's key in its environment.
    let (success, text) = run(&["tenant", "operator-key"], Some(&operator));
    assert!(success && !text.contains("still counts"), "{text}");
    assert!(run(&["tenant", "list"], Some(&key_in(&text))).0);
    assert!(!run(&["tenant", "list"], Some(&operator)).0);
}

#[test]
fn the_command_line_makes_tenants_and_keys() {
    let server = Server::start(&[]);
    let run = |words: &[&str], key: Option<&str>| run(&server, words, key);
    let (success, text) = run(&["tenant", "create", "acme"], None);
    assert!(success && text.contains("every request needs a key"), "{text}");
    let operator = key_in(&text);
    let (success, text) = run(&["tenant", "list"], None);
    assert!(!success && text.contains("401") && text.lines().count() == 1, "{text}");
    let (success, text) =
        run(&["tenant", "key", "new", "acme", "--scope", "upload"], Some(&operator));
    assert!(success, "{text}");
    let key = key_in(&text);
    let folder = shipped_adapters().join("pirate");
    let (success, text) = run(&["adapter", "push", "p", folder.to_str().unwrap()], Some(&key));
    assert!(success && text.contains("active"), "{text}");
    let (success, text) = run(&["adapter", "list"], None);
    assert!(!success && text.contains("invalid_api_key"), "{text}");
    let (success, text) = run(&["tenant", "show", "acme"], Some(&operator));
    assert!(success && text.contains("upload") && !text.contains(&key), "{text}");
    let id = text.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let (success, text) = run(&["tenant", "key", "rotate", "acme", &id], Some(&operator));
    assert!(success, "{text}");
    let new = key_in(&text);
    assert!(!run(&["adapter", "list"], Some(&key)).0);
    assert!(run(&["adapter", "list"], Some(&new)).0);
    let (success, text) = run(&["tenant", "quota", "acme", "--adapters", "5"], Some(&operator));
    assert!(success && text.contains("at most 5 adapters"), "{text}");
    let (success, text) =
        run(&["tenant", "quota", "acme", "--stored-bytes", "1MiB"], Some(&operator));
    assert!(success && text.contains("5 adapters") && text.contains("1048576 stored"), "{text}");
    let memory = ["--resident-min-bytes", "1MiB", "--resident-max-bytes", "2MiB"];
    let rate = ["--uploads-per-minute", "3"];
    let words = [&["tenant", "quota", "acme"][..], &memory, &rate].concat();
    let (success, text) = run(&words, Some(&operator));
    for bound in ["keeps 1048576 bytes of", "at most 2097152 bytes of", "3 uploads per minute"] {
        assert!(success && text.contains(bound), "{text}");
    }
    let (success, text) = run(&["tenant", "quota", "acme"], Some(&operator));
    assert!(success && text.contains("3 uploads per minute"), "it shows what there is: {text}");
    let (success, text) = run(&["tenant", "quota", "acme", "--none"], Some(&operator));
    assert!(success && !text.contains("at most") && text.contains("without any bound"), "{text}");
    let (success, text) = run(&["tenant", "default", "acme", "p"], Some(&operator));
    assert!(success && text.contains("default adapter p"), "{text}");
    let (success, text) = run(&["tenant", "create", "acme"], Some(&operator));
    assert!(!success && text.contains("tenant_exists"), "{text}");
    let (success, text) = run(&["tenant", "key", "revoke", "acme", "ffffffff"], Some(&operator));
    assert!(!success && text.contains("key_not_found"), "{text}");
    let (success, text) =
        run(&["tenant", "key", "new", "acme", "--expires", "30d"], Some(&operator));
    assert!(success, "{text}");
    assert!(run(&["tenant", "show", "acme"], Some(&operator)).1.contains("expires at"));
}
