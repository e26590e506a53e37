//! A request's jobs: does it fit, a lease, one job per choice, and what they answer in one stream.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream, Peekable, SelectAll},
};

use super::{
    answer::{Answer, End, Piece},
    app::App,
    deadline::Deadline,
    envelope::Envelope,
    error::ApiError,
    form::FormGuide,
    lend::{lend, share},
    metrics::Latency,
    report::Report,
    sampling::{Ends, Terms},
    select::Voice,
    tally::{Counts, Tally},
    tools::Tools,
    wire::{prompt::MAX_CHOICES, usage::Usage},
};
use crate::{
    adapter::Lease,
    engine::{Event, Failure, Guide, Job, Lane, Scope, TokenStream},
    tenant::{Permit, TenantId},
    text::{Detok, Dialect, Stops},
};

/// What is to be generated.
#[derive(Debug)]
pub(super) struct Order {
    /// One or more; each gets as many choices as the terms say.
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) opening: Opening,
    pub(super) terms: Terms,
    /// What may be called, and how the answer says so.
    pub(super) tools: Tools,
    pub(super) dialect: Dialect,
    /// At most so many tokens per choice where the terms do not say; less where the context ends before.
    pub(super) default_tokens: usize,
    /// As in [`Job`].
    pub(super) logprobs: Option<usize>,
    /// As in [`Job`].
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) voice: Voice,
    /// Whose request it is.
    pub(super) tenant: TenantId,
    /// What it spends of its tenant's quota; kept until all choices have ended.
    pub(super) permit: Arc<Permit>,
    /// How the voice was asked for.
    pub(super) requested: String,
    pub(super) deadline: Deadline,
    /// What the log will say of it.
    pub(super) report: Report,
}

/// How the text of an answer stands to its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// It is a text of its own.
    Anew,
    /// It goes on where the prompt ends, in mid-sentence or within a character.
    Continuing,
}

/// Refuses more choices than one request may have, before anything is made for them.
pub(super) fn check_choices(prompts: usize, terms: &Terms) -> Result<(), ApiError> {
    let choices = prompts.saturating_mul(terms.choices);
    if choices > MAX_CHOICES {
        let message =
            format!("'n' times the number of prompts is {choices}, at most {MAX_CHOICES}");
        return Err(ApiError::invalid("n", message));
    }
    Ok(())
}

/// A choice's number and what is new in it.
type Numbered = (usize, Result<Piece, Failure>);

/// The choices of one request as they grow. Dropping it cancels what is not finished.
pub(super) struct Answers {
    pieces: Pin<Box<Peekable<SelectAll<BoxStream<'static, Numbered>>>>>,
    choices: usize,
    /// Those that have not ended.
    running: usize,
    /// Choices of each prompt.
    per_prompt: usize,
    usage: Usage,
    tally: Tally,
    report: Report,
}

impl Answers {
    /// Begins what is ordered. Choices are numbered prompt by prompt.
    pub(super) async fn begin(app: &App, order: &Order) -> Result<Self, ApiError> {
        app.accepting()?;
        let context = app.generator().context();
        let budgets: Vec<usize> = order
            .prompts
            .iter()
            .map(|prompt| order.budget(prompt.len(), context))
            .collect::<Result<_, _>>()?;
        let (voice, report) = (&order.voice, &order.report);
        let lending = lend(app, order.tenant, (voice, &order.requested));
        let lease = report.lending(voice, lending).await?;
        let prompt_tokens = order.prompts.iter().map(Vec::len).sum();
        let per_prompt = order.terms.choices;
        let jobs = order.prompts.iter().zip(budgets).flat_map(|(prompt, budget)| {
            let lease = lease.as_ref();
            (0..per_prompt).map(move |choice| order.job(app, prompt, choice, (budget, lease)))
        });
        let mut streams = app.generator().submit_all(jobs.collect())?.into_iter();
        // From now on something is used.
        let tally = order.tally(app);
        let mut choices: Vec<BoxStream<'static, Numbered>> = Vec::new();
        for prompt in &order.prompts {
            let detok = order.detok(app, prompt);
            for (choice, tokens) in streams.by_ref().take(per_prompt).enumerate() {
                let stops = Stops::new(order.terms.stops.clone(), order.terms.keep);
                let running = Running {
                    number: choices.len(),
                    prompt: (choice == 0).then_some(prompt.len()),
                    tokens,
                    answer: Answer::new(detok.clone(), stops, order.terms.min_tokens),
                    latency: app.metrics().latency(report.clone()),
                    permit: Arc::clone(&order.permit),
                    counts: tally.counts(),
                };
                choices.push(running.pieces().boxed());
            }
        }
        order.permit.spend(prompt_tokens, Instant::now());
        let (count, pieces) = (choices.len(), stream::select_all(choices).peekable());
        Ok(Self {
            pieces: Box::pin(pieces),
            choices: count,
            running: count,
            per_prompt,
            usage: Usage::of_prompts(prompt_tokens),
            tally,
            report: report.clone(),
        })
    }

    /// Waits for the first piece, but no longer than `patience`. A failure before it is still a refusal of the whole request.
    pub(super) async fn started(&mut self, patience: Duration) -> Result<(), ApiError> {
        match tokio::time::timeout(patience, self.pieces.as_mut().peek()).await {
            Ok(Some((_, Err(failure)))) => Err((*failure).into()),
            _ => Ok(()),
        }
    }

