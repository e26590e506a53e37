//! `POST /generate`, `POST /generate_stream` and `POST /`, which is either and what LoRAX's client uses: a text is continued, its
//! tokens are listed.
//!
//! `adapter_id` chooses as `model` does elsewhere, and is the base where it is absent. Nothing is fetched from anywhere.
//! Without sampling parameters the likeliest tokens are taken, and the stop string is a part of the text: both are LoRAX's ways.
//! A stream's last token comes with the whole text, so that each waits for the next one.

use std::mem;

use axum::{extract::State, response::Response};
use serde::Serialize;

use super::{
    answer::{End, Piece, Scored},
    app::App,
    body::parse,
    delivery::{Form, deliver},
    dialect::Dialect,
    envelope::Envelope,
    error::ApiError,
    form::{Asked, Fields},
    logprobs,
    openapi::{Choosing, LoraxUnanswered},
    sampling::{MAX_TOP_LOGPROBS, Terms, within},
    sse::Data,
    tools::Tools,
    wire::{
        common::Common,
        form::FlatFormat,
        lorax::{
            Alternative, Details, Generate, Generated, GeneratedToken, Packed, Parameters,
            StreamDetails, Token,
        },
        object::Object,
        prompt::Prompt,
        unsupported::Weight,
        usage::Usage,
    },
    wish::{Arrival, Said, Wish},
};
use crate::{
    engine::Finish,
    text::{Framing, Text},
};

/// The only source of adapters there is here.
const LOCAL: &str = "local";

/// Which of the three paths it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// `/generate`
    Whole,
    /// `/generate_stream`
    Stream,
    /// `/`: a stream where the body says so, else a list of one answer.
    Either,
}

/// What the answer is to show besides its text.
#[derive(Debug)]
struct Shown {
    path: Path,
    /// The prompt, where it goes before the text.
    lead: String,
    details: bool,
    /// Whether each token comes with others that might have come.
    alternatives: bool,
    /// The seed, where tokens are drawn.
    seed: Option<u64>,
}

/// What is asked for, understood and within bounds.
fn read(bytes: &[u8], path: Path) -> Result<(Wish, Shown), ApiError> {
    let Generate { inputs, parameters, stream, adapters, adapter_id, model } = parse(bytes)?;
    let elsewhere = [("adapters", adapters), ("adapter_id", adapter_id), ("model", model)];
    if let Some((field, _)) =
        elsewhere.iter().find(|(_, given)| !given.as_ref().is_none_or(Weight::is_nothing))
    {
        return Err(ApiError::unsupported(field));
    }
    let Object(mut parameters) = parameters.unwrap_or_default();
    refuse_unsupported(&parameters)?;
    if inputs.is_empty() {
        return Err(ApiError::invalid("inputs", "'inputs' must not be empty"));
    }
    let stream = match path {
        Path::Whole => None,
        Path::Stream => Some(true),
        Path::Either => stream,
    };
    let streamed = stream == Some(true);
    let scored = parameters.decoder_input_details == Some(true);
    if scored && streamed {
        return Err(unsupported("decoder_input_details"));
    }
    let alternatives = parameters.return_k_alternatives;
    let range = 1..=MAX_TOP_LOGPROBS;
    let top = alternatives.map(|k| within("return_k_alternatives", Some(k), range, 0));
    let top = top.transpose()?.unwrap_or(0);
    let details = scored || parameters.details == Some(true);
    let drawn = is_drawn(&parameters);
    let full = parameters.return_full_text == Some(true);
    let model = parameters.adapter_id.take().filter(|id| !id.is_empty());
    let format = parameters.response_format.take();
    let mut terms = terms(parameters, stream)?;
    if let Some(Object(FlatFormat { kind, schema })) = format {
        terms.form = Asked::flat(&Fields::LORAX, &kind, schema.as_ref())?;
    }
    let shown = Shown {
        path,
        lead: if full { inputs.clone() } else { String::new() },
        details,
        alternatives: alternatives.is_some(),
        seed: drawn.then_some(terms.sampling.seed),
    };
    let wish = Wish {
        model,
        user: None,
        adapters: None,
        said: Said::Prompts(vec![Prompt::Text(inputs)], Framing::Framed),
        tools: Tools::default(),
        terms,
        default_tokens: None,
        logprobs: (streamed || details).then_some(top),
        prompt_logprobs: scored.then_some(0),
    };
    Ok((wish, shown))
}

