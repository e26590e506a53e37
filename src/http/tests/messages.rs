//! `/v1/messages`, as Anthropic's clients read it.

use super::{
    super::double::{Play, app, app_with_tools, begun, ids},
    *,
};
use crate::engine::{Event, Failure, Finish};

const MESSAGES: &str = "/v1/messages";

fn wish(more: Value) -> Value {
    let said = json!([{"role": "user", "content": "hi"}]);
    merge(json!({"model": "base", "max_tokens": 20, "messages": said}), more)
}

#[tokio::test]
async fn a_message_is_answered_whole() {
    let (app, engine) = app([Play::say("hey")]);
    let request = wish(json!({
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "metadata": {"user_id": "u"}, "tools": [],
        "thinking": {"type": "disabled"}, "service_tier": "auto", "output_config": {"effort": "low"},
    }));
    let (status, answer) = ask(&app, MESSAGES, request).await;
    assert_eq!(status, 200, "{answer}");
    let prompt = ids("system:Be brief.\nuser:a\nb\nassistant:c\nuser:d\nassistant:");
    let id = answer["id"].as_str().unwrap();
    assert!(id.starts_with("msg_"));
    assert_eq!(
        answer,
        json!({"id": id, "type": "message", "role": "assistant", "model": "base",
            "content": [{"type": "text", "text": "hey"}],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": prompt.len(), "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0, "output_tokens": 3}})
    );
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    assert_eq!((&job.prompt, job.max_tokens, job.sampling.top_k), (&prompt, 20, 5));
}

#[tokio::test]
async fn what_was_computed_before_is_counted_apart() {
    let Play::Events(answer) = Play::say("x") else { panic!("an answer is events") };
    let begun = begun(16);
    let (app, _) = app([Play::Events([begun].into_iter().chain(answer).collect())]);
    let (_, answer) = ask(&app, MESSAGES, wish(json!({}))).await;
    assert_eq!(answer["usage"]["input_tokens"], 2);
    assert_eq!(answer["usage"]["cache_read_input_tokens"], 16);
}

#[tokio::test]
async fn a_message_is_streamed() {
    let (app, _) = app([Play::say("h\u{20ac}")]);
    let response = send(&app, post(MESSAGES, &wish(json!({"stream": true})))).await;
    let events = named_events(response).await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    assert!(events.iter().all(|(name, event)| event["type"] == *name));
    let begun = &events[0].1["message"];
    assert_eq!((&begun["content"], &begun["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(
        (&begun["usage"]["input_tokens"], &begun["usage"]["output_tokens"]),
        (&json!(18), &json!(0))
    );
    let data: Vec<_> = events.iter().map(|(_, event)| event).collect();
    assert_eq!(
        data[1..],
        [
            &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            &json!({"type": "ping"}),
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "h"}}),
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "\u{20ac}"}}),
            &json!({"type": "content_block_stop", "index": 0}),
            &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
                "usage": {"input_tokens": 18, "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0, "output_tokens": 4}}),
            &json!({"type": "message_stop"}),
        ]
    );
}

#[tokio::test]
async fn an_answer_says_why_it_ended() {
    for (play, reason, sequence, text) in [
        (Play::hang("one END two"), "stop_sequence", json!("END"), "one "),
        (Play::say("one"), "end_turn", Value::Null, "one"),
        (Play::Events(vec![Event::Finished(Finish::Length)]), "max_tokens", Value::Null, ""),
    ] {
        let (app, engine) = app([play]);
        let request = wish(json!({"stop_sequences": ["STOP", "END"]}));
        let (_, answer) = ask(&app, MESSAGES, request).await;
        assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!(reason), &sequence));
        assert_eq!(answer["content"][0]["text"], text);
        assert_eq!(engine.wanted(), 0);
    }
}

