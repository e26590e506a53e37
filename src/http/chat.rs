//! `POST /v1/chat/completions`

use axum::{extract::State, response::Response};
use serde::Serialize;

use super::{
    answer::{Piece, Scored},
    app::App,
    body::{parse, refuse_unsupported},
    delivery::{Form, deliver},
    envelope::Envelope,
    error::ApiError,
    generate::check_choices,
    logprobs, prompt,
    sampling::{Delivery, MAX_TOP_LOGPROBS, Terms, within},
    sse::Data,
    wire::{
        chat::{
            ChatChoice, ChatChunk, ChatCompletion, ChatDelta, ChatFields, ChatLogprobs, Delta,
            MessageOut,
        },
        common::Common,
        unsupported::{CHAT, GENERATION, RENDERED},
        usage::{Usage, UsageKey},
    },
    wish::{Arrival, Said, Wish},
};
use crate::text::{Framing, Text};

const ROLE: &str = "assistant";

/// What is asked for, understood and within bounds.
fn read(bytes: &[u8]) -> Result<Wish, ApiError> {
    refuse_unsupported(bytes, &[GENERATION, CHAT, RENDERED])?;
    let common: Common = parse(bytes)?;
    let fields: ChatFields = parse(bytes)?;
    let mut terms = Terms::read(&common)?;
    // The newer name counts where both are there.
    terms.max_tokens = match (fields.max_completion_tokens, terms.max_tokens) {
        (Some(0), _) => return Err(ApiError::too_few("max_completion_tokens")),
        (None, Some(0)) => return Err(ApiError::too_few("max_tokens")),
        (newer, older) => newer.or(older),
    };
    check_choices(1, &terms)?;
    let logprobs = scores(&fields)?;
    let messages = prompt::messages(fields.messages)?;
    let ending = prompt::ending(fields.add_generation_prompt, fields.continue_final_message)?;
    let framing = prompt::framing(common.add_special_tokens, Framing::Bare);
    Ok(Wish {
        model: common.model,
        user: common.user,
        said: Said::Chat(messages, ending, framing),
        terms,
        default_tokens: None,
        logprobs,
        prompt_logprobs: None,
    })
}

/// The likeliest tokens beside each, where scores are wanted.
fn scores(fields: &ChatFields) -> Result<Option<usize>, ApiError> {
    let top = within("top_logprobs", fields.top_logprobs, 0..=MAX_TOP_LOGPROBS, 0)?;
    match (fields.logprobs == Some(true), top) {
        (true, top) => Ok(Some(top)),
        (false, 0) => Ok(None),
        (false, _) => {
            Err(ApiError::invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true"))
        }
    }
}

/// Answers one chat.
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let wish = arrival.read(app, read).await?;
    let order = wish.order(app, arrival).await?;
    let writer = Writer {
        text: app.text().clone(),
        scored: order.logprobs.is_some(),
        delivery: order.terms.delivery,
        choices: order.terms.choices,
        envelope: order.envelope("chatcmpl-", app),
    };
    deliver(app, &order, writer).await
}

/// Writes a chat's answers.
#[derive(Debug)]
struct Writer {
    text: Text,
    scored: bool,
    delivery: Delivery,
    choices: usize,
    envelope: Envelope,
}

impl Writer {
    fn logprobs(&self, scores: Vec<Scored>) -> Option<ChatLogprobs> {
        let scores = scores.into_iter().map(|scored| scored.logprob);
        self.scored.then(|| logprobs::chat(&self.text, scores))
    }

    fn chunk(&self, choices: Vec<ChatDelta>, usage: UsageKey) -> Data {
        let Envelope { id, created, model, fingerprint, .. } = &self.envelope;
        Data::json(&ChatChunk {
            id,
            object: "chat.completion.chunk",
            created: *created,
            model,
            system_fingerprint: fingerprint,
            choices,
            usage,
        })
    }

    fn delta(&self, delta: ChatDelta) -> Data {
        self.chunk(vec![delta], self.delivery.usage_later())
    }
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> impl Serialize {
        let Envelope { id, created, model, fingerprint, .. } = &self.envelope;
        let choices = choices.into_iter().enumerate().map(|(index, piece)| ChatChoice {
            index,
            logprobs: self.logprobs(piece.scores),
            message: MessageOut { role: ROLE, content: piece.text, refusal: None },
            finish_reason: piece.end.expect("a whole choice has an end").reason(),
        });
        ChatCompletion {
            id,
            object: "chat.completion",
            created: *created,
            model,
            choices: choices.collect(),
            usage,
            system_fingerprint: fingerprint,
        }
    }

    fn opening(&mut self) -> Vec<Data> {
        let delta = |index| {
            let delta = Delta { role: Some(ROLE), content: Some(String::new()) };
            self.delta(ChatDelta { index, delta, logprobs: None, finish_reason: None })
        };
        (0..self.choices).map(delta).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Data> {
        let Piece { prompt: _, text, scores, end } = piece;
        let mut chunks = Vec::new();
        if !text.is_empty() || !scores.is_empty() {
            let delta = Delta { role: None, content: Some(text) };
            let logprobs = self.logprobs(scores);
            chunks.push(self.delta(ChatDelta { index, delta, logprobs, finish_reason: None }));
        }
        if let Some(end) = end {
            let (delta, finish_reason) = (Delta::default(), Some(end.reason()));
            chunks.push(self.delta(ChatDelta { index, delta, logprobs: None, finish_reason }));
        }
        chunks
    }

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        let told = self.delivery == Delivery::StreamWithUsage;
        Data::closing(told.then(|| self.chunk(vec![], UsageKey::Now(usage))))
    }
}
