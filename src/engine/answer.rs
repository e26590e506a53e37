//! A job while it is being answered: its tokens, its sampler and its reader.

use std::{
    mem,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    draft::{Circle, Guess, Phrases, Recall},
    guide::{Allowed, Guidance, Guide},
    job::{Event, Failure, Finish, Job, Lane, Logprob, Salt, Scope},
    pooling::Pool,
    prefix::{Chain, Key},
    sampler::{self, Limits, NotANumber, Sampler},
    sequence::{Outcome, Part, Sequence, SequenceId},
    stats::End,
    step::Side,
    stream::TokenStream,
};
use crate::lora::{Adapter, Digest, Lease};

/// Events of a job beside its tokens: `Begun`, one of `Prompt` and `Pooled`, and one of `Finished` and `Failed`.
const OTHER_EVENTS: usize = 3;

/// What the worker keeps of a job.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Prompt, then the answer so far.
    tokens: Vec<u32>,
    /// How many of them are the prompt's.
    prompt: usize,
    min_tokens: usize,
    max_tokens: usize,
    stop_tokens: Arc<[u32]>,
    sampler: Sampler,
    guidance: Guidance,
    /// A guide that has to be asked what may come after the last token; it is on its way to where that is done.
    asking: Option<Box<dyn Guide>>,
    /// The logits `[vocab]` of the next token, where the guide was not done when they were there.
    held: Option<Vec<f32>>,
    logprobs: Option<usize>,
    scores: Option<Scores>,
    /// The vector that it is for; `None` where it is for an answer.
    pool: Option<Pool>,
    adapter: Option<Lease>,
    lane: Lane,
    scope: Scope,
    salt: Salt,
    /// Names its full pages; `None` where prefixes are not kept.
    chain: Option<Chain>,
    /// Names that the scheduler has not been told.
    keys: Vec<Key>,
    deadline: Option<Instant>,
    /// Holds all events the job can have, so that a slow reader never stops a step.
    events: mpsc::Sender<Event>,
    clock: Clock,
    /// See [`Answer::spare`].
    spared: bool,
    /// What it and its prompt said so far; none before the first guess.
    said: Option<Phrases>,
    /// What it will say next, as far as that is computed in this step.
    draft: Vec<Guess>,
}

/// The prompt's log-probabilities until they are complete.
#[derive(Debug)]
struct Scores {
    /// How many of the likeliest tokens go with each.
    top: usize,
    /// So far.
    scored: Vec<Logprob>,
}

/// When a job came to where it is.
#[derive(Debug)]
struct Clock {
    submitted: Instant,
    /// The first row was planned.
    begun: Option<Instant>,
    /// The prompt was computed to its end.
    prompted: Option<Instant>,
}

/// What a job's rows in a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Known tokens are still pending.
    Pending,
    /// The logits of the next token are there, and its guide is not.
    Held,
    /// One more token is known and wants to be computed.
    Grown,
    /// Nothing more is to be done.
    Finished(Finish),
}

/// Why there is no next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undrawn {
    /// See [`NotANumber`].
    NotANumber,
    /// The guide cannot say what may come.
    Lost,
}

impl From<NotANumber> for Undrawn {
    fn from(NotANumber: NotANumber) -> Self {
        Self::NotANumber
    }
}

impl From<Undrawn> for Failure {
    fn from(undrawn: Undrawn) -> Self {
        match undrawn {
            Undrawn::NotANumber => Self::NotANumber,
            Undrawn::Lost => Self::Guide,
        }
    }
}

impl Answer {
    /// A job that came in at `now`, and where its events will be read.
    pub(crate) fn new(job: Job, now: Instant) -> (Self, TokenStream) {
        // A prompt that is pooled is neither continued nor scored.
        let job = match job.pooling {
            Some(_) => Job { max_tokens: 0, prompt_logprobs: None, ..job },
            None => job,
        };
        let (events, receiver) = mpsc::channel(job.max_tokens + OTHER_EVENTS);
        let answer = Self {
            prompt: job.prompt.len(),
            sampler: Sampler::new(job.sampling, &job.prompt),
            tokens: job.prompt,
            min_tokens: job.min_tokens,
            max_tokens: job.max_tokens,
            guidance: if job.guide.is_some() { Guidance::Asked } else { Guidance::Free },
            asking: job.guide,
            held: None,
            stop_tokens: job.stop_tokens,
            logprobs: job.logprobs,
            scores: job.prompt_logprobs.map(|top| Scores { top, scored: Vec::new() }),
            pool: job.pooling.map(Pool::new),
            adapter: job.adapter,
            lane: job.lane,
            scope: job.scope,
            salt: job.salt,
            chain: None,
            keys: Vec::new(),
            deadline: job.deadline,
            events,
            clock: Clock { submitted: now, begun: None, prompted: None },
            spared: false,
            said: None,
            draft: Vec::new(),
        };
        (answer, TokenStream::new(receiver))
    }

