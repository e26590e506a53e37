//! `/v1/responses`, as OpenAI's clients read it.

use super::{
    super::double::{Play, app, app_with_tools, ids},
    *,
};
use crate::engine::Failure;

const RESPONSES: &str = "/v1/responses";

fn wish(more: Value) -> Value {
    merge(json!({"model": "base", "input": "hi"}), more)
}

#[tokio::test]
async fn a_response_is_answered_whole_and_says_what_it_was_asked() {
    let (app, engine) = app([Play::say("hey")]);
    let request = wish(json!({
        "instructions": "Be brief.", "max_output_tokens": 20, "temperature": 0.25, "top_p": 0.5,
        "metadata": {"case": "7"}, "user": "u1", "parallel_tool_calls": false, "truncation": "auto",
        "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tools": [], "tool_choice": "none", "store": true, "include": ["reasoning.encrypted_content"],
        "service_tier": "auto", "previous_response_id": null, "stream": false, "n": 1,
    }));
    let (status, answer) = ask(&app, RESPONSES, request).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    let item = answer["output"][0]["id"].as_str().unwrap();
    assert!(item.starts_with("msg_"));
    assert_eq!(
        answer["output"],
        json!([{"id": item, "type": "message", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": "hey", "annotations": [], "logprobs": []}]}])
    );
    let prompt = ids("system:Be brief.\nuser:hi\nassistant:");
    assert_eq!(
        answer["usage"],
        json!({"input_tokens": prompt.len(), "output_tokens": 3, "total_tokens": prompt.len() + 3,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0}})
    );
    for (key, value) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("model", json!("base")),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("previous_response_id", Value::Null),
        ("store", json!(false)),
        ("background", json!(false)),
        ("tools", json!([])),
        ("instructions", json!("Be brief.")),
        ("max_output_tokens", json!(20)),
        ("temperature", json!(0.25)),
        ("top_p", json!(0.5)),
        ("metadata", json!({"case": "7"})),
        ("user", json!("u1")),
        ("parallel_tool_calls", json!(false)),
        ("truncation", json!("auto")),
        ("reasoning", json!({"effort": "low", "summary": null})),
        ("text", json!({"format": {"type": "text"}, "verbosity": "low"})),
        ("tool_choice", json!("none")),
    ] {
        assert_eq!(answer[key], value, "{key}");
    }
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    assert_eq!((&job.prompt, job.max_tokens), (&prompt, 20));
    assert_eq!(job.sampling.temperature.to_bits(), 0.25f32.to_bits());
}

#[tokio::test]
async fn what_was_left_out_comes_back_as_it_holds() {
    let (app, _) = app([]);
    let (_, answer) = ask(&app, RESPONSES, wish(json!({"top_k": 3}))).await;
    for (key, value) in [
        ("temperature", json!(1.0)),
        ("top_p", json!(1.0)),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("truncation", json!("disabled")),
        ("text", json!({"format": {"type": "text"}, "verbosity": null})),
        ("tool_choice", json!("auto")),
        ("top_logprobs", json!(0)),
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
    ] {
        assert_eq!(answer[key], value, "{key}");
    }
}

#[tokio::test]
async fn messages_are_taken_as_they_come_back() {
    let (app, engine) = app([]);
    let input = json!([
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "user", "content": "d"},
    ]);
    assert_eq!(ask(&app, RESPONSES, wish(json!({"input": input}))).await.0, 200);
    assert_eq!(engine.jobs()[0].prompt, ids("system:a\nuser:b\nassistant:c\nuser:d\nassistant:"));
}

/// A function without arguments.
fn tool(name: &str) -> Value {
    json!({"type": "function", "name": name, "description": "Does it", "strict": true,
        "parameters": {"type": "object", "properties": {}}})
}

const CALL: &str = "<tool_call>{\"name\": \"go\", \"arguments\": {\"to\": \"sea\"}}</tool_call>";

