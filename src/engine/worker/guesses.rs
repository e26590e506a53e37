//! Tokens that are guessed, computed beside others, and drawn if they were right.

use std::time::Instant;

use super::{
    super::{
        answer::Answer,
        draft::Stake,
        scheduler::{Plan, SCORED_ROWS},
        sequence::{Part, SequenceId},
        step::Forward,
    },
    Drawn, Worker,
};

/// Most guessed tokens of a step: their logits take memory like those of prompts that are scored.
const GUESSED_ROWS: usize = SCORED_ROWS;

impl<F: Forward> Worker<F> {
    /// Has tokens computed that answers will probably say after the next one.
    pub(super) fn guess(&mut self, plan: &mut Plan) {
        if self.guesses == 0 {
            return;
        }
        let drawn = plan.parts.iter().filter(|part| part.draws());
        let stake = Stake { rows: plan.rows(), parts: plan.parts.len(), drawn: drawn.count() };
        let continued = plan.parts.iter().filter(|part| part.is_decode() && part.draws());
        let mut drafts = Vec::new();
        for id in continued.map(|part| part.id) {
            let Some(answer) = self.answers.get_mut(&id) else { continue };
            let draft = answer.guess(&self.recall, self.guesses, stake.least_chance());
            drafts.push((id, draft));
        }
        let guesses: Vec<_> = drafts.iter().map(|(_, draft)| draft.as_slice()).collect();
        let taken = stake.take(&guesses, GUESSED_ROWS);
        for ((id, mut draft), taken) in drafts.into_iter().zip(taken) {
            if taken > 0 {
                draft.truncate(self.scheduler.foresee(plan, id, taken));
                self.stats.guessed_tokens += draft.len() as u64;
                self.answer(id).foresee(draft);
            }
        }
    }

    /// A part with guessed tokens is computed, which gave logits `[part.sampled, vocab]`: token after token is drawn for as long as
    /// it is the one that was guessed.
    pub(super) fn advance_guessed(&mut self, part: &Part, logits: &[f32], now: Instant) {
        let answer = self.answer(part.id);
        let (draft, circle) = (answer.take_draft(), answer.circle());
        let mut right = 0;
        for (row, logits) in part.one_by_one().zip(logits.chunks_exact(self.network.vocab())) {
            self.advance(&row, Drawn::Rows(logits, &[]), now);
            let known = self.answers.get(&part.id).and_then(Answer::last);
            if known.is_none() || known != draft.get(right).map(|guess| guess.token) {
                break;
            }
            right += 1;
        }
        self.stats.foreseen_tokens += right as u64;
        self.recall.learn(circle, &draft, right);
    }

    /// An answer has one more token, which it and others may say again.
    pub(super) fn note(&mut self, id: SequenceId) {
        if self.guesses > 0
            && let Some(answer) = self.answers.get_mut(&id)
        {
            answer.note(&mut self.recall);
        }
    }
}
