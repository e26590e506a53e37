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
    logprobs::{self, Naming},
    openapi::{ChatRequest, Choosing, Unanswered},
    prompt,
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

/// What of tokens is sent besides texts.
#[derive(Debug)]
struct Sent {
    /// Their names beside their scores.
    naming: Naming,
    /// Those of the prompt and of choices.
    ids: bool,
}

/// What is asked for, understood and within bounds.
fn read(bytes: &[u8]) -> Result<(Wish, Sent), ApiError> {
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
    let naming = Naming::asked(fields.return_tokens_as_token_ids);
    let sent = Sent { naming, ids: fields.return_token_ids == Some(true) };
    let messages = prompt::messages(fields.messages)?;
    let ending = prompt::ending(fields.add_generation_prompt, fields.continue_final_message)?;
    let framing = prompt::framing(common.add_special_tokens, Framing::Bare);
    let offered = (fields.tools, Parts::NESTED);
    let tools = Tools::read(offered, fields.tool_choice, fields.parallel_tool_calls)?;
    let wish = Wish {
        model: common.model,
        user: common.user,
        adapters: prompt::parts(common.adapters)?,
        said: Said::Chat(Chat { messages, tools: tools.told.clone() }, ending, framing),
        tools,
        terms,
        default_tokens: None,
        logprobs,
        prompt_logprobs: None,
    };
    Ok((wish, sent))
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
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "answers", operation_id = "create_chat_completion",
    params(Choosing),
    request_body = ChatRequest,
    responses((status = 200, description = "The answer, or a stream of it", content((ChatCompletion<'static> = "application/json"), (ChatChunk<'static> = "text/event-stream"))), Unanswered)
)]
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let (wish, Sent { naming, ids }) = arrival.read(app, read).await?;
    let order = wish.order(app, arrival).await?;
    let writer = Writer {
        text: app.text().clone(),
        scored: order.logprobs.is_some(),
        naming,
        ids: ids.then(|| order.prompts.concat()),
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
    naming: Naming,
    /// The prompt's tokens, where tokens are asked for.
    ids: Option<Vec<u32>>,
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
        self.scored.then(|| logprobs::chat((&self.text, self.naming), scores))
    }

    fn chunk(&self, choices: Vec<ChatDelta>, usage: UsageKey) -> ChatChunk<'_> {
        let Envelope { id, created, model, fingerprint, .. } = &self.envelope;
        ChatChunk {
            id,
            object: "chat.completion.chunk",
            created: *created,
            model,
            system_fingerprint: fingerprint,
            choices,
            usage,
            prompt_token_ids: None,
        }
    }

    fn delta(&self, delta: ChatDelta) -> Data {
        Data::json(&self.chunk(vec![delta], self.delivery.usage_later()))
    }

    /// The first chunk of a choice; that of the first one has the prompt.
    fn beginning(&self, index: usize) -> Data {
        let content = Some(String::new());
        let delta = Delta { role: Some(ROLE), content, tool_calls: Vec::new() };
        let delta = ChatDelta { index, delta, ..ChatDelta::default() };
        let prompt_token_ids = self.ids.as_deref().filter(|_| index == 0);
        let chunk = self.chunk(vec![delta], self.delivery.usage_later());
        Data::json(&ChatChunk { prompt_token_ids, ..chunk })
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
            self.delta(ChatDelta { index, delta, ..ChatDelta::default() })
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
                    token_ids: self.ids.is_some().then_some(piece.ids),
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
            prompt_token_ids: self.ids.as_deref(),
        }
    }

    fn opening(&mut self) -> Vec<Data> {
        (0..self.speakers.len()).map(|index| self.beginning(index)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Data> {
        let Piece { prompt: _, text, ids, scores, end } = piece;
        // They come with the piece whose text may be a part of a call.
        let token_ids = self.ids.is_some().then_some(ids).filter(|ids| !ids.is_empty());
        let Heard { text, calls } = self.speakers[index].hear(text, Last::with(end));
        let mut chunks = Vec::new();
        if !text.is_empty() || !scores.is_empty() || token_ids.is_some() {
            let delta = Delta { content: Some(text), ..Delta::default() };
            let logprobs = self.logprobs(scores);
            chunks.push(self.delta(ChatDelta {
                index,
                delta,
                logprobs,
                finish_reason: None,
                token_ids,
            }));
        }
        chunks.extend(calls.into_iter().flat_map(|call| self.called(index, call)));
        if let Some(end) = end {
            let finish_reason = Some(self.reason(index, end));
            chunks.push(self.delta(ChatDelta { index, finish_reason, ..ChatDelta::default() }));
        }
        chunks
    }

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        let told = self.delivery == Delivery::StreamWithUsage;
        Data::closing(told.then(|| Data::json(&self.chunk(vec![], UsageKey::Now(usage)))))
    }
}
