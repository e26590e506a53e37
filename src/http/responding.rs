//! Writes one response, whole or as events: messages and calls, item by item.
//!
//! Where something may be called, an item begins once it is known what it is; else the only message does at once. The scores of
//! a call's tokens stand with those of the text beside it.

use serde::Serialize;

use super::{
    answer::{End, Piece},
    app::App,
    delivery::Form,
    envelope::Envelope,
    error::ApiError,
    generate::Order,
    logprobs::{self, Naming},
    request_id,
    sampling::Delivery,
    sse::Data,
    tools::{Last, Speaker},
    wire::{
        chat::TokenLogprob,
        responses::{
            Echoed, IncompleteDetails, OutputCall, OutputItem, OutputMessage, OutputText,
            ResponseBody, ResponseError, ResponseEvent, Told,
        },
        usage::Usage,
    },
};
use crate::{
    engine::Finish,
    text::{Said, Text},
};

/// Writes one response.
#[derive(Debug)]
pub(super) struct Writer {
    text: Text,
    scored: bool,
    envelope: Envelope,
    echoed: Echoed,
    speaker: Speaker,
    items: Vec<Item>,
    /// Whether the last item is a message that is not complete.
    open: bool,
    /// Scores that have no message yet.
    waiting: Vec<TokenLogprob>,
    end: Option<End>,
    events: Events,
}

/// How far a response or an item is.
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

/// What the assistant says, or calls.
#[derive(Debug)]
enum Item {
    Message(Message),
    Call(Call),
}

#[derive(Debug)]
struct Message {
    id: String,
    said: String,
    /// Its scores, where they are wanted.
    logprobs: Vec<TokenLogprob>,
}

#[derive(Debug)]
struct Call {
    id: String,
    /// What names the call itself, not the item.
    key: String,
    name: String,
    arguments: String,
}

impl Message {
    fn part(&self) -> OutputText<'_> {
        let (text, logprobs) = (&*self.said, &*self.logprobs);
        OutputText { kind: "output_text", text, annotations: [], logprobs }
    }

    fn item<'a>(&'a self, status: Status, content: Vec<OutputText<'a>>) -> OutputItem<'a> {
        let (id, status) = (&*self.id, status.word());
        OutputItem::Message(OutputMessage {
            id,
            kind: "message",
            status,
            role: "assistant",
            content,
        })
    }
}

impl Call {
    fn item<'a>(&'a self, status: Status, arguments: &'a str) -> OutputItem<'a> {
        OutputItem::Call(OutputCall {
            id: &self.id,
            kind: "function_call",
            status: status.word(),
            call_id: &self.key,
            name: &self.name,
            arguments,
        })
    }
}

impl Item {
    fn item(&self, status: Status) -> OutputItem<'_> {
        match self {
            Self::Message(message) => message.item(status, vec![message.part()]),
            // What was not complete is text.
            Self::Call(call) => call.item(Status::Completed, &call.arguments),
        }
    }
}

/// The events of a stream, counted; none where the answer is sent at once.
#[derive(Debug)]
struct Events {
    delivery: Delivery,
    count: usize,
    ready: Vec<Data>,
}

impl Events {
    fn push(&mut self, kind: &'static str, what: Told<'_>) {
        if self.delivery == Delivery::Whole {
            return;
        }
        let event = ResponseEvent { kind, sequence_number: self.count, what };
        self.ready.push(Data::named(kind, &event));
        self.count += 1;
    }

    fn take(&mut self) -> Vec<Data> {
        std::mem::take(&mut self.ready)
    }
}

impl Writer {
    pub(super) fn new(app: &App, order: &Order, echoed: Echoed) -> Self {
        let delivery = order.terms.delivery;
        Self {
            text: app.text().clone(),
            scored: order.logprobs.is_some(),
            envelope: order.envelope("resp_", app),
            echoed,
            speaker: Speaker::new(order.tools.listener(order.dialect)),
            items: Vec::new(),
            open: false,
            waiting: Vec::new(),
            end: None,
            events: Events { delivery, count: 0, ready: Vec::new() },
        }
    }

    /// Takes in a piece.
    fn take(&mut self, piece: Piece) {
        let Piece { prompt: _, text, ids: _, scores, end } = piece;
        self.end = end;
        let scores = scores.into_iter().filter(|_| self.scored).map(|scored| scored.logprob);
        self.waiting.extend(logprobs::chat((&self.text, Naming::Text), scores).content);
        for said in self.speaker.listen(text, Last::with(end)) {
            match said {
                Said::Text(text) => self.say(&text),
                Said::Call { name, arguments } => self.call(name, arguments),
            }
        }
        // They may be of a call, unless there is none.
        if self.open && !self.speaker.may_call() && !self.waiting.is_empty() {
            self.say("");
        }
    }

    /// Begins a message.
    fn begin(&mut self) {
        let message =
            Message { id: request_id::new("msg_"), said: String::new(), logprobs: Vec::new() };
        let (output_index, content_index) = (self.items.len(), 0);
        let item = message.item(Status::InProgress, Vec::new());
        self.events.push("response.output_item.added", Told::Item { output_index, item });
        let (item_id, part) = (&*message.id, message.part());
        self.events.push(
            "response.content_part.added",
            Told::Part { item_id, output_index, content_index, part },
        );
        self.items.push(Item::Message(message));
        self.open = true;
    }

