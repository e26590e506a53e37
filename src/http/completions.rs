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
    logprobs::Naming,
    openapi::{Choosing, CompletionRequest, Unanswered},
    prompt::{self, Echo},
    sampling::{Delivery, MAX_TOP_LOGPROBS, Terms, within},
    sse::Data,
    tools::Tools,
    wire::{
        common::Common,
        completion::{Completion, CompletionChoice, CompletionFields, CompletionLogprobs},
        prompt::{MAX_CHOICES, Prompt},
        unsupported::{COMPLETION, GENERATION},
        usage::{Usage, UsageKey},
    },
    wish::{Arrival, Said, Wish},
};
use crate::text::{Framing, Text};

/// OpenAI's default for `max_tokens`.
const DEFAULT_TOKENS: usize = 16;

/// What of what is made is sent.
#[derive(Debug)]
struct Sent {
    /// Prompts, before their choices.
    echoed: Vec<Prompt>,
    /// Only some choices.
    best: Option<Best>,
    /// Scores.
    scored: bool,
    /// The names of tokens beside them.
    naming: Naming,
    /// The tokens of prompts and choices.
    ids: bool,
}

/// What is asked for, understood and within bounds.
fn read(bytes: &[u8]) -> Result<(Wish, Sent), ApiError> {
    refuse_unsupported(bytes, &[GENERATION, COMPLETION])?;
    let common: Common = parse(bytes)?;
    let fields: CompletionFields = parse(bytes)?;
    let mut terms = Terms::read(&common)?;
    let shown = terms.choices;
    terms.choices = best_of(fields.best_of, &terms)?;
    let best = (terms.choices > shown).then_some(Best { of: terms.choices, shown });
    let prompts = fields.prompt.0;
    check_choices(prompts.len(), &terms)?;
    let top = fields.logprobs.unwrap_or(0);
    within("logprobs", Some(top), 0..=MAX_TOP_LOGPROBS, 0)?;
    let echo = fields.echo == Some(true);
    let echoed = if echo { prompts.clone() } else { Vec::new() };
    let framing = prompt::framing(common.add_special_tokens, Framing::Framed);
    let wish = Wish {
        model: common.model,
        user: common.user,
        adapters: prompt::parts(common.adapters)?,
        said: Said::Prompts(prompts, framing),
        tools: Tools::default(),
        terms,
        default_tokens: Some(DEFAULT_TOKENS),
        // Without scores there is no best.
        logprobs: fields.logprobs.or(best.map(|_| 0)),
        prompt_logprobs: fields.logprobs.filter(|_| echo),
    };
    let naming = Naming::asked(fields.return_tokens_as_token_ids);
    let (scored, ids) = (fields.logprobs.is_some(), fields.return_token_ids == Some(true));
    Ok((wish, Sent { echoed, best, scored, naming, ids }))
}

/// How many choices are made for each prompt.
fn best_of(asked: Option<usize>, terms: &Terms) -> Result<usize, ApiError> {
    let field = "best_of";
    // 0 says nothing.
    let Some(best) = asked.filter(|best| *best > 0) else { return Ok(terms.choices) };
    let best = within(field, Some(best), 1..=MAX_CHOICES, 1)?;
    if best < terms.choices {
        let message = format!("'{field}' is {best}, less than 'n', which is {}", terms.choices);
        return Err(ApiError::invalid(field, message));
    }
    if best > terms.choices && terms.delivery != Delivery::Whole {
        let message =
            format!("'{field}' above 'n' cannot be streamed: the best is known at the end");
        return Err(ApiError::invalid(field, message));
    }
    Ok(best)
}

