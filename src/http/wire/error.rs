//! The body of every refusal, in each shape that clients read.

use serde::Serialize;
use utoipa::ToSchema;

/// `{"error": {..}}`, the body of an answer and the data of a failing stream's last event.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ErrorBody<'a> {
    pub(in crate::http) error: ErrorDetail<'a>,
}

/// All four keys are always there: clients index them without asking.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ErrorDetail<'a> {
    pub(in crate::http) message: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'a str,
    pub(in crate::http) param: Option<&'a str>,
    pub(in crate::http) code: Option<&'a str>,
}

/// As LoRAX's client reads it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct LoraxError<'a> {
    pub(in crate::http) error: &'a str,
    pub(in crate::http) error_type: &'static str,
}

/// `{"type": "error", "error": {..}}`, as Anthropic's clients read it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MessagesError<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) error: MessagesErrorDetail<'a>,
}

/// What it was.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MessagesErrorDetail<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) message: &'a str,
}