    /// Adds a text, and the scores that wait, to the message, which begins where there is none.
    fn say(&mut self, delta: &str) {
        if !self.open {
            self.begin();
        }
        let output_index = self.items.len() - 1;
        let Some(Item::Message(message)) = self.items.last_mut() else { return };
        message.said.push_str(delta);
        let before = message.logprobs.len();
        message.logprobs.append(&mut self.waiting);
        let (item_id, logprobs) = (&*message.id, &message.logprobs[before..]);
        self.events.push(
            "response.output_text.delta",
            Told::Delta { item_id, output_index, content_index: 0, delta, logprobs },
        );
    }

    /// Ends the message, where there is one.
    fn close(&mut self, status: Status) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let (output_index, content_index) = (self.items.len() - 1, 0);
        let Some(Item::Message(message)) = self.items.last_mut() else { return };
        message.logprobs.append(&mut self.waiting);
        let item_id = &*message.id;
        let OutputText { text, logprobs, .. } = message.part();
        self.events.push(
            "response.output_text.done",
            Told::Text { item_id, output_index, content_index, text, logprobs },
        );
        let part = message.part();
        self.events.push(
            "response.content_part.done",
            Told::Part { item_id, output_index, content_index, part },
        );
        let item = message.item(status, vec![message.part()]);
        self.events.push("response.output_item.done", Told::Item { output_index, item });
    }

    /// Adds a call, which is known once it is complete.
    fn call(&mut self, name: String, arguments: String) {
        self.close(Status::Completed);
        let (id, key) = (request_id::new("fc_"), request_id::new("call_"));
        let call = Call { id, key, name, arguments };
        let output_index = self.items.len();
        let (item_id, name, arguments) = (&*call.id, &*call.name, &*call.arguments);
        let item = call.item(Status::InProgress, "");
        self.events.push("response.output_item.added", Told::Item { output_index, item });
        self.events.push(
            "response.function_call_arguments.delta",
            Told::ArgumentsDelta { item_id, output_index, delta: arguments },
        );
        self.events.push(
            "response.function_call_arguments.done",
            Told::Arguments { item_id, output_index, name, arguments },
        );
        let item = call.item(Status::Completed, arguments);
        self.events.push("response.output_item.done", Told::Item { output_index, item });
        self.items.push(Item::Call(call));
    }

    /// Ends what is said; whoever says nothing has said an empty text.
    fn finish(&mut self) {
        if self.items.is_empty() {
            self.begin();
        }
        self.close(self.status());
    }

    fn status(&self) -> Status {
        match self.end.map(|end| end.finish) {
            None => Status::InProgress,
            Some(Finish::Stop) => Status::Completed,
            Some(Finish::Length) => Status::Incomplete,
        }
    }
}

/// All items, of which the last has this status where it is a message.
fn output(items: &[Item], last: Status) -> Vec<OutputItem<'_>> {
    let complete = items.len().saturating_sub(1);
    let status = |index| if index < complete { Status::Completed } else { last };
    items.iter().enumerate().map(|(index, item)| item.item(status(index))).collect()
}

/// The response without its output.
fn response<'a>(
    envelope: &'a Envelope,
    echoed: &'a Echoed,
    (status, usage): (Status, Option<Usage>),
) -> ResponseBody<'a> {
    let Envelope { id, created, model, .. } = envelope;
    let incomplete = status == Status::Incomplete;
    ResponseBody {
        id,
        object: "response",
        created_at: *created,
        status: status.word(),
        background: false,
        error: None,
        incomplete_details: incomplete.then_some(IncompleteDetails { reason: "max_output_tokens" }),
        max_tool_calls: None,
        model,
        output: Vec::new(),
        previous_response_id: None,
        service_tier: "default",
        store: false,
        usage: usage.map(Into::into),
        echoed,
    }
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> impl Serialize {
        for piece in choices {
            self.take(piece);
        }
        self.finish();
        let status = self.status();
        ResponseBody {
            output: output(&self.items, status),
            ..response(&self.envelope, &self.echoed, (status, Some(usage)))
        }
    }

    fn opening(&mut self) -> Vec<Data> {
        for kind in ["response.created", "response.in_progress"] {
            let response = response(&self.envelope, &self.echoed, (Status::InProgress, None));
            self.events.push(kind, Told::Response { response });
        }
        if !self.speaker.may_call() {
            self.begin();
        }
        self.events.take()
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Data> {
        self.take(piece);
        self.events.take()
    }

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        self.finish();
        let status = self.status();
        let kind = match status {
            Status::Incomplete => "response.incomplete",
            _ => "response.completed",
        };
        let response = ResponseBody {
            output: output(&self.items, status),
            ..response(&self.envelope, &self.echoed, (status, Some(usage)))
        };
        self.events.push(kind, Told::Response { response });
        self.events.take()
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Data> {
        let response = ResponseBody {
            error: Some(ResponseError { code: "server_error", message: error.message() }),
            output: output(&self.items, Status::Incomplete),
            ..response(&self.envelope, &self.echoed, (Status::Failed, None))
        };
        self.events.push("response.failed", Told::Response { response });
        self.events.take()
    }
}