/// Whether tokens are drawn, and not the likeliest ones taken.
fn is_drawn(parameters: &Parameters) -> bool {
    let Parameters { do_sample, temperature, top_k, top_p, .. } = parameters;
    *do_sample == Some(true) || temperature.is_some() || top_k.is_some() || top_p.is_some()
}

fn terms(parameters: Parameters, stream: Option<bool>) -> Result<Terms, ApiError> {
    if parameters.max_new_tokens == Some(0) {
        return Err(ApiError::too_few("max_new_tokens"));
    }
    let greedy = (!is_drawn(&parameters)).then_some(0.0);
    Terms::read(&Common {
        temperature: parameters.temperature.or(greedy),
        top_k: parameters.top_k,
        top_p: parameters.top_p,
        repetition_penalty: parameters.repetition_penalty,
        presence_penalty: parameters.presence_penalty,
        frequency_penalty: parameters.frequency_penalty,
        seed: parameters.seed.map(u64::cast_signed),
        max_tokens: parameters.max_new_tokens,
        stop: parameters.stop,
        include_stop_str_in_output: Some(true),
        ignore_eos: parameters.ignore_eos_token,
        stream,
        ..Common::default()
    })
}

/// Refuses what would change the answer and is not there.
fn refuse_unsupported(parameters: &Parameters) -> Result<(), ApiError> {
    if let Some(source) = &parameters.adapter_source
        && !source.is_empty()
        && source != LOCAL
    {
        let message = "adapters are uploaded to this server, which fetches none: leave \
                       'parameters.adapter_source' out, or send \"local\"";
        return Err(ApiError::invalid("parameters.adapter_source", message));
    }
    if parameters.typical_p.is_some_and(|p| p < 1.0) {
        return Err(unsupported("typical_p"));
    }
    if parameters.best_of.is_some_and(|best| best > 1) {
        return Err(unsupported("best_of"));
    }
    for (field, weight) in [
        ("adapters", &parameters.adapters),
        ("apply_chat_template", &parameters.apply_chat_template),
        ("grammar", &parameters.grammar),
        ("merged_adapters", &parameters.merged_adapters),
        ("model", &parameters.model),
        ("schema", &parameters.schema),
        ("truncate", &parameters.truncate),
        ("watermark", &parameters.watermark),
    ] {
        if !weight.as_ref().is_none_or(Weight::is_nothing) {
            return Err(unsupported(field));
        }
    }
    Ok(())
}

fn unsupported(field: &str) -> ApiError {
    ApiError::unsupported(&format!("parameters.{field}"))
}

/// Continues a text, and answers when it is complete.
#[utoipa::path(
    post, path = "/generate", tag = "answers", operation_id = "generate",
    params(Choosing),
    request_body = Generate,
    responses((status = 200, description = "The answer", body = Generated), LoraxUnanswered)
)]
pub(super) async fn generate(
    State(app): State<App>,
    arrival: Arrival,
) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival, Path::Whole))).await
}

/// Continues a text, and answers as it grows.
#[utoipa::path(
    post, path = "/generate_stream", tag = "answers", operation_id = "generate_stream",
    params(Choosing),
    request_body = Generate,
    responses((status = 200, description = "A stream of tokens", body = GeneratedToken, content_type = "text/event-stream"), LoraxUnanswered)
)]
pub(super) async fn generate_stream(
    State(app): State<App>,
    arrival: Arrival,
) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival, Path::Stream))).await
}

/// Continues a text, and answers as the body asks for it.
#[utoipa::path(
    post, path = "/", tag = "answers", operation_id = "generate_either",
    params(Choosing),
    request_body = Generate,
    responses((status = 200, description = "A list of one answer, or where `stream` is true a stream of tokens", content((Vec<Generated> = "application/json"), (GeneratedToken = "text/event-stream"))), LoraxUnanswered)
)]
pub(super) async fn either(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival, Path::Either))).await
}

async fn answer(app: &App, mut arrival: Arrival, path: Path) -> Result<Response, ApiError> {
    let (mut wish, shown) = arrival.read(app, move |bytes| read(bytes, path)).await?;
    // Whoever names nobody means the base.
    if app.in_header(&arrival.headers)?.is_none() {
        wish.model.get_or_insert_with(|| app.base().id.clone());
    }
    let order = wish.order(app, arrival).await?;
    let writer = Writer {
        text: app.text().clone(),
        prompt: order.prompts.concat(),
        envelope: order.envelope("gen-", app),
        shown,
        said: String::new(),
        characters: 0,
        held: None,
        end: None,
    };
    deliver(app, &order, writer).await
}

