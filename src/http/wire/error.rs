//! The body of every refusal, in OpenAI's shape.

use serde::Serialize;

/// `{"error": {..}}`, the body of an answer and the data of a failing stream's last event.
#[derive(Debug, Serialize)]
pub(in crate::http) struct ErrorBody<'a> {
    pub(in crate::http) error: ErrorDetail<'a>,
}

/// All four keys are always there: clients index them without asking.
#[derive(Debug, Serialize)]
pub(in crate::http) struct ErrorDetail<'a> {
    pub(in crate::http) message: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'a str,
    pub(in crate::http) param: Option<&'a str>,
    pub(in crate::http) code: Option<&'a str>,
}
