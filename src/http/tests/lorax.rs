//! LoRAX's routes, as its client reads them.

use super::{
    super::double::{self, Play, app, ids},
    *,
};
use crate::engine::{Event, Failure, Finish, Sampling};

fn generate(parameters: Value) -> Value {
    let mut body = json!({"inputs": "once"});
    body["parameters"] = parameters;
    body
}

/// The text of each event's token.
fn texts(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(_, event)| event["token"]["text"].as_str().unwrap()).collect()
}

fn token(id: u32, text: &str, logprob: f32) -> Value {
    json!({"id": id, "text": text, "logprob": logprob, "special": false})
}

#[tokio::test]
async fn a_text_is_continued_with_its_tokens() {
    let (app, engine) = app([Play::say("ab")]);
    let request = generate(json!({"details": true, "max_new_tokens": 5, "adapter_id": null}));
    let response = send(&app, post("/generate", &request)).await;
    assert_eq!(response.headers()["x-chorus-adapter"], "base");
    assert_eq!(
        body(response).await,
        json!({"generated_text": "ab", "details": {
            "finish_reason": "eos_token", "prompt_tokens": 4, "generated_tokens": 2, "seed": null,
            "prefill": [], "tokens": [token(97, "a", -1.0), token(98, "b", -2.0)]}})
    );
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    assert_eq!((&job.prompt, job.max_tokens), (&ids("once"), 5));
    let seed = job.sampling.seed;
    assert_eq!(job.sampling, Sampling { temperature: 0.0, seed, ..Sampling::default() });
    let (_, bare) = ask(&app, "/generate", generate(json!({}))).await;
    assert_eq!(bare, json!({"generated_text": "ok"}));
    assert_eq!(engine.jobs()[0].logprobs, None);
    let (_, bare) = ask(&app, "/generate", json!({"inputs": "x", "stream": true})).await;
    assert_eq!(bare, json!({"generated_text": "ok"}), "only `/` is either");
}

#[tokio::test]
async fn the_clients_own_path_answers_with_a_list_or_a_stream() {
    let (app, _) = app([Play::say("ab"), Play::say("ab")]);
    let full = json!({"return_full_text": true});
    let (_, list) = ask(&app, "/", generate(full.clone())).await;
    assert_eq!(list, json!([{"generated_text": "onceab"}]));
    let request = merge(generate(full), json!({"stream": true}));
    let events = named_events(send(&app, post("/", &request)).await).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].1["generated_text"], "onceab");
    assert_eq!(events[1].1["details"], Value::Null, "details were not asked for");
}

#[tokio::test]
async fn a_stream_has_an_event_for_each_token() {
    let (app, _) = app([Play::exhaust("a\u{20ac}b")]);
    let request = generate(json!({"details": true, "do_sample": true, "seed": 7}));
    let events = named_events(send(&app, post("/generate_stream", &request)).await).await;
    assert!(events.iter().all(|(name, _)| name.is_empty()));
    let texts = texts(&events);
    assert_eq!(texts, ["a", "", "", "\u{20ac}", "b"]);
    let ends: Vec<_> = events.iter().map(|(_, event)| !event["generated_text"].is_null()).collect();
    assert_eq!(ends, [false, false, false, false, true]);
    assert_eq!(
        events[4].1,
        json!({"token": token(98, "b", -5.0), "generated_text": "a\u{20ac}b", "details": {
            "finish_reason": "length", "prompt_tokens": 4, "generated_tokens": 5, "seed": 7}})
    );
}

#[tokio::test]
async fn a_stop_string_is_a_part_of_the_text() {
    for path in ["/generate", "/generate_stream"] {
        let (app, engine) = app([Play::hang("one END two")]);
        let request = generate(json!({"stop": ["END"], "details": true}));
        let response = send(&app, post(path, &request)).await;
        let last = if path == "/generate" {
            body(response).await
        } else {
            let events = named_events(response).await;
            assert_eq!(texts(&events).concat(), "one END");
            events.into_iter().next_back().unwrap().1
        };
        assert_eq!(last["generated_text"], "one END", "{path}");
        assert_eq!(last["details"]["finish_reason"], "stop_sequence");
        assert_eq!(last["details"]["generated_tokens"], 7);
        assert_eq!(engine.wanted(), 0);
    }
}

