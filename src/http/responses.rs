//! `POST /v1/responses`: OpenAI's newer form of a chat, for text and for tools that the client calls. No response is stored, so
//! that none can be gone on from or got back.

use axum::{
    extract::{Path, State},
    response::Response,
};

use super::{
    app::App,
    auth::{By, need},
    body::{parse, refuse_unsupported},
    delivery::deliver,
    error::ApiError,
    form::{Asked, Fields},
    openapi::{Choosing, Refusals, ResponseRequest, Unanswered},
    prompt,
    responding::Writer,
    sampling::{MAX_TOP_LOGPROBS, Terms, within},
    tools::{Parts, Tools},
    wire::{
        common::Common,
        content::Role,
        object::Object,
        responses::{
            Echoed, FlatTool, Item, Label, ResponseBody, ResponseEvent, ResponseFields, TextFormat,
            ToolChoice,
        },
        unsupported::{GENERATION, RENDERED, RESPONSE},
    },
    wish::{Arrival, Said, Wish},
};
use crate::{
    engine::Sampling,
    tenant::Scope,
    text::{Call, Chat, Ending, Framing, Message},
};

/// What `include` has where scores are wanted.
const SCORES: &str = "message.output_text.logprobs";

/// What is asked for, understood and within bounds, and what of it comes back.
fn read(bytes: &[u8]) -> Result<(Wish, Echoed), ApiError> {
    refuse_unsupported(bytes, &[GENERATION, RENDERED, RESPONSE])?;
    let common: Common = parse(bytes)?;
    let fields: ResponseFields = parse(bytes)?;
    let echoed: Echoed = parse(bytes)?;
    if fields.previous_response_id.is_some_and(|Label(id)| !id.is_empty()) {
        return Err(ApiError::no_previous_response());
    }
    let mut terms = Terms::read(&common)?;
    if let Some(Object(text)) = &echoed.text {
        let TextFormat { kind: Label(kind), schema, .. } = &text.format.0;
        let form = Asked::flat(&Fields::RESPONSES, kind, schema.as_ref())?;
        terms.form = Asked::one_of(terms.form.into_iter().chain(form))?;
    }
    if terms.choices != 1 {
        return Err(ApiError::unsupported("n"));
    }
    terms.max_tokens = match echoed.max_output_tokens.or(terms.max_tokens) {
        Some(0) => return Err(ApiError::too_few("max_output_tokens")),
        tokens => tokens,
    };
    let top = within("top_logprobs", echoed.top_logprobs, 0..=MAX_TOP_LOGPROBS, 0)?;
    let scored = fields.include.is_some_and(|include| include.iter().any(|what| what == SCORES));
    let tools = tools(&echoed)?;
    let Label(user) =
        echoed.user.clone().or(echoed.safety_identifier.clone()).unwrap_or(Label::from(""));
    let chat = Chat { messages: messages(&echoed, fields.input.0)?, tools: tools.told.clone() };
    let wish = Wish {
        model: common.model,
        user: Some(user),
        adapters: prompt::parts(common.adapters)?,
        said: Said::Chat(chat, Ending::Prompt, Framing::Bare),
        tools,
        terms,
        default_tokens: None,
        logprobs: scored.then_some(top),
        prompt_logprobs: None,
    };
    Ok((wish, echoed))
}

fn tools(echoed: &Echoed) -> Result<Tools, ApiError> {
    let sent = echoed.tools.clone().unwrap_or_default();
    let sent = sent.into_iter().map(|FlatTool(sent)| sent).collect();
    let choice = echoed.tool_choice.clone().map(Into::into);
    Tools::read_flat((sent, Parts::FLAT), choice, echoed.parallel_tool_calls)
}

/// The messages, the instructions before all others. What the assistant calls belongs to what it said before.
fn messages(echoed: &Echoed, items: Vec<Item>) -> Result<Vec<Message>, ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid("input", "'input' must have at least one item"));
    }
    let instructions = echoed.instructions.clone();
    let instructions = instructions.map(|text| prompt::message(Role::System, text));
    let mut messages: Vec<_> = instructions.into_iter().collect();
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Item::Message { role, content } => messages.push(prompt::message(role, content)),
            Item::Call { id, name, arguments } => {
                let field = format!("input[{index}].arguments");
                let call =
                    Call { id, name, arguments: prompt::arguments(&field, Some(arguments))? };
                add_call(&mut messages, call);
            }
            Item::Output { id, output } => messages.push(prompt::result(id, output)),
        }
    }
    Ok(messages)
}

fn add_call(messages: &mut Vec<Message>, call: Call) {
    let assistant = Role::Assistant.in_template();
    if let Some(last) = messages.last_mut().filter(|last| last.role == assistant) {
        last.tool_calls.push(call);
    } else {
        let silent = prompt::message(Role::Assistant, String::new());
        messages.push(Message { tool_calls: vec![call], ..silent });
    }
}

impl Echoed {
    /// Says what holds where the request has said nothing.
    fn fill(&mut self, sampling: &Sampling) {
        self.metadata.get_or_insert_default();
        self.parallel_tool_calls.get_or_insert(true);
        self.reasoning.get_or_insert_default();
        self.temperature.get_or_insert(sampling.temperature);
        self.text.get_or_insert_default();
        self.tool_choice.get_or_insert_with(|| ToolChoice::Word(Label::from("auto")));
        self.tools.get_or_insert_default();
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
    responses((status = 200, description = "The response, or a stream of events", content((ResponseBody<'static> = "application/json"), (ResponseEvent<'static> = "text/event-stream"))), Unanswered)
)]
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let (wish, mut echoed) = arrival.read(app, read).await?;
    let order = wish.order(app, arrival).await?;
    echoed.fill(&order.terms.sampling);
    let writer = Writer::new(app, &order, echoed);
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
