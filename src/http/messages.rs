//! `POST /v1/messages`: a chat in Anthropic's form, for text. Where the assistant has the last word, the answer goes on from it.

use axum::{extract::State, response::Response};
use serde::Serialize;

use super::{
    answer::{End, Piece},
    app::App,
    body::{parse, refuse_unsupported},
    delivery::{Form, deliver},
    dialect::Dialect,
    envelope::Envelope,
    error::ApiError,
    openapi::{Choosing, MessagesRequest, MessagesUnanswered},
    prompt,
    sampling::Terms,
    sse::Data,
    tools::Tools,
    wire::{
        common::Common,
        content::Role,
        messages::{MessageBody, MessageEvent, MessageFields, Stop, TextBlock},
        object::Object,
        unsupported::{GENERATION, MESSAGE, Weight},
        usage::Usage,
    },
    wish::{Arrival, Said, Wish},
};
use crate::{
    engine::Finish,
    text::{Ending, Framing},
};

/// What is asked for, understood and within bounds.
fn read(bytes: &[u8]) -> Result<Wish, ApiError> {
    refuse_unsupported(bytes, &[GENERATION, MESSAGE])?;
    let common: Common = parse(bytes)?;
    let fields: MessageFields = parse(bytes)?;
    refuse_features(&fields)?;
    if fields.max_tokens == 0 {
        return Err(ApiError::too_few("max_tokens"));
    }
    let Some(last) = fields.messages.last() else {
        return Err(ApiError::invalid("messages", "'messages' must have at least one message"));
    };
    let ending = match last.0.role.0 {
        Role::Assistant => Ending::Continue,
        _ => Ending::Prompt,
    };
    let system = fields.system.map(|system| prompt::message(Role::System, system.0));
    let turns = fields.messages.into_iter();
    let turns = turns.map(|Object(turn)| prompt::message(turn.role.0, turn.content.0));
    let messages: Vec<_> = system.into_iter().chain(turns).collect();
    let common = Common { stop: fields.stop_sequences, ..common };
    let terms = Terms::read(&common)?;
    if terms.choices != 1 {
        return Err(ApiError::unsupported("n"));
    }
    Ok(Wish {
        model: common.model,
        user: fields.metadata.and_then(|Object(about)| about.user_id),
        adapters: prompt::parts(common.adapters)?,
        said: Said::Chat(messages.into(), ending, Framing::Bare),
        tools: Tools::default(),
        terms,
        default_tokens: None,
        logprobs: None,
        prompt_logprobs: None,
    })
}

/// Refuses what would change the answer and is not there.
fn refuse_features(fields: &MessageFields) -> Result<(), ApiError> {
    // Whoever leaves it to the model gets no thoughts.
    if fields.thinking.as_ref().is_some_and(|Object(thinking)| thinking.kind == "enabled") {
        return Err(ApiError::unsupported("thinking"));
    }
    let format = fields.output_config.as_ref().and_then(|Object(config)| config.format.as_ref());
    if !format.is_none_or(Weight::is_nothing) {
        return Err(ApiError::unsupported("output_config.format"));
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
        said: String::new(),
        end: None,
    };
    deliver(app, &order, writer).await
}

/// Writes one message.
#[derive(Debug)]
struct Writer {
    envelope: Envelope,
    /// Tokens of the prompt.
    prompt: usize,
    /// The stop strings of the request.
    stops: Vec<String>,
    /// The text, where it is sent at once.
    said: String,
    end: Option<End>,
}

impl Writer {
    fn stop(&self) -> Stop<'_> {
        let Some(end) = self.end else { return Stop::default() };
        // One of the adapter's own is how its answers end.
        let stop_sequence = end.stop.and_then(|place| self.stops.get(place)).map(String::as_str);
        let reason = match (end.finish, stop_sequence) {
            (Finish::Length, _) => "max_tokens",
            (Finish::Stop, None) => "end_turn",
            (Finish::Stop, Some(_)) => "stop_sequence",
        };
        Stop { stop_reason: Some(reason), stop_sequence }
    }

    fn message<'a>(&'a self, content: Vec<TextBlock<'a>>, usage: Usage) -> MessageBody<'a> {
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
}

fn events(events: &[MessageEvent<'_>]) -> Vec<Data> {
    events.iter().map(|event| Data::named(event.name(), event)).collect()
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> impl Serialize {
        for piece in choices {
            self.said.push_str(&piece.text);
            self.end = piece.end;
        }
        self.message(vec![TextBlock { kind: "text", text: &self.said }], usage)
    }

    fn opening(&mut self) -> Vec<Data> {
        events(&[
            MessageEvent::MessageStart {
                message: self.message(Vec::new(), Usage::of_prompts(self.prompt)),
            },
            MessageEvent::ContentBlockStart {
                index: 0,
                content_block: TextBlock { kind: "text", text: "" },
            },
            MessageEvent::Ping,
        ])
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Data> {
        self.end = piece.end;
        if piece.text.is_empty() {
            return Vec::new();
        }
        let delta = TextBlock { kind: "text_delta", text: &piece.text };
        events(&[MessageEvent::ContentBlockDelta { index: 0, delta }])
    }

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        events(&[
            MessageEvent::ContentBlockStop { index: 0 },
            MessageEvent::MessageDelta { delta: self.stop(), usage: usage.into() },
            MessageEvent::MessageStop,
        ])
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Data> {
        vec![Dialect::Anthropic.write(error)]
    }
}