#[tokio::test]
async fn what_was_held_back_belongs_to_a_token() {
    // The last two might have begun the stop string; the character after them never ends.
    let plays = || {
        let cut = [0x61, 0x45, 0x4e, 0xe2, 0x82]
            .map(|id| Event::Token { id, logprob: Some(double::score(id, -1.0)) });
        Play::Events(cut.into_iter().chain([Event::Finished(Finish::Length)]).collect())
    };
    let (app, _) = app([plays(), plays()]);
    let request = generate(json!({"stop": ["END"], "details": true}));
    let events = named_events(send(&app, post("/generate_stream", &request)).await).await;
    let texts = texts(&events);
    assert_eq!(texts.concat(), "aEN\u{fffd}");
    assert_eq!((texts.len(), &events[4].1["generated_text"]), (5, &json!("aEN\u{fffd}")));
    let (_, whole) = ask(&app, "/generate", request).await;
    let tokens = whole["details"]["tokens"].as_array().unwrap();
    let texts: Vec<_> = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(texts.concat(), "aEN\u{fffd}");
}

#[tokio::test]
async fn an_answer_of_nothing_is_an_event_all_the_same() {
    let (app, _) = app([Play::say("")]);
    let request = generate(json!({"details": true}));
    let events = named_events(send(&app, post("/generate_stream", &request)).await).await;
    let [(_, event)] = &events[..] else { panic!("one event") };
    assert_eq!(event["token"]["special"], true);
    assert_eq!(
        (&event["token"]["id"], &event["token"]["text"]),
        (&json!(double::SPECIAL), &json!(""))
    );
    assert_eq!(
        (&event["generated_text"], &event["details"]["finish_reason"]),
        (&json!(""), &json!("eos_token"))
    );
}

#[tokio::test]
async fn parameters_have_their_meaning() {
    let (app, engine) = app([]);
    let parameters = json!({
        "temperature": 0.5, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1, "seed": u64::MAX,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "ignore_eos_token": true,
        "adapter_source": "local", "api_token": "hf_x", "typical_p": null, "best_of": 1,
        "watermark": false, "merged_adapters": null, "return_k_alternatives": 2, "details": true,
    });
    let (status, answer) = ask(&app, "/generate", generate(parameters)).await;
    assert_eq!((status, &answer["details"]["seed"]), (200, &json!(u64::MAX)), "{answer}");
    assert!(answer["details"]["tokens"][0]["alternative_tokens"].is_array());
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    let expected = Sampling {
        temperature: 0.5,
        top_k: 40,
        top_p: 0.9,
        repetition_penalty: 1.1,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        seed: u64::MAX,
        ..Sampling::default()
    };
    assert_eq!((&job.sampling, job.logprobs), (&expected, Some(2)));
    assert!(job.stop_tokens.is_empty());
    let (_, drawn) =
        ask(&app, "/generate", generate(json!({"do_sample": true, "details": true}))).await;
    assert!(drawn["details"]["seed"].is_u64());
    assert_eq!(engine.jobs()[0].sampling.temperature.to_bits(), 1f32.to_bits());
}

#[tokio::test]
async fn a_form_is_followed() {
    let schema = json!({"type": "object", "properties": {"a": {"const": 1}}});
    for (format, guided) in [
        (json!({"type": "json_object"}), true),
        (json!({"type": "json_object", "schema": {}}), true),
        (json!({"type": "json_object", "schema": schema}), true),
        (json!({"type": "json_schema", "schema": schema}), true),
        (json!({"type": "text"}), false),
        (Value::Null, false),
    ] {
        let (app, engine) = app([]);
        let request = generate(json!({"response_format": format}));
        let (status, answer) = ask(&app, "/generate", request).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(engine.jobs()[0].guide.is_some(), guided, "{format}");
    }
}

