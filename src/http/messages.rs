//! `POST /v1/messages`: a chat in Anthropic's form, for text and for tools that the client calls. Where the assistant has the last
//! word, the answer goes on from it. `POST /v1/messages/count_tokens`: how many tokens it would be.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};

use super::{
    answer::{End, Piece},
    app::App,
    body::{parse, refuse_unsupported},
    delivery::{Form, deliver},
    dialect::Dialect,
    envelope::Envelope,
    error::ApiError,
    form::{Asked, Fields},
    openapi::{Choosing, CountRequest, MessagesRequest, MessagesUnanswered},
    prompt, rates, request_id,
    sampling::Terms,
    sse::Data,
    tools::{Last, Parts, Speaker, Tools},
    wire::{
        common::Common,
        content::Role,
        form::FlatFormat,
        messages::{
            Block, BlockDelta, BlockOut, InputDelta, MessageBody, MessageEvent, MessageFields,
            Outcome, Stop, TextBlock, TokenCount, ToolChoice, Turn, UseBlock,
        },
        object::Object,
        tools::{Named, ToolChoiceIn},
        unsupported::{GENERATION, MESSAGE, RENDERED},
        usage::Usage,
    },
    wish::{Arrival, Said, Wish},
};
use crate::{
    engine::Finish,
    text::{self, Call, Chat, Ending, Framing, Message},
};

/// Begins the ids of calls.
const USE: &str = "toolu_";

/// What is asked for, understood and within bounds.
fn read(bytes: &[u8]) -> Result<Wish, ApiError> {
    let wish = read_countable(bytes)?;
    match wish.terms.max_tokens {
        None => Err(ApiError::invalid("max_tokens", "the field 'max_tokens' is missing")),
        Some(0) => Err(ApiError::too_few("max_tokens")),
        Some(_) => Ok(wish),
    }
}

/// The same, whether or not it says how long the answer may be.
fn read_countable(bytes: &[u8]) -> Result<Wish, ApiError> {
    refuse_unsupported(bytes, &[GENERATION, RENDERED, MESSAGE])?;
    let common: Common = parse(bytes)?;
    let fields: MessageFields = parse(bytes)?;
    refuse_features(&fields)?;
    let tools = tools(fields.tools, fields.tool_choice)?;
    let system = fields.system.map(|system| prompt::message(Role::System, system.0));
    let (messages, ending) = messages(fields.messages)?;
    let messages = system.into_iter().chain(messages).collect();
    let common = Common { stop: fields.stop_sequences.or(common.stop), ..common };
    let mut terms = Terms::read(&common)?;
    let format = fields.output_config.and_then(|Object(config)| config.format);
    if let Some(Object(FlatFormat { kind, schema })) = format {
        let form = Asked::flat(&Fields::MESSAGES, &kind, schema.as_ref())?;
        terms.form = Asked::one_of(terms.form.into_iter().chain(form))?;
    }
    if terms.choices != 1 {
        return Err(ApiError::unsupported("n"));
    }
    Ok(Wish {
        model: common.model,
        user: fields.metadata.and_then(|Object(about)| about.user_id),
        adapters: prompt::parts(common.adapters)?,
        said: Said::Chat(Chat { messages, tools: tools.told.clone() }, ending, Framing::Bare),
        tools,
        terms,
        default_tokens: None,
        logprobs: None,
        prompt_logprobs: None,
    })
}

fn tools(
    sent: Option<Vec<Map<String, Value>>>,
    choice: Option<Object<ToolChoice>>,
) -> Result<Tools, ApiError> {
    let alone = choice.as_ref().and_then(|Object(choice)| choice.disable_parallel_tool_use);
    let choice = choice.map(|Object(choice)| chosen(choice)).transpose()?;
    let parallel = alone.map(|alone| !alone);
    Tools::read_flat((sent.unwrap_or_default(), Parts::SCHEMA), choice, parallel)
}

