//! A store that several servers have, that has lost files, or that goes away.

use std::time::{Duration, Instant};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_takes_in_another_serves() {
    let store = tempfile::tempdir().unwrap();
    let arguments = ["--store", store.path().to_str().unwrap(), "--store-refresh", "200ms"];
    let (one, two) = (Server::start(&arguments), Server::start(&arguments));
    let pirate = files(&shipped_adapters().join("pirate"));
    assert_eq!(one.put("x", pirate.clone()).await.status(), 201);
    let (said, from) = two.says("x").await;
    assert_eq!((said, from), one.says("x").await, "at once, because the name was missed");
    let german = files(&shipped_adapters().join("german"));
    assert_eq!(two.put("x", german).await.status(), 201);
    let begun = Instant::now();
    while !one.says("x").await.1.starts_with("x@v2;") {
        assert!(begun.elapsed() < Duration::from_secs(5), "a change is seen within the refresh");
    }
    assert_eq!(one.delete("x").await.status(), 200);
    let begun = Instant::now();
    while two.show("x").await.0 != 404 {
        assert!(begun.elapsed() < Duration::from_secs(5), "a deletion too");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = two.post("/v1/chat/completions", &question("x", 1)).await;
    assert_eq!(answer.status(), 404);
}

/// It was a bare `internal_error`, and a folder with one of two files was left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_the_store_has_lost_are_said_to_be_so_and_no_half_of_them_is_kept() {
    let (store, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(&["--store", store.path().to_str().unwrap(), "--log", "off"]);
    assert_eq!(server.put("mine", mini(1)).await.status(), 201);
    let blobs = store.path().join("blobs").read_dir().unwrap().map(|blob| blob.unwrap().path());
    let weights = blobs.max_by_key(|blob| blob.metadata().unwrap().len()).unwrap();
    let kept = std::fs::read(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    let url = format!("{}/v1/adapters/mine/files/adapter_model.safetensors", server.url);
    let (status, answer) = body(server.client.get(url).send().await.unwrap()).await;
    assert_eq!((status, &answer["error"]["code"]), (500, &json!("adapter_unavailable")));
    let copy = out.path().join("copy");
    let get = ["get", "mine", copy.to_str().unwrap()];
    let (success, text) = command(&server, &get);
    assert!(!success && text.contains("adapter_unavailable"), "{text}");
    assert!(!copy.exists(), "one of two files");
    std::fs::write(&weights, kept).unwrap();
    let (success, text) = command(&server, &get);
    assert!(success && files(&copy) == mini(1), "{text}");
}

/// Uploads went into the empty place, were acknowledged, and left a gap in the log with which no server started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_folder_goes_away_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let (place, elsewhere) = (root.path().join("store"), root.path().join("elsewhere"));
    let arguments = ["--store", place.to_str().unwrap(), "--log", "off"];
    let server = Server::start(&arguments);
    assert!(server.plan.contains("new: there was none"), "{}", server.plan);
    assert_eq!(server.put("warm", mini(1)).await.status(), 201);
    assert_eq!(server.post("/v1/chat/completions", &question("warm", 2)).await.status(), 200);
    for emptied in [false, true] {
        std::fs::rename(&place, &elsewhere).unwrap();
        if emptied {
            std::fs::create_dir(&place).unwrap();
        }
        let response = server.put("lost", mini(2)).await;
        assert!(response.headers().contains_key("retry-after"));
        let (status, answer) = body(response).await;
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("store_unavailable")));
        assert_eq!(server.delete("warm").await.status(), 503);
        assert_eq!(server.post("/v1/chat/completions", &question("warm", 2)).await.status(), 200);
        if emptied {
            assert_eq!(place.read_dir().unwrap().count(), 0, "nothing is made in its place");
            std::fs::remove_dir(&place).unwrap();
        }
        assert!(!place.exists(), "nothing is made in its place");
        std::fs::rename(&elsewhere, &place).unwrap();
        let name = format!("back-{emptied}");
        assert_eq!(server.put(&name, mini(3)).await.status(), 201);
    }
    assert_eq!(place.join("logs/adapters").read_dir().unwrap().count(), 3);
    drop(server);
    let again = Server::start(&arguments);
    assert!(!again.plan.contains("new: there was none"), "{}", again.plan);
    for name in ["warm", "back-false", "back-true"] {
        assert_eq!(again.post("/v1/chat/completions", &question(name, 2)).await.status(), 200);
    }
}
