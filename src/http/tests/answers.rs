//! Answers whole and streamed, in each shape.

use super::{
    super::{
        app::Settings,
        double::{self, Play, app, app_over, app_with_tools, ids},
    },
    *,
};
use crate::engine::{Event, Failure, Finish};

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let (app, engine) = app([Play::say("hey \u{20ac}")]);
    let response = send(&app, post(CHAT, &chat(json!({"model": "org/tiny", "seed": 3})))).await;
    assert_eq!(response.headers()["x-chorus-adapter"], "base");
    assert!(response.headers().contains_key("x-request-id"));
    let answer = body(response).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("chat.completion"), &json!("org/tiny"))
    );
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "logprobs": null, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "hey \u{20ac}", "refusal": null}}])
    );
    let prompt = ids("user:hi\nassistant:");
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": prompt.len(), "completion_tokens": 7, "total_tokens": prompt.len() + 7,
            "prompt_tokens_details": {"cached_tokens": 0}})
    );
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    assert_eq!((&job.prompt, job.sampling.seed), (&prompt, 3));
    assert_eq!(job.max_tokens, double::CONTEXT - prompt.len());
    assert_eq!(&*job.stop_tokens, [double::SPECIAL]);
    assert!(job.deadline.is_some() && job.logprobs.is_none());
}

