//! `POST /v1/completions`

use std::mem;

use std::sync::Arc;

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Serialize;

use super::{
    answer::{End, Piece},
    app::App,
    auth::{By, need},
    body::{Payload, parse, refuse_unsupported},
    deadline::Deadline,
    delivery::{Form, deliver},
    desks::Asker,
    envelope::Envelope,
    error::ApiError,
    generate::{Opening, Order, check_choices},
    prompt::{self, Echo, Encoder},
    sampling::{Delivery, MAX_TOP_LOGPROBS, Terms, within},
    select::Part,
    sse::Data,
    wire::{
        common::Common,
        completion::{Completion, CompletionChoice, CompletionFields, CompletionLogprobs},
        prompt::{MAX_CHOICES, Prompt},
        unsupported::{COMPLETION, GENERATION},
        usage::{Usage, UsageKey},
    },
};
use crate::{
    tenant::{Caller, Permit, Scope},
    text::{Framing, Text},
};

/// OpenAI's default for `max_tokens`.
const DEFAULT_TOKENS: usize = 16;

/// What is asked for, understood and within bounds.
#[derive(Debug)]
struct Wanted {
    model: Option<String>,
    user: Option<String>,
    adapters: Option<Vec<Part>>,
    prompts: Vec<Prompt>,
    framing: Framing,
    terms: Terms,
    /// Choices of each prompt that are sent; the likeliest, where more are made.
    shown: usize,
    echo: bool,
    /// The likeliest tokens beside each, where scores are wanted.
    logprobs: Option<usize>,
}

impl Wanted {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        refuse_unsupported(bytes, &[GENERATION, COMPLETION])?;
        let common: Common = parse(bytes)?;
        let fields: CompletionFields = parse(bytes)?;
        let mut terms = Terms::read(&common)?;
        let shown = terms.choices;
        terms.choices = best_of(fields.best_of, &terms)?;
        let prompts = fields.prompt.0;
        check_choices(prompts.len(), &terms)?;
        let top = fields.logprobs.unwrap_or(0);
        within("logprobs", Some(top), 0..=MAX_TOP_LOGPROBS, 0)?;
        Ok(Self {
            model: common.model,
            user: common.user,
            adapters: prompt::parts(common.adapters)?,
            prompts,
            framing: prompt::framing(common.add_special_tokens, Framing::Framed),
            terms,
            shown,
            echo: fields.echo == Some(true),
            logprobs: fields.logprobs,
        })
    }

    /// Refuses the whole request if one of its prompts cannot fit, before the first is encoded.
    fn check_room(&self, encoder: &Encoder) -> Result<(), ApiError> {
        self.prompts.iter().try_for_each(|prompt| match prompt {
            Prompt::Text(text) => encoder.check_room(text),
            Prompt::Ids(_) => Ok(()),
        })
    }

    /// The tokens of the prompts, and the prompts again where they are to be sent back.
    fn encode(&self, encoder: &Encoder, asker: &Asker) -> Result<Encoded, ApiError> {
        let mut encoded = Encoded::default();
        for prompt in &self.prompts {
            asker.still_there()?;
            let ids = encoder.prompt(prompt, self.framing)?;
            if self.echo {
                encoded.echoes.push(Echo::new(&encoder.text, prompt, &ids, self.terms.specials));
            }
            encoded.prompts.push(ids);
        }
        Ok(encoded)
    }
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

#[derive(Debug, Default)]
struct Encoded {
    prompts: Vec<Vec<u32>>,
    /// One for each prompt, or none.
    echoes: Vec<Echo>,
}

/// Continues one or several prompts.
pub(super) async fn create(
    State(app): State<App>,
    By(caller): By,
    headers: HeaderMap,
    Payload(bytes): Payload,
) -> Result<Response, ApiError> {
    need(&caller, Scope::Infer)?;
    let deadline = Deadline::read(&headers, app.settings().request_timeout)?;
    let permit = app.admit(&caller)?;
    // It is large, and most of it only waits.
    let answer = Box::pin(answer(&app, (&caller, &headers, permit), (bytes, deadline)));
    app.bound(deadline, answer).await
}

async fn answer(
    app: &App,
    (caller, headers, permit): (&Caller, &HeaderMap, Arc<Permit>),
    (bytes, deadline): (axum::body::Bytes, Deadline),
) -> Result<Response, ApiError> {
    let size = bytes.len();
    let mut wanted = app.work(size, move |_| Wanted::read(&bytes)).await?;
    let (voice, requested) = app
        .choose_of(
            caller,
            headers,
            (wanted.model.take(), wanted.user.as_deref()),
            wanted.adapters.as_deref(),
        )
        .await?;
    let encoder = app.encoder();
    wanted.check_room(&encoder)?;
    let extras = app.extras(&voice);
    let default_tokens = extras.sampling.max_tokens.map(|tokens| tokens as usize);
    let encode = move |asker: &Asker| {
        wanted.terms.follow(&extras, &encoder.text)?;
        wanted.encode(&encoder, asker).map(|encoded| (wanted, encoded))
    };
    let (wanted, Encoded { prompts, echoes }) = app.work(size, encode).await?;
    let Wanted { terms, logprobs, echo, shown, .. } = wanted;
    let best = (terms.choices > shown).then_some(Best { of: terms.choices, shown });
    let choices = prompts.len() * terms.choices;
    let writer = Writer {
        text: app.text().clone(),
        scored: logprobs.is_some(),
        delivery: terms.delivery,
        best,
        envelope: Envelope::new("cmpl", requested.clone(), voice.clone(), &app.base().digest),
        echoes: Echoes { prompts: echoes, per_prompt: terms.choices, given: vec![false; choices] },
    };
    let order = Order {
        prompts,
        opening: Opening::Continuing,
        terms,
        default_tokens: default_tokens.unwrap_or(DEFAULT_TOKENS),
        // Without scores there is no best.
        logprobs: logprobs.or(best.map(|_| 0)),
        prompt_logprobs: logprobs.filter(|_| echo),
        voice,
        tenant: caller.tenant,
        permit,
        requested,
        deadline,
    };
    deliver(app, &order, writer).await
}

/// Writes the answers, whole or chunk by chunk.
#[derive(Debug)]
struct Writer {
    text: Text,
    scored: bool,
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

    fn usage(&mut self, usage: Usage) -> Data {
        Data::json(&self.completion(vec![], UsageKey::Now(usage)))
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
