//! Answers that must have a form: JSON by a schema, calls of tools, choices, patterns and grammars.

use std::{collections::BTreeSet, sync::LazyLock, time::Duration};

use chorus::text::{Form, Specials, Text, Ways};
use futures_util::{StreamExt as _, stream};
use proptest::{
    prelude::{Just, Strategy, any, prop, prop_oneof},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use serde_json::{Map, Value, json};

use crate::{
    uploads::times,
    world::{Server, base_gguf},
};

const CHAT: &str = "/v1/chat/completions";

static TEXT: LazyLock<Text> = LazyLock::new(|| Text::from_gguf(&base_gguf()).unwrap());

/// Schemas as people write them: some refer to a part of their own.
fn schemas() -> impl Strategy<Value = Value> {
    (parts(), 0..4_u8).prop_map(|(part, kind)| match kind {
        0 => json!({
            "$defs": {"part": part}, "type": "object", "properties": {"part": {"$ref": "#/$defs/part"}},
            "required": ["part"], "additionalProperties": false,
        }),
        _ => part,
    })
}

/// Of some depth.
fn parts() -> impl Strategy<Value = Value> {
    let formats =
        ["uuid", "ipv4", "ipv6", "date", "time", "date-time", "duration", "hostname", "email"];
    let patterns = ["^[a-z]{2,5}$", "^(red|green)$", "[0-9]{3}-[0-9]{2}", "^A.*z$"];
    let leaf = prop_oneof![
        (0..4_u32, 0..9_u32).prop_map(|(least, more)| {
            json!({"type": "string", "minLength": least, "maxLength": least + more})
        }),
        prop::sample::select(formats.to_vec())
            .prop_map(|format| json!({"type": "string", "format": format})),
        prop::sample::select(patterns.to_vec())
            .prop_map(|pattern| json!({"type": "string", "pattern": pattern, "maxLength": 12})),
        (-50..50_i32, 0..200_i32).prop_map(|(least, more)| {
            json!({"type": "integer", "minimum": least, "maximum": least + more})
        }),
        (0..9_i32).prop_map(
            |least| json!({"type": "number", "exclusiveMinimum": least, "maximum": least + 1})
        ),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        Just(json!({"const": {"a": [1, "\u{e4}\"\\", null]}})),
        Just(json!({"enum": ["yes", "no", 3, null, {"k": true}]})),
        Just(json!({"type": ["string", "integer"], "maxLength": 5, "minimum": 0, "maximum": 9})),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let names = prop::sample::subsequence(vec!["name", "a b", "x", "\"quoted\"", "id"], 1..4);
        let fields = prop::collection::vec((inner.clone(), any::<bool>()), 4);
        prop_oneof![
            (names, fields).prop_map(|(names, fields)| {
                let mut properties = Map::new();
                let mut required = Vec::new();
                for (name, (schema, needed)) in names.into_iter().zip(fields) {
                    properties.insert(name.to_owned(), schema);
                    required.extend(needed.then_some(name));
                }
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
            }),
            (inner.clone(), 0..3_u32, 0..3_u32).prop_map(|(items, least, more)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": least + more})
            }),
            (inner.clone(), inner.clone()).prop_map(|(one, other)| json!({"anyOf": [one, other]})),
        ]
    })
}

/// The same ones each time.
fn some(number: usize) -> Vec<Value> {
    let mut runner = TestRunner::deterministic();
    (0..number).map(|_| schemas().new_tree(&mut runner).unwrap().current()).collect()
}

fn assert_fits(schema: &Value, text: &str) {
    let answer: Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}\nfor {schema}"));
    let judge = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    if let Err(error) = judge.validate(&answer) {
        panic!("{error}: {text}\nfor {schema}");
    }
}

fn allowed(words: &[u32]) -> Vec<u32> {
    let of_word = |(at, word): (usize, &u32)| {
        let word = *word;
        (0..32_u32)
            .filter(move |bit| word >> bit & 1 == 1)
            .map(move |bit| u32::try_from(at).unwrap() * 32 + bit)
    };
    words.iter().enumerate().flat_map(of_word).collect()
}

