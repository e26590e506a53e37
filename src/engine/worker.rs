//! The thread that owns the device: drain, plan, compute, commit, tell.

mod adapters;
mod guesses;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use tokio::sync::watch;

use super::{
    Settings,
    answer::{Answer, Farewell, Next, Undrawn},
    draft::Recall,
    guide::{Guidance, Guided, Guides},
    inbox::{Inbox, News, Phase, Public},
    job::Failure,
    pace::Pace,
    scheduler::{Plan, Scheduler},
    sequence::{Part, SequenceId},
    stats::{End, Stats},
    step::{Batch, Forward, Results},
};

/// A step counts as mixed from so many rows of adapters on...
const MIXED_ROWS: usize = 8;
/// ...and so many different adapters.
const MIXED_ADAPTERS: usize = 4;

/// What a step gave a part.
#[derive(Clone, Copy)]
enum Drawn<'a> {
    /// The greedy token of its one row, or none where a logit is no number.
    Greedy(Option<u32>),
    /// Its logits `[part.sampled, vocab]`, and its states `[part.pooled, hidden]`.
    Rows(&'a [f32], &'a [f32]),
}

/// All state of the engine beside the inbox; nobody else can reach it.
#[derive(Debug)]
pub(crate) struct Worker<F> {
    network: F,
    settings: Settings,
    scheduler: Scheduler,
    /// Told of, and not in line yet.
    arrivals: VecDeque<(SequenceId, Answer)>,
    /// Back from their work, and not looked at yet.
    guided: VecDeque<Guided>,
    /// Exactly the sequences that `scheduler` knows.
    answers: BTreeMap<SequenceId, Answer>,
    /// Jobs taken so far: the next one's name.
    taken: u64,
    /// As it will be published before and after this step.
    stats: Stats,
    /// How fast the line moves.
    pace: Pace,
    /// When the last step was planned, and whether it left somebody waiting.
    planned: (Instant, bool),
    /// To be sent once their ends are published.
    farewells: Vec<Farewell>,
    inbox: Arc<Inbox>,
    guides: Guides,
    recall: Recall,
    /// Most tokens that are guessed of one answer in a step.
    guesses: usize,
    /// All that could be computed is: who runs waits for a guide, and who waits perhaps for an adapter.
    rests: bool,
    /// No step can be computed any more.
    lost: bool,
    /// Dropped with the worker: that is how others know that it is gone.
    _alive: watch::Sender<()>,
}

impl<F: Forward> Worker<F> {
    /// A worker with nothing to do.
    pub(crate) fn new(
        network: F,
        settings: &Settings,
        (inbox, guides): (Arc<Inbox>, Guides),
        alive: watch::Sender<()>,
    ) -> Self {
        let guesses = if network.takes_guesses() { settings.guesses } else { 0 };
        Self {
            network,
            settings: *settings,
            scheduler: Scheduler::new(settings),
            arrivals: VecDeque::new(),
            guided: VecDeque::new(),
            answers: BTreeMap::new(),
            taken: 0,
            stats: Stats::default(),
            pace: Pace::default(),
            planned: (Instant::now(), false),
            farewells: Vec::new(),
            inbox,
            guides,
            recall: if settings.keep_prefixes { Recall::new() } else { Recall::none() },
            guesses,
            rests: false,
            lost: false,
            _alive: alive,
        }
    }

