//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Serialize;

use super::{
    answer::{End, Piece, Scored},
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
    select::Part,
    sse::Data,
    tools::{Heard, Last, Speaker, Tools},
    wire::{
        chat::{
            ChatChoice, ChatChunk, ChatCompletion, ChatDelta, ChatFields, ChatLogprobs, Delta,
            MessageOut,
        },
        common::Common,
        tools::{FunctionOut, ToolCallOut},
        unsupported::{CHAT, GENERATION, RENDERED},
        usage::{Usage, UsageKey},
    },
};
use crate::{
    engine::Finish,
    tenant::{Caller, Permit, Scope},
    text::{Chat as Said, Ending, Framing, Message, Text},
};

const ROLE: &str = "assistant";

/// What is asked for, understood and within bounds.
#[derive(Debug)]
struct Chat {
    model: Option<String>,
    user: Option<String>,
    adapters: Option<Vec<Part>>,
    messages: Vec<Message>,
    tools: Tools,
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
            tools: Tools::read(fields.tools, fields.tool_choice, fields.parallel_tool_calls)?,
            messages: prompt::messages(fields.messages)?,
            ending: prompt::ending(fields.add_generation_prompt, fields.continue_final_message)?,
            framing: prompt::framing(common.add_special_tokens, Framing::Bare),
            model: common.model,
            user: common.user,
            adapters: prompt::parts(common.adapters)?,
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
    // It is large, and most of it only waits.
    let answer = Box::pin(answer(&app, (&caller, &headers, permit), (bytes, deadline)));
    app.bound(deadline, answer).await
}

async fn answer(
    app: &App,
    (caller, headers, permit): (&Caller, &HeaderMap, Arc<Permit>),
    (bytes, deadline): (axum::body::Bytes, Deadline),
) -> Result<Response, ApiError> {
    let size = bytes.len();
    let chat = app.work(size, move |_| Chat::read(&bytes)).await?;
    let (voice, requested) = app
        .choose_of(caller, headers, (chat.model, chat.user.as_deref()), chat.adapters.as_deref())
        .await?;
    let (encoder, tools, mut terms) = (app.encoder(), chat.tools, chat.terms);
    let said = Said { messages: chat.messages, tools: tools.told.clone() };
    let extras = app.extras(&voice);
    let dialect = encoder.text.dialect(extras.chat_template.as_deref());
    terms.form = tools.form(dialect, terms.form.take())?;
    if let Some(mark) = tools.mark(dialect, &encoder.text) {
        terms.show(mark);
    }
    let brought = app.render_brought(caller.tenant, &extras, (&said, chat.ending)).await?;
    let default_tokens = extras.sampling.max_tokens.map(|tokens| tokens as usize);
    let render = move |_: &Asker| {
        terms.follow(&extras, &encoder.text)?;
        let rendered = match brought {
            Some(rendered) => rendered,
            None => encoder.text.render(&said, chat.ending)?,
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
        reason: tools.reason(),
        speakers: vec![Speaker::new(tools.listener(dialect)); terms.choices],
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
    /// Why an answer that calls tools has ended.
    reason: &'static str,
    /// One for each choice.
    speakers: Vec<Speaker>,
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

    fn reason(&self, index: usize, end: End) -> &'static str {
        let called = end.finish == Finish::Stop && self.speakers[index].has_called();
        if called { self.reason } else { end.reason() }
    }

    /// A call in two chunks, as OpenAI begins one: first which, then with what.
    fn called(&self, index: usize, call: ToolCallOut) -> [Data; 2] {
        let arguments = FunctionOut { name: None, arguments: call.function.arguments };
        let rest = ToolCallOut { index: call.index, id: None, kind: None, function: arguments };
        let function = FunctionOut { arguments: String::new(), ..call.function };
        let first = ToolCallOut { function, ..call };
        [first, rest].map(|call| {
            let delta = Delta { tool_calls: vec![call], ..Delta::default() };
            self.delta(ChatDelta { index, delta, logprobs: None, finish_reason: None })
        })
    }
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> impl Serialize {
        let choices: Vec<_> = choices
            .into_iter()
            .enumerate()
            .map(|(index, piece)| {
                let end = piece.end.expect("a whole choice has an end");
                let Heard { text, calls } = self.speakers[index].hear(piece.text, Last::Yes);
                let silent = text.is_empty() && !calls.is_empty();
                ChatChoice {
                    index,
                    logprobs: self.logprobs(piece.scores),
                    finish_reason: self.reason(index, end),
                    message: MessageOut {
                        role: ROLE,
                        content: (!silent).then_some(text),
                        refusal: None,
                        tool_calls: calls.into_iter().map(ToolCallOut::whole).collect(),
                    },
                }
            })
            .collect();
        let Envelope { id, created, model, fingerprint, .. } = &self.envelope;
        ChatCompletion {
            id,
            object: "chat.completion",
            created: *created,
            model,
            choices,
            usage,
            system_fingerprint: fingerprint,
        }
    }

    fn opening(&mut self) -> Vec<Data> {
        let delta = |index| {
            let content = Some(String::new());
            let delta = Delta { role: Some(ROLE), content, tool_calls: Vec::new() };
            self.delta(ChatDelta { index, delta, logprobs: None, finish_reason: None })
        };
        (0..self.speakers.len()).map(delta).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Data> {
        let Piece { prompt: _, text, scores, end } = piece;
        let last = if end.is_some() { Last::Yes } else { Last::No };
        let Heard { text, calls } = self.speakers[index].hear(text, last);
        let mut chunks = Vec::new();
        if !text.is_empty() || !scores.is_empty() {
            let delta = Delta { content: Some(text), ..Delta::default() };
            let logprobs = self.logprobs(scores);
            chunks.push(self.delta(ChatDelta { index, delta, logprobs, finish_reason: None }));
        }
        chunks.extend(calls.into_iter().flat_map(|call| self.called(index, call)));
        if let Some(end) = end {
            let (delta, finish_reason) = (Delta::default(), Some(self.reason(index, end)));
            chunks.push(self.delta(ChatDelta { index, delta, logprobs: None, finish_reason }));
        }
        chunks
    }

    fn usage(&mut self, usage: Usage) -> Data {
        self.chunk(vec![], UsageKey::Now(usage))
    }
}
