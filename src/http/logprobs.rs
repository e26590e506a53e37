//! Scores in OpenAI's two shapes, and in LoRAX's.

use super::{
    prompt::Echo,
    wire::{
        chat::{ChatLogprobs, ScoredToken, TokenLogprob},
        completion::{CompletionLogprobs, Ranking},
        lorax::{Alternative, PrefillToken, Token},
    },
};
use crate::{engine::Logprob, text::Text};

/// What stands for a probability of zero: JSON has no infinity, and OpenAI writes this.
const IMPOSSIBLE: f32 = -9999.0;

/// How tokens are named beside their scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// As the text that they are.
    Text,
    /// `token_id:17`
    Ids,
}

impl Naming {
    /// As `return_tokens_as_token_ids` asks for it.
    pub(super) fn asked(as_ids: Option<bool>) -> Self {
        if as_ids == Some(true) { Self::Ids } else { Self::Text }
    }
}

/// The chat's shape.
pub(super) fn chat(
    names: (&Text, Naming),
    scores: impl IntoIterator<Item = Logprob>,
) -> ChatLogprobs {
    let content = scores.into_iter().map(|score| TokenLogprob {
        token: scored_token(names, score.token, score.logprob),
        top_logprobs: score.top.iter().map(|(id, p)| scored_token(names, *id, *p)).collect(),
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

fn scored_token((text, naming): (&Text, Naming), id: u32, logprob: f32) -> ScoredToken {
    let bytes = text.token_bytes(id).unwrap_or_default().to_vec();
    let token = match naming {
        Naming::Text => escape(&bytes),
        Naming::Ids => numbered(id),
    };
    ScoredToken { token, logprob: logprob.max(IMPOSSIBLE), bytes }
}

impl CompletionLogprobs {
    /// Adds a prompt: its first token, which nothing predicts, and the scores of the others.
    pub(super) fn push_prompt(&mut self, names: (&Text, Naming), echo: &Echo, scores: &[Logprob]) {
        let mut offsets = echo.offsets.iter().copied();
        if let (Some(first), Some(offset)) = (echo.ids.first(), offsets.next()) {
            self.tokens.push(name(names, *first));
            self.token_logprobs.push(None);
            self.top_logprobs.push(None);
            self.text_offset.push(offset);
        }
        for (score, offset) in scores.iter().zip(offsets) {
            self.push(names, score, offset);
        }
    }

    /// Adds a token. Its ranking has it at the end where it is not among the likeliest.
    pub(super) fn push(&mut self, names: (&Text, Naming), score: &Logprob, offset: usize) {
        let token = name(names, score.token);
        let logprob = score.logprob.max(IMPOSSIBLE);
        let mut ranking: Vec<_> =
            score.top.iter().map(|(id, p)| (name(names, *id), p.max(IMPOSSIBLE))).collect();
        if !score.top.iter().any(|(id, _)| *id == score.token) {
            ranking.push((token.clone(), logprob));
        }
        self.tokens.push(token);
        self.token_logprobs.push(Some(logprob));
        self.top_logprobs.push(Some(Ranking(ranking)));
        self.text_offset.push(offset);
    }
}

/// LoRAX's shape of a token that adds `own` to the text.
pub(super) fn lorax(text: &Text, score: &Logprob, own: &str) -> Token {
    let chosen = Alternative {
        id: score.token,
        text: own.to_owned(),
        logprob: score.logprob.max(IMPOSSIBLE),
    };
    let alternative = |(id, logprob): &(u32, f32)| Alternative {
        id: *id,
        text: spelled(text, *id),
        logprob: logprob.max(IMPOSSIBLE),
    };
    let alternative_tokens = Some(score.top.iter().map(alternative).collect());
    Token { chosen, special: text.is_special(score.token), alternative_tokens }
}

/// LoRAX's shape of a prompt, whose first token nothing predicts.
pub(super) fn prefill(text: &Text, ids: &[u32], scores: &[Logprob]) -> Vec<PrefillToken> {
    let scores = scores.iter().map(|score| Some(score.logprob.max(IMPOSSIBLE)));
    let scores = [None].into_iter().chain(scores);
    let token =
        |(id, logprob): (&u32, _)| PrefillToken { id: *id, text: spelled(text, *id), logprob };
    ids.iter().zip(scores).map(token).collect()
}

fn spelled(text: &Text, id: u32) -> String {
    escape(text.token_bytes(id).unwrap_or_default())
}

/// A token as completions name it; two tokens never share a name that is not text.
fn name((text, naming): (&Text, Naming), id: u32) -> String {
    if naming == Naming::Ids {
        return numbered(id);
    }
    match text.token_bytes(id) {
        None => numbered(id),
        Some(bytes) => match str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => format!("bytes:{}", hex(bytes)),
        },
    }
}

/// A token as both name it where ids are asked for.
fn numbered(id: u32) -> String {
    format!("token_id:{id}")
}

/// A token as chats name it.
fn escape(bytes: &[u8]) -> String {
    str::from_utf8(bytes).map_or_else(|_| hex(bytes), str::to_owned)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}\\x{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::double;

    fn score(token: u32, logprob: f32, top: &[(u32, f32)]) -> Logprob {
        Logprob { token, logprob, top: top.to_vec() }
    }

    #[test]
    fn the_chats_shape() {
        let a = u32::from(b'a');
        let scores = [score(a, -0.5, &[(a, -0.5), (0xe2, f32::NEG_INFINITY)])];
        assert_eq!(
            serde_json::to_value(chat((&double::text(), Naming::Text), scores)).unwrap(),
            json!({"refusal": null, "content": [{
                "token": "a", "logprob": -0.5, "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                    {"token": "\\xe2", "logprob": -9999.0, "bytes": [0xe2]},
                ],
            }]})
        );
    }

    #[test]
    fn the_shape_of_lorax() {
        let (a, text) = (u32::from(b'a'), double::text());
        let scored = score(a, -0.5, &[(a, -0.5), (0xe2, f32::NEG_INFINITY)]);
        assert_eq!(
            serde_json::to_value(lorax(&text, &scored, "xa")).unwrap(),
            json!({"id": 97, "text": "xa", "logprob": -0.5, "special": false, "alternative_tokens": [
                {"id": 97, "text": "a", "logprob": -0.5},
                {"id": 0xe2, "text": "\\xe2", "logprob": -9999.0},
            ]})
        );
        assert!(lorax(&text, &score(double::SPECIAL, -1.0, &[]), "").special);
        assert_eq!(
            serde_json::to_value(prefill(&text, &[a, 0xe2], &[score(0xe2, -2.0, &[])])).unwrap(),
            json!([{"id": 97, "text": "a", "logprob": null}, {"id": 0xe2, "text": "\\xe2", "logprob": -2.0}])
        );
    }

    #[test]
    fn the_completions_shape() {
        let (a, b) = (u32::from(b'a'), u32::from(b'b'));
        let mut logprobs = CompletionLogprobs::default();
        let text = double::text();
        let echo = Echo { text: "ba".into(), length: 2, ids: vec![b, a], offsets: vec![0, 1] };
        let text = (&text, Naming::Text);
        logprobs.push_prompt(text, &echo, &[score(a, -0.5, &[(a, -0.5), (b, -1.0)])]);
        logprobs.push(text, &score(0xe2, -3.0, &[(a, -0.5)]), 2);
        logprobs.push(text, &score(9_999, -4.0, &[]), 2);
        let json = serde_json::to_string(&logprobs).unwrap();
        assert_eq!(
            json,
            r#"{"tokens":["b","a","bytes:\\xe2","token_id:9999"],"token_logprobs":[null,-0.5,-3.0,-4.0],"#
                .to_owned()
                + r#""top_logprobs":[null,{"a":-0.5,"b":-1.0},{"a":-0.5,"bytes:\\xe2":-3.0},"#
                + r#"{"token_id:9999":-4.0}],"text_offset":[0,1,2,2]}"#
        );
    }
}
