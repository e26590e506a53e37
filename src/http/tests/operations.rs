//! Models, tokens, numbers: all that generates nothing.

use super::{
    super::{
        app::Settings,
        double::{self, Play, app, app_on, ids},
    },
    *,
};
use crate::{
    store::{Log, Store},
    tenant::{Key, Scope, TenantName},
};

#[tokio::test]
async fn models_are_listed_by_content() {
    let (app, _) = app([]);
    let list = body(get(&app, "/v1/models").await).await;
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["org/tiny", "law", "sql"]);
    assert_eq!(list["data"][0]["parent"], Value::Null);
    assert_eq!(list["data"][1]["parent"], "org/tiny");
    for model in list["data"].as_array().unwrap() {
        assert!(model["root"].as_str().unwrap().starts_with("sha256:"));
        assert_eq!(model["max_model_len"], double::CONTEXT);
    }
    for id in
        ["org/tiny", "org%2Ftiny", "base", "sql", "sql@v1", "org/tiny:sql", "org%2Ftiny%3Asql%40v1"]
    {
        let response = get(&app, &format!("/v1/models/{id}")).await;
        assert_eq!(response.status(), StatusCode::OK, "{id}");
    }
    let shown = body(get(&app, "/v1/models/sql").await).await;
    assert_eq!(shown, list["data"][2]);
    for id in ["nobody", "sql@v2", "%ff", "org/other"] {
        let response = get(&app, &format!("/v1/models/{id}")).await;
        assert!(response.status().is_client_error(), "{id}");
        assert!(body(response).await["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn an_adapter_is_not_shown_at_a_version_that_was_asked_for_in_vain() {
    let (app, _) = app([]);
    let shown = body(get(&app, "/v1/adapters/sql").await).await;
    assert_eq!((&shown["version"], &shown["status"]), (&json!(1), &json!("active")), "{shown}");
    for (query, named) in [("version=1", "version"), ("x", "`x`")] {
        let response = get(&app, &format!("/v1/adapters/sql?{query}")).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
        let message = body(response).await["error"]["message"].to_string();
        assert!(message.contains(named), "{message}");
    }
    let list = body(get(&app, "/v1/adapters").await).await;
    assert_eq!(list["tenant"], "default", "whose they are");
}

#[tokio::test]
async fn a_new_operators_key_says_whether_the_server_was_given_another() {
    let (app, _) = app([]);
    let made = ask(&app, "/v1/admin/tenants", json!({"name": "acme"})).await.1;
    let key = format!("Bearer {}", made["operator_key"].as_str().unwrap());
    let request = post("/v1/admin/operator-key", &json!({}));
    let response = send(&app, with_header(request, "authorization", &key)).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(body(response).await["environment_key"], false);
}

#[tokio::test]
async fn texts_are_tokenized_and_back() {
    let (app, _) = app([]);
    let (_, tokens) = ask(&app, "/tokenize", json!({"prompt": "hi<|end|>"})).await;
    assert_eq!(tokens, json!({"count": 3, "max_model_len": 100, "tokens": [104, 105, 256]}));
    let (_, chat) =
        ask(&app, "/tokenize", json!({"messages": [{"role": "user", "content": "a"}]})).await;
    assert_eq!(chat["tokens"], json!(ids("user:a\nassistant:")));
    let (_, text) = ask(&app, "/detokenize", json!({"tokens": [104, 105, 256]})).await;
    assert_eq!(text, json!({"prompt": "hi<|end|>"}));
    assert_eq!(ask(&app, "/detokenize", json!({"tokens": [9999]})).await.0, 400);
    assert_eq!(ask(&app, "/detokenize", json!([[104]])).await.0, 400);
    assert_eq!(ask(&app, "/tokenize", json!({})).await.0, 400);
    // What chats refuse would change the tokens here.
    let tools = json!({"messages": [{"role": "user", "content": "a"}], "tools": [{}]});
    assert_eq!(ask(&app, "/tokenize", tools).await.0, 400);
    // What a completion's body has besides changes no token.
    let body = json!({"prompt": "a", "echo": true, "best_of": 1, "suffix": "x"});
    assert_eq!(ask(&app, "/tokenize", body).await.0, 200);
    let (status, long) = ask(&app, "/tokenize", json!({"prompt": "x".repeat(20_000)})).await;
    assert_eq!((status, &long["count"]), (200, &json!(20_000)));
}

#[tokio::test]
async fn tokens_are_not_made_for_an_unknown_name() {
    let (app, _) = app([]);
    for (path, request) in
        [("/tokenize", json!({"prompt": "a"})), ("/detokenize", json!({"tokens": [97]}))]
    {
        for (header, model, status) in [
            (None, json!("sql"), 200),
            (None, json!("org/tiny"), 200),
            (None, Value::Null, 200),
            (None, json!("nobody"), 404),
            (Some("sql"), Value::Null, 200),
            (Some("nobody"), Value::Null, 404),
            (Some("sql"), json!("nobody"), 404),
            (Some("sql"), json!("law"), 400),
        ] {
            let mut request = post(path, &merge(request.clone(), json!({"model": model})));
            if let Some(header) = header {
                request = with_header(request, "x-adapter", header);
            }
            let response = send(&app, request).await;
            assert_eq!(response.status().as_u16(), status, "{path}: {header:?}, {model}");
        }
    }
}

#[tokio::test]
async fn an_outdated_server_takes_nothing() {
    for log in ["adapters", "tenants"] {
        let (store, _) = Store::faulty();
        let plays = [Play::say("abc")];
        let (app, _) = app_on(store.clone(), double::text(), plays, Settings::default());
        assert_eq!(get(&app, "/ready").await.status(), StatusCode::OK);
        let (mut records, _) = Log::<Value>::open(&store, log).await.unwrap();
        records.append(json!("of a newer release")).await.unwrap();
        app.adapters().refresh().await.ok();
        app.tenants().refresh().await.ok();
        let ready = get(&app, "/ready").await;
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE, "{log}");
        assert_eq!(error_code(&body(ready).await), "outdated_server");
        let (status, answer) = ask(&app, CHAT, chat(json!({"model": "sql"}))).await;
        assert_eq!((status, error_code(&answer)), (503, "outdated_server"), "{log}");
        assert_eq!(get(&app, "/health").await.status(), StatusCode::OK);
        // What changes things must read on to the end of the log.
        if log == "adapters" {
            let change = json!({"version": 1});
            let (status, answer) = ask(&app, "/v1/adapters/sql/activate", change).await;
            assert_eq!((status, error_code(&answer)), (503, "outdated_server"));
        } else {
            let (status, answer) = ask(&app, "/v1/admin/tenants", json!({"name": "acme"})).await;
            assert_eq!((status, error_code(&answer)), (503, "outdated_server"));
        }
    }
}

/// Behind a proxy on the same machine everybody read who has used what.
#[tokio::test]
async fn metrics_name_tenants_to_the_operator_alone_and_say_nothing_behind_a_proxy() {
    let settings =
        Settings { allowed_hosts: vec!["api.example.com".into()], ..Settings::default() };
    let (store, _) = Store::faulty();
    let (app, _) = app_on(store, double::text(), [Play::say("abc")], settings.clone());
    let allowed = |app: &App| Guard::new(Reach::Loopback, app.settings().allowed_hosts.clone());
    let shown = async |app: &App, host: &str, header: Option<(&'static str, &str)>| {
        let request = Request::get("/metrics").header(HOST, host).body(Body::empty()).unwrap();
        let request = match header {
            Some((name, value)) => with_header(request, name, value),
            None => request,
        };
        let response = app.clone().router(allowed(app)).oneshot(request).await.unwrap();
        (response.status().as_u16(), text(response).await)
    };
    let _ = ask(&app, CHAT, chat(json!({"model": "sql"}))).await;
    // Without keys there is nobody to keep it from.
    let (status, open) = shown(&app, "api.example.com", None).await;
    assert!(status == 200 && open.contains("adapter=\"sql\""), "{open}");
    let name = TenantName::parse("acme").unwrap();
    let operator = app.tenants().create("me", &name).await.unwrap().operator.unwrap();
    let (tenants, _) = app.tenants().add_key("me", &name, Scope::Admin, None).await.unwrap();
    let bearer = |key: &Key| format!("Bearer {}", key.reveal());
    let (operator, tenants) = (bearer(&operator), bearer(&tenants));
    let forwarded = [("x-forwarded-for", "203.0.113.7"), ("x-real-ip", "203.0.113.7")];
    let key = |key| Some(("authorization", key));
    for own in [None, key("Bearer wrong"), key(&tenants)] {
        let (status, rest) = shown(&app, "localhost", own).await;
        assert!(status == 200 && rest.contains("chorus_requests_running 3"), "{rest}");
        assert!(!rest.contains("chorus_usage") && !rest.contains("sql"), "{rest}");
        assert!(rest.ends_with("# EOF\n"), "{rest}");
    }
    let (status, all) = shown(&app, "localhost", key(&operator)).await;
    assert!(
        status == 200 && all.contains("chorus_usage_requests_total{tenant=\"default\""),
        "{all}"
    );
    assert_eq!(all.matches("# EOF").count(), 1);
    assert_eq!(shown(&app, "api.example.com", key(&operator)).await.0, 200);
    assert_eq!(shown(&app, "api.example.com", key(&tenants)).await.0, 403);
    assert_eq!(shown(&app, "api.example.com", None).await.0, 401);
    for header in forwarded {
        assert_eq!(shown(&app, "localhost", Some(header)).await.0, 401, "{header:?}");
    }
    let (store, _) = Store::faulty();
    let settings = Settings { metrics_open: true, ..settings };
    let (app, _) = app_on(store, double::text(), [Play::say("abc")], settings);
    let _ = ask(&app, CHAT, chat(json!({"model": "sql"}))).await;
    app.tenants().create("me", &name).await.unwrap();
    let (status, all) = shown(&app, "api.example.com", Some(forwarded[0])).await;
    assert!(status == 200 && all.contains("adapter=\"sql\""), "{all}");
}

#[tokio::test]
async fn scrapers_read_without_a_key_what_names_nobody() {
    let (app, _) = app([Play::say("abc")]);
    let _ = ask(&app, CHAT, chat(json!({"model": "sql"}))).await;
    let scraped = async |key: Option<&str>, path: &str| {
        let request = Request::get(path).header(HOST, "10.0.0.1:9090").body(Body::empty()).unwrap();
        let request = match key {
            Some(key) => with_header(request, "authorization", &format!("Bearer {key}")),
            // What a proxy adds makes no difference here.
            None => with_header(request, "x-forwarded-for", "203.0.113.7"),
        };
        let guard = Guard::of_watchers(Reach::Network, vec!["api.example.com".into()]);
        let response = app.clone().watched(guard).oneshot(request).await.unwrap();
        (response.status().as_u16(), text(response).await)
    };
    let (status, open) = scraped(None, "/metrics").await;
    assert!(status == 200 && open.contains("adapter=\"sql\""), "{open}");
    let name = TenantName::parse("acme").unwrap();
    let operator = app.tenants().create("me", &name).await.unwrap().operator.unwrap();
    let (tenants, _) = app.tenants().add_key("me", &name, Scope::Admin, None).await.unwrap();
    for key in [None, Some("wrong"), Some(tenants.reveal())] {
        let (status, rest) = scraped(key, "/metrics").await;
        assert!(status == 200 && rest.contains("chorus_requests_running 3"), "{rest}");
        assert!(!rest.contains("chorus_usage") && !rest.contains("sql"), "{rest}");
    }
    let (status, all) = scraped(Some(operator.reveal()), "/metrics").await;
    assert!(status == 200 && all.contains("adapter=\"sql\""), "{all}");
    for (path, status) in [("/health", 200), ("/ready", 200), ("/v1/models", 401)] {
        assert_eq!(scraped(None, path).await.0, status, "{path}");
    }
    assert_eq!(scraped(Some(operator.reveal()), "/v1/models").await.0, 404);
}

#[tokio::test]
async fn metrics_name_adapters_only_in_what_they_have_used() {
    let (app, _) = app([Play::say("abc")]);
    let _ = ask(&app, CHAT, chat(json!({"model": "sql"}))).await;
    let _ = get(&app, "/v1/models/nobody").await;
    let response = get(&app, "/metrics").await;
    assert!(
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let text = text(response).await;
    for line in [
        "chorus_requests_total{endpoint=\"/v1/chat/completions\",code=\"200\"} 1",
        "chorus_requests_total{endpoint=\"/v1/models/{*id}\",code=\"404\"} 1",
        "chorus_requests_running 3",
        "chorus_requests_waiting 0",
        "chorus_kv_pages_total 0",
        "chorus_kv_pages_free 0",
        "chorus_adapter_cache_budget_bytes 1048576",
        "chorus_adapters_resident 1",
        "chorus_adapter_loads_total 1",
        "chorus_adapter_reloads_total 0",
        "chorus_adapter_tier_adapters{tier=\"host\"} 1",
        "chorus_adapter_tier_adapters{tier=\"disk\"} 2",
        "chorus_adapter_load_failures_total 0",
        "chorus_adapter_evictions_total 0",
        "chorus_adapter_hits_total 0",
        "chorus_adapter_misses_total 1",
        "chorus_adapter_load_seconds_count 1",
        "chorus_prompt_tokens_total 0",
        "chorus_generation_tokens_total 0",
        "chorus_guessed_tokens_total 0",
        "chorus_foreseen_tokens_total 0",
        "chorus_preemptions_total 0",
        "chorus_engine_restarts_total 0",
        "chorus_steps_total 0",
        "chorus_mixed_steps_total 0",
        "chorus_time_to_first_token_seconds_count 1",
        "chorus_inter_token_latency_seconds_count 2",
        "chorus_e2e_request_latency_seconds_count 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let build = "# TYPE chorus_build_info gauge\nchorus_build_info{version=";
    assert!(text.contains(build), "the older format has no type of its own for it");
    assert!(text.contains("chorus_adapter_resident_bytes "));
    let used = "chorus_usage_requests_total{tenant=\"default\",adapter=\"sql\"} 1";
    assert!(text.lines().any(|found| found == used), "{text}");
    // Only what was used, or is in memory, is named.
    let naming = ["chorus_usage_", "vllm:lora_requests_info{"];
    let others = text.lines().filter(|line| !naming.iter().any(|own| line.starts_with(own)));
    assert!(others.into_iter().all(|line| !line.contains("sql")) && !text.contains("nobody"));
}
