//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape. Tokens are the base's, whichever adapter is named.

use axum::{Json, extract::State, http::HeaderMap};

use super::{
    app::App,
    body::{Payload, parse},
    deadline::Deadline,
    desks::Asker,
    error::ApiError,
    prompt,
    wire::tokens::{Detokenize, Detokenized, Tokenize, Tokenized},
};
use crate::text::{Framing, Specials, Text};

/// The tokens that a prompt or a chat becomes.
pub(super) async fn tokenize(
    State(app): State<App>,
    headers: HeaderMap,
    Payload(bytes): Payload,
) -> Result<Json<Tokenized>, ApiError> {
    let deadline = Deadline::read(&headers, app.settings().request_timeout)?;
    let (text, size) = (app.text().clone(), bytes.len());
    let encode = move |_: &Asker| parse(&bytes).and_then(|fields| ids(&text, fields));
    let tokens = deadline.bound(app.work(size, encode)).await?;
    let max_model_len = app.generator().context();
    Ok(Json(Tokenized { count: tokens.len(), max_model_len, tokens }))
}

fn ids(text: &Text, fields: Tokenize) -> Result<Vec<u32>, ApiError> {
    let framing = |default| prompt::framing(fields.add_special_tokens, default);
    match (fields.prompt, fields.messages) {
        (Some(prompt), None) => Ok(text.encode(&prompt, framing(Framing::Framed))?),
        (None, Some(sent)) => {
            let ending =
                prompt::ending(fields.add_generation_prompt, fields.continue_final_message)?;
            let rendered = text.render(&prompt::messages(sent)?, ending)?;
            Ok(text.encode(&rendered, framing(Framing::Bare))?)
        }
        _ => Err(ApiError::invalid("prompt", "send either 'prompt' or 'messages'")),
    }
}

/// The text of tokens, special ones written out.
pub(super) async fn detokenize(
    State(app): State<App>,
    headers: HeaderMap,
    Payload(bytes): Payload,
) -> Result<Json<Detokenized>, ApiError> {
    let deadline = Deadline::read(&headers, app.settings().request_timeout)?;
    let (text, size) = (app.text().clone(), bytes.len());
    let decode = move |_: &Asker| {
        let Detokenize { tokens } = parse(&bytes)?;
        if let Some(id) = tokens.iter().find(|id| text.token_bytes(**id).is_none()) {
            let message = format!("the vocabulary of {} tokens has no token {id}", text.vocab());
            return Err(ApiError::invalid("tokens", message));
        }
        Ok(text.decode(&tokens, Specials::Show))
    };
    let prompt = deadline.bound(app.work(size, decode)).await?;
    Ok(Json(Detokenized { prompt }))
}
