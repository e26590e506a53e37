//! `/v1/responses` as it is written on the wire.

mod echoed;
mod input;
mod label;
mod output;

use serde::Deserialize;
use utoipa::ToSchema;

use self::input::Input;
pub(in crate::http) use self::{
    echoed::{Echoed, FlatTool, TextFormat, ToolChoice},
    input::Item,
    label::Label,
    output::{
        IncompleteDetails, OutputCall, OutputItem, OutputMessage, OutputText, ResponseBody,
        ResponseError, ResponseEvent, Told,
    },
};

/// The fields that only responses have, but for those that come back.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ResponseFields {
    pub(in crate::http) input: Input,
    #[serde(default)]
    pub(in crate::http) include: Option<Vec<String>>,
    pub(in crate::http) previous_response_id: Option<Label>,
    /// Nothing is stored whatever it says.
    #[serde(rename = "store")]
    pub(in crate::http) _store: Option<bool>,
}
