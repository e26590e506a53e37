//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape. Tokens are the base's, whichever adapter is named, but for chats
//! a template that the adapter brings; a name that means nothing is refused all the same.

use axum::{Json, extract::State, http::HeaderMap};

use super::{
    app::App,
    auth::{By, need},
    body::{Payload, parse, refuse_unsupported},
    deadline::Deadline,
    error::ApiError,
    prompt,
    wire::{
        tokens::{Detokenize, Detokenized, Tokenize, Tokenized},
        unsupported::RENDERED,
    },
};
use crate::{
    tenant::Scope,
    text::{Framing, Specials, Text},
};

/// The tokens that a prompt or a chat becomes.
pub(super) async fn tokenize(
    State(app): State<App>,
    By(caller): By,
    headers: HeaderMap,
    Payload(bytes): Payload,
) -> Result<Json<Tokenized>, ApiError> {
    need(&caller, Scope::Infer)?;
    let deadline = Deadline::read(&headers, app.settings().request_timeout)?;
    let tokens = async {
        let size = bytes.len();
        let fields = app.work(size, move |_| -> Result<Tokenize, ApiError> {
            let fields: Tokenize = parse(&bytes)?;
            if fields.messages.is_some() {
                refuse_unsupported(&bytes, &[RENDERED])?;
            }
            Ok(fields)
        });
        let mut fields = fields.await?;
        let voice = app.voice(&caller, &headers, fields.model.take()).await?;
        let (extras, of) = (app.extras(&voice), app.clone());
        app.work(size, move |_| ids(&of.text_for(&voice, &extras)?, fields)).await
    };
    let tokens = app.bound(deadline, tokens).await?;
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
    By(caller): By,
    headers: HeaderMap,
    Payload(bytes): Payload,
) -> Result<Json<Detokenized>, ApiError> {
    need(&caller, Scope::Infer)?;
    let deadline = Deadline::read(&headers, app.settings().request_timeout)?;
    let prompt = async {
        let (text, size) = (app.text().clone(), bytes.len());
        let Detokenize { model, tokens } = app.work(size, move |_| parse(&bytes)).await?;
        app.voice(&caller, &headers, model).await?;
        app.work(size, move |_| decode(&text, &tokens)).await
    };
    Ok(Json(Detokenized { prompt: app.bound(deadline, prompt).await? }))
}

fn decode(text: &Text, tokens: &[u32]) -> Result<String, ApiError> {
    if let Some(id) = tokens.iter().find(|id| text.token_bytes(**id).is_none()) {
        let message = format!("the vocabulary of {} tokens has no token {id}", text.vocab());
        return Err(ApiError::invalid("tokens", message));
    }
    Ok(text.decode(tokens, Specials::Show))
}
