//! `POST /v1/chat/completions`

use axum::{extract::State, response::Response};
use serde::Serialize;

use super::{
    answer::{End, Piece, Scored},
    app::App,
    body::{parse, refuse_unsupported},
    delivery::{Form, deliver},
    envelope::Envelope,
    error::ApiError,
    generate::check_choices,
    logprobs, prompt,
    sampling::{Delivery, MAX_TOP_LOGPROBS, Terms, within},
    sse::Data,
    tools::{Heard, Last, Parts, Speaker, Tools},
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
    wish::{Arrival, Said, Wish},
};
use crate::{
    engine::Finish,
    text::{Chat, Framing, Text},
};

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
    let sent = (fields.tools, Parts::NESTED);
    let tools = Tools::read(sent, fields.tool_choice, fields.parallel_tool_calls)?;
    Ok(Wish {
        model: common.model,
        user: common.user,
        adapters: prompt::parts(common.adapters)?,
        said: Said::Chat(Chat { messages, tools: tools.told.clone() }, ending, framing),
        tools,
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
        reason: order.tools.reason(),
        speakers: vec![Speaker::new(order.tools.listener(order.dialect)); order.terms.choices],
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
        let Heard { text, calls } = self.speakers[index].hear(text, Last::with(end));
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

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        let told = self.delivery == Delivery::StreamWithUsage;
        Data::closing(told.then(|| self.chunk(vec![], UsageKey::Now(usage))))
    }
}
