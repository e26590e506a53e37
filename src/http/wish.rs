//! From a request to its order, the same for every endpoint that generates text: who calls and what he may spend, who is to
//! answer, and the tokens of the prompt. What only reads texts arrives in the same way.

use std::{mem, sync::Arc};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::HeaderMap,
};

use super::{
    app::App,
    auth::{By, need},
    body::Payload,
    deadline::Deadline,
    desks::Asker,
    error::ApiError,
    generate::{Opening, Order},
    prompt::Encoder,
    report::Report,
    sampling::Terms,
    select::Part,
    tools::Tools,
    wire::prompt::Prompt,
};
use crate::{
    adapter::Extras,
    tenant::{Caller, Permit, Scope, TenantId},
    text::{Chat, Ending, Framing},
};

/// A request that has been let in: by its key, within its tenant's quota, until its deadline.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) deadline: Deadline,
    pub(super) headers: HeaderMap,
    pub(super) caller: Caller,
    pub(super) permit: Arc<Permit>,
    body: Bytes,
    /// What the log will say of it.
    pub(super) report: Report,
    /// Bytes of the body, by which work on it is measured.
    pub(super) size: usize,
}

impl FromRequest<App> for Arrival {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (mut head, body) = request.into_parts();
        let By(caller) = By::from_request_parts(&mut head, app).await?;
        let headers = head.headers.clone();
        let report = head.extensions.get().cloned().unwrap_or_default();
        let Payload(body) = Payload::from_request(Request::from_parts(head, body), app).await?;
        need(&caller, Scope::Infer)?;
        let deadline = Deadline::read(&headers, app.settings().request_timeout)?;
        let permit = app.admit(&caller)?;
        Ok(Self { deadline, headers, caller, permit, size: body.len(), body, report })
    }
}

impl Arrival {
    /// What its body says. It is not kept.
    pub(super) async fn read<T: Send + 'static>(
        &mut self,
        app: &App,
        read: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let body = mem::take(&mut self.body);
        app.work(self.size, move |_| read(&body)).await
    }
}

/// What an endpoint has understood of a request, within bounds.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) model: Option<String>,
    /// Who asks, as the client tells its own users apart.
    pub(super) user: Option<String>,
    /// Several adapters, in the place of one.
    pub(super) adapters: Option<Vec<Part>>,
    pub(super) said: Said,
    /// What may be called in a chat.
    pub(super) tools: Tools,
    pub(super) terms: Terms,
    /// Most tokens per choice where neither the request nor the adapter says it; as for chats where it is `None`.
    pub(super) default_tokens: Option<usize>,
    /// As in [`Order`].
    pub(super) logprobs: Option<usize>,
    /// As in [`Order`].
    pub(super) prompt_logprobs: Option<usize>,
}

/// What is to be answered.
#[derive(Debug)]
pub(super) enum Said {
    /// Messages and tools, by the chat template of whoever answers.
    Chat(Chat, Ending, Framing),
    /// Texts or tokens to continue.
    Prompts(Vec<Prompt>, Framing),
}

impl Wish {
    /// Finds who answers, and the tokens of the prompts.
    pub(super) async fn order(self, app: &App, arrival: Arrival) -> Result<Order, ApiError> {
        let Self { model, user, adapters, said, tools, mut terms, .. } = self;
        let Arrival { deadline, headers, caller, permit, size, report, .. } = arrival;
        let named = (model, user.as_deref());
        let (voice, requested) =
            app.choose_of(&caller, &headers, named, adapters.as_deref()).await?;
        let (encoder, extras) = (app.encoder(), app.extras(&voice));
        let dialect = encoder.text.dialect(extras.chat_template.as_deref());
        terms.form = tools.form(dialect, terms.form.take())?;
        if let Some(mark) = tools.mark(dialect, &encoder.text) {
            terms.show(mark);
        }
        terms.check_length()?;
        let adapters_tokens = extras.sampling.max_tokens.map(|tokens| tokens as usize);
        let default_tokens = adapters_tokens.or(self.default_tokens);
        if let Said::Prompts(prompts, _) = &said {
            check_room(prompts, &encoder)?;
        }
        let brought = said.brought(app, caller.tenant, &extras).await?;
        let opening = said.opening();
        let terms = followed(app, caller.tenant, (terms, extras)).await?;
        let prompts = app.work(size, move |asker| said.encode(&encoder, brought, asker)).await?;
        Ok(Order {
            prompts,
            opening,
            terms,
            tools,
            dialect,
            default_tokens: default_tokens.unwrap_or(app.settings().chat_tokens),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            voice,
            tenant: caller.tenant,
            permit,
            requested,
            deadline,
            report,
        })
    }
}

