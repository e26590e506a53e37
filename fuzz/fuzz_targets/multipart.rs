//! Any upload gets an answer, none of 500, and the same whether it comes whole or in pieces. The first byte says how large
//! these are; up to the end of the line is the content type. The bytes 1 and 2 stand for the two files of a real adapter,
//! and 3 for the beginning of the second, which is refused sooner.
#![no_main]

use chorus_fuzz::{CONFIG, WEIGHTS, answer, fill};
use libfuzzer_sys::fuzz_target;

/// From some length on the answer may depend on when what arrives.
const SURE: usize = 128 << 10;

/// The answer's status and body.
fn put(kind: &str, length: &str, body: &[u8]) -> (String, String) {
    let head = format!(
        "PUT /v1/adapters/fuzz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n{length}\r\n\r\n"
    );
    let answer = answer(&[head.as_bytes(), body].concat(), false);
    let answer = String::from_utf8(answer).expect("an answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let kind = bytes[..end].iter().filter(|byte| matches!(byte, b' '..=b'~'));
    let kind: String = kind.map(|byte| char::from(*byte)).collect();
    let body = fill(&bytes[end + 1..], &[(1, CONFIG), (2, WEIGHTS), (3, &WEIGHTS[..300])]);

    let whole = put(&kind, &format!("Content-Length: {}", body.len()), &body);
    // Large pieces matter too, and a piece for each byte of weights takes too long.
    let size = usize::from(*piece).pow(2).max(body.len() / 64).max(1);
    let pieces = body
        .chunks(size)
        .map(|piece| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    let pieces = [pieces.collect::<Vec<_>>().concat().as_slice(), b"0\r\n\r\n"].concat();
    let cut = put(&kind, "Transfer-Encoding: chunked", &pieces);
    assert!(body.len() > SURE || whole == cut, "{whole:?} is not {cut:?}");
});