#[tokio::test]
async fn calls_are_items_in_order() {
    let say = format!("Well.\n{CALL}{CALL} Done.");
    let (app, engine) = app_with_tools([Play::say(&say)]);
    let (_, answer) = ask(&app, RESPONSES, wish(json!({"tools": [tool("go")]}))).await;
    let kinds: Vec<_> = answer["output"].as_array().unwrap().iter().map(|i| &i["type"]).collect();
    assert_eq!(kinds, ["message", "function_call", "function_call", "message"]);
    let call = &answer["output"][1];
    assert!(call["id"].as_str().unwrap().starts_with("fc_"), "{call}");
    assert!(call["call_id"].as_str().unwrap().starts_with("call_"), "{call}");
    assert_ne!(call["call_id"], answer["output"][2]["call_id"]);
    assert_eq!(
        (&call["name"], &call["arguments"], &call["status"]),
        (&json!("go"), &json!("{\"to\": \"sea\"}"), &json!("completed"))
    );
    let texts = [0, 3].map(|at| &answer["output"][at]["content"][0]["text"]);
    assert_eq!(
        (texts, &answer["status"]),
        ([&json!("Well."), &json!("Done.")], &json!("completed"))
    );
    assert_eq!(answer["tools"], json!([tool("go")]));
    assert_eq!(answer["tool_choice"], "auto");
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    assert_eq!(job.prompt, ids("[go]user:hi\nassistant:"));
    assert!(job.guide.is_some(), "its tool is strict");
}

#[tokio::test]
async fn a_call_alone_is_the_only_item() {
    let forced = json!({"type": "function", "name": "go"});
    for choice in [json!("required"), forced] {
        let (app, engine) = app_with_tools([Play::say(CALL)]);
        let request = wish(
            json!({"tools": [tool("go")], "tool_choice": choice, "parallel_tool_calls": false}),
        );
        let (_, answer) = ask(&app, RESPONSES, request).await;
        assert_eq!(answer["output"].as_array().unwrap().len(), 1, "{answer}");
        assert_eq!(answer["output"][0]["type"], "function_call");
        assert_eq!((&answer["tool_choice"], &answer["status"]), (&choice, &json!("completed")));
        assert!(engine.jobs()[0].guide.is_some());
    }
}

/// A format is of texts, and there is none where a call must come: clients send both. A guide is of everything.
#[tokio::test]
async fn a_format_beside_a_call_that_must_come_is_of_no_text() {
    let format = json!({"type": "json_schema", "name": "x", "schema": {"type": "integer"}});
    let required = json!({"tools": [tool("go")], "tool_choice": "required"});
    let (app, engine) = app_with_tools([Play::say(CALL)]);
    let request = wish(merge(required.clone(), json!({"text": {"format": format}})));
    let (status, answer) = ask(&app, RESPONSES, request).await;
    assert_eq!((status, &answer["output"][0]["type"]), (200, &json!("function_call")));
    assert_eq!(answer["text"]["format"], format);
    assert!(engine.jobs()[0].guide.is_some());
    let request = wish(merge(required, json!({"guided_regex": "[0-9]+"})));
    let (status, answer) = ask(&app, RESPONSES, request).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("guided_regex")));
}

#[tokio::test]
async fn a_stream_tells_calls_step_by_step() {
    let (app, _) = app_with_tools([Play::say(&format!("Hm {CALL}"))]);
    let request = wish(json!({"stream": true, "tools": [tool("go")]}));
    let events = named_events(send(&app, post(RESPONSES, &request)).await).await;
    let mut names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let numbers: Vec<_> = events.iter().map(|(_, event)| &event["sequence_number"]).collect();
    assert!(numbers.into_iter().enumerate().all(|(at, number)| *number == json!(at)));
    let [.., added, delta, done, item, last] = &events[..] else { panic!("events") };
    let id = &added.1["item"]["id"];
    assert_eq!(
        (&added.1["item"]["arguments"], &added.1["item"]["status"], &added.1["output_index"]),
        (&json!(""), &json!("in_progress"), &json!(1))
    );
    let arguments = json!("{\"to\": \"sea\"}");
    assert_eq!((&delta.1["delta"], &delta.1["item_id"]), (&arguments, id));
    assert_eq!((&done.1["arguments"], &done.1["name"]), (&arguments, &json!("go")));
    assert_eq!(last.1["response"]["output"][1], item.1["item"]);
    assert_eq!(last.1["response"]["output"][0]["content"][0]["text"], "Hm");
}

#[tokio::test]
async fn a_stream_that_may_call_and_says_nothing_has_a_message() {
    let (app, _) = app_with_tools([Play::say(""), Play::say("")]);
    let request = wish(json!({"tools": [tool("go")]}));
    let (_, whole) = ask(&app, RESPONSES, request.clone()).await;
    let request = merge(request, json!({"stream": true}));
    let events = named_events(send(&app, post(RESPONSES, &request)).await).await;
    for answer in [&whole, &events.last().unwrap().1["response"]] {
        assert_eq!(answer["output"][0]["content"][0]["text"], "", "{answer}");
    }
}

