//! Uploads that are changed at random.

use super::*;

/// Bits, lengths, offsets, types and sizes of a good adapter changed at random: no panic, no 5xx, no leak.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_uploads_do_no_harm() {
    // Memory for keys and values comes into use with time: little of it, so that anything else that grows is seen.
    let server = Server::start(&["--log", "error", "--kv-bytes", "16MiB"]);
    let [config, weights] = mini(1);
    let (base, good) = (server.says("base").await, server.says("pirate").await);
    let mut random = Random(0x0dd5_eed5);
    let mut refused = 0;
    let mut before = 0;
    let all = times(200, 10_000);
    for turn in 0..all {
        if turn == all / 4 {
            before = server.resident();
        }
        let (mut config, mut weights) = (config.clone(), weights.clone());
        let mut headers = reqwest::header::HeaderMap::new();
        match random.below(8) {
            0 => random.flip(&mut weights),
            1 => random.flip(&mut config),
            2 => weights.truncate(random.below(weights.len())),
            3 => weights[..8].copy_from_slice(&random.next().to_le_bytes()),
            4 => random.edit_header(&mut weights),
            5 => random.edit_number(&mut config),
            6 => config = "{\"a\":".repeat(random.below(200_000)).into_bytes(),
            _ => {
                let value = format!("multipart/form-data; boundary={}", random.next());
                headers.insert("content-type", value.parse().unwrap());
            }
        }
        let url = format!("{}/v1/adapters/m", server.url);
        let request = server.client.put(url).multipart(form([config, weights]));
        let mut request = request.build().unwrap();
        request.headers_mut().extend(headers);
        let response = server.client.execute(request).await.unwrap();
        let status = response.status();
        let answer = response.text().await.unwrap();
        assert!(!status.is_server_error(), "turn {turn}: {status} {answer}");
        if status.is_success() {
            let answer = server
                .post("/v1/completions", &json!({"model": "m", "prompt": "a", "max_tokens": 2}))
                .await;
            assert!(answer.status().is_success(), "turn {turn}: {}", answer.status());
            assert_eq!(server.delete("m").await.status(), 200);
        } else {
            refused += 1;
        }
    }
    assert!(refused > all / 4, "{refused} of {all} were refused");
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes more are resident");
    assert_eq!((server.says("base").await, server.says("pirate").await), (base, good));
}

/// Marsaglia's xorshift: the same changes each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            bytes[at] ^= 1 << self.below(8);
        }
    }

    /// Another digit, dtype letter or bracket somewhere in the header.
    fn edit_header(&mut self, weights: &mut [u8]) {
        let header = usize::try_from(u64::from_le_bytes(*weights.first_chunk().unwrap())).unwrap();
        for _ in 0..=self.below(3) {
            let at = 8 + self.below(header);
            weights[at] = b"0123456789FBI[]{},:\"-"[self.below(21)];
        }
    }

    /// Another number somewhere in the configuration.
    fn edit_number(&mut self, config: &mut Vec<u8>) {
        let text = String::from_utf8(config.clone()).unwrap();
        let numbers = [
            "-1",
            "0",
            "1e400",
            "4294967296",
            "18446744073709551616",
            "0.5",
            "null",
            "\"8\"",
            "[]",
        ];
        let digits: Vec<_> = text.match_indices(|c: char| c.is_ascii_digit()).collect();
        let (at, digit) = digits[self.below(digits.len())];
        let new = numbers[self.below(numbers.len())];
        *config = format!("{}{new}{}", &text[..at], &text[at + digit.len()..]).into_bytes();
    }
}