/// Writes one answer.
#[derive(Debug)]
struct Writer {
    text: Text,
    prompt: Vec<u32>,
    envelope: Envelope,
    shown: Shown,
    /// The text so far.
    said: String,
    /// Characters that the tokens so far have.
    characters: usize,
    /// The latest token, which is the last one as long as no other comes.
    held: Option<Token>,
    end: Option<End>,
}

impl Writer {
    /// The tokens of a piece. All of its text is divided among them, where each of them begins.
    fn tokens(&mut self, text: &str, scores: &[Scored]) -> Vec<Token> {
        let mut rest = text;
        let nexts = scores.iter().skip(1).map(|next| next.offset).chain([usize::MAX]);
        let token = |(scored, next): (&Scored, usize)| {
            let length = next.saturating_sub(self.characters);
            let cut = rest.char_indices().nth(length).map_or(rest.len(), |(at, _)| at);
            let (own, others) = rest.split_at(cut);
            rest = others;
            self.characters += own.chars().count();
            let mut token = logprobs::lorax(&self.text, &scored.logprob, own);
            token.alternative_tokens.take_if(|_| !self.shown.alternatives);
            token
        };
        let tokens = scores.iter().zip(nexts).map(token).collect();
        self.characters += rest.chars().count();
        tokens
    }

    fn end(&self, end: End) -> StreamDetails {
        let finish_reason = match (end.finish, end.stop) {
            (Finish::Length, _) => "length",
            (Finish::Stop, None) => "eos_token",
            (Finish::Stop, Some(_)) => "stop_sequence",
        };
        StreamDetails {
            finish_reason,
            prompt_tokens: self.prompt.len(),
            generated_tokens: end.tokens,
            seed: self.shown.seed,
        }
    }

    /// What stands for the token of an answer that has none: its end, of which nobody has the score.
    fn nothing(&self) -> Token {
        let id = self.text.stop_tokens().first().copied().unwrap_or_default();
        let chosen = Alternative { id, text: String::new(), logprob: 0.0 };
        Token { chosen, special: true, alternative_tokens: None }
    }
}

fn event(token: Token) -> Data {
    Data::json(&GeneratedToken { token, generated_text: None, details: None })
}

impl Form for Writer {
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    fn whole(&mut self, choices: Vec<Piece>, _: Usage) -> impl Serialize {
        let piece = choices.into_iter().next().expect("each prompt has a choice");
        let Piece { prompt, text, ids: _, scores, end } = piece;
        let details = self.shown.details.then(|| Details {
            end: self.end(end.expect("a whole choice has an end")),
            prefill: prompt
                .map(|scores| logprobs::prefill(&self.text, &self.prompt, &scores))
                .unwrap_or_default(),
            tokens: self.tokens(&text, &scores),
        });
        let generated_text = mem::take(&mut self.shown.lead) + &text;
        let generated = Generated { generated_text, details };
        match self.shown.path {
            Path::Whole | Path::Stream => Packed::Bare(generated),
            Path::Either => Packed::Listed([generated]),
        }
    }

    fn opening(&mut self) -> Vec<Data> {
        Vec::new()
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Data> {
        self.said.push_str(&piece.text);
        self.end = piece.end;
        if let (Some(held), []) = (&mut self.held, &*piece.scores) {
            // The end of an unfinished character, or of what might have been a stop string.
            held.chosen.text.push_str(&piece.text);
        }
        let tokens = self.tokens(&piece.text, &piece.scores).into_iter();
        tokens.filter_map(|token| self.held.replace(token)).map(event).collect()
    }

    fn ending(&mut self, _: Usage) -> Vec<Data> {
        let end = self.end.expect("all choices have ended");
        let token = self.held.take().unwrap_or_else(|| self.nothing());
        vec![Data::json(&GeneratedToken {
            token,
            generated_text: Some(mem::take(&mut self.shown.lead) + &self.said),
            details: self.shown.details.then(|| self.end(end)),
        })]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Data> {
        let held = self.held.take().map(event);
        held.into_iter().chain([Dialect::Lorax.write(error)]).collect()
    }
}
