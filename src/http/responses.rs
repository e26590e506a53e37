//! `POST /v1/responses`: OpenAI's newer form of a chat, for text. No response is stored, so that none can be gone on from or got back.

use axum::{
    extract::{Path, State},
    response::Response,
};
use serde::Serialize;

use super::{
    answer::{End, Piece},
    app::App,
    auth::{By, need},
    body::{parse, refuse_unsupported},
    delivery::{Form, deliver},
    envelope::Envelope,
    error::ApiError,
    logprobs,
    openapi::{Choosing, Refusals, ResponseRequest, Unanswered},
    prompt, request_id,
    sampling::{MAX_TOP_LOGPROBS, Terms, within},
    sse::Data,
    tools::Tools,
    wire::{
        chat::TokenLogprob,
        common::Common,
        content::Role,
        responses::{
            Echoed, IncompleteDetails, Item, Label, OutputMessage, OutputText, ResponseBody,
            ResponseError, ResponseEvent, ResponseFields, Told,
        },
        unsupported::{GENERATION, RESPONSE},
        usage::Usage,
    },
    wish::{Arrival, Said, Wish},
};
use crate::{
    engine::{Finish, Sampling},
    tenant::Scope,
    text::{Ending, Framing, Message, Text},
};

/// What `include` has where scores are wanted.
const SCORES: &str = "message.output_text.logprobs";

/// What is asked for, understood and within bounds, and what of it comes back.
fn read(bytes: &[u8]) -> Result<(Wish, Echoed), ApiError> {
    refuse_unsupported(bytes, &[GENERATION, RESPONSE])?;
    let common: Common = parse(bytes)?;
    let fields: ResponseFields = parse(bytes)?;
    let echoed: Echoed = parse(bytes)?;
    if fields.previous_response_id.is_some_and(|Label(id)| !id.is_empty()) {
        return Err(ApiError::no_previous_response());
    }
    if echoed.text.as_ref().is_some_and(|text| text.0.format.0.kind != Label::from("text")) {
        return Err(ApiError::unsupported("text.format"));
    }
    let mut terms = Terms::read(&common)?;
    if terms.choices != 1 {
        return Err(ApiError::unsupported("n"));
    }
    terms.max_tokens = match echoed.max_output_tokens.or(terms.max_tokens) {
        Some(0) => return Err(ApiError::too_few("max_output_tokens")),
        tokens => tokens,
    };
    let top = within("top_logprobs", echoed.top_logprobs, 0..=MAX_TOP_LOGPROBS, 0)?;
    let scored = fields.include.is_some_and(|include| include.iter().any(|what| what == SCORES));
    let Label(user) =
        echoed.user.clone().or(echoed.safety_identifier.clone()).unwrap_or(Label::from(""));
    let messages = messages(&echoed, fields.input.0)?;
    let wish = Wish {
        model: common.model,
        user: Some(user),
        adapters: prompt::parts(common.adapters)?,
        said: Said::Chat(messages.into(), Ending::Prompt, Framing::Bare),
        tools: Tools::default(),
        terms,
        default_tokens: None,
        logprobs: scored.then_some(top),
        prompt_logprobs: None,
    };
    Ok((wish, echoed))
}

/// The messages, the instructions before all others.
fn messages(echoed: &Echoed, items: Vec<Item>) -> Result<Vec<Message>, ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid("input", "'input' must have at least one message"));
    }
    let instructions = echoed.instructions.clone();
    let instructions = instructions.map(|text| prompt::message(Role::System, text));
    let said = items.into_iter().map(|item| prompt::message(item.role.0, item.content.0));
    Ok(instructions.into_iter().chain(said).collect())
}

impl Echoed {
    /// Says what holds where the request has said nothing.
    fn fill(&mut self, sampling: &Sampling) {
        self.metadata.get_or_insert_default();
        self.parallel_tool_calls.get_or_insert(true);
        self.reasoning.get_or_insert_default();
        self.temperature.get_or_insert(sampling.temperature);
        self.text.get_or_insert_default();
        self.tool_choice.get_or_insert(Label::from("auto"));
        self.top_logprobs.get_or_insert(0);
        self.top_p.get_or_insert(sampling.top_p);
        self.truncation.get_or_insert_default();
    }
}

/// Answers what was said.
#[utoipa::path(
    post, path = "/v1/responses", tag = "answers", operation_id = "create_response",
    params(Choosing),
    request_body = ResponseRequest,
    responses((status = 200, description = "The response, or a stream of events", content((ResponseBody<'static> = "application/json"), (ResponseEvent<Told<'static>> = "text/event-stream"))), Unanswered)
)]
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let (wish, mut echoed) = arrival.read(app, read).await?;
    let order = wish.order(app, arrival).await?;
    echoed.fill(&order.terms.sampling);
    let writer = Writer {
        text: app.text().clone(),
        scored: order.logprobs.is_some(),
        envelope: order.envelope("resp_", app),
        item: format!("msg_{}", request_id::unique()),
        echoed,
        said: String::new(),
        logprobs: Vec::new(),
        end: None,
        events: 0,
    };
    deliver(app, &order, writer).await
}

/// No response is kept, so none is found.
#[utoipa::path(
    get, path = "/v1/responses/{id}", tag = "answers", operation_id = "find_response",
    params(("id" = String, Path)), responses(Refusals)
)]
pub(super) async fn find(By(caller): By, Path(id): Path<String>) -> Result<(), ApiError> {
    need(&caller, Scope::Infer)?;
    Err(ApiError::no_response(&id))
}