#[tokio::test]
async fn the_prompts_tokens_are_listed_where_they_are_wanted() {
    let scores = b"nce".map(|id| double::score(id.into(), -7.0)).to_vec();
    let Play::Events(answer) = Play::say("!") else { panic!("an answer is events") };
    let play = Play::Events([Event::Prompt(scores)].into_iter().chain(answer).collect());
    let (app, engine) = app([play]);
    let (_, answer) =
        ask(&app, "/generate", generate(json!({"decoder_input_details": true}))).await;
    assert_eq!(engine.jobs()[0].prompt_logprobs, Some(0));
    let prefill = answer["details"]["prefill"].as_array().unwrap();
    let read: Vec<_> =
        prefill.iter().map(|token| (token["text"].as_str().unwrap(), &token["logprob"])).collect();
    let (null, seven) = (Value::Null, json!(-7.0));
    assert_eq!(read, [("o", &null), ("n", &seven), ("c", &seven), ("e", &seven)]);
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_name() {
    for (field, value) in [
        ("adapter_source", json!("hub")),
        ("adapter_source", json!("s3")),
        ("merged_adapters", json!({"ids": ["sql", "law"], "weights": [0.5, 0.5]})),
        ("watermark", json!(true)),
        ("typical_p", json!(0.9)),
        ("best_of", json!(2)),
        ("truncate", json!(5)),
        ("apply_chat_template", json!(true)),
        ("response_format", json!({"type": "regex", "schema": "a"})),
        ("response_format", json!({"type": "json_schema"})),
        ("response_format", json!({"type": "json_schema", "schema": {"type": "nothing"}})),
        ("response_format", json!({"schema": {}})),
        ("response_format", json!("json_object")),
        ("schema", json!("{}")),
        ("grammar", json!({"type": "regex", "value": "a"})),
        ("return_k_alternatives", json!(0)),
        ("return_k_alternatives", json!(21)),
        ("max_new_tokens", json!(0)),
        ("max_new_tokens", json!(-1)),
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("repetition_penalty", json!(0)),
        ("seed", json!(-1)),
        ("stop", json!("")),
        ("adapter_id", json!(7)),
        ("details", json!("yes")),
    ] {
        for path in ["/", "/generate", "/generate_stream"] {
            let (app, engine) = app([]);
            let (status, answer) = ask(&app, path, generate(json!({field: value}))).await;
            assert_eq!((status, &answer["error_type"]), (400, &json!("validation")), "{field}");
            let message = answer["error"].as_str().unwrap();
            assert!(message.contains(field) || field == "stop", "{field}: {message}");
            assert!(engine.jobs().is_empty());
        }
    }
    let (app, _) = app([]);
    assert_eq!(ask(&app, "/generate", json!({"inputs": ""})).await.0, 400);
    assert_eq!(ask(&app, "/generate", json!({"inputs": ["a"]})).await.0, 400);
    assert_eq!(ask(&app, "/generate", generate(json!(["sql"]))).await.0, 400);
    let scored = generate(json!({"decoder_input_details": true}));
    assert_eq!(ask(&app, "/generate_stream", scored).await.0, 400);
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event_after_the_tokens() {
    let (app, _) = app([Play::fail("ab", Failure::Step)]);
    let events =
        named_events(send(&app, post("/generate_stream", &generate(json!({})))).await).await;
    let texts: Vec<_> = events.iter().map(|(_, event)| &event["token"]["text"]).collect();
    assert_eq!(texts, [&json!("a"), &json!("b"), &Value::Null]);
    assert_eq!(events[2].1["error_type"], "generation");
    assert!(events[2].1["error"].is_string());
}