/// The choice in the words of chats.
fn chosen(ToolChoice { kind, name, .. }: ToolChoice) -> Result<ToolChoiceIn, ApiError> {
    let word = |word: &str| Ok(ToolChoiceIn::Word(word.to_owned()));
    match (kind.as_str(), name) {
        ("auto" | "none", _) => word(&kind),
        ("any", _) => word("required"),
        ("tool", Some(name)) => {
            Ok(ToolChoiceIn::Named { kind: "function".to_owned(), function: Some(Named { name }) })
        }
        ("tool", None) => {
            Err(ApiError::invalid("tool_choice.name", "'tool_choice.name' is missing"))
        }
        (_, _) => {
            let message = "'tool_choice.type' must be auto, any, tool or none";
            Err(ApiError::invalid("tool_choice.type", message))
        }
    }
}

/// What was said, and how it ends.
fn messages(turns: Vec<Object<Turn>>) -> Result<(Vec<Message>, Ending), ApiError> {
    let mut messages = Vec::new();
    for (index, Object(turn)) in turns.into_iter().enumerate() {
        let field = format!("messages[{index}].content");
        match turn.role.0 {
            Role::Assistant => messages.push(answered(&field, turn.content.0)?),
            role => asked(&mut messages, (&field, role), turn.content.0)?,
        }
    }
    let Some(last) = messages.last() else {
        return Err(ApiError::invalid("messages", "'messages' must have at least one message"));
    };
    if !last.tool_calls.is_empty() {
        let message = "'messages' ends with 'tool_use': send its 'tool_result' behind it";
        return Err(ApiError::invalid("messages", message));
    }
    let continued = last.role == Role::Assistant.in_template();
    let ending = if continued { Ending::Continue } else { Ending::Prompt };
    Ok((messages, ending))
}

/// What the assistant has said and called.
fn answered(field: &str, blocks: Vec<Block>) -> Result<Message, ApiError> {
    let (mut texts, mut tool_calls) = (Vec::new(), Vec::new());
    for (at, block) in blocks.into_iter().enumerate() {
        match block {
            Block::Text(text) => texts.push(text),
            Block::Use { id, name, input } => {
                tool_calls.push(Call { id, name, arguments: input.into() });
            }
            Block::Result { .. } => return Err(misplaced(field, at, "tool_result")),
        }
    }
    Ok(Message { tool_calls, ..prompt::message(Role::Assistant, texts.join("\n")) })
}

/// Adds what somebody else has said, and what came of calls, in order.
fn asked(
    messages: &mut Vec<Message>,
    (field, role): (&str, Role),
    blocks: Vec<Block>,
) -> Result<(), ApiError> {
    let (mut texts, before) = (Vec::new(), messages.len());
    let say = |messages: &mut Vec<Message>, texts: &mut Vec<String>| {
        let text = std::mem::take(texts).join("\n");
        messages.push(prompt::message(role, text));
    };
    for (at, block) in blocks.into_iter().enumerate() {
        match block {
            Block::Text(text) => texts.push(text),
            Block::Result { id, content, outcome } if role == Role::User => {
                if !texts.is_empty() {
                    say(messages, &mut texts);
                }
                messages.push(prompt::result(id, told(content, outcome)));
            }
            Block::Result { .. } => return Err(misplaced(field, at, "tool_result")),
            Block::Use { .. } => return Err(misplaced(field, at, "tool_use")),
        }
    }
    if !texts.is_empty() || messages.len() == before {
        say(messages, &mut texts);
    }
    Ok(())
}

/// Templates know no results that are errors: their text says it.
fn told(content: String, outcome: Outcome) -> String {
    match outcome {
        Outcome::Done => content,
        Outcome::Failed => format!("Error: {content}"),
    }
}

fn misplaced(field: &str, at: usize, kind: &str) -> ApiError {
    let field = format!("{field}[{at}].type");
    let whose = if kind == "tool_use" { "the assistant's" } else { "the user's" };
    ApiError::invalid(&field, format!("'{field}': {kind} is a part of {whose} messages alone"))
}