#[tokio::test]
async fn calls_and_what_came_of_them_are_told_the_model() {
    let (app, engine) = app_with_tools([]);
    let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "go", "arguments": "{\"a\":1}"});
    let output = json!({"type": "function_call_output", "call_id": "2", "output": "sunny"});
    let input = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, call("1"), call("2"), output]);
    let (status, answer) =
        ask(&app, RESPONSES, wish(json!({"input": input, "tool_choice": "none"}))).await;
    assert_eq!(status, 200, "{answer}");
    let called = r#"<tool_call>1 go {"a": 1}<tool_call>2 go {"a": 1}"#;
    let prompt = format!("user:x\nassistant:y{called}\ntool2:sunny\nassistant:");
    assert_eq!(engine.jobs()[0].prompt, ids(&prompt));
}

#[tokio::test]
async fn a_form_is_followed_and_comes_back() {
    let schema = json!({"type": "object", "properties": {"b": {"const": 1}, "a": {"const": 2}}});
    for format in [
        json!({"type": "json_object"}),
        json!({"type": "json_schema", "name": "x", "description": "y", "schema": schema, "strict": true}),
    ] {
        let (app, engine) = app([]);
        let (status, answer) =
            ask(&app, RESPONSES, wish(json!({"text": {"format": format}}))).await;
        assert_eq!((status, &answer["text"]["format"]), (200, &format), "{answer}");
        assert!(engine.jobs()[0].guide.is_some());
    }
}