/// Without a model: any way through a form is JSON that the schema describes.
#[test]
fn whatever_is_allowed_fits_the_schema() {
    let mut ended = 0;
    let schemas = some(500);
    for (number, schema) in schemas.iter().enumerate() {
        let mut walk = TEXT
            .form(&Form::Schema(schema.clone()))
            .unwrap_or_else(|bad| panic!("{bad}: {schema}"));
        let (mut ids, mut random) = (Vec::new(), number as u64);
        while ids.len() < 300 {
            let (tokens, may_end) = match walk.after(ids.last().copied()).unwrap() {
                Ways::None => (vec![], true),
                Ways::Some(words, may_end) => (allowed(&words), may_end),
            };
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let roll = usize::try_from(random >> 33).unwrap();
            if may_end && (tokens.is_empty() || roll % 4 == 0) {
                assert_fits(schema, &TEXT.decode(&ids, Specials::Show));
                ended += 1;
                break;
            }
            assert!(!tokens.is_empty(), "nothing may come in {schema}");
            ids.push(tokens[roll % tokens.len()]);
        }
    }
    assert!(ended > 450, "only {ended} came to an end");
}

fn ask(model: &str, seed: usize, form: &Value) -> Value {
    json!({
        "model": model, "seed": seed, "temperature": 1.0, "max_tokens": 300, "logprobs": true,
        "messages": [{"role": "user", "content": format!("Number {seed}: give me some JSON.")}],
        "response_format": form,
    })
}