    /// Names the pages of its prompt, by which it and others find them. It takes time, and is done before the job is in line.
    pub(crate) fn name_pages(&mut self) {
        let mut chain = Chain::new((self.scope, self.salt), self.digest());
        self.keys = chain.extend(&self.tokens);
        self.chain = Some(chain);
    }

    /// Whose turn it takes.
    pub(crate) fn lane(&self) -> Lane {
        self.lane
    }

    /// Whether it may be put in line once more after a panic: where it had not begun, and only once, since it may be the reason.
    pub(crate) fn spare(&mut self) -> bool {
        let spared = !self.spared && self.clock.begun.is_none();
        self.spared = true;
        if spared && self.chain.is_some() {
            self.name_pages();
        }
        spared
    }

    /// The scheduler's view of it.
    pub(crate) fn sequence(&mut self, id: SequenceId) -> Sequence {
        let keys = mem::take(&mut self.keys);
        let (wanted, outcome) = self.wanted();
        let sequence = Sequence::new(id, self.lane, self.digest(), self.prompt, wanted);
        sequence.keyed(self.scope, keys).wanting(outcome)
    }

    /// Names of the pages that its tokens fill and that have none yet.
    pub(crate) fn new_keys(&mut self) -> Vec<Key> {
        self.chain.as_mut().map_or_else(Vec::new, |chain| chain.extend(&self.tokens))
    }

    fn digest(&self) -> Option<Digest> {
        self.adapter().map(|adapter| adapter.digest())
    }

    /// Positions whose logits or states are of use: the logits of the last of the prompt and of all behind it, where something
    /// is to be generated; of those before it, where the prompt is scored; states, where they are pooled.
    fn wanted(&self) -> (Range<usize>, Outcome) {
        if let Some(pool) = &self.pool {
            return (pool.positions(self.prompt), Outcome::States);
        }
        let last = self.prompt - 1;
        let start = if self.scores.is_some() { 0 } else { last };
        (start..if self.max_tokens == 0 { last } else { usize::MAX }, Outcome::Logits)
    }

    /// What it runs through.
    pub(crate) fn adapter(&self) -> Option<&Arc<Adapter>> {
        self.adapter.as_ref().map(Lease::adapter)
    }

    /// The tokens of a part of it, known and guessed.
    pub(crate) fn tokens(&self, part: &Part) -> impl Iterator<Item = u32> {
        debug_assert_eq!(part.guessed, self.draft.len(), "the guesses of this step");
        let known = &self.tokens[part.rows.start..part.rows.end - part.guessed];
        known.iter().copied().chain(self.draft[..part.guessed].iter().map(|guess| guess.token))
    }

    /// Those who may learn what it says.
    pub(crate) fn circle(&self) -> Circle {
        Circle { scope: self.scope, salt: self.salt, adapter: self.digest() }
    }

    /// At most `most` tokens that it will say after those known, each with a chance above `least`. Where a guide is asked after each
    /// token, there are none; and none behind its end.
    pub(crate) fn guess(&mut self, recall: &Recall, most: usize, least: f32) -> Vec<Guess> {
        // The last token of all is drawn and not computed.
        let most = most.min((self.max_tokens - self.generated()).saturating_sub(1));
        if most == 0 || !matches!(self.guidance, Guidance::Free) {
            return Vec::new();
        }
        let circle = self.circle();
        let said = self.said.get_or_insert_with(|| Phrases::of(&self.tokens));
        let mut draft = recall.guess(circle, (said, &self.tokens), most, least);
        let end = draft.iter().position(|guess| self.stop_tokens.contains(&guess.token));
        draft.truncate(end.unwrap_or(most));
        draft
    }

    /// These guesses are computed in this step.
    pub(crate) fn foresee(&mut self, draft: Vec<Guess>) {
        self.draft = draft;
    }