    /// The next piece of any choice; `None` when all have ended. What they have used is noted before the last piece is given.
    pub(super) async fn next(&mut self) -> Option<Numbered> {
        let numbered = self.pieces.next().await?;
        let why = match &numbered.1 {
            Ok(piece) => piece.end.map(End::reason),
            Err(failure) => Some(failure.word()),
        };
        if let Some(why) = why {
            self.report.finished(why);
            self.running = self.running.saturating_sub(1);
            if self.running == 0 {
                self.tally.settle().await;
            }
        }
        if let (choice, Ok(Piece { end: Some(end), .. })) = &numbered {
            // Prompts count once, as their first choice found them: later ones mostly find what that one computed.
            let cached = if choice % self.per_prompt == 0 { end.cached } else { 0 };
            self.usage.add(end.tokens, cached);
        }
        Some(numbered)
    }

    /// All choices, each in one piece that has an end.
    pub(super) async fn whole(mut self) -> Result<(Vec<Piece>, Usage), ApiError> {
        let mut choices = vec![Piece::default(); self.choices];
        while let Some((choice, piece)) = self.next().await {
            choices[choice].append(piece?);
        }
        Ok((choices, self.usage()))
    }

    /// Cancels what is not finished.
    pub(super) fn cancel(&mut self) {
        self.pieces = Box::pin(SelectAll::new().peekable());
    }

    /// What it cost, so far as choices have ended.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("choices", &self.choices).finish_non_exhaustive()
    }
}

impl Order {
    /// What all parts of its answer have in common; their id begins with `kind`.
    pub(super) fn envelope(&self, kind: &str, app: &App) -> Envelope {
        Envelope::new(kind, self.requested.clone(), self.voice.clone(), &app.base().digest)
    }

    /// How many tokens an answer to a prompt of this length may have.
    fn budget(&self, prompt: usize, context: usize) -> Result<usize, ApiError> {
        let room = context.saturating_sub(prompt);
        match self.terms.max_tokens {
            Some(asked) if asked > room => Err(ApiError::too_long(prompt, asked, context)),
            Some(asked) => Ok(asked),
            None if room == 0 => Err(ApiError::too_long(prompt, 1, context)),
            None => Ok(self.default_tokens.min(room)),
        }
    }

    fn tally(&self, app: &App) -> Tally {
        Tally::new(app.ledger().clone(), self.tenant, &self.voice, &self.report)
    }

    fn job(
        &self,
        app: &App,
        prompt: &[u32],
        choice: usize,
        (max_tokens, lease): (usize, Option<&Arc<Lease>>),
    ) -> Job {
        Job {
            prompt: prompt.to_vec(),
            adapter: lease.map(share),
            sampling: self.terms.sampling_of(choice),
            max_tokens,
            min_tokens: self.terms.min_tokens,
            guide: self.guide(),
            stop_tokens: self.stop_tokens(app),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            pooling: None,
            // Tenants share the engine fairly, and nothing that one has computed tells another of it.
            lane: Lane(self.tenant.number()),
            scope: Scope(self.tenant.number()),
            salt: self.terms.salt,
            deadline: Some(self.deadline.instant()),
        }
    }

    /// Each choice walks through the form by itself.
    fn guide(&self) -> Option<Box<dyn Guide>> {
        self.terms.walk.as_ref().map(|walk| Box::new(FormGuide(walk.clone())) as _)
    }

    fn stop_tokens(&self, app: &App) -> Arc<[u32]> {
        let own = app.text().stop_tokens();
        match (self.terms.ends, &*self.terms.stop_ids) {
            (Ends::Honoured, []) => Arc::clone(own),
            (Ends::Honoured, more) => own.iter().chain(more).copied().collect(),
            (Ends::Ignored, more) => more.into(),
        }
    }

    /// Decodes an answer to this prompt.
    fn detok(&self, app: &App, prompt: &[u32]) -> Detok {
        let detok = app.text().detok(self.terms.specials);
        match self.opening {
            Opening::Anew => detok,
            Opening::Continuing => detok.after(prompt),
        }
    }
}

/// One choice that has not ended.
struct Running {
    number: usize,
    /// Tokens of its prompt, where it is the first choice of that.
    prompt: Option<usize>,
    tokens: TokenStream,
    answer: Answer,
    latency: Latency,
    permit: Arc<Permit>,
    counts: Arc<Counts>,
}

impl Running {
    /// Its pieces. The job is gone as soon as the choice has ended, which a stop string does before the engine does.
    fn pieces(self) -> impl stream::Stream<Item = Numbered> {
        stream::unfold(Some(self), |running| async move {
            let mut running = running?;
            let (number, piece) = (running.number, running.next().await);
            let more = matches!(piece, Ok(Piece { end: None, .. }));
            Some(((number, piece), more.then_some(running)))
        })
    }

    /// The next piece that says something.
    async fn next(&mut self) -> Result<Piece, Failure> {
        loop {
            let event = self.tokens.next().await.ok_or(Failure::Stopping)?;
            self.latency.observe(&event);
            self.counts.count(&event, self.prompt);
            if matches!(event, Event::Token { .. }) {
                self.permit.spend(1, Instant::now());
            }
            let piece = self.answer.take(event)?;
            if !piece.is_empty() {
                return Ok(piece);
            }
        }
    }
}
