//! An answer as server-sent events while it grows.
//!
//! Each event is `data: {json}`, the last `data: [DONE]`. What goes wrong after the first piece is an event with `error`, then
//! `[DONE]`, then the end. Comment lines keep proxies from giving up during a long prompt.

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

use super::{delivery::Form, error::ApiError, generate::Answers, sampling::Delivery};

/// Silence after which a comment is sent: half of what impatient proxies allow.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells nginx to pass events on as they come.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The data of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Data(String);

impl Data {
    /// Ends every stream.
    const DONE: &str = "[DONE]";

    /// One line of JSON.
    pub(super) fn json(value: &impl Serialize) -> Self {
        Self(serde_json::to_string(value).expect("wire types have string keys and finite numbers"))
    }

    fn done() -> Self {
        Self(Self::DONE.to_owned())
    }
}

/// Sends the answer piece by piece.
pub(super) fn respond(answers: Answers, delivery: Delivery, form: impl Form) -> Response {
    let events = events(Writing::new(answers, delivery, form));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

fn events<F: Form>(writing: Writing<F>) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(writing, |mut writing| async move {
        let Data(data) = writing.next().await?;
        Some((Ok(Event::default().data(data)), writing))
    })
}

/// A stream that is being written.
struct Writing<F> {
    answers: Answers,
    delivery: Delivery,
    form: F,
    ready: VecDeque<Data>,
    ended: bool,
    /// The request's, for what is logged after its handler is done.
    span: tracing::Span,
}

impl<F: Form> Writing<F> {
    fn new(answers: Answers, delivery: Delivery, mut form: F) -> Self {
        let ready = form.opening().into();
        Self { answers, delivery, form, ready, ended: false, span: tracing::Span::current() }
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
                self.end([Data::json(&error.body())]);
            }
            None => {
                let wanted = self.delivery == Delivery::StreamWithUsage;
                let usage = wanted.then(|| self.form.usage(self.answers.usage()));
                self.end(usage);
            }
        }
    }

    fn end(&mut self, last: impl IntoIterator<Item = Data>) {
        self.ready.extend(last);
        self.ready.push_back(Data::done());
        self.ended = true;
    }
}