#[tokio::test]
async fn an_answer_goes_on_from_the_assistants_last_words() {
    let (app, engine) = app([]);
    let said =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]);
    assert_eq!(ask(&app, MESSAGES, wish(json!({"messages": said}))).await.0, 200);
    assert_eq!(engine.jobs()[0].prompt, ids("user:hi\nassistant:Well,"));
}

/// A function without arguments.
fn tool(name: &str) -> Value {
    json!({"name": name, "description": "Does it", "cache_control": {"type": "ephemeral"},
        "input_schema": {"type": "object", "properties": {}}})
}

const CALL: &str = "<tool_call>{\"name\": \"go\", \"arguments\": {\"to\": \"sea\"}}</tool_call>";

#[tokio::test]
async fn calls_are_blocks_in_order() {
    let (app, engine) = app_with_tools([Play::say(&format!("Well. {CALL}\n{CALL} Done."))]);
    let (_, answer) = ask(&app, MESSAGES, wish(json!({"tools": [tool("go")]}))).await;
    let content = answer["content"].as_array().unwrap();
    let kinds: Vec<_> = content.iter().map(|block| &block["type"]).collect();
    assert_eq!(kinds, ["text", "tool_use", "tool_use", "text"], "{answer}");
    let id = &content[1]["id"];
    assert!(id.as_str().unwrap().starts_with("toolu_") && *id != content[2]["id"], "{answer}");
    assert_eq!(
        content[1],
        json!({"type": "tool_use", "id": id, "name": "go", "input": {"to": "sea"}})
    );
    assert_eq!((&content[0]["text"], &content[3]["text"]), (&json!("Well."), &json!("Done.")));
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("tool_use"), &Value::Null)
    );
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    assert_eq!(job.prompt, ids("[go]user:hi\nassistant:"));
    assert!(job.guide.is_none());
}

#[tokio::test]
async fn what_must_be_called_is() {
    for choice in [
        json!({"type": "any", "disable_parallel_tool_use": true}),
        json!({"type": "tool", "name": "go"}),
    ] {
        let (app, engine) = app_with_tools([Play::say(CALL)]);
        let request = wish(json!({"tools": [tool("go")], "tool_choice": choice}));
        let (_, answer) = ask(&app, MESSAGES, request).await;
        assert_eq!(answer["content"].as_array().unwrap().len(), 1, "{answer}");
        assert_eq!(answer["stop_reason"], "tool_use");
        assert!(engine.jobs()[0].guide.is_some());
    }
    let (app, engine) = app_with_tools([Play::say(CALL), Play::exhaust("<tool_call>{")]);
    let request = wish(json!({"tools": [tool("go")], "tool_choice": {"type": "none"}}));
    let (_, answer) = ask(&app, MESSAGES, request).await;
    assert_eq!(
        (&answer["content"][0]["text"], &answer["stop_reason"]),
        (&json!(CALL), &json!("end_turn"))
    );
    assert_eq!(engine.jobs()[0].prompt, ids("[go]user:hi\nassistant:"));
    let (_, answer) = ask(&app, MESSAGES, wish(json!({"tools": [tool("go")]}))).await;
    assert_eq!(answer["content"][0]["text"], "<tool_call>{");
    assert_eq!(answer["stop_reason"], "max_tokens");
}