#[tokio::test]
async fn a_stream_tells_each_step_in_order() {
    let (app, _) = app([Play::say("h\u{20ac}!")]);
    let response = send(&app, post(RESPONSES, &wish(json!({"stream": true})))).await;
    assert_eq!(response.headers()["x-chorus-adapter"], "base");
    let events = named_events(response).await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let delta = "response.output_text.delta";
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            delta,
            delta,
            delta,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let item = &events[2].1["item"]["id"];
    for (number, (name, event)) in events.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(number)));
        if event.get("item_id").is_some() {
            assert_eq!(&event["item_id"], item);
            assert_eq!((&event["output_index"], &event["content_index"]), (&json!(0), &json!(0)));
        }
    }
    let begun = &events[0].1["response"];
    assert_eq!(
        (&begun["status"], &begun["output"], &begun["usage"]),
        (&json!("in_progress"), &json!([]), &Value::Null)
    );
    assert_eq!(events[2].1["item"]["content"], json!([]));
    assert_eq!(events[3].1["part"]["text"], "");
    let deltas: Vec<_> = events[4..7].iter().map(|(_, event)| &event["delta"]).collect();
    assert_eq!(deltas, ["h", "\u{20ac}", "!"]);
    assert_eq!(events[7].1["text"], "h\u{20ac}!");
    assert_eq!(events[8].1["part"]["text"], "h\u{20ac}!");
    let done = &events[10].1["response"];
    assert_eq!(done["output"][0], events[9].1["item"]);
    assert_eq!((&done["id"], &done["status"]), (&begun["id"], &json!("completed")));
    assert_eq!(done["usage"]["output_tokens"], 5);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_incomplete() {
    let (app, _) = app([Play::exhaust("ab"), Play::exhaust("ab")]);
    let (_, whole) = ask(&app, RESPONSES, wish(json!({"max_output_tokens": 2}))).await;
    let request = wish(json!({"max_output_tokens": 2, "stream": true}));
    let events = named_events(send(&app, post(RESPONSES, &request)).await).await;
    let (name, last) = events.last().unwrap();
    assert_eq!(name, "response.incomplete");
    for answer in [&whole, &last["response"]] {
        assert_eq!(answer["status"], "incomplete");
        assert_eq!(answer["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(answer["output"][0]["status"], "incomplete");
        assert_eq!(answer["output"][0]["content"][0]["text"], "ab");
    }
}

#[tokio::test]
async fn scores_come_where_they_are_included() {
    let request = wish(json!({"include": ["message.output_text.logprobs"], "top_logprobs": 1}));
    let (app, engine) = app([Play::say("ab"), Play::say("ab")]);
    let (_, whole) = ask(&app, RESPONSES, request.clone()).await;
    assert_eq!(engine.jobs()[0].logprobs, Some(1));
    let scores = &whole["output"][0]["content"][0]["logprobs"];
    assert_eq!(
        scores[1],
        json!({"token": "b", "bytes": [98], "logprob": -2.0,
            "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -2.0}]})
    );
    let request = merge(request, json!({"stream": true}));
    let events = named_events(send(&app, post(RESPONSES, &request)).await).await;
    assert_eq!(events[5].1["logprobs"], json!([scores[1]]));
    assert_eq!(&events[6].1["logprobs"], scores);
}

#[tokio::test]
async fn a_failure_in_a_stream_fails_the_response() {
    let (app, _) = app([Play::fail("h", Failure::Step)]);
    let response = send(&app, post(RESPONSES, &wish(json!({"stream": true})))).await;
    let events = named_events(response).await;
    let (name, last) = events.last().unwrap();
    assert_eq!(
        (name.as_str(), &last["sequence_number"]),
        ("response.failed", &json!(events.len() - 1))
    );
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error"]["code"], "server_error");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "h");
}

#[tokio::test]
async fn nothing_is_stored() {
    let (app, engine) = app([]);
    let (status, answer) =
        ask(&app, RESPONSES, wish(json!({"previous_response_id": "resp_1"}))).await;
    assert_eq!((status, error_code(&answer)), (400, "previous_response_not_found"));
    assert_eq!(answer["error"]["param"], "previous_response_id");
    let (_, answer) = ask(&app, RESPONSES, wish(json!({"store": true}))).await;
    let path = format!("{RESPONSES}/{}", answer["id"].as_str().unwrap());
    for method in ["GET", "DELETE"] {
        let request = Request::builder().method(method).uri(&path).header(HOST, "localhost");
        let response = send(&app, request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let answer = body(response).await;
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        assert!(answer["error"]["message"].as_str().unwrap().contains("stored"), "{answer}");
    }
    assert_eq!(engine.jobs().len(), 1);
}

/// Whole and streamed.
async fn check_refusal(more: &Value, param: &str) {
    for stream in [false, true] {
        let (app, engine) = app([]);
        let request = merge(wish(json!({"stream": stream})), more.clone());
        let (status, answer) = ask(&app, RESPONSES, request).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        assert!(engine.jobs().is_empty());
    }
}

#[tokio::test]
async fn tools_that_cannot_be_are_refused_by_name() {
    for (more, param) in [
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "custom", "name": "f"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "mcp", "server_label": "x"}]}), "tools[0].type"),
        (json!({"tools": [{"type": 7}]}), "tools[0].type"),
        (json!({"tools": [tool("f"), {"type": "function"}]}), "tools[1].name"),
        (json!({"tools": [tool("f g")]}), "tools[0].name"),
        (json!({"tools": [merge(tool("f"), json!({"parameters": 7}))]}), "tools[0].parameters"),
        (json!({"tools": [merge(tool("f"), json!({"async": true}))]}), "tools[0].async"),
        (json!({"tools": [merge(tool("f"), json!({"strict": "true"}))]}), "tools[0].strict"),
        (
            json!({"tools": [merge(tool("f"), json!({"parameters": {"type": "boolean"}}))]}),
            "tools[0].parameters",
        ),
        (json!({"tools": ["f"]}), "tools[0]"),
        (json!({"tools": vec![tool("f"); 129]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "sometimes", "tools": [tool("f")]}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "function", "name": "g"}, "tools": [tool("f")]}),
            "tool_choice",
        ),
        (json!({"tool_choice": {"type": "web_search"}, "tools": [tool("f")]}), "tool_choice"),
    ] {
        check_refusal(&more, param).await;
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_name() {
    let image = json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]);
    let call = json!([{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]);
    let output = json!([{"role": "user", "content": "x"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image"}]}]);
    let labels: Value =
        (0..17).map(|n| (n.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>().into();
    for (more, param) in [
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "x"}}}), "text.format.schema"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "x"}}}}),
            "text.format.schema",
        ),
        (json!({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}), "text.format"),
        (json!({"text": {"format": {}}}), "text.format"),
        (json!({"background": true}), "background"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"input": image}), "input[0].content[0].type"),
        (json!({"input": call}), "input[0].arguments"),
        (json!({"input": output}), "input[1].output[0].type"),
        (json!({"input": [{"type": "reasoning", "summary": []}]}), "input[0].type"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (json!({"input": []}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": 7}), "input"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": -1}), "max_output_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_p": -1}), "top_p"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (json!({"truncation": "some"}), "truncation"),
        (json!({"reasoning": ["low"]}), "reasoning"),
        (json!({"metadata": labels}), "metadata"),
        (json!({"metadata": {"a": 1}}), "metadata.a"),
        (json!({"user": "x".repeat(513)}), "user"),
        (json!({"instructions": ["x"]}), "instructions"),
        (json!({"include": "all"}), "include"),
        (json!({"stream": 1}), "stream"),
        (json!({"n": 2}), "n"),
        (json!({"bad_words": ["x"]}), "bad_words"),
        (json!({"return_token_ids": true}), "return_token_ids"),
    ] {
        check_refusal(&more, param).await;
    }
}
