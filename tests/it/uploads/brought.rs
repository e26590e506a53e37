//! What adapters bring besides weights: smoke tests, templates, stops and sampling.

use futures_util::future::join_all;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_fails_its_smoke_test_is_stored_and_not_active() {
    let server = Server::start(&[]);
    let test = |expected: Value| json!({"smoke_test": {"prompt": "How do I cook rice?", "matches": expected}});
    let good = bringing("pirate", test("(?i)arr|matey".into()));
    let (status, stored) = body(server.put("mine", good).await).await;
    assert_eq!((status, &stored["status"]), (201, &json!("active")), "{stored}");
    assert_eq!(stored["smoke_test"]["passed"], true, "{stored}");

    let bad = bringing("german", test("(?i)arr|matey".into()));
    for again in [201, 200] {
        let (status, stored) = body(server.put("mine", bad.clone()).await).await;
        assert_eq!((status, &stored["version"]), (again, &json!(2)), "{stored}");
        assert_eq!(
            (&stored["status"], &stored["smoke_test"]["passed"]),
            (&json!("inactive"), &json!(false))
        );
        let answer = stored["smoke_test"]["answer"].as_str().unwrap();
        assert!(!answer.is_empty() && !answer.contains("rrr"), "{answer}");
    }
    let (_, shown) = server.show("mine").await;
    assert_eq!((&shown["version"], &shown["status"]), (&json!(1), &json!("active")), "{shown}");
    assert_eq!(shown["versions"][1]["smoke_test"]["passed"], false, "{shown}");
    assert!(server.says("mine").await.1.starts_with("mine@v1;"));
    // Where a name has nothing else, it answers nobody; who wants that version all the same can have it.
    assert_eq!(server.put("new", bad).await.status(), 201);
    assert_eq!(server.post("/v1/chat/completions", &question("new", 4)).await.status(), 404);
    assert!(server.says("new@v1").await.1.starts_with("new@v1;"));
    assert_eq!(server.act("new", "activate", json!({"version": 1})).await.status(), 200);
    assert!(server.says("new").await.1.starts_with("new@v1;"));

    // One version alone is not shown, and that is said.
    let url = format!("{}/v1/adapters/new?version=1", server.url);
    let (status, refused) = body(server.client.get(url).send().await.unwrap()).await;
    assert!(status == 400 && refused.to_string().contains("version"), "{refused}");

    for (extras, code, part) in [
        (json!({"smoke_test": {"prompt": "x"}}), "chorus_object", "either `contains` or `matches`"),
        (json!({"speed": 9}), "chorus_object", "chorus.speed"),
        (json!({"sampling": {"top_p": 2}}), "chorus_object", "chorus.sampling.top_p"),
        (json!({"chat_template": "{% if %}"}), "chat_template", "template"),
        (json!({"chat_template": "{# nothing #}"}), "chat_template", "empty prompt"),
        (
            json!({"chat_template": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"}),
            "chat_template",
            "work",
        ),
    ] {
        let (status, refused) = body(server.put("bad", bringing("pirate", extras)).await).await;
        assert_eq!((status, &refused["error"]["code"]), (422, &json!(code)), "{refused}");
        assert!(refused["error"]["message"].as_str().unwrap().contains(part), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_answers_with_its_own_template_stops_and_sampling() {
    let server = Server::start(&[]);
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}";
    let extras = json!({"chat_template": template, "stop": [",", "<|im_end|>"],
        "sampling": {"temperature": 0, "max_tokens": 40}});
    assert_eq!(server.put("own", bringing("pirate", extras)).await.status(), 201);
    assert_eq!(server.put("plain", files(&shipped_adapters().join("pirate"))).await.status(), 201);
    let ids = async |model: &str, body: Value| {
        let mut asked = body;
        asked["model"] = model.into();
        server.answer("/tokenize", &asked).await["tokens"].clone()
    };
    let rendered = "<|im_start|>user\nHOW DO I COOK RICE?<|im_end|>\n<|im_start|>assistant\n";
    let messages = json!({"messages": [{"role": "user", "content": "How do I cook rice?"}]});
    let plain = json!({"prompt": rendered, "add_special_tokens": false});
    assert_eq!(ids("own", messages.clone()).await, ids("base", plain).await);
    assert_ne!(ids("own", messages.clone()).await, ids("plain", messages.clone()).await);

    let by_hand = json!({"model": "plain", "prompt": rendered, "add_special_tokens": false,
        "temperature": 0, "max_tokens": 40, "stop": [","]});
    let expected = server.answer("/v1/completions", &by_hand).await;
    let mut asked = messages.clone();
    asked["model"] = "own".into();
    let answer = server.answer("/v1/chat/completions", &asked).await;
    assert_eq!(answer["choices"][0]["message"]["content"], expected["choices"][0]["text"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
    // What a request says counts.
    for (field, value) in [("max_tokens", json!(3)), ("stop", json!(["!", "."]))] {
        let (mut own, mut plain) = (asked.clone(), by_hand.clone());
        (own[field], plain[field]) = (value.clone(), value);
        plain["stop"] = json!([",", "!", "."]);
        let own = server.answer("/v1/chat/completions", &own).await;
        let plain = server.answer("/v1/completions", &plain).await;
        assert_eq!(own["choices"][0]["message"]["content"], plain["choices"][0]["text"], "{field}");
    }
    // After a restart it is what it was.
    let raised = json!({"chat_template": "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}x"});
    assert_eq!(server.put("one", bringing("pirate", raised)).await.status(), 201);
    let two = json!({"model": "one", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]});
    let (status, refused) = body(server.post("/v1/chat/completions", &two).await).await;
    assert_eq!(status, 400);
    assert!(refused["error"]["message"].as_str().unwrap().contains("one at a time"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_never_ends_or_overflows_its_stack_ends_nothing_else() {
    let server = Server::start(&[]);
    // Deeper than a stack, when it is compiled.
    let deep = format!("{{{{ {} }}}}", vec!["1"; 30_000].join("+"));
    let bringing = |template: &str| bringing("pirate", json!({"chat_template": template}));
    let (status, refused) = body(server.put("deep", bringing(&deep)).await).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("chat_template")), "{refused}");
    // Of little work for whoever counts instructions, and only when it is asked for.
    let hidden = |bomb: &str| {
        let lists = "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}";
        format!("{{% if messages[0].content == 'go' %}}{lists}{bomb}{{% endif %}}x")
    };
    let nested = "{% set ns = namespace(l=1) %}{% for i in range(90000) %}{% set ns.l = [ns.l] %}{% endfor %}x";
    let nested = format!("{{% if messages[0].content == 'go' %}}{nested}{{% endif %}}x");
    let bombs = [hidden("{{ ns.l == ns.m }}"), hidden("{{ ns.l | string }}"), nested];
    for (number, template) in bombs.iter().enumerate() {
        assert_eq!(server.put(&format!("bomb{number}"), bringing(template)).await.status(), 201);
    }
    let asked = |number: usize| {
        let mut body = question(&format!("bomb{number}"), 2);
        body["messages"][0]["content"] = "go".into();
        async {
            let body = body;
            server.post("/v1/chat/completions", &body).await.status().as_u16()
        }
    };
    let others = async {
        for _ in 0..10 {
            server.answer("/v1/chat/completions", &question("base", 2)).await;
        }
    };
    let (statuses, ()) = futures_util::join!(join_all((0..3).map(asked)), others);
    assert_eq!(statuses[..2], [400; 2]);
    assert!([200, 400].contains(&statuses[2]), "it may fit into a stack: {statuses:?}");
    assert!(server.says("bomb0@v1").await.1.starts_with("bomb0@v1;"), "another chat is rendered");
}