/// Refuses what would change the answer and is not there.
fn refuse_features(fields: &MessageFields) -> Result<(), ApiError> {
    // Whoever leaves it to the model gets no thoughts.
    if fields.thinking.as_ref().is_some_and(|Object(thinking)| thinking.kind == "enabled") {
        return Err(ApiError::unsupported("thinking"));
    }
    Ok(())
}

/// Answers the last message, or goes on from it.
#[utoipa::path(
    post, path = "/v1/messages", tag = "answers", operation_id = "create_message",
    params(Choosing),
    request_body = MessagesRequest,
    responses((status = 200, description = "The answer, or a stream of events", content((MessageBody<'static> = "application/json"), (MessageEvent<'static> = "text/event-stream"))), MessagesUnanswered)
)]
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let wish = arrival.read(app, read).await?;
    // The adapter's own come after the request's.
    let asked = wish.terms.stops.clone();
    let order = wish.order(app, arrival).await?;
    let writer = Writer {
        envelope: order.envelope("msg_", app),
        prompt: order.prompts.iter().map(Vec::len).sum(),
        stops: asked,
        speaker: Speaker::new(order.tools.listener(order.dialect)),
        blocks: Vec::new(),
        begun: 0,
        open: false,
        end: None,
    };
    deliver(app, &order, writer).await
}

/// How many tokens it would be to answer.
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", tag = "tokens", operation_id = "count_message_tokens",
    params(Choosing), request_body = CountRequest,
    responses((status = 200, description = "How many", body = TokenCount), MessagesUnanswered)
)]
pub(super) async fn count(
    State(app): State<App>,
    mut arrival: Arrival,
) -> Result<Response, ApiError> {
    let (deadline, permit) = (arrival.deadline, Arc::clone(&arrival.permit));
    let count = async {
        let wish = arrival.read(&app, read_countable).await?;
        wish.count(&app, arrival).await
    };
    let input_tokens = app.bound(deadline, Box::pin(count)).await?;
    let mut response = Json(TokenCount { input_tokens }).into_response();
    rates::write(&permit.rates, response.headers_mut());
    Ok(response)
}

/// Writes one message.
#[derive(Debug)]
struct Writer {
    envelope: Envelope,
    /// Tokens of the prompt.
    prompt: usize,
    /// The stop strings of the request.
    stops: Vec<String>,
    speaker: Speaker,
    /// What is said, where it is sent at once.
    blocks: Vec<Part>,
    /// Blocks that a stream has begun.
    begun: usize,
    /// Whether the last of them is a text that may go on.
    open: bool,
    end: Option<End>,
}

/// A block of an answer that is sent at once.
#[derive(Debug)]
enum Part {
    Text(String),
    Use { id: String, name: String, input: Box<RawValue> },
}

impl Part {
    fn block(&self) -> BlockOut<'_> {
        match self {
            Self::Text(text) => BlockOut::Text(TextBlock { kind: "text", text }),
            Self::Use { id, name, input } => {
                BlockOut::Use(UseBlock { kind: "tool_use", id, name, input })
            }
        }
    }
}

