//! From an order to its response, whole or as it grows: the same for every endpoint but for the form.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    answer::Piece,
    app::App,
    envelope::Envelope,
    error::ApiError,
    generate::{Answers, Order},
    rates,
    sampling::Delivery,
    sse::{self, Data},
    wire::usage::Usage,
};

/// How an endpoint writes its answers.
pub(super) trait Form: Send + 'static {
    /// What all parts of the answer have in common.
    fn envelope(&self) -> &Envelope;

    /// All choices at once, each in one piece that has an end.
    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> impl Serialize;

    /// The chunks before any text.
    fn opening(&mut self) -> Vec<Data>;

    /// What is new in a choice, in chunks.
    fn piece(&mut self, choice: usize, piece: Piece) -> Vec<Data>;

    /// What ends the stream after all choices.
    fn ending(&mut self, usage: Usage) -> Vec<Data>;

    /// What ends the stream when a choice has failed.
    fn failure(&mut self, error: &ApiError) -> Vec<Data> {
        Data::closing(Some(Data::json(&error.body())))
    }
}

/// Begins what is ordered, and answers in this form.
///
/// What fails before the first piece is a refusal, of a stream too.
pub(super) async fn deliver(
    app: &App,
    order: &Order,
    mut form: impl Form,
) -> Result<Response, ApiError> {
    let mut answers = Answers::begin(app, order).await?;
    let envelope = form.envelope().clone();
    let response = match order.terms.delivery {
        Delivery::Whole => {
            let (choices, usage) = answers.whole().await?;
            Json(form.whole(choices, usage)).into_response()
        }
        Delivery::Stream | Delivery::StreamWithUsage => {
            answers.started(sse::KEEP_ALIVE).await?;
            sse::respond(answers, form)
        }
    };
    let mut response = envelope.seal(response);
    rates::write(&order.permit.rates, response.headers_mut());
    Ok(response)
}
