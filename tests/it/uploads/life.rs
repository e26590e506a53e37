//! An upload is used, replaced, rolled back and deleted, and a share of requests tries its next version.

use futures_util::{StreamExt as _, future::join_all};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_used_a_moment_later_replaced_rolled_back_and_deleted() {
    let server = Server::start(&[]);
    let pirate = files(&shipped_adapters().join("pirate"));
    let (status, created) = body(server.put("mine", pirate.clone()).await).await;
    assert_eq!(status, 201, "{created}");
    assert_eq!(
        (&created["version"], &created["digest"], &created["status"], &created["parent"]),
        (&json!(1), &json!(digest(&pirate)), &json!("active"), &json!("smollm2-135m-instruct"))
    );
    let (mine, from) = server.says("mine").await;
    assert_eq!(from, format!("mine@v1;{}", digest(&pirate).replace(':', "=")));
    let (shipped, _) = server.says("pirate").await;
    let (base, _) = server.says("base").await;
    assert_eq!(mine, shipped);
    assert_ne!(mine, base);

    let german = files(&shipped_adapters().join("german"));
    let (status, second) = body(server.put("mine", german).await).await;
    assert_eq!((status, &second["version"]), (201, &json!(2)));
    let (other, from) = server.says("mine").await;
    assert!(from.starts_with("mine@v2;") && other != mine, "{from}: {other}");
    assert_eq!(server.says("mine@v1").await.0, mine);
    let (status, again) = body(server.act("mine", "activate", json!({"version": 1})).await).await;
    assert_eq!((status, &again["version"]), (200, &json!(1)));
    assert_eq!(server.says("mine").await.0, mine);

    let (status, gone) = body(server.delete("mine?version=2").await).await;
    assert_eq!((status, &gone["deleted"]), (200, &json!(true)));
    let url = format!("{}/v1/adapters/mine/files/{WEIGHTS}", server.url);
    let bytes = server.client.get(url).send().await.unwrap().bytes().await.unwrap();
    assert!(bytes == pirate[1], "the tenant's own bytes");
    assert_eq!(server.delete("mine").await.status(), 200);
    let answer = server.post("/v1/chat/completions", &question("mine", 4)).await;
    assert_eq!(answer.status(), 404);
    assert_eq!(server.delete("mine").await.status(), 404);
    assert_eq!(server.says("pirate").await.0, shipped, "the folder has the same bytes still");
    let (_, third) = body(server.put("mine", pirate).await).await;
    assert_eq!(third["version"], 3, "numbers are not given again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_what_it_is_however_it_is_written() {
    let server = Server::start(&[]);
    let put = |name: &str| server.client.put(format!("{}/v1/adapters/{name}", server.url));
    // Text fields are passed over, and a part needs no file name.
    let odd = form(mini(0)).text("comment", "hello");
    assert_eq!(put("a").multipart(odd).send().await.unwrap().status(), 201);
    let [config, weights] = mini(0).map(Part::bytes);
    let plain = Form::new().part(WEIGHTS, weights).part(CONFIG, config);
    let response = put("a").multipart(plain).header("if-match", "\"v1\"").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["etag"], "\"v1\"");
    let again = put("a").multipart(form(mini(0))).header("if-none-match", "*");
    assert_eq!(again.send().await.unwrap().status(), 412);
    let [config, mut untrained] = mini(0);
    let header = usize::try_from(u64::from_le_bytes(*untrained.first_chunk().unwrap())).unwrap();
    untrained[8 + header..].fill(0);
    let (status, answer) = body(server.put("b", [config, untrained]).await).await;
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("no_effect")), "{answer}");
}

