//! An answer as server-sent events while it grows.
//!
//! Each event is `data: {json}`, in some forms after an `event: name`. What goes wrong after the first piece is an event too. How
//! the stream ends is the form's: OpenAI's older two with `data: [DONE]`. Comment lines keep proxies from giving up during a
//! long prompt.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream::{self, Stream};
use serde::Serialize;

use super::{delivery::Form, error::ApiError, generate::Answers};

/// Silence after which a comment is sent: half of what impatient proxies allow.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells nginx to pass events on as they come.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The data of one event, and its name where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Data {
    name: Option<&'static str>,
    line: String,
}

impl Data {
    /// Ends streams of OpenAI's older forms.
    const DONE: &str = "[DONE]";

    /// One line of JSON.
    pub(super) fn json(value: &impl Serialize) -> Self {
        let line = serde_json::to_string(value);
        Self { name: None, line: line.expect("wire types have string keys and finite numbers") }
    }

    /// One line of JSON under a name.
    pub(super) fn named(name: &'static str, value: &impl Serialize) -> Self {
        Self { name: Some(name), ..Self::json(value) }
    }

    /// The end of a stream of OpenAI's older forms, after its last chunk.
    pub(super) fn closing(last: Option<Self>) -> Vec<Self> {
        last.into_iter().chain([Self { name: None, line: Self::DONE.to_owned() }]).collect()
    }

    /// Its JSON.
    pub(super) fn into_line(self) -> String {
        self.line
    }

    fn event(self) -> Event {
        let event = self.name.map_or_else(Event::default, |name| Event::default().event(name));
        event.data(self.line)
    }
}

/// Sends the answer piece by piece.
pub(super) fn respond(answers: Answers, form: impl Form) -> Response {
    let events = events(Writing::new(answers, form));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

fn events<F: Form>(writing: Writing<F>) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(writing, |mut writing| async move {
        let data = writing.next().await?;
        Some((Ok(data.event()), writing))
    })
}

/// A stream that is being written.
struct Writing<F> {
    answers: Answers,
    form: F,
    ready: VecDeque<Data>,
    ended: bool,
    /// The request's, for what is logged after its handler is done.
    span: tracing::Span,
}

impl<F: Form> Writing<F> {
    fn new(answers: Answers, mut form: F) -> Self {
        let ready = form.opening().into();
        Self { answers, form, ready, ended: false, span: tracing::Span::current() }
    }

    async fn next(&mut self) -> Option<Data> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            if self.ended {
                return None;
            }
            self.advance().await;
        }
    }

    async fn advance(&mut self) {
        match self.answers.next().await {
            Some((choice, Ok(piece))) => self.ready.extend(self.form.piece(choice, piece)),
            Some((_, Err(failure))) => {
                // The other choices are of no use any more.
                self.answers.cancel();
                let error = self.span.in_scope(|| ApiError::from(failure));
                let last = self.form.failure(&error);
                self.end(last);
            }
            None => {
                let last = self.form.ending(self.answers.usage());
                self.end(last);
            }
        }
    }

    fn end(&mut self, last: Vec<Data>) {
        self.ready.extend(last);
        self.ended = true;
    }
}