    /// What was guessed of it.
    pub(crate) fn take_draft(&mut self) -> Vec<Guess> {
        mem::take(&mut self.draft)
    }

    /// The last token known.
    pub(crate) fn last(&self) -> Option<u32> {
        self.tokens.last().copied()
    }

    /// Its last token was said: it and others of its circle may say it again.
    pub(crate) fn note(&mut self, recall: &mut Recall) {
        if let Some(said) = &mut self.said {
            said.note(&self.tokens);
        }
        recall.note(self.circle(), &self.tokens);
    }

    /// Why it has to end before the next step, if it has to.
    pub(crate) fn interrupted(&self, now: Instant) -> Option<End> {
        if self.events.is_closed() {
            return Some(End::Cancelled);
        }
        self.deadline.filter(|deadline| *deadline < now).map(|_| End::Failed(Failure::Deadline))
    }

    /// How many tokens of the answer are known.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Its rows from `first` on are in a step planned at `now`; how long it waited, if these are its first rows, and those
    /// before them were at hand.
    pub(crate) fn begin(&mut self, first: usize, now: Instant) -> Option<Duration> {
        if self.clock.begun.is_some() {
            return None;
        }
        self.clock.begun = Some(now);
        let waited = now.saturating_duration_since(self.clock.submitted);
        self.send(Event::Begun { cached: first, waited });
        Some(waited)
    }

    /// Its rows up to the one at `end - 1` are computed at `now`; its prompt's length and how long that took, if they
    /// complete it for the first time.
    pub(crate) fn pass_prompt(&mut self, end: usize, now: Instant) -> Option<(usize, Duration)> {
        if end < self.prompt || self.clock.prompted.is_some() {
            return None;
        }
        self.clock.prompted = Some(now);
        Some((self.prompt, now.saturating_duration_since(self.clock.begun?)))
    }

    /// How long the answer took until `now`, without the prompt, where there was to be one.
    pub(crate) fn decoding(&self, now: Instant) -> Option<Duration> {
        let prompted = self.clock.prompted.filter(|_| self.max_tokens > 0);
        prompted.map(|prompted| now.saturating_duration_since(prompted))
    }

    /// Takes the hidden states `[part.pooled, hidden]` of its rows in a step, and tells the reader their vector once it is whole.
    pub(crate) fn pool(&mut self, part: &Part, states: &[f32]) -> Result<(), NotANumber> {
        let Some(mut pool) = self.pool.take() else { return Ok(()) };
        if !part.pooled.is_empty() {
            states.chunks_exact(states.len() / part.pooled.len()).for_each(|state| pool.add(state));
        }
        if part.completes {
            self.send(Event::Pooled(pool.vector()?));
        } else {
            self.pool = Some(pool);
        }
        Ok(())
    }

    /// Whether the greedy token alone is of use of what `part` samples, and is found without this answer.
    pub(crate) fn is_greedy(&self, part: &Part, side: Side) -> bool {
        let limits = Limits {
            allowed: None,
            stops: &self.stop_tokens,
            goes_on: self.generated() < self.min_tokens,
        };
        side == Side::Device
            && part.sampled.len() == 1
            && part.completes
            && self.max_tokens > 0
            && self.scores.is_none()
            && self.logprobs.is_none()
            && matches!(self.guidance, Guidance::Free)
            && self.sampler.is_greedy(&limits)
    }

    /// Takes the greedy token of the one row that it sampled, where [that](Self::is_greedy) was all it wanted.
    pub(crate) fn accept_greedy(&mut self, token: Option<u32>) -> Result<Next, Undrawn> {
        self.go_on(token.ok_or(NotANumber)?, None)
    }

    /// Takes the logits `[part.sampled, vocab]` of its rows in a step, and tells the reader what is new but the end.
    pub(crate) fn accept(&mut self, part: &Part, logits: &[f32]) -> Result<Next, Undrawn> {
        let mut rows = match part.sampled.len() {
            0 => logits.chunks_exact(1),
            sampled => logits.chunks_exact(logits.len() / sampled),
        };
        self.score(part, &mut rows)?;
        if !part.completes {
            return Ok(Next::Pending);
        }
        if let Some(scores) = self.scores.take() {
            self.send(Event::Prompt(scores.scored));
        }
        if self.max_tokens == 0 {
            return Ok(Next::Finished(Finish::Length));
        }
        match rows.next() {
            Some(row) => self.decide(row),
            // It lost its pages while its guide was asked: they are there again, and its logits were all the time.
            None if self.held.is_some() => Ok(Next::Held),
            None => Err(Undrawn::NotANumber),
        }
    }