/// A stream goes on with the version it began with, whatever becomes of the name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_answer_is_not_touched_by_what_happens_to_the_name() {
    let server = Server::start(&["--adapter-cache-bytes", "64MiB"]);
    let voices = ["pirate", "sentiment"].map(|name| files(&shipped_adapters().join(name)));
    let whole = async |model: &str| {
        let response = server.post("/v1/chat/completions", &streamed(model, 40)).await;
        assert_eq!(response.status(), 200);
        spoken(response).await
    };
    server.put("x", voices[0].clone()).await;
    let said = [whole("x").await, whole("sentiment").await];
    assert_ne!(said[0], said[1]);
    for turn in 0..times(6, 500) {
        let (now, next) = (turn % 2, (turn + 1) % 2);
        let mut stream =
            server.post("/v1/chat/completions", &streamed("x", 40)).await.bytes_stream();
        let mut bytes = stream.next().await.unwrap().unwrap().to_vec();
        if turn % 3 == 2 {
            assert_eq!(server.delete("x").await.status(), 200);
            let answer = server.post("/v1/chat/completions", &question("x", 1)).await;
            assert_eq!(answer.status(), 404, "turn {turn}");
        }
        let put = server.put("x", voices[next].clone()).await;
        assert!(put.status().is_success(), "turn {turn}: {}", put.status());
        assert_eq!(whole("x").await, said[next], "turn {turn}: the new one at once");
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(text_of(&bytes), said[now], "turn {turn}: the old one to its end");
    }
}

async fn spoken(response: Response) -> String {
    text_of(&response.bytes().await.unwrap())
}

/// The text of a stream's events.
fn text_of(bytes: &[u8]) -> String {
    let events = std::str::from_utf8(bytes).unwrap().lines();
    let data =
        events.filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let text = |data: &str| {
        let event: Value = serde_json::from_str(data).unwrap();
        assert!(event["error"].is_null(), "{event}");
        event["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned()
    };
    data.map(text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_gets_its_share_and_each_user_one_version() {
    let server = Server::start(&[]);
    for folder in ["pirate", "german"] {
        assert_eq!(server.put("mine", files(&shipped_adapters().join(folder))).await.status(), 201);
    }
    assert_eq!(server.act("mine", "activate", json!({"version": 1})).await.status(), 200);
    let canary = async |percent: u32| {
        body(server.act("mine", "activate", json!({"version": 2, "percent": percent})).await).await
    };
    let (status, shown) = canary(30).await;
    assert_eq!((status, &shown["version"]), (200, &json!(1)), "{shown}");
    assert_eq!(shown["canary"], json!({"version": 2, "percent": 30}));
    let asked = async |model: &str, user: Option<usize>, id: Option<&str>| {
        let mut body = json!({"model": model, "prompt": "x", "max_tokens": 1});
        if let Some(user) = user {
            body["user"] = format!("user {user}").into();
        }
        let url = format!("{}/v1/completions", server.url);
        let mut request = server.client.post(url).json(&body).header("x-adapter", "mine");
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let from = response.headers()["x-chorus-adapter"].to_str().unwrap();
        u32::from(from.starts_with("mine@v2;"))
    };
    let all = async || {
        let users = (0..100).map(|user| asked("mine", Some(user), None));
        join_all(users).await
    };
    let drawn = all().await;
    let share: u32 = drawn.iter().sum();
    assert!((15..=45).contains(&share), "{share} of 100");
    assert_eq!(all().await, drawn, "it sticks");
    let by_request = join_all((0..100).map(|_| asked("base", None, None))).await;
    assert!((12..=48).contains(&by_request.iter().sum::<u32>()), "{by_request:?}");
    let by_id = join_all((0..20).map(|_| asked("mine", None, Some("the same")))).await;
    assert!(by_id.iter().all(|version| *version == by_id[0]), "{by_id:?}");

    for (body, code) in [
        (json!({"version": 1, "percent": 10}), "version_active"),
        (json!({"version": 3, "percent": 10}), "version_not_found"),
        (json!({"version": 2, "percent": 101}), ""),
    ] {
        let refused = self::body(server.act("mine", "activate", body).await).await;
        assert!((400..500).contains(&refused.0), "{refused:?}");
        assert!(code.is_empty() || refused.1["error"]["code"] == code, "{refused:?}");
    }
    let (_, shown) = canary(0).await;
    assert_eq!(shown.get("canary"), None, "{shown}");
    assert_eq!(all().await.iter().sum::<u32>(), 0);
    canary(99).await;
    let (_, shown) = canary(100).await;
    assert_eq!((&shown["version"], shown.get("canary")), (&json!(2), None), "{shown}");
}