/// Continues one or several prompts.
#[utoipa::path(
    post, path = "/v1/completions", tag = "answers", operation_id = "create_completion",
    params(Choosing),
    request_body = CompletionRequest,
    responses((status = 200, description = "The continuations, or a stream of them", content((Completion<'static> = "application/json"), (Completion<'static> = "text/event-stream"))), Unanswered)
)]
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let size = arrival.size;
    let (wish, Sent { echoed, best, scored, naming, ids }) = arrival.read(app, read).await?;
    let mut order = wish.order(app, arrival).await?;
    let prompts = echoes(app, size, echoed, &mut order).await?;
    let per_prompt = order.terms.choices;
    let given = vec![false; order.prompts.len() * per_prompt];
    let writer = Writer {
        text: app.text().clone(),
        scored,
        naming,
        ids: ids.then(|| order.prompts.clone()),
        delivery: order.terms.delivery,
        best,
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
    naming: Naming,
    /// The tokens of the prompts, where tokens are asked for.
    ids: Option<Vec<Vec<u32>>>,
    delivery: Delivery,
    best: Option<Best>,
    envelope: Envelope,
    echoes: Echoes,
}

/// Only some choices of each prompt are sent.
#[derive(Clone, Copy, Debug)]
struct Best {
    /// So many are made.
    of: usize,
    /// So many are sent.
    shown: usize,
}

impl Best {
    /// The choices with the highest mean log-probability of a token, in that order, each with its number among all.
    fn choose(self, pieces: Vec<Piece>) -> Vec<(usize, Piece)> {
        let mut all: Vec<_> = pieces.into_iter().enumerate().collect();
        for prompt in all.chunks_mut(self.of) {
            prompt.sort_by(|(_, one), (_, other)| mean(other).total_cmp(&mean(one)));
        }
        let of = self.of;
        all.into_iter()
            .enumerate()
            .filter(|(at, _)| at % of < self.shown)
            .map(|(_, piece)| piece)
            .collect()
    }
}

fn mean(piece: &Piece) -> f32 {
    let sum: f32 = piece.scores.iter().map(|scored| scored.logprob.logprob).sum();
    if piece.scores.is_empty() { f32::NEG_INFINITY } else { sum / piece.scores.len() as f32 }
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
        let Piece { prompt, mut text, ids, scores, end } = piece;
        let names = (&self.text, self.naming);
        let mut logprobs = CompletionLogprobs::default();
        let first = !mem::replace(&mut self.echoes.given[index], true);
        let echo = self.echoes.of(index);
        if let Some(echo) = echo.filter(|_| first) {
            text.insert_str(0, &echo.text);
            logprobs.push_prompt(names, echo, &prompt.unwrap_or_default());
        }
        let lead = echo.map_or(0, |echo| echo.length);
        for scored in &scores {
            logprobs.push(names, &scored.logprob, lead + scored.offset);
        }
        CompletionChoice {
            index,
            text,
            logprobs: self.scored.then_some(logprobs),
            finish_reason: end.map(End::reason),
            prompt_token_ids: self.prompt_ids(index).filter(|_| first).cloned(),
            token_ids: self.ids.is_some().then_some(ids),
        }
    }

    /// The tokens of a choice's prompt, where they are asked for.
    fn prompt_ids(&self, choice: usize) -> Option<&Vec<u32>> {
        self.ids.as_ref()?.get(choice / self.echoes.per_prompt)
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
        let all = match self.best {
            Some(best) => best.choose(pieces),
            None => pieces.into_iter().enumerate().collect(),
        };
        let choice =
            |(index, (made, piece))| CompletionChoice { index, ..self.choice(made, piece) };
        let choices = all.into_iter().enumerate().map(choice).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Logprob, http::answer::Scored};

    fn piece(logprobs: &[f32]) -> Piece {
        let scored = |logprob: &f32| Scored {
            logprob: Logprob { token: 0, logprob: *logprob, top: vec![] },
            offset: 0,
        };
        Piece { scores: logprobs.iter().map(scored).collect(), ..Piece::default() }
    }

    #[test]
    fn the_best_have_the_likeliest_tokens_on_average() {
        let made = vec![
            piece(&[-3.0]),
            piece(&[]),
            piece(&[-1.0, -2.0]),
            piece(&[-2.0]),
            piece(&[-0.5]),
            piece(&[-9.0]),
        ];
        let best = Best { of: 3, shown: 2 }.choose(made);
        let numbers: Vec<_> = best.iter().map(|(made, _)| *made).collect();
        assert_eq!(numbers, [2, 0, 4, 3]);
    }
}
