//! `POST /v1/embeddings`: the hidden states of texts as vectors, in the same batch as everything else.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    app::App,
    body::{parse, refuse_unsupported},
    deadline::Deadline,
    desks::Asker,
    envelope,
    error::ApiError,
    lend::{lend, share},
    metrics::Latency,
    openapi::{Choosing, Unanswered},
    prompt::{self, Encoder},
    rates,
    report::Report,
    sampling::salt,
    select::{Part, Voice},
    tally::{Counts, Tally},
    wire::{
        embedding::{self, Embedding, EmbeddingFields, EmbeddingUsage, Embeddings, Format, Vector},
        prompt::Prompt,
        unsupported::EMBEDDING,
    },
    wish::Arrival,
};
use crate::{
    adapter::Lease,
    engine::{Event, Failure, Job, Lane, Pooling, Refused, Salt, Sampling, Scope, TokenStream},
    tenant::{Permit, TenantId},
    text::Framing,
};

/// Inputs of one request that are in the engine at once: enough to fill its steps, few enough to leave its queue to others.
const AT_ONCE: usize = 32;
/// How long it is waited for a place where others have all of them.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a number in an answer, about: it is written at a desk of that size.
const NUMBER_BYTES: usize = 12;

/// What is asked for, understood and within bounds.
#[derive(Debug)]
struct Wanted {
    model: Option<String>,
    user: Option<String>,
    adapters: Option<Vec<Part>>,
    inputs: Vec<Prompt>,
    framing: Framing,
    format: Format,
    pooling: Pooling,
    dimensions: Option<usize>,
    salt: Salt,
}

impl Wanted {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        refuse_unsupported(bytes, &[EMBEDDING])?;
        let fields: EmbeddingFields = parse(bytes)?;
        if fields.normalize == Some(false) {
            let message = "'normalize' cannot be false: vectors have length 1";
            return Err(ApiError::invalid("normalize", message));
        }
        Ok(Self {
            model: fields.model,
            user: fields.user,
            adapters: prompt::parts(fields.adapters)?,
            inputs: fields.input.0,
            framing: prompt::framing(fields.add_special_tokens, Framing::Framed),
            format: fields.encoding_format.unwrap_or_default(),
            pooling: match fields.pooling.unwrap_or_default() {
                embedding::Pooling::Mean => Pooling::Mean,
                embedding::Pooling::Last => Pooling::Last,
            },
            dimensions: fields.dimensions,
            salt: salt(fields.cache_salt.as_deref())?,
        })
    }

    /// No base was trained so that the first numbers of its states could stand for all.
    fn check_dimensions(&self, hidden: usize) -> Result<(), ApiError> {
        if self.dimensions.is_none_or(|dimensions| dimensions == hidden) {
            return Ok(());
        }
        let message =
            format!("'dimensions' can only be {hidden}: vectors of this model cannot be shortened");
        Err(ApiError::invalid("dimensions", message))
    }

    /// The tokens of all inputs; none is encoded where the length of one shows that it cannot fit.
    fn encode(&self, encoder: &Encoder, asker: &Asker) -> Result<Vec<Vec<u32>>, ApiError> {
        for input in &self.inputs {
            if let Prompt::Text(text) = input {
                encoder.check_room(text)?;
            }
        }
        let encode = |input| {
            asker.still_there()?;
            let ids = encoder.ids(input, self.framing)?;
            if ids.is_empty() {
                let message = "each input must have at least one token";
                return Err(ApiError::invalid("input", message));
            }
            Ok(ids)
        };
        self.inputs.iter().map(encode).collect()
    }
}

/// Turns one or several inputs into vectors.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "embeddings", operation_id = "create_embeddings",
    params(Choosing),
    request_body = EmbeddingFields,
    responses((status = 200, description = "A vector for each input", body = Embeddings<'static>), Unanswered)
)]
pub(super) async fn create(State(app): State<App>, arrival: Arrival) -> Result<Response, ApiError> {
    app.bound(arrival.deadline, Box::pin(answer(&app, arrival))).await
}

async fn answer(app: &App, mut arrival: Arrival) -> Result<Response, ApiError> {
    let wanted = arrival.read(app, Wanted::read).await?;
    let Arrival { deadline, headers, caller, permit, size, report, .. } = arrival;
    let named = (wanted.model.clone(), wanted.user.as_deref());
    let (voice, requested) =
        app.choose_of(&caller, &headers, named, wanted.adapters.as_deref()).await?;
    wanted.check_dimensions(app.generator().hidden())?;
    let (format, pooling, salt) = (wanted.format, wanted.pooling, wanted.salt);
    let encoder = app.encoder();
    let inputs = app.work(size, move |asker| wanted.encode(&encoder, asker)).await?;
    app.accepting()?;
    for input in &inputs {
        app.generator().check(input, 0).map_err(refused)?;
    }
    let tokens = inputs.iter().map(Vec::len).sum();
    let lending = lend(app, caller.tenant, (&voice, &requested));
    let lease = report.lending(&voice, lending).await?;
    let reading = Reading { pooling, lease, salt, tenant: caller.tenant, deadline, report };
    let vectors = reading.vectors(app, inputs, (&voice, &permit)).await?;
    let size = vectors.iter().map(Vec::len).sum::<usize>().saturating_mul(NUMBER_BYTES);
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    let written = app.work(size, move |_| write(vectors, format, (&requested, usage))).await?;
    let response = ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], written);
    let mut response = envelope::seal(&voice, response.into_response());
    rates::write(&permit.rates, response.headers_mut());
    Ok(response)
}

