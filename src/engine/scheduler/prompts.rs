//! Which rows of a step prompts get: how they are divided among lanes, and among the prompts of each.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{Plan, SCORED_ROWS, Scheduler};
use crate::engine::{job::Lane, sequence::SequenceId};

/// The prompts of one lane that want rows.
#[derive(Debug)]
struct Prompts {
    lane: Lane,
    /// What the lane has been given.
    given: u64,
    /// Each with the rows it could take, oldest first.
    needs: Vec<(SequenceId, usize)>,
    /// Rows they take together where none takes more than another may.
    even: usize,
    /// Rows they may take: those, or as many as the lane is behind.
    most: usize,
}

impl Prompts {
    /// Divides `rows`: at most `most` to each, then what is left to the oldest.
    fn divide(&self, mut rows: usize, most: usize) -> Vec<(SequenceId, usize)> {
        let mut shares = vec![0; self.needs.len()];
        for most in [most, usize::MAX] {
            for (share, (_, need)) in shares.iter_mut().zip(&self.needs) {
                let more = (need - *share).min(most).min(rows);
                *share += more;
                rows -= more;
            }
        }
        self.needs.iter().zip(shares).map(|((id, _), share)| (*id, share)).collect()
    }
}

impl Scheduler {
    /// The rows that are left, to all others.
    pub(super) fn plan_prompts(&mut self, plan: &mut Plan, most: usize) {
        let rows = self.step_tokens.saturating_sub(plan.rows());
        let lanes = self.prompts(plan, most);
        // The step is as long as even shares make it, or as one that is behind does, with a row for the oldest.
        let even = lanes.iter().map(|lane| lane.even).sum::<usize>();
        let rows = rows.min(lanes.iter().map(|lane| lane.most + 1).fold(even, usize::max));
        let claims: Vec<_> = lanes.iter().map(|lane| (lane.given, lane.most)).collect();
        let shares = shares(rows, &claims);
        let mut scores = SCORED_ROWS;
        for (prompts, share) in lanes.iter().zip(shares) {
            for (id, wish) in prompts.divide(share, most) {
                // None where an older one has preempted it meanwhile.
                let index = self.running.iter().position(|sequence| sequence.id() == id);
                let wish = index.map_or(0, |index| self.running[index].reach(scores).min(wish));
                if let Some(index) = index.filter(|_| wish > 0)
                    && let Some(part) = self.take_rows(index, wish, plan)
                {
                    scores -= part.sampled.len().saturating_sub(1);
                }
            }
        }
    }

    /// Prompts that want rows, by lanes in the order of their oldest. Each may take `most`.
    fn prompts(&self, plan: &Plan, most: usize) -> Vec<Prompts> {
        let given = self.running.iter().map(|sequence| self.counters.of(sequence.lane()));
        let greatest = given.max().unwrap_or(0);
        let mut lanes: Vec<Prompts> = Vec::new();
        for sequence in self.running.iter().filter(|sequence| !plan.holds(sequence.id())) {
            let lane = sequence.lane();
            let known = lanes.iter().position(|prompts| prompts.lane == lane);
            let at = known.unwrap_or_else(|| {
                let given = self.counters.of(lane);
                lanes.push(Prompts { lane, given, needs: Vec::new(), even: 0, most: 0 });
                lanes.len() - 1
            });
            let need = sequence.reach(SCORED_ROWS);
            lanes[at].needs.push((sequence.id(), need));
            lanes[at].even += need.min(most);
        }
        for prompts in &mut lanes {
            let need = prompts.needs.iter().map(|(_, need)| need).sum::<usize>();
            let behind = usize::try_from(greatest - prompts.given).unwrap_or(usize::MAX);
            prompts.most = prompts.even.max(need.min(behind));
        }
        lanes
    }
}

/// Divides `rows` among lanes that have been given so much and may take so many: each row goes to whoever has been given least by
/// then, but the first to the first lane.
pub(super) fn shares(rows: usize, lanes: &[(u64, usize)]) -> Vec<usize> {
    let mut shares = vec![0; lanes.len()];
    let start = |(lane, (given, _)): (usize, &(u64, usize))| {
        Reverse((if lane == 0 { 0 } else { *given }, lane))
    };
    let mut line: BinaryHeap<_> = lanes.iter().enumerate().map(start).collect();
    for _ in 0..rows {
        let Some(Reverse((_, lane))) = line.pop() else { break };
        shares[lane] += 1;
        let (given, most) = lanes[lane];
        if shares[lane] < most {
            line.push(Reverse((given + shares[lane] as u64, lane)));
        }
    }
    shares
}
