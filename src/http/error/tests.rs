//! What refusals look like.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::*;
use crate::{
    adapter::{LoadError, NotChanged, NotLent},
    ledger::NotSummed,
    store::StoreError,
    tenant::Rate,
};

fn json(error: &ApiError) -> serde_json::Value {
    serde_json::to_value(error.body()).unwrap()
}

#[test]
fn every_body_has_the_four_keys() {
    assert_eq!(
        json(&ApiError::malformed("no")),
        serde_json::json!({"error": {
            "message": "no", "type": "invalid_request_error", "param": null, "code": null
        }})
    );
    let deadline = json(&ApiError::deadline());
    assert_eq!(deadline["error"]["type"], "server_error");
    assert_eq!(deadline["error"]["code"], "deadline_exceeded");
}

#[test]
fn the_context_message_has_the_sentence_that_clients_look_for() {
    let error = ApiError::too_long(9000, 16, 8192);
    assert!(error.message.contains("9016"), "{}", error.message);
    for error in [error, ApiError::far_too_long(9000, 8192)] {
        let sentence = "This model's maximum context length is 8192 tokens.";
        assert!(error.message.starts_with(sentence), "{}", error.message);
        assert!(error.message.contains("context_length_exceeded"), "{}", error.message);
        assert_eq!(error.code, Some("context_length_exceeded"));
    }
    let error = ApiError::from(Refused::TooLong { tokens: 9000, context: 8192 });
    assert!(error.message.contains("maximum context length is 8192 tokens"));
}

#[test]
fn a_file_that_the_store_has_lost_is_no_bare_internal_error() {
    let lost = StoreError::NotFound { key: "blobs/ab.cd".to_owned() };
    let error = ApiError::not_changed(&NotChanged::Store(lost), "sql");
    assert_eq!((error.status.as_u16(), error.code), (500, Some("adapter_unavailable")));
    assert!(!error.message.contains("blobs"), "{}", error.message);
}

#[test]
fn retries_are_asked_for_or_forbidden() {
    let busy = ApiError::from(Refused::Full { waiting: 9 }).into_response();
    assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(busy.headers()[RETRY_AFTER], "1");
    let full = NotLent::Failed(LoadError::NoMemory { bytes: 1 << 40 }.into());
    let full = ApiError::not_lent(&full, "sql").into_response();
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(full.headers()[RETRY_AFTER], "1");
    let held = ApiError::not_lent(&NotLent::PortionInUse { most: 9 }, "sql");
    assert!(held.message.contains("resident_max_bytes"), "{}", held.message);
    let held = held.into_response();
    assert_eq!(
        (held.status().as_u16(), &held.headers()[RETRY_AFTER]),
        (429, &"1".parse().unwrap())
    );
    let large = NotLent::LargerThanPortion { bytes: 10, most: 9 };
    let large = ApiError::not_lent(&large, "sql");
    assert_eq!(large.code, Some("insufficient_quota"));
    assert_eq!(large.into_response().headers()[SHOULD_RETRY], "false");
    let twice = ApiError::not_summed(&NotSummed::AskedAlready).into_response();
    assert_eq!(
        (twice.status().as_u16(), &twice.headers()[RETRY_AFTER]),
        (429, &"1".parse().unwrap())
    );
    let late = ApiError::from(Failure::Deadline).into_response();
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(late.headers()[SHOULD_RETRY], "false");
    let broken = ApiError::from(Failure::NotANumber).into_response();
    assert_eq!(broken.headers()[SHOULD_RETRY], "false");
}

#[test]
fn who_would_wait_too_long_is_told_for_how_long() {
    let slow = |wait, most| {
        let (wait, most) = (Duration::from_millis(wait), Duration::from_millis(most));
        ApiError::from(Refused::Slow { waiting: 9, wait, most })
    };
    let error = slow(2400, 500);
    assert_eq!(error.code, Some("overloaded"));
    assert!(error.message.contains("about 3 s, and may for 0.5 s"), "{}", error.message);
    let asked_again = |error: ApiError| error.into_response().headers()[RETRY_AFTER].clone();
    assert_eq!(asked_again(error), "2");
    assert_eq!(asked_again(slow(501, 500)), "1");
    assert_eq!(asked_again(slow(u64::MAX, 500)), "60");
}

#[test]
fn a_tenant_without_any_quota_is_not_asked_to_try_again() {
    let rate = Rate { limit: 3, left: 0, reset: Duration::from_millis(1500) };
    let rates = Rates { requests: Some(rate), ..Rates::default() };
    let over = |scarce, limit| {
        let over = OverQuota { scarce, limit, wait: Duration::from_millis(1200), rates };
        ApiError::over_quota(&over)
    };
    let used_up = over(Scarce::Requests, 3).into_response();
    let head = used_up.headers();
    assert_eq!((used_up.status().as_u16(), &head[RETRY_AFTER]), (429, &"2".parse().unwrap()));
    assert_eq!(head["x-ratelimit-limit-requests"], "3");
    assert_eq!(head["x-ratelimit-remaining-requests"], "0");
    assert_eq!(head["x-ratelimit-reset-requests"], "1.500s");
    assert!(!head.contains_key("x-ratelimit-limit-tokens"));
    for scarce in [Scarce::Requests, Scarce::Tokens, Scarce::Concurrent, Scarce::Uploads] {
        let none = over(scarce, 0);
        assert_eq!(none.code, Some("insufficient_quota"));
        assert!(none.message.contains("quota allows no"), "{}", none.message);
        let none = none.into_response();
        assert_eq!(
            (none.status().as_u16(), &none.headers()[SHOULD_RETRY]),
            (429, &"false".parse().unwrap())
        );
        assert!(!none.headers().contains_key(RETRY_AFTER));
    }
}

/// What an operator reads of the events in `act`.
fn logged(act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let events = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(events, act);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn asking_for_a_broken_adapter_does_not_fill_the_log() {
    let log = logged(|| {
        let refusal = NotLent::TooLarge { bytes: 3, budget: 2 };
        for _ in 0..10 {
            assert_eq!(ApiError::not_lent(&refusal, "sql").code, Some("adapter_unavailable"));
        }
        assert_eq!(ApiError::from(Failure::Step).code, Some("internal_error"));
    });
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("an answer was given up"), "{log}");
}

#[test]
fn a_sheet_that_is_not_understood_is_not_a_store_that_does_not_answer() {
    let key = "sheets/usage/a.json".to_owned();
    let damaged = StoreError::Damaged { key, why: "unknown field".to_owned() };
    let log = logged(|| {
        let error = ApiError::not_summed(&NotSummed::Store(damaged));
        assert!(error.message.contains("damaged, or of a newer release"), "{}", error.message);
        assert!(!error.message.contains("sheets"), "{}", error.message);
        assert_eq!(error.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    });
    assert!(log.contains("sheets/usage/a.json"), "{log}");
    let silent = StoreError::Unavailable { why: "timed out".to_owned() };
    let error = ApiError::not_summed(&NotSummed::Store(silent));
    assert_eq!(error.code, Some("store_unavailable"));
}

#[test]
fn a_clients_text_is_repeated_in_part_only() {
    let error = ApiError::model_not_found(&"\u{e4}".repeat(10_000));
    assert!(error.message.chars().count() < 250, "{}", error.message);
}
