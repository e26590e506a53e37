//! What gateways read of a server.

use super::{
    super::{
        app::{LoraInfo, Settings},
        double::{self, Play, Scripted, app_on, app_with},
    },
    exposition::{Page, read},
    *,
};
use crate::{
    engine::{PAGE, Stats},
    store::Store,
    tenant::TenantName,
};

const LORAS: &str = "vllm:lora_requests_info";

/// The page as a scraper of the listener for watchers has it, with this key.
async fn scrape(app: &App, key: Option<&str>) -> Page {
    let request = Request::get("/metrics").header(HOST, "10.0.0.1").body(Body::empty()).unwrap();
    let request = match key {
        Some(key) => with_header(request, "authorization", &format!("Bearer {key}")),
        None => request,
    };
    let guard = Guard::of_watchers(Reach::Network, vec![]);
    let response = app.clone().watched(guard).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    read(&text(response).await)
}

/// The lists of the one series of adapters, and when they changed.
fn loras(page: &Page) -> ([String; 3], f64) {
    let series = page.of(LORAS);
    let [(labels, since)] = &*series else { panic!("{series:?}") };
    let names = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"];
    assert_eq!(labels.keys().collect::<Vec<_>>(), names);
    (names.map(|name| labels[name].clone()), *since)
}

fn listed(lora_info: LoraInfo) -> (App, std::sync::Arc<Scripted>) {
    app_with([], Settings { lora_info, ..Settings::default() })
}

async fn use_adapter(app: &App, name: &str) {
    assert_eq!(ask(app, CHAT, chat(json!({"model": name}))).await.0, 200);
}

#[tokio::test]
async fn gateways_find_the_names_that_they_ask_for() {
    let (app, engine) = listed(LoraInfo::Auto);
    engine.show(Stats {
        running: 2,
        waiting: 5,
        pages_total: 40,
        pages_free: 30,
        pages_idle: 8,
        ..Stats::default()
    });
    // The main listener has the same.
    let own = read(&text(get(&app, "/metrics").await).await);
    for page in [own, scrape(&app, None).await] {
        let named = page.families.keys().filter(|name| name.starts_with("vllm:"));
        let expected = [
            "vllm:cache_config_info",
            "vllm:kv_cache_usage_perc",
            LORAS,
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
        ];
        assert_eq!(named.collect::<Vec<_>>(), expected);
        assert!(expected.iter().all(|name| page.families[*name] == "gauge"));
        assert!((page.value("vllm:num_requests_waiting") - 5.0).abs() < 1e-9);
        assert!((page.value("vllm:num_requests_running") - 2.0).abs() < 1e-9);
        assert!((page.value("vllm:kv_cache_usage_perc") - 0.25).abs() < 1e-9);
        let cache = page.of("vllm:cache_config_info");
        assert_eq!(cache.len(), 1);
        assert_eq!(cache[0].0["block_size"], PAGE.to_string());
        assert_eq!(cache[0].0["num_gpu_blocks"], "40");
        assert_eq!((cache[0].0.len(), cache[0].1.to_bits()), (2, 1.0_f64.to_bits()));
    }
}

#[tokio::test]
async fn a_server_of_one_tenant_lists_what_is_in_memory_by_the_names_that_requests_use() {
    let (app, _) = listed(LoraInfo::Auto);
    let (empty, began) = loras(&scrape(&app, None).await);
    // Adapters of a few bytes: very many fit, and no more than can be listed are told.
    assert_eq!(empty, ["256", "", ""]);
    assert!(began > 1.7e9);
    use_adapter(&app, "sql").await;
    let (one, changed) = loras(&scrape(&app, None).await);
    assert_eq!(one, ["256", "sql", ""]);
    assert!(changed > began);
    use_adapter(&app, "law").await;
    use_adapter(&app, "sql").await;
    let (both, since) = loras(&scrape(&app, None).await);
    assert_eq!(both, ["256", "law,sql", ""]);
    use_adapter(&app, "law").await;
    let again = loras(&scrape(&app, None).await);
    assert_eq!(again, (both, since), "what was used last is no change");
}

#[tokio::test]
async fn where_there_are_keys_adapters_are_listed_as_the_operator_says() {
    for (shown, without_key, with_key) in [
        (LoraInfo::Auto, 0, 0),
        (LoraInfo::Off, 0, 0),
        (LoraInfo::Names, 0, 1),
        (LoraInfo::Digests, 1, 1),
    ] {
        let (store, _) = Store::faulty();
        let settings = Settings { lora_info: shown, ..Settings::default() };
        let (app, _) = app_on(store, double::text(), [Play::say("abc")], settings);
        use_adapter(&app, "sql").await;
        let name = TenantName::parse("acme").unwrap();
        let operator = app.tenants().create("me", &name).await.unwrap().operator.unwrap();
        let open = scrape(&app, None).await;
        let all = scrape(&app, Some(operator.reveal())).await;
        assert_eq!((open.of(LORAS).len(), all.of(LORAS).len()), (without_key, with_key));
        assert_eq!(open.of("vllm:num_requests_running").len(), 1, "the sums are there always");
        if shown == LoraInfo::Names {
            assert_eq!(loras(&all).0[1], "sql");
        }
        if shown == LoraInfo::Digests {
            let told = loras(&open).0[1].clone();
            assert!(told.len() == 12 && told.bytes().all(|b| b.is_ascii_hexdigit()), "{told}");
        }
    }
}