#[tokio::test]
async fn a_chat_is_streamed() {
    let (app, _) = app([Play::say("h\u{20ac}!")]);
    let wish = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = events(send(&app, post(CHAT, &chat(wish))).await).await;
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        for key in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(event[key], events[0][key]);
        }
    }
    let deltas: Vec<_> = events.iter().map(|e| (&e["choices"][0]["delta"], &e["usage"])).collect();
    let null = Value::Null;
    assert_eq!(
        deltas,
        [
            (&json!({"role": "assistant", "content": ""}), &null),
            (&json!({"content": "h"}), &null),
            (&json!({"content": "\u{20ac}"}), &null),
            (&json!({"content": "!"}), &null),
            (&json!({}), &null),
            (
                &null,
                &json!({"prompt_tokens": 18, "completion_tokens": 5, "total_tokens": 23,
                    "prompt_tokens_details": {"cached_tokens": 0}})
            ),
        ]
    );
    let reasons: Vec<_> = events.iter().map(|e| &e["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons, [&null, &null, &null, &null, &json!("stop"), &null]);
    assert_eq!(events.last().unwrap()["choices"], json!([]));
}

#[tokio::test]
async fn usage_is_no_key_of_chunks_unless_it_is_asked_for() {
    for (path, request) in
        [(CHAT, chat(json!({"stream": true}))), (COMPLETIONS, completion(json!({"stream": true})))]
    {
        let (app, _) = app([]);
        let events = events(send(&app, post(path, &request)).await).await;
        assert!(events.iter().all(|event| event.get("usage").is_none()), "{path}");
    }
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event() {
    let (app, _) = app([Play::fail("h", Failure::Step), Play::hang("x")]);
    let wish = chat(json!({"stream": true, "n": 2}));
    let events = events(send(&app, post(CHAT, &wish)).await).await;
    let last = events.last().unwrap();
    assert_eq!(error_code(last), "internal_error");
    assert_eq!(last["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_failure_before_the_first_token_is_a_status() {
    for wish in [json!({"stream": true}), json!({})] {
        let (app, _) = app([Play::fail("", Failure::Deadline)]);
        let response = send(&app, post(CHAT, &chat(wish))).await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(error_code(&body(response).await), "deadline_exceeded");
    }
}

#[tokio::test]
async fn a_failure_of_one_choice_fails_a_whole_answer() {
    let (app, engine) = app([Play::hang("a"), Play::fail("b", Failure::NotANumber)]);
    let (status, answer) = ask(&app, CHAT, chat(json!({"n": 2}))).await;
    assert_eq!((status, error_code(&answer)), (500, "internal_error"));
    assert_eq!(engine.wanted(), 0);
}

#[tokio::test]
async fn stop_strings_end_an_answer_and_its_job() {
    let (app, engine) = app([Play::hang("one END two")]);
    let (status, answer) = ask(&app, CHAT, chat(json!({"stop": "END"}))).await;
    assert_eq!(status, 200);
    assert_eq!(answer["choices"][0]["message"]["content"], "one ");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(engine.wanted(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_jobs() {
    let (app, engine) = app([Play::hang("a"), Play::hang("b")]);
    let response = send(&app, post(CHAT, &chat(json!({"stream": true, "n": 2})))).await;
    assert_eq!(engine.wanted(), 2);
    drop(response);
    assert_eq!(engine.wanted(), 0);
    let (app, engine) = self::app([Play::hang("a")]);
    let whole = tokio::spawn({
        let app = app.clone();
        async move { send(&app, post(CHAT, &chat(json!({})))).await }
    });
    until(|| engine.wanted() == 1).await;
    whole.abort();
    assert!(whole.await.unwrap_err().is_cancelled());
    assert_eq!(engine.wanted(), 0);
}

#[tokio::test]
async fn chat_scores_have_their_shape() {
    let request = chat(json!({"logprobs": true, "top_logprobs": 1, "stream": true}));
    let (app, engine) = app([Play::say("ab")]);
    let events = events(send(&app, post(CHAT, &request)).await).await;
    assert_eq!(engine.jobs()[0].logprobs, Some(1));
    assert_eq!(
        events[2]["choices"][0]["logprobs"],
        json!({"refusal": null, "content": [{"token": "b", "bytes": [98], "logprob": -2.0,
            "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -2.0}]}]})
    );
}

#[tokio::test]
async fn several_prompts_and_choices_are_numbered_in_order() {
    let plays = ["a", "b", "c", "d"].map(Play::say);
    let (app, engine) = app(plays);
    let request = completion(json!({"prompt": ["x", "yz"], "n": 2, "seed": 5, "max_tokens": 3}));
    let (_, answer) = ask(&app, COMPLETIONS, request).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<_> =
        choices.iter().map(|c| (c["index"].as_u64().unwrap(), &c["text"])).collect();
    assert_eq!(texts, [(0, &json!("a")), (1, &json!("b")), (2, &json!("c")), (3, &json!("d"))]);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    let jobs = engine.jobs();
    let seen: Vec<_> =
        jobs.iter().map(|job| (job.prompt.len(), job.sampling.seed, job.max_tokens)).collect();
    assert_eq!(seen, [(1, 5, 3), (1, 6, 3), (2, 5, 3), (2, 6, 3)]);
}

/// An answer of `ok` after a prompt of three tokens with its scores.
fn echoed() -> Play {
    let prompt =
        Event::Prompt(vec![double::score(b'b'.into(), -7.0), double::score(b'c'.into(), -8.0)]);
    let Play::Events(answer) = Play::say("ok") else { panic!("an answer is events") };
    Play::Events([prompt].into_iter().chain(answer).collect())
}

#[tokio::test]
async fn a_prompt_is_echoed_with_its_scores() {
    let request = json!({"model": "base", "prompt": "abc", "echo": true, "logprobs": 0});
    let (app, engine) = app([echoed()]);
    let (_, answer) = ask(&app, COMPLETIONS, request.clone()).await;
    assert_eq!(engine.jobs()[0].prompt_logprobs, Some(0));
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "abcok");
    assert_eq!(
        choice["logprobs"],
        json!({"tokens": ["a", "b", "c", "o", "k"], "token_logprobs": [null, -7.0, -8.0, -1.0, -2.0],
            "top_logprobs": [null, {"b": -7.0}, {"c": -8.0}, {"o": -1.0}, {"k": -2.0}],
            "text_offset": [0, 1, 2, 3, 4]})
    );
    let (app, _) = self::app([echoed()]);
    let events =
        events(send(&app, post(COMPLETIONS, &merge(request, json!({"stream": true})))).await).await;
    let texts: Vec<_> =
        events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts.concat(), "abcok");
    assert_eq!(texts[0], "abc");
    let offsets: Vec<_> = events
        .iter()
        .flat_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array().unwrap())
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_prompt_can_be_scored_without_an_answer() {
    let prompt = Event::Prompt(vec![double::score(b'b'.into(), -7.0)]);
    let play = Play::Events(vec![prompt, Event::Finished(Finish::Length)]);
    let (app, engine) = app([play]);
    let request =
        json!({"model": "base", "prompt": [97, 98], "echo": true, "logprobs": 1, "max_tokens": 0});
    let (status, answer) = ask(&app, COMPLETIONS, request).await;
    assert_eq!((status, engine.jobs()[0].max_tokens), (200, 0));
    assert_eq!(answer["choices"][0]["text"], "ab");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null, -7.0]));
    let (app, _) = self::app([Play::say("!")]);
    let request = json!({"model": "base", "prompt": "ab", "echo": true});
    let (_, answer) = ask(&app, COMPLETIONS, request).await;
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["logprobs"]),
        (&json!("ab!"), &Value::Null)
    );
}

#[tokio::test]
async fn adapters_are_chosen_and_named() {
    let (app, _) = app([]);
    let ask = |header: Option<&'static str>, model: Value| {
        let request = post(CHAT, &chat(json!({"model": model})));
        let request = match header {
            Some(value) => with_header(request, "x-adapter", value),
            None => request,
        };
        send(&app, request)
    };
    let named =
        |response: &Response| response.headers()["x-chorus-adapter"].to_str().unwrap().to_owned();
    let response = ask(Some("sql"), json!("base")).await;
    assert!(named(&response).starts_with("sql@v1;sha256="), "{}", named(&response));
    let by_header = body(response).await;
    assert_eq!(by_header["model"], "base");
    let response = ask(None, json!("org/tiny:sql@v1")).await;
    assert!(named(&response).starts_with("sql@v1;sha256="));
    let by_model = body(response).await;
    assert_eq!(by_model["model"], "org/tiny:sql@v1");
    assert_eq!(by_model["system_fingerprint"], by_header["system_fingerprint"]);
    let base = body(ask(None, json!("default")).await).await;
    assert_ne!(base["system_fingerprint"], by_header["system_fingerprint"]);
    assert_eq!(body(ask(Some("law"), Value::Null).await).await["model"], "law");
}

#[tokio::test]
async fn all_choices_share_one_lease() {
    let (app, engine) = app(["a", "b", "c"].map(Play::hang));
    let request = post(COMPLETIONS, &completion(json!({"model": "law", "stream": true, "n": 3})));
    let response = send(&app, request).await;
    assert!(response.headers()["x-chorus-adapter"].to_str().unwrap().starts_with("law@v1;"));
    assert_eq!((engine.wanted(), app.adapters().stats().leased), (3, 1));
    assert_eq!(app.adapters().stats().misses, 1);
    drop(response);
    assert_eq!((engine.wanted(), app.adapters().stats().leased), (0, 0));
}

/// An answer of ` a` twice, over a tokenizer that puts a space before each text and drops it again.
fn spaced() -> (App, std::sync::Arc<double::Scripted>) {
    let token = Event::Token { id: double::SPACE_A, logprob: None };
    let play = Play::Events(vec![token.clone(), token, Event::Finished(Finish::Stop)]);
    app_over(double::sentence_piece(), [play], Settings::default())
}

#[tokio::test]
async fn a_completion_keeps_the_space_that_it_begins_with() {
    for (prompt, expected) in [(json!("a"), " a a"), (json!([double::SPECIAL]), "a a")] {
        let (app, _) = spaced();
        let (_, answer) = ask(&app, COMPLETIONS, completion(json!({"prompt": prompt}))).await;
        assert_eq!(answer["choices"][0]["text"], expected, "{prompt}");
    }
    let (app, engine) = spaced();
    let request = completion(json!({"prompt": "a a", "echo": true}));
    let (_, answer) = ask(&app, COMPLETIONS, request).await;
    assert_eq!(answer["choices"][0]["text"], "a a a a");
    assert_eq!(engine.jobs()[0].prompt, [double::SPACE_A; 2]);
}

#[tokio::test]
async fn a_chat_begins_without_the_space_unless_it_is_continued() {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]);
    for (continued, expected) in [(false, "a a"), (true, " a a")] {
        let (app, _) = spaced();
        let request = json!({"messages": messages, "continue_final_message": continued});
        let (_, answer) = ask(&app, CHAT, chat(request)).await;
        assert_eq!(answer["choices"][0]["message"]["content"], expected);
    }
}

#[tokio::test]
async fn an_answer_completes_the_character_that_its_prompt_began() {
    let (app, _) = app([Play::Events(vec![
        Event::Token { id: 0xac, logprob: None },
        Event::Finished(Finish::Length),
    ])]);
    let request = completion(json!({"prompt": [97, 0xe2, 0x82], "echo": true}));
    let (_, answer) = ask(&app, COMPLETIONS, request).await;
    assert_eq!(answer["choices"][0]["text"], "a\u{20ac}");
}

#[tokio::test]
async fn a_chats_tokens_are_told_where_they_are_asked_for() {
    let prompt = json!(ids("user:hi\nassistant:"));
    let (app, _) = app([Play::say("h\u{20ac}!"), Play::say("h\u{20ac}!"), Play::say("x")]);
    let (_, answer) = ask(&app, CHAT, chat(json!({"return_token_ids": true}))).await;
    assert_eq!(answer["prompt_token_ids"], prompt);
    assert_eq!(answer["choices"][0]["token_ids"], json!(ids("h\u{20ac}!")));

    let request = chat(json!({"return_token_ids": true, "stream": true, "n": 2}));
    let events = events(send(&app, post(CHAT, &request)).await).await;
    assert_eq!(events[0]["prompt_token_ids"], prompt);
    assert!(events[1..].iter().all(|event| event.get("prompt_token_ids").is_none()));
    let mut told = [Vec::new(), Vec::new()];
    for event in &events {
        let choice = &event["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        let ids = choice["token_ids"].as_array().into_iter().flatten();
        told[index].extend(ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()));
    }
    assert_eq!(told, [ids("h\u{20ac}!"), ids("x")]);
}

#[tokio::test]
async fn the_tokens_of_a_call_come_before_it() {
    let call = "<tool_call>{\"name\": \"go\", \"arguments\": {}}</tool_call>";
    let (app, _) = app_with_tools([Play::say(call)]);
    let tools = json!([{"type": "function", "function": {"name": "go"}}]);
    let request = chat(json!({"return_token_ids": true, "stream": true, "tools": tools}));
    let events = events(send(&app, post(CHAT, &request)).await).await;
    let tokens =
        events.iter().flat_map(|e| e["choices"][0]["token_ids"].as_array().into_iter().flatten());
    assert_eq!(
        tokens.cloned().collect::<Vec<_>>(),
        ids(call).into_iter().map(Value::from).collect::<Vec<_>>()
    );
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_completions_tokens_are_told_where_they_are_asked_for() {
    let fields = json!({"prompt": ["ab", "c"], "n": 2, "return_token_ids": true});
    let plays = || ["p", "q", "r", "s"].map(Play::say);
    let (app, _) = app(plays().into_iter().chain(plays()));
    let (_, answer) = ask(&app, COMPLETIONS, completion(fields.clone())).await;
    for (at, (prompt, said)) in
        [("ab", "p"), ("ab", "q"), ("c", "r"), ("c", "s")].iter().enumerate()
    {
        let choice = &answer["choices"][at];
        assert_eq!(choice["prompt_token_ids"], json!(ids(prompt)), "{answer}");
        assert_eq!(choice["token_ids"], json!(ids(said)));
    }
    let request = completion(merge(fields, json!({"stream": true})));
    let events = events(send(&app, post(COMPLETIONS, &request)).await).await;
    let of =
        |index: usize| events.iter().map(|e| &e["choices"][0]).filter(move |c| c["index"] == index);
    let prompts: Vec<_> = of(2).map(|choice| choice.get("prompt_token_ids")).collect();
    assert_eq!((prompts[0], prompts[1]), (Some(&json!(ids("c"))), None));
    let told: Vec<_> = of(2).flat_map(|choice| choice["token_ids"].as_array().unwrap()).collect();
    assert_eq!(told, [&json!(114)]);
}

#[tokio::test]
async fn tokens_are_named_by_their_ids_where_it_is_asked_for() {
    let (app, _) = app([Play::say("a"), Play::say("a")]);
    let fields = json!({"logprobs": true, "top_logprobs": 1, "return_tokens_as_token_ids": true});
    let (_, answer) = ask(&app, CHAT, chat(fields)).await;
    let scored = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!((&scored["token"], &scored["bytes"]), (&json!("token_id:97"), &json!([97])));
    assert_eq!(scored["top_logprobs"][0]["token"], "token_id:97");
    assert!(answer.get("prompt_token_ids").is_none());
    let fields = json!({"logprobs": 1, "return_tokens_as_token_ids": true});
    let (_, answer) = ask(&app, COMPLETIONS, completion(fields)).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["token_id:97"]));
    assert_eq!(logprobs["top_logprobs"], json!([{"token_id:97": -1.0}]));
}
