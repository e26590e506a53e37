//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Serialize;

use super::{
    answer::{Piece, Scored},
    app::App,
    auth::{By, need},
    body::{Payload, parse, refuse_unsupported},
    deadline::Deadline,
    delivery::{Form, deliver},
    desks::Asker,
    envelope::Envelope,
    error::ApiError,
    generate::{Opening, Order, check_choices},
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
};
use crate::{
    tenant::{Caller, Permit, Scope},
    text::{Ending, Framing, Message, Text},
};

const ROLE: &str = "assistant";

/// What is asked for, understood and within bounds.
#[derive(Debug)]
struct Chat {
    model: Option<String>,
    user: Option<String>,
    messages: Vec<Message>,
    ending: Ending,
    framing: Framing,
    terms: Terms,
    /// The likeliest tokens beside each, where scores are wanted.
    logprobs: Option<usize>,
}

impl Chat {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        refuse_unsupported(bytes, &[GENERATION, CHAT, RENDERED])?;
        let common: Common = parse(bytes)?;
        let fields: ChatFields = parse(bytes)?;
        let mut terms = Terms::read(&common)?;
        // The newer name counts where both are there.
        terms.max_tokens = match (fields.max_completion_tokens, terms.max_tokens) {
            (Some(0), _) => return Err(too_few("max_completion_tokens")),
            (None, Some(0)) => return Err(too_few("max_tokens")),
            (newer, older) => newer.or(older),
        };
        check_choices(1, &terms)?;
        Ok(Self {
            logprobs: scores(&fields)?,
            messages: prompt::messages(fields.messages)?,
            ending: prompt::ending(fields.add_generation_prompt, fields.continue_final_message)?,
            framing: prompt::framing(common.add_special_tokens, Framing::Bare),
            model: common.model,
            user: common.user,
            terms,
        })
    }
}

fn too_few(field: &str) -> ApiError {
    ApiError::invalid(field, format!("'{field}' must be at least 1"))
}

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
pub(super) async fn create(
    State(app): State<App>,
    By(caller): By,
    headers: HeaderMap,
    Payload(bytes): Payload,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Infer)?;
    let deadline = Deadline::read(&headers, app.settings().request_timeout)?;
    let permit = app.admit(&caller)?;
    app.bound(deadline, answer(&app, (&caller, &headers, permit), (bytes, deadline))).await
}

async fn answer(
    app: &App,
    (caller, headers, permit): (&Caller, &HeaderMap, Arc<Permit>),
    (bytes, deadline): (axum::body::Bytes, Deadline),
) -> Result<Response, ApiError> {
    let size = bytes.len();
    let chat = app.work(size, move |_| Chat::read(&bytes)).await?;
    let (voice, requested) =
        app.choose(caller, headers, (chat.model, chat.user.as_deref())).await?;
    let (encoder, messages, mut terms) = (app.encoder(), chat.messages, chat.terms);
    let extras = app.extras(&voice);
    let said = (&*messages, chat.ending);
    let brought = app.render_brought(caller.tenant, &extras, said).await?;
    let default_tokens = extras.sampling.max_tokens.map(|tokens| tokens as usize);
    let render = move |_: &Asker| {
        terms.follow(&extras, &encoder.text)?;
        let rendered = match brought {
            Some(rendered) => rendered,
            None => encoder.text.render(&messages, chat.ending)?,
        };
        Ok((encoder.text(&rendered, chat.framing)?, terms))
    };
    let (prompt, terms) = app.work(size, render).await?;
    let opening = match chat.ending {
        Ending::Continue => Opening::Continuing,
        Ending::Prompt | Ending::Open => Opening::Anew,
    };
    let writer = Writer {
        text: app.text().clone(),
        scored: chat.logprobs.is_some(),
        delivery: terms.delivery,
        choices: terms.choices,
        envelope: Envelope::new("chatcmpl", requested.clone(), voice.clone(), &app.base().digest),
    };
    let order = Order {
        prompts: vec![prompt],
        opening,
        terms,
        default_tokens: default_tokens.unwrap_or(app.settings().chat_tokens),
        logprobs: chat.logprobs,
        prompt_logprobs: None,
        voice,
        tenant: caller.tenant,
        permit,
        requested,
        deadline,
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

    fn usage(&mut self, usage: Usage) -> Data {
        self.chunk(vec![], UsageKey::Now(usage))
    }
}