#[tokio::test]
async fn a_call_is_streamed() {
    let (app, _) = app_with_tools([Play::say(&format!("Hm {CALL}")), Play::say("")]);
    let request = wish(json!({"stream": true, "tools": [tool("go")]}));
    let events = named_events(send(&app, post(MESSAGES, &request)).await).await;
    let data: Vec<_> = events.iter().map(|(_, event)| event).collect();
    let id = &data[6]["content_block"]["id"];
    assert!(id.as_str().unwrap().starts_with("toolu_"), "{data:?}");
    let text = |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    assert_eq!(
        data[1..10],
        [
            &json!({"type": "ping"}),
            &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            &text("H"),
            &text("m"),
            &json!({"type": "content_block_stop", "index": 0}),
            &json!({"type": "content_block_start", "index": 1,
                "content_block": {"type": "tool_use", "id": id, "name": "go", "input": {}}}),
            &json!({"type": "content_block_delta", "index": 1,
                "delta": {"type": "input_json_delta", "partial_json": "{\"to\": \"sea\"}"}}),
            &json!({"type": "content_block_stop", "index": 1}),
            &json!({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": null},
                "usage": data[9]["usage"]}),
        ]
    );
    let events = named_events(send(&app, post(MESSAGES, &request)).await).await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let said_nothing =
        ["content_block_start", "content_block_stop", "message_delta", "message_stop"];
    assert_eq!(names[2..], said_nothing);
}

#[tokio::test]
async fn a_form_is_followed() {
    let schema = json!({"type": "object", "properties": {"a": {"const": 1}}});
    let (app, engine) = app([]);
    let format = json!({"format": {"type": "json_schema", "schema": schema}});
    let (status, answer) = ask(&app, MESSAGES, wish(json!({"output_config": format}))).await;
    assert_eq!((status, engine.jobs()[0].guide.is_some()), (200, true), "{answer}");
}

#[tokio::test]
async fn calls_and_their_results_are_told_the_model() {
    let (app, engine) = app_with_tools([]);
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "go", "input": {}});
    let messages = json!([
        {"role": "assistant", "content": [{"type": "text", "text": "y"}, call("1"), call("2")]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "sun"},
            {"type": "tool_result", "tool_use_id": "2", "is_error": true,
             "content": [{"type": "text", "text": "rain"}]},
            {"type": "text", "text": "so?"},
        ]},
    ]);
    let (status, answer) =
        ask(&app, MESSAGES, wish(json!({"messages": messages, "max_tokens": 4}))).await;
    assert_eq!(status, 200, "{answer}");
    let calls = "<tool_call>1 go {}<tool_call>2 go {}";
    let prompt = format!("assistant:y{calls}\ntool1:sun\ntool2:Error: rain\nuser:so?\nassistant:");
    assert_eq!(engine.jobs()[0].prompt, ids(&prompt));
}

#[tokio::test]
async fn tokens_are_counted() {
    let (app, engine) = app_with_tools([]);
    let path = "/v1/messages/count_tokens";
    for (more, prompt) in [
        (json!({}), "user:hi\nassistant:".to_owned()),
        (
            json!({"tools": [tool("go")], "system": "x"}),
            "[go]system:x\nuser:hi\nassistant:".to_owned(),
        ),
        // More than fits, which is worth knowing.
        (
            json!({"system": "x".repeat(999)}),
            format!("system:{}\nuser:hi\nassistant:", "x".repeat(999)),
        ),
    ] {
        let mut request = wish(more);
        request.as_object_mut().unwrap().remove("max_tokens");
        let response = send(&app, post(path, &request)).await;
        assert!(response.headers().contains_key("request-id"));
        assert_eq!(body(response).await, json!({"input_tokens": prompt.len()}));
    }
    let (status, answer) = ask(&app, path, wish(json!({"model": "nobody"}))).await;
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found_error")));
    let (status, _) = ask(&app, path, wish(json!({"messages": []}))).await;
    assert_eq!((status, engine.jobs().len()), (400, 0));
}