impl Wish {
    /// How many tokens the prompts have, though they may be more than fit.
    pub(super) async fn count(self, app: &App, arrival: Arrival) -> Result<usize, ApiError> {
        let Self { model, user, adapters, said, .. } = self;
        let Arrival { headers, caller, size, .. } = arrival;
        let named = (model, user.as_deref());
        let (voice, _) = app.choose_of(&caller, &headers, named, adapters.as_deref()).await?;
        let encoder = Encoder { context: usize::MAX, ..app.encoder() };
        let brought = said.brought(app, caller.tenant, &app.extras(&voice)).await?;
        let count = move |asker: &Asker| {
            let prompts = said.encode(&encoder, brought, asker)?;
            Ok(prompts.iter().map(Vec::len).sum())
        };
        app.work(size, count).await
    }
}

/// Refuses the whole request if one of its prompts cannot fit, before the first is encoded.
fn check_room(prompts: &[Prompt], encoder: &Encoder) -> Result<(), ApiError> {
    prompts.iter().try_for_each(|prompt| match prompt {
        Prompt::Text(text) => encoder.check_room(text),
        Prompt::Ids(_) => Ok(()),
    })
}

impl Said {
    fn opening(&self) -> Opening {
        match self {
            Self::Chat(_, Ending::Prompt | Ending::Open, _) => Opening::Anew,
            Self::Chat(_, Ending::Continue, _) | Self::Prompts(..) => Opening::Continuing,
        }
    }

    /// The chat as the template has it that the adapter brings.
    async fn brought(
        &self,
        app: &App,
        tenant: TenantId,
        extras: &Extras,
    ) -> Result<Option<String>, ApiError> {
        match self {
            Self::Chat(chat, ending, _) => {
                app.render_brought(tenant, extras, (chat, *ending)).await
            }
            Self::Prompts(..) => Ok(None),
        }
    }

    /// The tokens of each prompt. `brought` is the chat as the adapter's own template has it.
    fn encode(
        &self,
        encoder: &Encoder,
        brought: Option<String>,
        asker: &Asker,
    ) -> Result<Vec<Vec<u32>>, ApiError> {
        match self {
            Self::Chat(chat, ending, framing) => {
                let rendered = match brought {
                    Some(rendered) => rendered,
                    None => encoder.text.render(chat, *ending)?,
                };
                Ok(vec![encoder.text(&rendered, *framing)?])
            }
            Self::Prompts(prompts, framing) => {
                let encode = |prompt| {
                    asker.still_there()?;
                    encoder.prompt(prompt, *framing)
                };
                prompts.iter().map(encode).collect()
            }
        }
    }
}

/// The terms with what the adapter brings, and their form begun.
async fn followed(
    app: &App,
    tenant: TenantId,
    (mut terms, extras): (Terms, Arc<Extras>),
) -> Result<Terms, ApiError> {
    let (text, has_form) = (app.text().clone(), terms.form.is_some());
    let follow = move |_: &Asker| {
        terms.follow(&extras, &text)?;
        Ok(terms)
    };
    if has_form { app.compile(tenant, follow).await } else { app.work(0, follow).await }
}
