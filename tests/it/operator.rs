//! What an operator does: adapters by their path, the log of changes, a tenant's move, a backup and its way back.

use std::{
    collections::BTreeSet,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    tenants::{Holder, operator, tenant},
    uploads::{body, bringing, files, mini, question, with_tokenizer},
    world::{Server, fixtures, shipped_adapters},
};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Runs another command than `serve`.
fn chorus(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chorus"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHORUS_") {
            command.env_remove(name);
        }
    }
    command.args(words).output().unwrap()
}

/// What it prints, if it works.
fn printed(words: &[&str]) -> String {
    let output = chorus(words);
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}: {}{err}", String::from_utf8_lossy(out));
    String::from_utf8(output.stdout).unwrap()
}

fn write(folder: &Path, [config, weights]: [Vec<u8>; 2]) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(CONFIG), config).unwrap();
    std::fs::write(folder.join(WEIGHTS), weights).unwrap();
}

/// Status and text of an answer, which is no JSON where it went well.
async fn told(server: &Server, path: &str, request: &Value) -> (StatusCode, String) {
    let response = server.post(path, request).await;
    (response.status(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_are_loaded_and_unloaded_as_with_vllm() {
    let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(&root.path().join("team/one"), mini(1));
    write(&root.path().join("two"), mini(2));
    write(&outside.path().join("secret"), mini(3));
    symlink(outside.path().join("secret"), root.path().join("link")).unwrap();
    symlink(outside.path().join("nothing"), root.path().join("dangling")).unwrap();
    write(&root.path().join("never-trained"), files(&fixtures().join("bad/control-good-mini")));
    std::fs::write(root.path().join("never-trained").join(WEIGHTS), "not safetensors").unwrap();
    let server = Server::start(&["--lora-root", root.path().to_str().unwrap()]);
    let load = async |name: &str, path: &str| {
        told(&server, LOAD, &json!({"lora_name": name, "lora_path": path})).await
    };
    let whole = root.path().join("team/one");
    let (status, text) = load("mine", whole.to_str().unwrap()).await;
    assert_eq!(
        (status.as_u16(), text.as_str()),
        (200, "Success: LoRA adapter 'mine' added successfully.")
    );
    assert_eq!(server.post("/v1/chat/completions", &question("mine", 2)).await.status(), 200);
    let (status, text) = load("mine", "two").await;
    assert!(status == 400 && text.contains("has already been loaded"), "{status} {text}");
    let again = json!({"lora_name": "mine", "lora_path": "two", "load_inplace": true});
    assert_eq!(told(&server, LOAD, &again).await.0, 200);
    let url = format!("{}/v1/adapters/mine", server.url);
    let (_, shown) = body(server.client.get(url).send().await.unwrap()).await;
    assert_eq!((&shown["version"], &shown["versions"][0]["version"]), (&json!(2), &json!(1)));

    // What is outside and what is nowhere are answered byte for byte alike.
    let (_, nowhere) = load("x", "nowhere").await;
    let secret = outside.path().join("secret");
    for path in ["link", "dangling", secret.to_str().unwrap(), "/etc", "/never"] {
        assert_eq!(load("x", path).await, (StatusCode::NOT_FOUND, nowhere.clone()), "{path}");
    }
    assert!(!nowhere.contains(root.path().to_str().unwrap()), "{nowhere}");
    for (request, status) in [
        (json!({"lora_name": "x", "lora_path": "../secret"}), 400),
        (json!({"lora_name": "x", "lora_path": "a\u{0}b"}), 400),
        (json!({"lora_name": "x"}), 400),
        (json!({"lora_path": "two"}), 400),
        (json!({"lora_name": "", "lora_path": "two"}), 400),
        (json!({"lora_name": "../x", "lora_path": "two"}), 400),
        (json!({"lora_name": "base", "lora_path": "two"}), 400),
        (json!({"lora_name": "x", "lora_path": "two", "load_in_place": true}), 400),
        (json!({"lora_name": "x", "lora_path": "two", "tenant": "nobody"}), 404),
        (json!({"lora_name": "x", "lora_path": "team"}), 422),
        (json!({"lora_name": "x", "lora_path": "never-trained"}), 422),
    ] {
        let (found, text) = told(&server, LOAD, &request).await;
        assert_eq!(found.as_u16(), status, "{request}: {text}");
        assert!(serde_json::from_str::<Value>(&text).unwrap()["error"]["message"].is_string());
    }
    // What llm-d's syncer sends.
    let synced = json!({"lora_name": "synced", "lora_path": "two", "base_model_name": "any"});
    assert_eq!(told(&server, LOAD, &synced).await.0, 200);
    let (status, text) =
        told(&server, UNLOAD, &json!({"lora_name": "mine", "lora_int_id": 1})).await;
    assert_eq!(
        (status.as_u16(), text.as_str()),
        (200, "Success: LoRA adapter 'mine' removed successfully.")
    );
    assert_eq!(told(&server, UNLOAD, &json!({"lora_name": "mine"})).await.0, 404);
    assert_eq!(server.post("/v1/chat/completions", &question("mine", 2)).await.status(), 404);
    assert!(whole.join(WEIGHTS).is_file(), "what it was loaded from is not touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loading_by_path_is_the_operators_and_off_unless_it_is_asked_for() {
    let off = Server::start(&[]);
    for path in [LOAD, UNLOAD] {
        let (status, text) = told(&off, path, &json!({"lora_name": "x", "lora_path": "y"})).await;
        assert!(status == 404 && text.contains("--lora-root"), "{status} {text}");
    }
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("one"), mini(1));
    let server = Server::start(&["--lora-root", root.path().to_str().unwrap()]);
    let operator = operator(&server, "acme").await;
    let acme = Holder { server: &server, key: operator.new_key("acme", "admin").await.0 };
    let request = json!({"lora_name": "mine", "lora_path": "one", "tenant": "acme"});
    assert_eq!(acme.post(LOAD, &request).await.0, 403);
    let loaded = server.client.post(format!("{}{LOAD}", server.url)).bearer_auth(&operator.key);
    assert_eq!(loaded.json(&request).send().await.unwrap().status(), 200);
    assert_eq!(acme.get("/v1/adapters/mine").await.0, 200);
    // Its quota is looked at as it is for an upload.
    operator.post("/v1/admin/tenants/acme/quota", &json!({"adapters": 1})).await;
    write(&root.path().join("two"), mini(2));
    let more = json!({"lora_name": "more", "lora_path": "two", "tenant": "acme"});
    let (status, answer) = operator.post(LOAD, &more).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("insufficient_quota")));
    let absent = root.path().join("absent");
    let start = ["serve", "--listen", "127.0.0.1:0", "--lora-root", absent.to_str().unwrap()];
    let store = tempfile::tempdir().unwrap();
    let model = crate::world::base_gguf();
    let place = ["--store", store.path().to_str().unwrap(), "--model", model.to_str().unwrap()];
    let output = chorus(&[&start[..], &place].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && message.contains("--lora-root"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_who_changed_what_and_shows_no_secret() {
    let server = Server::start(&[]);
    let operator = operator(&server, "acme").await;
    let (secret, id) = operator.new_key("acme", "admin").await;
    let acme = Holder { server: &server, key: secret };
    let other = tenant(&operator, "other").await;
    for number in 1..=2 {
        assert_eq!(acme.put("sql", mini(number)).await.0, 201);
    }
    other.put("theirs", mini(3)).await;
    acme.post("/v1/adapters/sql/activate", &json!({"version": 1})).await;
    acme.delete("/v1/adapters/sql").await;
    assert_eq!(acme.get("/v1/admin/audit").await.0, 403);

    let (status, all) = operator.get("/v1/admin/audit").await;
    assert_eq!((status, &all["has_more"]), (200, &json!(false)), "{all}");
    let told: Vec<_> = all["data"].as_array().unwrap().iter().collect();
    let words: Vec<_> = told
        .iter()
        .map(|one| (one["log"].as_str().unwrap(), one["change"].as_str().unwrap()))
        .collect();
    let (tenants, adapters) = ("tenants", "adapters");
    assert_eq!(
        words,
        [
            (tenants, "created"),
            (tenants, "key_added"),
            (tenants, "created"),
            (tenants, "key_added"),
            (adapters, "stored"),
            (adapters, "stored"),
            (adapters, "stored"),
            (adapters, "activated"),
            (adapters, "removed"),
        ]
    );
    assert_eq!((&told[0]["by"], &told[1]["by"]), (&json!("open"), &json!("operator")));
    assert_eq!((&told[4]["by"], &told[1]["key"]), (&json!(format!("key {id}")), &json!(id)));
    assert_eq!((&told[4]["tenant"], &told[4]["adapter"]), (&json!("acme"), &json!("sql")));
    assert!(told[5]["digest"].as_str().unwrap().starts_with("sha256:"));
    assert!(told[4]["time"].as_str().unwrap().ends_with('Z'));
    let text = all.to_string();
    for holder in [&operator, &acme, &other] {
        let hash = sha256(holder.key.as_bytes());
        assert!(!text.contains(&holder.key) && !text.contains(&hash), "{text}");
    }

    assert_eq!(Value::Array(page_by_page(&operator, 2).await), all["data"]);
    let (_, theirs) = operator.get("/v1/admin/audit?tenant=other").await;
    assert_eq!(theirs["data"].as_array().unwrap().len(), 3);
    for (query, status) in [
        ("tenant=nobody", 404),
        ("after=x", 400),
        ("limit=0", 400),
        ("limit=9999", 400),
        ("x=1", 400),
    ] {
        assert_eq!(operator.get(&format!("/v1/admin/audit?{query}")).await.0, status, "{query}");
    }
    let by = ["--url", &server.url, "--admin-key", &operator.key];
    let lines = printed(&[&["audit", "--tenant", "other"][..], &by].concat());
    assert_eq!(lines.lines().count(), 3);
    assert!(lines.contains("theirs") && lines.contains("version 1 stored, active"), "{lines}");
    let json = printed(&[&["audit", "--json", "--after", "0.4"][..], &by].concat());
    let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json.len(), 5);
    assert_eq!(json[4]["id"], all["last_id"]);
}

/// All changes, read so many at once.
async fn page_by_page(operator: &Holder<'_>, limit: usize) -> Vec<Value> {
    let (mut after, mut changes) = (String::new(), Vec::new());
    loop {
        let (_, page) = operator.get(&format!("/v1/admin/audit?limit={limit}{after}")).await;
        changes.extend(page["data"].as_array().unwrap().clone());
        after = format!("&after={}", page["last_id"].as_str().unwrap());
        if page["has_more"] == false {
            return changes;
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_to_another_server() {
    let (from, to) = (Server::start(&[]), Server::start(&["--adapters", "tests/fixtures/gguf"]));
    let operator_there = operator(&from, "acme").await;
    let acme = Holder { server: &from, key: operator_there.new_key("acme", "admin").await.0 };
    for number in 1..=3 {
        assert_eq!(acme.put("sql", mini(number)).await.0, 201);
    }
    assert_eq!(acme.put("law", mini(4)).await.0, 201);
    acme.post("/v1/adapters/sql/activate", &json!({"version": 2})).await;
    acme.post("/v1/adapters/law/pin", &json!({})).await;
    acme.delete("/v1/adapters/sql?version=1").await;

    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("acme");
    let folder = folder.to_str().unwrap();
    let source = ["--url", &from.url, "--key", &acme.key];
    let export = [&["adapter", "export", folder, "--all-versions"][..], &source].concat();
    assert!(printed(&export).starts_with("2 adapters, 3 versions, "));
    // A file that is lost or half there is fetched again, and the others are not.
    let weights = Path::new(folder).join("adapters/sql/v3").join(WEIGHTS);
    std::fs::write(&weights, "half").unwrap();
    assert!(printed(&export).contains("3 versions (2 were there already)"));
    assert!(std::fs::read(&weights).unwrap() == mini(3)[1]);
    let manifest = crate::world::json(&Path::new(folder).join("manifest.json"));
    assert_eq!((&manifest["format"], &manifest["tenant"]), (&json!(1), &json!("acme")));
    assert!(manifest["base"]["digest"].as_str().unwrap().starts_with("sha256:"));
    let someone = tenant(&operator_there, "someone").await;
    someone.put("own", mini(9)).await;
    let mixed = ["adapter", "export", folder, "--url", &from.url, "--key", &someone.key];
    let refused = chorus(&mixed);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("tenant acme"), "{refused:?}");

    let import = ["adapter", "import", folder, "--url", &to.url, "--json"];
    let told: Value = serde_json::from_str(&printed(&import)).unwrap();
    assert_eq!(
        told["adapters"][1],
        json!({"name": "sql", "active": 1, "why": null, "versions": [
            {"from": 2, "to": 1, "status": "uploaded", "why": null},
            {"from": 3, "to": 2, "status": "uploaded", "why": null},
        ]})
    );
    let (_, sql) =
        body(to.client.get(format!("{}/v1/adapters/sql", to.url)).send().await.unwrap()).await;
    let (_, before) = acme.get("/v1/adapters/sql").await;
    assert_eq!(
        (&sql["version"], &sql["digest"], &sql["status"]),
        (&json!(1), &before["digest"], &json!("active"))
    );
    let (_, law) =
        body(to.client.get(format!("{}/v1/adapters/law", to.url)).send().await.unwrap()).await;
    assert_eq!(law["pinned"], true);
    // Again, nothing is sent; what is not what was exported never is.
    let told: Value = serde_json::from_str(&printed(&import)).unwrap();
    let statuses: Vec<_> = told["adapters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|adapter| &adapter["versions"][0]["status"])
        .collect();
    assert_eq!(statuses, ["present", "present"]);
    to.client.delete(format!("{}/v1/adapters/sql", to.url)).send().await.unwrap();
    std::fs::write(&weights, &mini(5)[1]).unwrap();
    let refused = chorus(&import);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(2) && message.contains("its sha256 is another"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_what_was_exported_keeps_no_other_adapter_from_being_imported() {
    let (from, to) = (Server::start(&[]), Server::start(&[]));
    for (number, name) in (1..).zip(["bad", "good"]) {
        assert_eq!(from.put(name, mini(number)).await.status(), 201);
    }
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().to_str().unwrap();
    printed(&["adapter", "export", folder, "--url", &from.url]);
    let weights = root.path().join("adapters/bad/v1").join(WEIGHTS);
    std::fs::write(weights, &mini(5)[1]).unwrap();
    let refused = chorus(&["adapter", "import", folder, "--url", &to.url, "--json"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    let adapters = told["adapters"].as_array().unwrap();
    let told = |name: &str| adapters.iter().find(|adapter| adapter["name"] == name).unwrap();
    let (bad, good) = (&told("bad")["versions"][0], &told("good")["versions"][0]);
    assert_eq!((&bad["status"], &good["status"]), (&json!("refused"), &json!("uploaded")));
    assert!(bad["why"].as_str().unwrap().contains("its sha256 is another"), "{bad}");
    assert_eq!(told("good")["active"], 1);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("bad@v1: ") && message.contains("1 of 10 versions"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_has_versions_of_another_base_validated_and_tells_of_those_that_are_not() {
    let (store, out, none) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [place, folder, none] = [&store, &out, &none].map(|dir| dir.path().to_str().unwrap());
    let arguments = ["--kv-bytes", "16MiB", "--adapters", none, "--store", place];
    let tied = fixtures().join("models/tied");
    let base = with_tokenizer(&tied);
    let server = Server::start_on(base.path(), "tiny", &arguments);
    for name in ["one", "two"] {
        let adapter = files(&tied.join("adapters/plain"));
        assert_eq!(server.put(name, adapter).await.status(), 201);
    }
    assert!(
        printed(&["adapter", "export", folder, "--url", &server.url]).starts_with("2 adapters")
    );
    drop(server);
    let import = |server: &Server| chorus(&["adapter", "import", folder, "--url", &server.url]);

    // Another base, as its sha256 says, on which they can be used.
    let again = with_tokenizer(&tied);
    let config = again.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\n").unwrap();
    let server = Server::start_on(again.path(), "tiny", &arguments);
    let status = async |name: &str| {
        let url = format!("{}/v1/adapters/{name}", server.url);
        body(server.client.get(url).send().await.unwrap()).await.1["status"].clone()
    };
    assert_eq!(status("one").await, "incompatible");
    let done = import(&server);
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && told.contains("is v1 there already, active"), "{done:?}");
    assert_eq!((status("one").await, status("two").await), (json!("active"), json!("active")));
    drop(server);

    // And one of other shapes, on which they cannot.
    let other = with_tokenizer(&fixtures().join("models/untied-bias"));
    let server = Server::start_on(other.path(), "tiny", &arguments);
    let failed = import(&server);
    let told = String::from_utf8_lossy(&failed.stdout);
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
    for name in ["one ", "two "] {
        let line = told.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains("is v1 there already and cannot be used: 422: "), "{told}");
    }
    let message = String::from_utf8_lossy(&failed.stderr);
    assert!(message.contains("2 are there and cannot be used"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_another_tenant_without_adapters_overwrites_nothing() {
    let server = Server::start(&[]);
    let operator = operator(&server, "acme").await;
    let acme = Holder { server: &server, key: operator.new_key("acme", "admin").await.0 };
    let empty = tenant(&operator, "empty").await;
    assert_eq!(acme.put("sql", mini(1)).await.0, 201);
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().to_str().unwrap();
    let export = |holder: &Holder<'_>| {
        chorus(&["adapter", "export", folder, "--url", &server.url, "--key", &holder.key])
    };
    assert!(export(&acme).status.success());
    let before = crate::world::json(&root.path().join("manifest.json"));
    let refused = export(&empty);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && message.contains("tenant acme"), "{message}");
    assert_eq!(crate::world::json(&root.path().join("manifest.json")), before);
    // Its own it may replace, and says so.
    assert_eq!(acme.delete("/v1/adapters/sql").await.0, 200);
    let replaced = export(&acme);
    let message = String::from_utf8_lossy(&replaced.stderr);
    assert!(replaced.status.success() && message.contains("which had 1"), "{message}");
    let after = crate::world::json(&root.path().join("manifest.json"));
    assert_eq!((&after["tenant"], &after["adapters"]), (&json!("acme"), &json!([])));
    assert_eq!(export(&empty).status.code(), Some(2), "it is acme's, with or without adapters");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_says_what_is_refused_and_takes_the_rest() {
    let (from, to) = (Server::start(&[]), Server::start(&["--max-rank", "8"]));
    for (name, folder) in [("large", "sql"), ("small", "pirate")] {
        let sent = from.put(name, files(&shipped_adapters().join(folder))).await;
        assert_eq!(sent.status(), 201);
    }
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().to_str().unwrap();
    // The folder's own adapters belong to this tenant, too.
    assert!(printed(&["adapter", "export", folder, "--url", &from.url]).starts_with("10 adapters"));
    let output = chorus(&["adapter", "import", folder, "--url", &to.url]);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{out}{err}");
    assert!(err.contains("large@v1: 422"), "{err}");
    // Four of the folder's own are refused there as well.
    assert!(err.contains("5 of 10 versions are not there; the reasons are above"), "{err}");
    let line = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("large ").contains("is not there"), "{out}");
    assert!(line("small ").contains("uploaded, active"), "{out}");
    assert!(line("pirate ").contains("is v1 there already"), "{out}");
}

/// An adapter that answers otherwise than its smoke test asks for.
fn failing() -> [Vec<u8>; 2] {
    let test = json!({"prompt": "How do I cook rice?", "matches": "(?i)arr|matey"});
    bringing("german", json!({"smoke_test": test}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_fails_with_its_smoke_test() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("bad"), failing());
    let server = Server::start(&["--lora-root", root.path().to_str().unwrap()]);
    let request = json!({"lora_name": "mine", "lora_path": "bad"});
    let (status, text) = told(&server, LOAD, &request).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{text}");
    assert!(text.contains("smoke_test_failed") && text.contains("version 1"), "{text}");
    assert_eq!(server.post("/v1/chat/completions", &question("mine", 2)).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_activates_nothing_that_fails_its_smoke_test() {
    let (from, to) = (Server::start(&[]), Server::start(&[]));
    assert_eq!(from.put("mine", failing()).await.status(), 201);
    let activated = from.post("/v1/adapters/mine/activate", &json!({"version": 1})).await;
    assert_eq!(activated.status(), 200, "who wants it all the same can have it");
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().to_str().unwrap();
    printed(&["adapter", "export", folder, "--url", &from.url]);
    // It is uploaded, and the next time it is there already.
    for _ in 0..2 {
        let output = chorus(&["adapter", "import", folder, "--url", &to.url]);
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let line = out.lines().find(|line| line.starts_with("mine ")).unwrap();
        assert!(line.ends_with("not active: its smoke test fails"), "{out}");
        assert_eq!(to.post("/v1/chat/completions", &question("mine", 2)).await.status(), 404);
    }
}

/// Names of a server's adapters, which all answer.
async fn all_answer(server: &Server) -> BTreeSet<String> {
    let url = format!("{}/v1/adapters", server.url);
    let (_, list) = body(server.client.get(url).send().await.unwrap()).await;
    let mut names = BTreeSet::new();
    for adapter in list["data"].as_array().unwrap() {
        let name = adapter["name"].as_str().unwrap();
        let answer = server.post("/v1/chat/completions", &question(name, 1)).await;
        assert_eq!(answer.status(), 200, "{name}");
        names.insert(name.to_owned());
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_copied_under_writers_and_the_copy_is_served() {
    let (store, backups) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = store.path().to_str().unwrap();
    let none = backups.path().join("none");
    std::fs::create_dir(&none).unwrap();
    let (none, copy) = (none.to_str().unwrap().to_owned(), backups.path().join("copy"));
    let copy = copy.to_str().unwrap().to_owned();
    let server = Server::start(&["--store", place, "--adapters", &none]);
    let number = AtomicU32::new(0);
    let stopped = AtomicBool::new(false);
    let write = async |writer: u32| {
        while !stopped.load(Ordering::Relaxed) {
            let number = number.fetch_add(1, Ordering::Relaxed);
            let (name, gone) = (format!("w{writer}-{number}"), format!("gone{writer}"));
            assert_eq!(server.put(&name, mini(number)).await.status(), 201);
            assert_eq!(server.put(&gone, mini(500_000 + number)).await.status(), 201);
            let url = format!("{}/v1/adapters/{gone}", server.url);
            assert_eq!(server.client.delete(url).send().await.unwrap().status(), 200);
        }
    };
    let copies = async {
        let run = async |words: Vec<String>| {
            let printed = tokio::task::spawn_blocking(move || {
                printed(&words.iter().map(String::as_str).collect::<Vec<_>>())
            });
            printed.await.unwrap()
        };
        // Until enough has been written beside them.
        while number.load(Ordering::Relaxed) < 12 {
            let words = ["store", "copy", place, &copy].map(str::to_owned);
            let text = run(words.to_vec()).await;
            assert!(text.starts_with("copied "), "{text}");
            let words = ["store", "check", "--hashes", "--store", &copy].map(str::to_owned);
            let text = run(words.to_vec()).await;
            assert!(text.contains("nothing is missing"), "{text}");
            // The live one is whole at any time, too.
            run(["store", "check", "--store", place].map(str::to_owned).to_vec()).await;
        }
        stopped.store(true, Ordering::Relaxed);
    };
    futures_util::join!(copies, write(0), write(1));
    printed(&["store", "copy", place, &copy]);
    let before = all_answer(&server).await;
    assert!(before.len() >= 12, "{before:?}");
    let restored = Server::start(&["--store", &copy, "--adapters", &none]);
    assert_eq!(all_answer(&restored).await, before);
    // It lives on by itself now, and is no backup of the other one any more.
    assert_eq!(restored.put("new", mini(900_000)).await.status(), 201);
    let refused = chorus(&["store", "copy", place, &copy]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && message.contains("another history"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_names_what_is_missing() {
    let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = root.path().to_str().unwrap();
    let absent = chorus(&["store", "check", "--store", elsewhere.path().to_str().unwrap()]);
    let message = String::from_utf8_lossy(&absent.stderr);
    assert!(absent.status.code() == Some(2) && message.contains("there is no store"), "{message}");
    assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0, "nothing is made");
    let server = Server::start(&["--store", place]);
    let operator = operator(&server, "acme").await;
    let acme = Holder { server: &server, key: operator.new_key("acme", "admin").await.0 };
    assert_eq!(acme.put("sql", mini(1)).await.0, 201);
    assert_eq!(acme.put("law", mini(2)).await.0, 201);
    assert!(
        printed(&["store", "check", "--store", place]).contains("2 changes, 2 versions in 3 files")
    );
    let blobs = || {
        let mut blobs: Vec<_> = root
            .path()
            .join("blobs")
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        blobs.sort_by_key(|path| path.metadata().unwrap().len());
        blobs
    };
    let [config, one, two] = &blobs()[..] else { panic!("three files") };
    std::fs::remove_file(one).unwrap();
    let mut bytes = std::fs::read(two).unwrap();
    bytes[100] ^= 1;
    std::fs::write(two, bytes).unwrap();
    let found = chorus(&["store", "check", "--store", place]);
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    assert_eq!(found.status.code(), Some(1), "{text}");
    assert!(
        text.contains("adapter_model.safetensors is missing") && text.contains("acme/"),
        "{text}"
    );
    let found = chorus(&["store", "check", "--hashes", "--json", "--store", place]);
    let json: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((found.status.code(), json["faults"].as_array().unwrap().len()), (Some(1), 2));
    // A tenant that a copy of the logs in the wrong order lacks.
    std::fs::remove_dir_all(root.path().join("logs/tenants")).unwrap();
    let text = String::from_utf8(chorus(&["store", "check", "--store", place]).stdout).unwrap();
    assert!(text.contains("is not in logs/tenants"), "{text}");
    std::fs::remove_file(root.path().join("logs/adapters/00000000000000000001.json")).unwrap();
    let text = String::from_utf8(chorus(&["store", "check", "--store", place]).stdout).unwrap();
    assert!(text.contains("the log is broken: record 1"), "{text}");
    assert!(text.contains("nothing should be erased"), "{text}");
    assert!(config.is_file());
}