    /// Works until told to stop, and begins anew where it panics.
    pub(crate) fn run(mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            if self.answers.is_empty() && self.arrivals.is_empty() {
                // Nothing would be different the next time.
                tracing::error!("the engine panicked, and had nothing to do: it ends");
                return;
            }
            self.begin_anew();
        }
    }

    /// Gives up the answers that have begun, which may be half done, and plans anew for those in line. Whatever has brought it down
    /// is gone then: a panic has its reason in an answer, and none survives two.
    fn begin_anew(&mut self) {
        let answers = mem::take(&mut self.answers);
        self.scheduler = Scheduler::new(&self.settings);
        self.recall.forget();
        self.rests = false;
        self.stats.restarts += 1;
        let (mut given_up, mut spared) = (0, VecDeque::new());
        for (id, mut answer) in answers {
            if answer.spare() {
                spared.push_back((id, answer));
                continue;
            }
            given_up += 1;
            let end = End::Failed(Failure::Step);
            self.stats.ends.record(end);
            let lane = answer.lane();
            // One that cannot even be ended is dropped, and its reader told so.
            let ended = catch_unwind(AssertUnwindSafe(|| answer.end(end)));
            let Ok((farewell, guide)) = ended else { continue };
            self.farewells.push(farewell);
            if let Some(guide) = guide {
                self.guides.forget(lane, guide);
            }
        }
        tracing::error!(given_up, in_line = spared.len(), "the engine panicked and began anew");
        spared.append(&mut self.arrivals);
        self.arrivals = spared;
    }

    /// Works until told to stop; sleeps while there is nothing to do.
    fn work(&mut self) {
        loop {
            self.publish();
            if self.scheduler.is_idle() && self.arrivals.is_empty() {
                self.inbox.wait();
            } else if self.rests && !self.settle() {
                self.inbox.wait_for_guides();
            }
            let News { arrivals, guided, phase } = self.inbox.receive();
            let first = self.taken;
            self.taken += arrivals.len() as u64;
            self.arrivals.extend((first..).map(SequenceId).zip(arrivals));
            while let Some((id, answer)) = self.arrivals.pop_front() {
                self.take(id, answer);
            }
            self.guided.extend(guided);
            while let Some(guided) = self.guided.pop_front() {
                self.guided(guided);
            }
            match phase {
                Phase::Aborting => return self.abort(),
                Phase::Draining if self.scheduler.is_idle() => return,
                Phase::Open | Phase::Draining => {}
            }
            let now = Instant::now();
            self.sweep(now);
            self.step(now);
            if self.lost {
                tracing::error!("the device computes nothing any more: the engine ends");
                return self.abort();
            }
        }
    }

    /// Puts a job in line.
    fn take(&mut self, id: SequenceId, mut answer: Answer) {
        let sequence = answer.sequence(id);
        self.answers.insert(id, answer);
        self.scheduler.add(sequence);
        self.ask(id);
    }

    /// Asks the guide of an answer, where it has one that is not asked yet, what may come next.
    fn ask(&mut self, id: SequenceId) {
        let answer = self.answer(id);
        let lane = answer.lane();
        if let Some((guide, token)) = answer.asking() {
            self.guides.ask((id, lane), guide, token);
        }
    }

    /// A guide has done its work. Where the logits were there before, the token is drawn now.
    fn guided(&mut self, Guided { id, lane, guidance }: Guided) {
        let Some(answer) = self.answers.get_mut(&id) else {
            // The answer has ended meanwhile.
            if let Guidance::Told(guide, _) = guidance {
                self.guides.forget(lane, guide);
            }
            return;
        };
        let known = answer.generated();
        if let Some(next) = answer.guided(guidance) {
            self.follow(id, next, known, Instant::now());
        }
    }

    /// Ends those whose reader has left or whose time is over.
    fn sweep(&mut self, now: Instant) {
        let interrupted: Vec<_> = self
            .answers
            .iter()
            .filter_map(|(id, answer)| Some((*id, answer.interrupted(now)?)))
            .collect();
        for (id, end) in interrupted {
            self.end(id, end);
        }
    }

    /// One step of everybody who has rows in it.
    fn step(&mut self, now: Instant) {
        self.prepare();
        let mut plan = self.scheduler.plan();
        self.guess(&mut plan);
        self.stats.preemptions += plan.preempted as u64;
        self.rests = plan.parts.is_empty();
        let mut begun = 0;
        for part in &plan.parts {
            if let Some(waited) = self.answer(part.id).begin(part.rows.start, now) {
                begun += 1;
                self.stats.cached_tokens += part.rows.start as u64;
                self.stats.queue_seconds.record(waited);
            }
        }
        let is_pressed = self.scheduler.waiting() > 0;
        let (since, was_pressed) = mem::replace(&mut self.planned, (now, is_pressed));
        self.pace.pass(now.saturating_duration_since(since), was_pressed.then_some(begun));
        if self.rests {
            return;
        }
        // A step takes long: who runs in it is seen meanwhile, and who was ended before it hears of that.
        self.publish();
        let results = self.compute(&plan);
        let done = Instant::now();
        self.count(&plan);
        self.stats.step_seconds.record(done.saturating_duration_since(now));
        if let Some(results) = results {
            self.commit(&plan, &results, done);
            return;
        }
        plan.parts.iter().for_each(|part| self.end(part.id, End::Failed(Failure::Step)));
        self.lost = self.network.is_lost();
    }

    /// What the rows of `plan` want, or `None` if it cannot be had.
    fn compute(&mut self, plan: &Plan) -> Option<Results> {
        let answers = &self.answers;
        let side = self.network.side();
        let batch = Batch::new(&plan.parts, &self.scheduler, side, |id| &answers[&id]);
        let logits = batch.sample.len() * self.network.vocab();
        let states = batch.pool.len() * self.network.hidden();
        let tokens = batch.greedy.len();
        let expected = |got: &Results| {
            (got.logits.len(), got.states.len(), got.greedy.len()) == (logits, states, tokens)
        };
        let network = &mut self.network;
        // Whatever it leaves half done lies where this step's rows are, in pages without a name: they are given back with
        // their sequences, and nobody else has them.
        match catch_unwind(AssertUnwindSafe(|| network.forward(batch))) {
            Ok(Ok(results)) if expected(&results) => return Some(results),
            Ok(Ok(Results { logits, states, .. })) => {
                let (logits, states) = (logits.len(), states.len());
                tracing::error!(logits, states, "a step gave a wrong number of logits or states");
            }
            Ok(Err(error)) => {
                tracing::error!(%error, sequences = plan.parts.len(), "a step failed");
            }
            Err(_) => tracing::error!(sequences = plan.parts.len(), "a step panicked"),
        }
        None
    }

    /// Hands each part what it wants.
    fn commit(&mut self, plan: &Plan, results: &Results, now: Instant) {
        let (vocab, hidden) = (self.network.vocab(), self.network.hidden());
        let (mut logits, mut states) = (&*results.logits, &*results.states);
        let (side, mut greedy) = (self.network.side(), results.greedy.iter());
        for part in &plan.parts {
            if self.answer(part.id).is_greedy(part, side) {
                let token = greedy.next().copied().flatten();
                self.advance(part, Drawn::Greedy(token), now);
                continue;
            }
            let (own_logits, other_logits) = logits.split_at(part.sampled.len() * vocab);
            let (own_states, other_states) = states.split_at(part.pooled.len() * hidden);
            (logits, states) = (other_logits, other_states);
            if part.guessed > 0 {
                self.advance_guessed(part, own_logits, now);
                continue;
            }
            self.advance(part, Drawn::Rows(own_logits, own_states), now);
        }
    }

    /// `part` is computed.
    fn advance(&mut self, part: &Part, drawn: Drawn<'_>, now: Instant) {
        self.scheduler.commit(part);
        let answer = self.answer(part.id);
        let known = answer.generated();
        let passed = answer.pass_prompt(part.rows.end, now);
        let next = match drawn {
            Drawn::Greedy(token) => answer.accept_greedy(token),
            Drawn::Rows(logits, states) => {
                let pooled = answer.pool(part, states).map_err(Undrawn::from);
                pooled.and_then(|()| answer.accept(part, logits))
            }
        };
        if let Some((tokens, seconds)) = passed {
            self.stats.prompt_tokens += tokens as u64;
            self.stats.prefill_seconds.record(seconds);
        }
        self.follow(part.id, next, known, now);
    }

    /// Does what the logits of an answer have led to; `known` tokens of it were known before.
    fn follow(&mut self, id: SequenceId, next: Result<Next, Undrawn>, known: usize, now: Instant) {
        self.stats.generated_tokens += (self.answer(id).generated() - known) as u64;
        match next {
            Ok(Next::Pending | Next::Held) => {}
            Ok(Next::Grown) => {
                let keys = self.answer(id).new_keys();
                self.scheduler.grow(id, keys);
                self.note(id);
                self.ask(id);
            }
            Ok(Next::Finished(finish)) => {
                if let Some(seconds) = self.answer(id).decoding(now) {
                    self.stats.decode_seconds.record(seconds);
                }
                self.end(id, End::Finished(finish));
            }
            Err(undrawn) => self.end(id, End::Failed(undrawn.into())),
        }
    }

    /// Counts a step.
    fn count(&mut self, plan: &Plan) {
        let rows = plan.rows();
        self.stats.steps += 1;
        self.stats.step_rows_total += rows as u64;
        self.stats.max_rows = self.stats.max_rows.max(rows);
        self.stats.mixed_steps += u64::from(plan.is_mixed(MIXED_ROWS, MIXED_ADAPTERS));
    }

    /// A job is over: all it held is free from here on, its reader is told after the step.
    fn end(&mut self, id: SequenceId, end: End) {
        self.scheduler.remove(id);
        if let Some(answer) = self.answers.remove(&id) {
            self.stats.ends.record(end);
            let lane = answer.lane();
            let (farewell, guide) = answer.end(end);
            self.farewells.push(farewell);
            if let Some(guide) = guide {
                self.guides.forget(lane, guide);
            }
        }
    }

    /// Ends everybody.
    fn abort(&mut self) {
        let ids: Vec<_> = self.answers.keys().copied().collect();
        for id in ids {
            self.end(id, End::Failed(Failure::Stopping));
        }
        self.publish();
    }

    /// Makes the numbers public, then tells the ends: who has seen an end finds it counted.
    fn publish(&mut self) {
        self.stats.running = self.scheduler.running();
        self.stats.waiting = self.scheduler.waiting();
        self.stats.pages_total = self.scheduler.pages().total();
        self.stats.pages_free = self.scheduler.pages().free();
        self.stats.pages_idle = self.scheduler.pages().idle();
        self.stats.adapters_running = self.scheduler.slots().bound();
        self.stats.on_device = self.network.on_device();
        let (jobs, pace) = (self.scheduler.jobs(), self.pace.per_second());
        let (_, is_pressed) = self.planned;
        self.inbox.publish(Public { stats: self.stats.clone(), jobs, is_pressed, pace });
        self.farewells.drain(..).for_each(Farewell::send);
    }

    /// The answer of a planned part.
    fn answer(&mut self, id: SequenceId) -> &mut Answer {
        self.answers.get_mut(&id).expect("each sequence has its answer until it is removed")
    }
}

impl<F> Drop for Worker<F> {
    /// Nobody is left waiting, nobody new is let in.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

#[cfg(test)]
mod tests;
