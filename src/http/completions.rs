//! `POST /v1/completions`

use std::mem;

use axum::{extract::State, response::Response};
use serde::Serialize;

use super::{
    answer::{End, Piece},
    app::App,
    body::{parse, refuse_unsupported},
    delivery::{Form, deliver},
    desks::Asker,
    envelope::Envelope,
    error::ApiError,
    generate::{Order, check_choices},
    prompt::{self, Echo},
    sampling::{Delivery, MAX_TOP_LOGPROBS, Terms, within},
    sse::Data,
    wire::{
        common::Common,
        completion::{Completion, CompletionChoice, CompletionFields, CompletionLogprobs},
        prompt::Prompt,
        unsupported::{COMPLETION, GENERATION},
        usage::{Usage, UsageKey},
    },
    wish::{Arrival, Said, Wish},
};
use crate::text::{Framing, Text};

/// OpenAI's default for `max_tokens`.
const DEFAULT_TOKENS: usize = 16;

/// What is asked for, understood and within bounds, and the prompts that are to be sent back.
fn read(bytes: &[u8]) -> Result<(Wish, Vec<Prompt>), ApiError> {
    refuse_unsupported(bytes, &[GENERATION, COMPLETION])?;
    let common: Common = parse(bytes)?;
    let fields: CompletionFields = parse(bytes)?;
    let terms = Terms::read(&common)?;
    let prompts = fields.prompt.0;
    check_choices(prompts.len(), &terms)?;
    // 0 and 1 say what is done anyway; more would have to be generated than is shown.
    if fields.best_of.is_some_and(|best| best > 1 && best != terms.choices) {
        return Err(ApiError::unsupported("best_of"));
    }
    let top = fields.logprobs.unwrap_or(0);
    within("logprobs", Some(top), 0..=MAX_TOP_LOGPROBS, 0)?;
    let echo = fields.echo == Some(true);
    let echoed = if echo { prompts.clone() } else { Vec::new() };
    let framing = prompt::framing(common.add_special_tokens, Framing::Framed);
    let wish = Wish {
        model: common.model,
        user: common.user,
        said: Said::Prompts(prompts, framing),
        terms,
        default_tokens: Some(DEFAULT_TOKENS),
        logprobs: fields.logprobs,
        prompt_logprobs: fields.logprobs.filter(|_| echo),
    };
    Ok((wish, echoed))
}

/// Continues one or several prompts.
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let size = arrival.size;
    let (wish, echoed) = arrival.read(app, read).await?;
    let mut order = wish.order(app, arrival).await?;
    let prompts = echoes(app, size, echoed, &mut order).await?;
    let per_prompt = order.terms.choices;
    let given = vec![false; order.prompts.len() * per_prompt];
    let writer = Writer {
        text: app.text().clone(),
        scored: order.logprobs.is_some(),
        delivery: order.terms.delivery,
        envelope: order.envelope("cmpl-", app),
        echoes: Echoes { prompts, per_prompt, given },
    };
    deliver(app, &order, writer).await
}

/// The prompts as they are to be sent back: all of the order's, or none.
async fn echoes(
    app: &App,
    size: usize,
    echoed: Vec<Prompt>,
    order: &mut Order,
) -> Result<Vec<Echo>, ApiError> {
    if echoed.is_empty() {
        return Ok(Vec::new());
    }
    let (text, specials) = (app.text().clone(), order.terms.specials);
    let prompts = mem::take(&mut order.prompts);
    let echo = move |asker: &Asker| {
        let mut echoes = Vec::new();
        for (prompt, ids) in echoed.iter().zip(&prompts) {
            asker.still_there()?;
            echoes.push(Echo::new(&text, prompt, ids, specials));
        }
        Ok((echoes, prompts))
    };
    let (echoes, prompts) = app.work(size, echo).await?;
    order.prompts = prompts;
    Ok(echoes)
}

/// Writes the answers, whole or chunk by chunk.
#[derive(Debug)]
struct Writer {
    text: Text,
    scored: bool,
    delivery: Delivery,
    envelope: Envelope,
    echoes: Echoes,
}

/// Which prompts are still to be sent back.
#[derive(Debug)]
struct Echoes {
    /// One for each prompt, or none.
    prompts: Vec<Echo>,
    /// Choices of each prompt.
    per_prompt: usize,
    /// Whether a choice has sent its prompt back.
    given: Vec<bool>,
}

impl Echoes {
    fn of(&self, choice: usize) -> Option<&Echo> {
        self.prompts.get(choice / self.per_prompt)
    }
}

impl Writer {
    /// What the piece adds to its choice, after the prompt where that is due.
    fn choice(&mut self, index: usize, piece: Piece) -> CompletionChoice {
        let Piece { prompt, mut text, scores, end } = piece;
        let mut logprobs = CompletionLogprobs::default();
        let first = !mem::replace(&mut self.echoes.given[index], true);
        let echo = self.echoes.of(index);
        if let Some(echo) = echo.filter(|_| first) {
            text.insert_str(0, &echo.text);
            logprobs.push_prompt(&self.text, echo, &prompt.unwrap_or_default());
        }
        let lead = echo.map_or(0, |echo| echo.length);
        for scored in &scores {
            logprobs.push(&self.text, &scored.logprob, lead + scored.offset);
        }
        CompletionChoice {
            index,
            text,
            logprobs: self.scored.then_some(logprobs),
            finish_reason: end.map(End::reason),
        }
    }

    fn completion(&self, choices: Vec<CompletionChoice>, usage: UsageKey) -> Completion<'_> {
        let Envelope { id, created, model, fingerprint, .. } = &self.envelope;
        Completion {
            id,
            object: "text_completion",
            created: *created,
            model,
            choices,
            usage,
            system_fingerprint: fingerprint,
        }
    }
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, pieces: Vec<Piece>, usage: Usage) -> impl Serialize {
        let pieces = pieces.into_iter().enumerate();
        let choices = pieces.map(|(index, piece)| self.choice(index, piece)).collect();
        self.completion(choices, UsageKey::Now(usage))
    }

    fn opening(&mut self) -> Vec<Data> {
        Vec::new()
    }

    fn piece(&mut self, choice: usize, piece: Piece) -> Vec<Data> {
        let choice = self.choice(choice, piece);
        vec![Data::json(&self.completion(vec![choice], self.delivery.usage_later()))]
    }

    fn ending(&mut self, usage: Usage) -> Vec<Data> {
        let told = self.delivery == Delivery::StreamWithUsage;
        let usage = told.then(|| Data::json(&self.completion(vec![], UsageKey::Now(usage))));
        Data::closing(usage)
    }
}
