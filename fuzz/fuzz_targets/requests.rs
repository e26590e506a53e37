//! Any bytes sent to a real server get an answer, and none of 500. The first byte says whether they are a body, and for which
//! route, or all that is said on the connection.
#![no_main]

use chorus_fuzz::answer;
use libfuzzer_sys::fuzz_target;

const ROUTES: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/models"];

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let head = ROUTES.get(usize::from(*which) % (ROUTES.len() + 1)).map(|route| {
        format!(
            "POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        )
    });
    let is_request = head.is_some();
    let answer = answer(&[head.unwrap_or_default().as_bytes(), bytes].concat(), !is_request);
    assert!(!is_request || answer.starts_with(b"HTTP/1.1 "), "no answer");
});