#[tokio::test]
async fn answers_and_refusals_have_the_header_of_these_clients() {
    let (app, _) = app([]);
    for model in ["base", "nobody"] {
        let response = send(&app, post(MESSAGES, &wish(json!({"model": model})))).await;
        assert_eq!(response.headers()["request-id"], response.headers()["x-request-id"]);
    }
    let response = send(&app, post(CHAT, &chat(json!({})))).await;
    assert!(!response.headers().contains_key("request-id"));
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event_of_its_name() {
    let (app, _) = app([Play::fail("h", Failure::Stopping)]);
    let response = send(&app, post(MESSAGES, &wish(json!({"stream": true})))).await;
    let events = named_events(response).await;
    let (name, last) = events.last().unwrap();
    assert_eq!((name.as_str(), &last["type"]), ("error", &json!("error")));
    assert_eq!(last["error"]["type"], "overloaded_error");
}

/// That it is refused with these fields, in words that have `named`.
async fn check_refusal(more: Value, named: &str) {
    for stream in [false, true] {
        let (app, engine) = app([]);
        let request = merge(wish(json!({"stream": stream})), more.clone());
        let (status, answer) = ask(&app, MESSAGES, request).await;
        assert_eq!((status, &answer["type"]), (400, &json!("error")), "{more}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(named), "{named}: {message}");
        assert!(engine.jobs().is_empty());
    }
}

#[tokio::test]
async fn tools_that_cannot_be_are_refused_by_name() {
    for (more, named) in [
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "tools[0].type",
        ),
        (json!({"tools": [{"type": "function", "function": {"name": "f"}}]}), "tools[0].name"),
        (json!({"tools": [tool("f g")]}), "tools[0].name"),
        (json!({"tools": [{"name": "f", "input_schema": 7}]}), "tools[0].input_schema"),
        (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
        (json!({"tools": [merge(tool("f"), json!({"description": {}}))]}), "tools[0].description"),
        (json!({"tools": [{"name": "f", "input_schema": null}]}), "tools[0].input_schema"),
        (json!({"tools": [{"name": "f", "defer_loading": true}]}), "tools[0].defer_loading"),
        (json!({"tools": ["f"]}), "tools[0]"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "required"}, "tools": [tool("f")]}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "tool"}, "tools": [tool("f")]}), "tool_choice.name"),
        (
            json!({"tool_choice": {"type": "tool", "name": "g"}, "tools": [tool("f")]}),
            "tool_choice",
        ),
        (json!({"tool_choice": "auto"}), "tool_choice"),
    ] {
        check_refusal(more, named).await;
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_name() {
    let block = |kind: &str| json!([{"role": "user", "content": [{"type": kind}]}]);
    let call = json!({"type": "tool_use", "id": "1", "name": "f", "input": {}});
    let result = json!({"type": "tool_result", "tool_use_id": "1", "content": "x"});
    for (more, named) in [
        (json!({"return_token_ids": true}), "return_token_ids"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format"),
        (json!({"mcp_servers": [{}]}), "mcp_servers"),
        (json!({"messages": block("image")}), "messages[0].content[0].type"),
        (json!({"messages": block("tool_use")}), "messages[0].content[0]"),
        (json!({"messages": block("tool_result")}), "messages[0].content[0]"),
        (json!({"messages": [{"role": "user", "content": [call]}]}), "messages[0].content[0].type"),
        (
            json!({"messages": [{"role": "assistant", "content": [result]}]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "system", "content": [result]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"messages": [{"role": "assistant", "content": [call]}]}), "tool_result"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1",
            "content": [{"type": "image"}]}]}]}),
            "messages[0].content[0].content[0].type",
        ),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": []}), "messages"),
        (json!({"system": 7}), "system"),
        (json!({"system": [{"type": "image"}]}), "system[0].type"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": "9"}), "max_tokens"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"stop_sequences": [1]}), "stop_sequences"),
        (json!({"stop_sequences": vec!["x"; 17]}), "stop_sequences"),
        (json!({"n": 2}), "'n'"),
    ] {
        check_refusal(more, named).await;
    }
    let (app, _) = app([]);
    let said = json!([{"role": "user", "content": "hi"}]);
    let (status, answer) = ask(&app, MESSAGES, json!({"model": "base", "messages": said})).await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("max_tokens"), "{answer}");
    let (status, answer) = ask(&app, "/v1/messages/batches", wish(json!({}))).await;
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found_error")));
}