/// Nothing is stored that could be deleted.
#[utoipa::path(
    delete, path = "/v1/responses/{id}", tag = "answers", operation_id = "remove_response",
    params(("id" = String, Path)), responses(Refusals)
)]
pub(super) async fn remove(by: By, id: Path<String>) -> Result<(), ApiError> {
    find(by, id).await
}

/// Writes one response.
#[derive(Debug)]
struct Writer {
    text: Text,
    scored: bool,
    envelope: Envelope,
    /// The id of the only item.
    item: String,
    echoed: Echoed,
    /// The text so far.
    said: String,
    /// Its scores, where they are wanted.
    logprobs: Vec<TokenLogprob>,
    end: Option<End>,
    /// Events so far.
    events: usize,
}

/// How far a response or its item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        }
    }
}

impl Writer {
    /// Takes in a piece; the scores that it brought are the last so many.
    fn take(&mut self, piece: Piece) -> usize {
        let Piece { prompt: _, text, scores, end } = piece;
        self.said.push_str(&text);
        self.end = end;
        let scores = scores.into_iter().filter(|_| self.scored).map(|scored| scored.logprob);
        let scores = logprobs::chat(&self.text, scores).content;
        let count = scores.len();
        self.logprobs.extend(scores);
        count
    }

    fn status(&self) -> Status {
        match self.end.map(|end| end.finish) {
            None => Status::InProgress,
            Some(Finish::Stop) => Status::Completed,
            Some(Finish::Length) => Status::Incomplete,
        }
    }

    fn part(&self) -> OutputText<'_> {
        let (text, logprobs) = (&*self.said, &*self.logprobs);
        OutputText { kind: "output_text", text, annotations: [], logprobs }
    }

    fn message<'a>(&'a self, status: Status, content: Vec<OutputText<'a>>) -> OutputMessage<'a> {
        let (id, status) = (&*self.item, status.word());
        OutputMessage { id, kind: "message", status, role: "assistant", content }
    }

    /// The response without its output.
    fn response(&self, status: Status, usage: Option<Usage>) -> ResponseBody<'_> {
        let Envelope { id, created, model, .. } = &self.envelope;
        let incomplete = status == Status::Incomplete;
        ResponseBody {
            id,
            object: "response",
            created_at: *created,
            status: status.word(),
            background: false,
            error: None,
            incomplete_details: incomplete
                .then_some(IncompleteDetails { reason: "max_output_tokens" }),
            max_tool_calls: None,
            model,
            output: Vec::new(),
            previous_response_id: None,
            service_tier: "default",
            store: false,
            tools: [],
            usage: usage.map(Into::into),
            echoed: &self.echoed,
        }
    }

    /// The response with all of its output.
    fn complete(&self, usage: Usage) -> ResponseBody<'_> {
        let status = self.status();
        let output = vec![self.message(status, vec![self.part()])];
        ResponseBody { output, ..self.response(status, Some(usage)) }
    }
}

/// Events, numbered from this one on. Their names are in their data as well.
fn events<const N: usize>(first: usize, told: [(&'static str, Told<'_>); N]) -> Vec<Data> {
    let event = |(sequence_number, (kind, what))| {
        Data::named(kind, &ResponseEvent { kind, sequence_number, what })
    };
    (first..).zip(told).map(event).collect()
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> impl Serialize {
        for piece in choices {
            self.take(piece);
        }
        self.complete(usage)
    }

    fn opening(&mut self) -> Vec<Data> {
        let response = || self.response(Status::InProgress, None);
        let (item_id, output_index, content_index) = (&*self.item, 0, 0);
        let item = self.message(Status::InProgress, Vec::new());
        let events = events(
            self.events,
            [
                ("response.created", Told::Response { response: response() }),
                ("response.in_progress", Told::Response { response: response() }),
                ("response.output_item.added", Told::Item { output_index, item }),
                (
                    "response.content_part.added",
                    Told::Part { item_id, output_index, content_index, part: self.part() },
                ),
            ],
        );
        self.events += events.len();
        events
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Data> {
        let before = self.said.len();
        let scores = self.take(piece);
        let delta = &self.said[before..];
        if delta.is_empty() && scores == 0 {
            return Vec::new();
        }
        let logprobs = &self.logprobs[self.logprobs.len() - scores..];
        let (item_id, output_index, content_index) = (&*self.item, 0, 0);
        let told = Told::Delta { item_id, output_index, content_index, delta, logprobs };
        let events = events(self.events, [("response.output_text.delta", told)]);
        self.events += events.len();
        events
    }

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        let status = self.status();
        let (item_id, output_index, content_index) = (&*self.item, 0, 0);
        let OutputText { text, logprobs, .. } = self.part();
        let item = self.message(status, vec![self.part()]);
        let last = match status {
            Status::Incomplete => "response.incomplete",
            _ => "response.completed",
        };
        events(
            self.events,
            [
                (
                    "response.output_text.done",
                    Told::Text { item_id, output_index, content_index, text, logprobs },
                ),
                (
                    "response.content_part.done",
                    Told::Part { item_id, output_index, content_index, part: self.part() },
                ),
                ("response.output_item.done", Told::Item { output_index, item }),
                (last, Told::Response { response: self.complete(usage) }),
            ],
        )
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Data> {
        let response = ResponseBody {
            error: Some(ResponseError { code: "server_error", message: error.message() }),
            output: vec![self.message(Status::Incomplete, vec![self.part()])],
            ..self.response(Status::Failed, None)
        };
        events(self.events, [("response.failed", Told::Response { response })])
    }
}