impl Writer {
    fn stop(&self) -> Stop<'_> {
        let Some(end) = self.end else { return Stop::default() };
        // One of the adapter's own is how its answers end.
        let stop_sequence = end.stop.and_then(|place| self.stops.get(place)).map(String::as_str);
        let reason = match (end.finish, stop_sequence) {
            (Finish::Length, _) => "max_tokens",
            (Finish::Stop, Some(_)) => "stop_sequence",
            (Finish::Stop, None) if self.speaker.has_called() => "tool_use",
            (Finish::Stop, None) => "end_turn",
        };
        Stop { stop_reason: Some(reason), stop_sequence }
    }

    fn message<'a>(&'a self, content: Vec<BlockOut<'a>>, usage: Usage) -> MessageBody<'a> {
        let Envelope { id, model, .. } = &self.envelope;
        MessageBody {
            id,
            kind: "message",
            role: "assistant",
            model,
            content,
            stop: self.stop(),
            usage: usage.into(),
        }
    }

    fn add(&mut self, said: text::Said) {
        match (said, self.blocks.last_mut()) {
            (text::Said::Text(more), Some(Part::Text(text))) => text.push_str(&more),
            (text::Said::Text(text), _) => self.blocks.push(Part::Text(text)),
            (text::Said::Call { name, arguments }, _) => {
                let input = RawValue::from_string(arguments).unwrap_or_default();
                self.blocks.push(Part::Use { id: request_id::new(USE), name, input });
            }
        }
    }

    /// Begins a text.
    fn begin(&mut self) -> MessageEvent<'static> {
        let content_block = BlockOut::Text(TextBlock { kind: "text", text: "" });
        self.open = true;
        self.begun += 1;
        MessageEvent::ContentBlockStart { index: self.begun - 1, content_block }
    }

    /// Adds to the text, which begins where there is none.
    fn say(&mut self, text: &str) -> Vec<Data> {
        let begun = (!self.open).then(|| self.begin());
        let delta = BlockDelta::Text(TextBlock { kind: "text_delta", text });
        let said = MessageEvent::ContentBlockDelta { index: self.begun - 1, delta };
        begun.iter().chain([&said]).map(event).collect()
    }

    /// Ends the text, where there is one.
    fn close(&mut self) -> Option<Data> {
        let index = self.begun.saturating_sub(1);
        std::mem::take(&mut self.open).then(|| event(&MessageEvent::ContentBlockStop { index }))
    }

    /// A call, which is known once it is complete.
    fn call(&mut self, name: &str, arguments: &str) -> Vec<Data> {
        let (closed, index) = (self.close(), self.begun);
        self.begun += 1;
        let (id, input) =
            (request_id::new(USE), RawValue::from_string("{}".to_owned()).unwrap_or_default());
        let called = UseBlock { kind: "tool_use", id: &id, name, input: &input };
        let delta = InputDelta { kind: "input_json_delta", partial_json: arguments };
        let called = [
            MessageEvent::ContentBlockStart { index, content_block: BlockOut::Use(called) },
            MessageEvent::ContentBlockDelta { index, delta: BlockDelta::Input(delta) },
            MessageEvent::ContentBlockStop { index },
        ];
        closed.into_iter().chain(called.iter().map(event)).collect()
    }
}

fn event(event: &MessageEvent<'_>) -> Data {
    Data::named(event.name(), event)
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> impl Serialize {
        for piece in choices {
            self.end = piece.end;
            for said in self.speaker.listen(piece.text, Last::with(piece.end)) {
                self.add(said);
            }
        }
        if self.blocks.is_empty() {
            self.blocks.push(Part::Text(String::new()));
        }
        self.message(self.blocks.iter().map(Part::block).collect(), usage)
    }

    fn opening(&mut self) -> Vec<Data> {
        let message = self.message(Vec::new(), Usage::of_prompts(self.prompt));
        let started = event(&MessageEvent::MessageStart { message });
        // It is not known yet what the first block is where something may be called.
        let begun = (!self.speaker.may_call()).then(|| event(&self.begin()));
        [Some(started), begun, Some(event(&MessageEvent::Ping))].into_iter().flatten().collect()
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Data> {
        self.end = piece.end;
        let said = self.speaker.listen(piece.text, Last::with(piece.end)).into_iter();
        let write = |said| match said {
            text::Said::Text(text) => self.say(&text),
            text::Said::Call { name, arguments } => self.call(&name, &arguments),
        };
        said.flat_map(write).collect()
    }

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        // Whoever says nothing has said an empty text.
        let begun = (self.begun == 0).then(|| event(&self.begin()));
        let closed = self.close();
        let ended = [
            MessageEvent::MessageDelta { delta: self.stop(), usage: usage.into() },
            MessageEvent::MessageStop,
        ];
        begun.into_iter().chain(closed).chain(ended.iter().map(event)).collect()
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Data> {
        vec![Dialect::Anthropic.write(error)]
    }
}
