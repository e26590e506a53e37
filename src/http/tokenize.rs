//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape. Tokens are the base's, whichever adapter is named, but for chats
//! a template that the adapter brings; a name that means nothing is refused all the same.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    app::App,
    body::{parse, refuse_unsupported},
    error::ApiError,
    openapi::{Choosing, Unanswered},
    prompt, rates,
    tools::{Parts, Tools},
    wire::{
        tokens::{Detokenize, Detokenized, Tokenize, Tokenized},
        unsupported::{RENDERED, TOKENS},
    },
    wish::Arrival,
};
use crate::{
    tenant::Permit,
    text::{Chat, Ending, Framing, Specials, Text},
};

/// The tokens that a prompt or a chat becomes.
#[utoipa::path(
    post, path = "/tokenize", tag = "tokens", operation_id = "tokenize",
    params(Choosing),
    request_body = Tokenize,
    responses((status = 200, description = "Its tokens", body = Tokenized), Unanswered)
)]
pub(super) async fn tokenize(
    State(app): State<App>,
    mut arrival: Arrival,
) -> Result<Response, ApiError> {
    let deadline = arrival.deadline;
    let tokens = async {
        let fields = arrival.read(&app, |bytes| -> Result<Tokenize, ApiError> {
            refuse_unsupported(bytes, &[TOKENS])?;
            let fields: Tokenize = parse(bytes)?;
            if fields.messages.is_some() {
                refuse_unsupported(bytes, &[RENDERED])?;
            }
            Ok(fields)
        });
        let mut fields = fields.await?;
        let (text, size) = (app.text().clone(), arrival.size);
        let (caller, headers) = (&arrival.caller, &arrival.headers);
        let voice = app.voice(caller, headers, fields.model.take()).await?;
        let what = app.work(size, move |_| what(fields)).await?;
        let brought = match &what {
            What::Chat(chat, ending, _) => {
                let extras = app.extras(&voice);
                app.render_brought(arrival.caller.tenant, &extras, (chat, *ending)).await?
            }
            What::Prompt(..) => None,
        };
        app.work(size, move |_| ids(&text, what, brought)).await
    };
    let tokens = app.bound(deadline, tokens).await?;
    let max_model_len = app.generator().context();
    Ok(rated(Tokenized { count: tokens.len(), max_model_len, tokens }, &arrival.permit))
}

/// The answer with what is left of the caller's quota, of which it is a request like others: encoding is work.
fn rated(answer: impl Serialize, permit: &Permit) -> Response {
    let mut response = Json(answer).into_response();
    rates::write(&permit.rates, response.headers_mut());
    response
}

/// What is to become tokens.
enum What {
    Prompt(String, Framing),
    Chat(Chat, Ending, Framing),
}

fn what(fields: Tokenize) -> Result<What, ApiError> {
    let framing = |default| prompt::framing(fields.add_special_tokens, default);
    match (fields.prompt, fields.messages) {
        (Some(prompt), None) => Ok(What::Prompt(prompt, framing(Framing::Framed))),
        (None, Some(sent)) => {
            let ending =
                prompt::ending(fields.add_generation_prompt, fields.continue_final_message)?;
            let tools = Tools::read((fields.tools, Parts::NESTED), None, None)?.told;
            let chat = Chat { messages: prompt::messages(sent)?, tools };
            Ok(What::Chat(chat, ending, framing(Framing::Bare)))
        }
        _ => Err(ApiError::invalid("prompt", "send either 'prompt' or 'messages'")),
    }
}

/// `brought` is the chat as the adapter's own template has it.
fn ids(text: &Text, what: What, brought: Option<String>) -> Result<Vec<u32>, ApiError> {
    Ok(match what {
        What::Prompt(prompt, framing) => text.encode(&prompt, framing)?,
        What::Chat(chat, ending, framing) => {
            let rendered = match brought {
                Some(rendered) => rendered,
                None => text.render(&chat, ending)?,
            };
            text.encode(&rendered, framing)?
        }
    })
}

/// The text of tokens, special ones written out.
#[utoipa::path(
    post, path = "/detokenize", tag = "tokens", operation_id = "detokenize",
    params(Choosing),
    request_body = Detokenize,
    responses((status = 200, description = "Their text", body = Detokenized), Unanswered)
)]
pub(super) async fn detokenize(
    State(app): State<App>,
    mut arrival: Arrival,
) -> Result<Response, ApiError> {
    let deadline = arrival.deadline;
    let prompt = async {
        let fields = arrival.read(&app, |bytes| -> Result<Detokenize, ApiError> {
            refuse_unsupported(bytes, &[TOKENS])?;
            parse(bytes)
        });
        let Detokenize { model, tokens } = fields.await?;
        app.voice(&arrival.caller, &arrival.headers, model).await?;
        let text = app.text().clone();
        app.work(arrival.size, move |_| decode(&text, &tokens)).await
    };
    let prompt = app.bound(deadline, prompt).await?;
    Ok(rated(Detokenized { prompt }, &arrival.permit))
}

fn decode(text: &Text, tokens: &[u32]) -> Result<String, ApiError> {
    if let Some(id) = tokens.iter().find(|id| text.token_bytes(**id).is_none()) {
        let message = format!("the vocabulary of {} tokens has no token {id}", text.vocab());
        return Err(ApiError::invalid("tokens", message));
    }
    Ok(text.decode(tokens, Specials::Show))
}
