//! `/v1/messages`, as Anthropic's clients read it.

use super::{
    super::double::{Play, app, ids},
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
    let begun = Event::Begun { cached: 16 };
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

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event_of_its_name() {
    let (app, _) = app([Play::fail("h", Failure::Stopping)]);
    let response = send(&app, post(MESSAGES, &wish(json!({"stream": true})))).await;
    let events = named_events(response).await;
    let (name, last) = events.last().unwrap();
    assert_eq!((name.as_str(), &last["type"]), ("error", &json!("error")));
    assert_eq!(last["error"]["type"], "overloaded_error");
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_name() {
    let block = |kind: &str| json!([{"role": "user", "content": [{"type": kind}]}]);
    for (more, named) in [
        (json!({"tools": [{"name": "f"}]}), "tools"),
        (json!({"tool_choice": {"type": "auto"}}), "tool_choice"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format"),
        (json!({"mcp_servers": [{}]}), "mcp_servers"),
        (json!({"messages": block("image")}), "messages[0].content[0].type"),
        (json!({"messages": block("tool_use")}), "messages[0].content[0].type"),
        (json!({"messages": block("tool_result")}), "messages[0].content[0].type"),
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
    let (app, _) = app([]);
    let (status, answer) = ask(&app, MESSAGES, json!({"model": "base", "messages": []})).await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("max_tokens"), "{answer}");
    let (status, answer) = ask(&app, "/v1/messages/count_tokens", wish(json!({}))).await;
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found_error")));
}