/// Prompts are called inputs here.
fn refused(refused: Refused) -> ApiError {
    match refused {
        Refused::BadPrompt { vocab } => {
            let message = format!("each token of 'input' must be below {vocab}");
            ApiError::invalid("input", message)
        }
        refused => refused.into(),
    }
}

fn write(
    vectors: Vec<Vec<f32>>,
    format: Format,
    (model, usage): (&str, EmbeddingUsage),
) -> Result<Vec<u8>, ApiError> {
    let embedding = |(index, numbers)| Embedding {
        object: "embedding",
        index,
        vector: Vector { format, numbers },
    };
    let data = vectors.into_iter().enumerate().map(embedding).collect();
    let embeddings = Embeddings { object: "list", data, model, usage };
    serde_json::to_vec(&embeddings).map_err(|error| {
        tracing::error!(%error, "vectors could not be written");
        ApiError::internal()
    })
}

/// How the inputs of one request are read.
struct Reading {
    pooling: Pooling,
    lease: Option<Arc<Lease>>,
    salt: Salt,
    tenant: TenantId,
    deadline: Deadline,
    report: Report,
}

impl Reading {
    /// The vectors of all inputs, in their order. Dropping the future cancels what is not finished.
    async fn vectors(
        &self,
        app: &App,
        inputs: Vec<Vec<u32>>,
        (voice, permit): (&Voice, &Permit),
    ) -> Result<Vec<Vec<f32>>, ApiError> {
        let mut tally: Option<Tally> = None;
        let mut vectors = vec![Vec::new(); inputs.len()];
        let mut waiting: VecDeque<_> = inputs.into_iter().enumerate().collect();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < AT_ONCE
                && let Some((index, input)) = waiting.front()
            {
                let events = match app.generator().submit(self.job(input)) {
                    Ok(events) => events,
                    // There is a place again when one of its own has ended.
                    Err(Refused::Full { .. } | Refused::Slow { .. }) if !running.is_empty() => {
                        break;
                    }
                    // Others have the places of all that have ended at once. What is done is not thrown away.
                    Err(Refused::Full { .. } | Refused::Slow { .. }) if tally.is_some() => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(refused(error)),
                };
                permit.spend(input.len(), Instant::now());
                // From the first job on something is used.
                let (ledger, report) = (app.ledger(), &self.report);
                let begin = || Tally::new(ledger.clone(), self.tenant, voice, report);
                let tally = tally.get_or_insert_with(begin);
                let latency = app.metrics().latency(report.clone());
                let (index, tokens) = (*index, input.len());
                let input = Input { index, tokens, events, latency, counts: tally.counts() };
                running.push(input.vector());
                waiting.pop_front();
            }
            let Some((index, vector)) = running.next().await else { break };
            vectors[index] = vector?;
        }
        // What was used is noted before the vectors are given.
        if let Some(mut tally) = tally {
            tally.settle().await;
        }
        Ok(vectors)
    }

    fn job(&self, input: &[u32]) -> Job {
        Job {
            prompt: input.to_vec(),
            adapter: self.lease.as_ref().map(share),
            sampling: Sampling::default(),
            max_tokens: 0,
            min_tokens: 0,
            guide: None,
            stop_tokens: [].into(),
            logprobs: None,
            prompt_logprobs: None,
            pooling: Some(self.pooling),
            lane: Lane(self.tenant.number()),
            scope: Scope(self.tenant.number()),
            salt: self.salt,
            deadline: Some(self.deadline.instant()),
        }
    }
}

/// One input that has no vector yet.
struct Input {
    index: usize,
    tokens: usize,
    events: TokenStream,
    latency: Latency,
    counts: Arc<Counts>,
}

impl Input {
    /// Its place among the inputs, and its vector.
    async fn vector(mut self) -> (usize, Result<Vec<f32>, Failure>) {
        let mut vector = Err(Failure::Stopping);
        while let Some(event) = self.events.next().await {
            self.latency.observe(&event);
            self.counts.count(&event, Some(self.tokens));
            match event {
                Event::Pooled(numbers) => vector = Ok(numbers),
                Event::Failed(failure) => vector = Err(failure),
                Event::Begun { .. }
                | Event::Prompt(_)
                | Event::Token { .. }
                | Event::Finished(_) => {}
            }
        }
        (self.index, vector)
    }
}