/// With one: what the model says under a schema, in the company of others and through adapters, is what it says alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_under_a_schema_fit_it_in_any_company() {
    let server = Server::start(&[]);
    let asked: Vec<(Value, Value)> = some(times(24, 500))
        .into_iter()
        .enumerate()
        .map(|(number, schema)| {
            let model = ["base", "support-json", "medcode", "german"][number % 4];
            let form = json!({"type": "json_schema", "json_schema": {"name": "it", "strict": true, "schema": schema}});
            (schema, ask(model, number, &form))
        })
        .collect();
    let free = |number: usize| {
        let mut free = ask(["base", "sql"][number % 2], number, &json!({"type": "text"}));
        free["max_tokens"] = 40.into();
        free
    };
    let answers: Vec<(Value, Value)> = stream::iter(asked.iter().enumerate())
        .map(async |(number, (_, body))| {
            let beside = free(number);
            futures_util::join!(server.answer(CHAT, body), server.answer(CHAT, &beside))
        })
        .buffered(12)
        .collect()
        .await;
    let mut whole = 0;
    for (number, ((schema, body), (answer, beside))) in asked.iter().zip(&answers).enumerate() {
        let choice = &answer["choices"][0];
        if choice["finish_reason"] == "stop" {
            assert_fits(schema, choice["message"]["content"].as_str().unwrap());
            whole += 1;
        }
        if number < 8 {
            assert_eq!(server.answer(CHAT, body).await["choices"], answer["choices"], "{body}");
            let alone = server.answer(CHAT, &free(number)).await;
            assert_eq!(alone["choices"], beside["choices"], "a form changes nobody else's answer");
        }
    }
    assert!(whole * 10 > asked.len() * 7, "only {whole} of {} came to an end", asked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_forms_are_followed_too() {
    let server = Server::start(&[]);
    let ask = async |field: &str, form: Value, stream: bool| {
        let body = json!({
            "model": "base", "prompt": "The answer is", "max_tokens": 60, "temperature": 1.0, "n": 3, field: form,
            "stream": stream,
        });
        let answer = server.answer("/v1/completions", &body).await;
        answer["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["text"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    for (field, form) in [
        ("guided_choice", json!(["one", "two", "t\"wo", "three"])),
        ("structured_outputs", json!({"choice": ["one", "two"]})),
    ] {
        let said = ask(field, form, false).await;
        assert!(
            said.iter().all(|said| ["one", "two", "t\"wo", "three"].contains(&said.as_str())),
            "{said:?}"
        );
    }
    let plate = regex::Regex::new("^[A-Z]{2}-[0-9]{3}$").unwrap();
    for said in ask("guided_regex", json!("[A-Z]{2}-[0-9]{3}"), false).await {
        assert!(plate.is_match(&said), "{said}");
    }
    let sum = "start: NUM (\"+\" NUM)+\nNUM: /[0-9]{1,3}/";
    for said in ask("guided_grammar", json!(sum), false).await {
        assert!(
            said.split('+').all(|part| part.parse::<u32>().is_ok() || part.is_empty()),
            "{said}"
        );
    }
    let nested = "root ::= \"(\" (root | [0-9]{1,2})? \")\" # brackets";
    for said in ask("structured_outputs", json!({"grammar": nested}), false).await {
        assert!(said.starts_with('(') && !said.contains(|c: char| c.is_alphabetic()), "{said}");
    }
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
    for form in [schema.clone(), json!(schema.to_string())] {
        for said in ask("guided_json", form, false).await {
            assert_fits(&schema, &said);
        }
    }
    let any = json!({"type": "object"});
    let object = json!({"type": "json_object"});
    let body = json!({"model": "base", "max_tokens": 200, "response_format": object, "messages": [{"role": "user", "content": "JSON please"}]});
    let answer = server.answer(CHAT, &body).await;
    if answer["choices"][0]["finish_reason"] == "stop" {
        assert_fits(&any, answer["choices"][0]["message"]["content"].as_str().unwrap());
    }
}

/// What nobody should ask for.
fn hostile() -> Vec<Value> {
    let mut deep = json!({"type": "string"});
    for _ in 0..50 {
        deep = json!({"type": "array", "items": deep});
    }
    let mut wide = json!({"type": "object"});
    for at in 0..40 {
        let either = json!({"anyOf": [{"properties": {format!("x{at}"): {"type": "string"}}}, {"properties": {format!("y{at}"): {"type": "number"}}}]});
        wide = json!({"allOf": [wide, either]});
    }
    let schema = |schema: Value| json!({"guided_json": schema});
    // Each refers to the next, as far as a form has room: compiling them goes as deep.
    let rules: Vec<String> = (0..13_000).map(|at| format!("r{at}: r{}\n", at + 1)).collect();
    let rules = rules.concat();
    let definition = |at| (format!("d{at}"), json!({"$ref": format!("#/$defs/d{}", at + 1)}));
    let mut chain: Map<String, Value> = (0..5_000).map(definition).collect();
    chain.insert("d5000".to_owned(), json!({"type": "null"}));
    let properties: Map<String, Value> =
        (0..13_000).map(|at| (format!("p{at}"), json!({}))).collect();
    let many: Vec<String> = (0..50_000).map(|at| format!("v{at}")).collect();
    vec![
        schema(deep),
        schema(wide),
        schema(json!({"enum": many})),
        schema(json!({"type": "object", "properties": properties})),
        schema(json!({"$ref": "#"})),
        schema(
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        ),
        schema(json!({"$ref": "http://127.0.0.1:1/schema.json"})),
        schema(json!({"$ref": "file:///etc/passwd"})),
        schema(json!({"not": {"type": "string"}})),
        schema(json!({"type": "array", "uniqueItems": true})),
        schema(json!({"type": "string", "minLength": 1_000_000_000_u64})),
        schema(json!({"type": "string", "pattern": "^((((a|b|c)*d?){1,50}){1,50}){1,50}$"})),
        schema(json!({"type": "integer", "minimum": 3, "maximum": 2})),
        schema(json!({"x-guidance": {"whitespace_flexible": true, "lenient": true}, "not": {}})),
        schema(json!(7)),
        schema(json!("no json")),
        json!({"guided_regex": "("}),
        json!({"guided_regex": "(.*a.{20})|(.*b.{19})|(.*[c-z].{18}q)"}),
        json!({"guided_regex": "(a?){5000}a{5000}"}),
        json!({"guided_choice": []}),
        json!({"guided_choice": ["", ""]}),
        json!({"guided_grammar": "start: s\ns: s s | s s s | \"a\" | \"b\" | \"ab\" | "}),
        json!({"guided_grammar": "start: nothing"}),
        json!({"guided_grammar": ""}),
        json!({"guided_grammar": format!("start: r0\n{rules}r13000: \"a\"\n")}),
        schema(json!({"$ref": "#/$defs/d0", "$defs": chain})),
        json!({"guided_grammar": "root ::= root"}),
        json!({"guided_grammar": "root ::= [a-z"}),
        json!({"guided_grammar": format!("root ::= {}", "(".repeat(200_000))}),
        json!({"guided_grammar": format!("root ::= \"(\" root \")\" | {}", "[a-z]* ".repeat(20_000))}),
        json!({"structured_outputs": {"structural_tag": {}}}),
        json!({"guided_regex": "a", "guided_choice": ["b"]}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"response_format": {"type": "xml"}}),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_forms_are_refused_or_end_and_hold_nobody_up() {
    let (server, forms) = (Server::start(&[]), hostile());
    let before = server.resident();
    let refused = stream::iter(forms.iter())
        .map(async |form| {
            let mut body = json!({"model": "base", "prompt": "x", "max_tokens": 40});
            for (field, value) in form.as_object().unwrap() {
                body[field] = value.clone();
            }
            let response = server.post("/v1/completions", &body).await;
            let status = response.status().as_u16();
            let answer: Value = response.json().await.unwrap();
            assert!([200, 400].contains(&status), "{status}: {answer} for {form}");
            if status == 400 {
                let message = answer["error"]["message"].as_str().unwrap();
                assert!(!message.contains("backtrace") && message.len() < 1_000, "{message}");
                assert!(answer["error"]["type"] == "invalid_request_error", "{answer}");
            }
            usize::from(status == 400)
        })
        .buffer_unordered(4)
        .fold(0, async |sum, refused| sum + refused);
    let refused = tokio::time::timeout(Duration::from_mins(2), refused).await.unwrap();
    assert!(refused >= 18, "only {refused} were refused");
    let good = server
        .answer("/v1/completions", &json!({"model": "base", "prompt": "x", "max_tokens": 4}))
        .await;
    assert_eq!(good["object"], "text_completion");
    assert_eq!(server.metric("chorus_requests_running").await.to_bits(), 0.0_f64.to_bits());
    assert!(server.resident() < before + (256 << 20), "what hostile forms took is given back");
}

fn tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                      "required": ["city", "days"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": city}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn city() -> Value {
    tools()[0]["function"]["parameters"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_that_must_be_called_are_called() {
    let server = Server::start(&[]);
    let mut messages = json!([{"role": "user", "content": "How is the weather in Oslo?"}]);
    let ask = |choice: Value, messages: &Value| {
        json!({"model": "base", "max_tokens": 200, "temperature": 1.0, "seed": 5, "messages": messages,
               "tools": tools(), "tool_choice": choice, "parallel_tool_calls": false})
    };
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let answer = server.answer(CHAT, &ask(named.clone(), &messages)).await;
    let choice = &answer["choices"][0];
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("stop"), &Value::Null),
        "{answer}"
    );
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
    assert_fits(&city(), call["function"]["arguments"].as_str().unwrap());
    assert!(call["id"].as_str().unwrap().starts_with("call_") && call.get("index").is_none());
    assert!(choice["message"].as_object().unwrap().contains_key("refusal"));

    // The same as a stream.
    let mut body = ask(named, &messages);
    body["stream"] = true.into();
    let text = server.post(CHAT, &body).await.text().await.unwrap();
    let deltas: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|rest| {
            serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap()["choices"][0].clone()
        })
        .collect();
    let calls: Vec<&Value> = deltas
        .iter()
        .filter_map(|delta| delta["delta"]["tool_calls"].as_array())
        .flatten()
        .collect();
    assert_eq!(
        (&calls[0]["index"], &calls[0]["function"]["name"], &calls[0]["function"]["arguments"]),
        (&json!(0), &json!("weather"), &json!(""))
    );
    let arguments: String =
        calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(arguments, call["function"]["arguments"].as_str().unwrap());
    assert_eq!(deltas.last().unwrap()["finish_reason"], "stop");

    let answer = server.answer(CHAT, &ask(json!("required"), &messages)).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let names: BTreeSet<_> = ["weather", "now"].into();
    assert!(
        names.contains(choice["message"]["tool_calls"][0]["function"]["name"].as_str().unwrap())
    );

    // What came of it goes on in the conversation.
    let sent = messages.as_array_mut().unwrap();
    sent.push(choice["message"].clone());
    sent.push(json!({"role": "tool", "tool_call_id": choice["message"]["tool_calls"][0]["id"], "content": "rain"}));
    let answer = server.answer(CHAT, &ask(json!("auto"), &messages)).await;
    assert!(answer["choices"][0]["message"].is_object());
    let answer = server.answer(CHAT, &ask(json!("none"), &messages)).await;
    assert!(answer["choices"][0]["message"].get("tool_calls").is_none());
    let counted = server
        .answer("/tokenize", &json!({"model": "base", "messages": messages, "tools": tools()}))
        .await;
    let without = server.answer("/tokenize", &json!({"model": "base", "messages": messages})).await;
    assert!(counted["count"].as_u64() > without["count"].as_u64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_that_make_no_sense_are_refused_by_field() {
    let server = Server::start(&[]);
    let messages = json!([{"role": "user", "content": "x"}]);
    let bad = json!([{"type": "function", "function": {"name": "a b"}}]);
    for (field, value, param) in [
        ("tools", json!([{"type": "retrieval"}]), "tools[0].type"),
        ("tools", json!([{"type": "function"}]), "tools[0].function"),
        ("tools", bad, "tools[0].function.name"),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "a", "parameters": 3}}]),
            "tools[0].function.parameters",
        ),
        ("tools", json!("all"), "tools"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("tool_choice", json!("sometimes"), "tool_choice"),
        ("tool_choice", json!({"type": "function", "function": {"name": "other"}}), "tool_choice"),
        (
            "messages",
            json!([{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "a"}}]}]),
            "messages[0].tool_calls",
        ),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]),
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("messages", json!([{"role": "tool"}]), "messages[0].content"),
    ] {
        let mut body = json!({"model": "base", "max_tokens": 4, "messages": messages});
        body[field] = value;
        let response = server.post(CHAT, &body).await;
        assert_eq!(response.status(), 400, "{body}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }
}