    /// The logits of all rows before the last known token say how likely the token behind them was.
    fn score<'a>(
        &mut self,
        part: &Part,
        rows: &mut impl Iterator<Item = &'a [f32]>,
    ) -> Result<(), NotANumber> {
        let known = self.tokens.len() - 1;
        for position in part.sampled.start..part.sampled.end.min(known) {
            let row = rows.next().ok_or(NotANumber)?;
            if let Some(scores) = &mut self.scores {
                scores.scored.push(sampler::score(row, self.tokens[position + 1], scores.top)?);
            }
        }
        Ok(())
    }

    /// Takes note of what may come next, and draws it where its logits are there already.
    pub(crate) fn guided(&mut self, guidance: Guidance) -> Option<Result<Next, Undrawn>> {
        self.guidance = guidance;
        let row = self.held.take()?;
        Some(self.decide(&row))
    }

    /// A guide to be asked what may come after the token beside it, or first.
    pub(crate) fn asking(&mut self) -> Option<(Box<dyn Guide>, Option<u32>)> {
        let guide = self.asking.take()?;
        let last = self.tokens[self.prompt..].last().copied();
        Some((guide, last))
    }

    /// The next token after its logits `[vocab]`, or the end; nothing yet where the guide is still asked.
    fn decide(&mut self, row: &[f32]) -> Result<Next, Undrawn> {
        let allowed = match &self.guidance {
            Guidance::Free => None,
            Guidance::Asked => {
                self.held = Some(row.to_vec());
                return Ok(Next::Held);
            }
            Guidance::Lost => return Err(Undrawn::Lost),
            Guidance::Told(_, Allowed::Nothing) => return Ok(Next::Finished(Finish::Stop)),
            Guidance::Told(_, Allowed::Tokens(tokens)) => Some(tokens),
        };
        let goes_on = self.generated() < self.min_tokens;
        let limits = Limits { allowed, stops: &self.stop_tokens, goes_on };
        let id = self.sampler.draw(row, &limits)?;
        self.go_on(id, Some(row))
    }

    /// The next token is known, and with `row` its logits `[vocab]`.
    fn go_on(&mut self, id: u32, row: Option<&[f32]>) -> Result<Next, Undrawn> {
        if self.stop_tokens.contains(&id) {
            return Ok(Next::Finished(Finish::Stop));
        }
        let wanted = row.zip(self.logprobs);
        let logprob = wanted.map(|(row, top)| sampler::score(row, id, top)).transpose()?;
        self.tokens.push(id);
        self.send(Event::Token { id, logprob });
        if self.generated() == self.max_tokens {
            return Ok(Next::Finished(Finish::Length));
        }
        self.asking = match mem::replace(&mut self.guidance, Guidance::Free) {
            Guidance::Told(guide, _) => {
                self.guidance = Guidance::Asked;
                Some(guide)
            }
            _ => None,
        };
        Ok(Next::Grown)
    }

    /// Gives the adapter back; what is left tells the reader the end, if there is a reader. And its guide, if it is here.
    pub(crate) fn end(self, end: End) -> (Farewell, Option<Box<dyn Guide>>) {
        drop(self.adapter);
        let guide = match self.guidance {
            Guidance::Told(guide, _) => Some(guide),
            Guidance::Free | Guidance::Asked | Guidance::Lost => self.asking,
        };
        (Farewell { events: self.events, end }, guide)
    }

    fn send(&self, event: Event) {
        // Full it cannot be; closed means cancelled, which the next sweep sees.
        let sent = self.events.try_send(event);
        debug_assert!(!matches!(sent, Err(mpsc::error::TrySendError::Full(_))), "room was counted");
    }
}

/// The last event of a job, to be sent when all it held is free and counted.
#[derive(Debug)]
#[must_use = "the reader waits for it"]
pub(crate) struct Farewell {
    events: mpsc::Sender<Event>,
    end: End,
}

impl Farewell {
    /// Tells the reader.
    pub(crate) fn send(self) {
        let event = match self.end {
            End::Finished(finish) => Event::Finished(finish),
            End::Failed(failure) => Event::Failed(failure),
            End::Cancelled => return,
        };
        // A reader who has left needs no farewell.
        drop(self.events.try_send(event));
    }
}
