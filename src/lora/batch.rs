//! Which rows of a step go through which adapter.

use std::{ops::Range, sync::Arc};

use super::{Adapter, Norm};
use crate::kernels::{
    elementwise::GainRows,
    lora::{Stack, StackRows},
};

/// Runs of rows, each of one adapter. Rows in no run are the base's own, and no adapter's work is done for them.
#[derive(Clone, Debug, Default)]
pub struct LoraBatch {
    groups: Vec<(Range<usize>, Arc<Adapter>)>,
}

impl LoraBatch {
    /// The runs of a step, in the order of its rows.
    ///
    /// # Panics
    /// Where runs overlap or are out of order: that would put a row through the wrong adapter.
    pub fn new(groups: Vec<(Range<usize>, Arc<Adapter>)>) -> Self {
        let mut end = 0;
        for (rows, _) in &groups {
            assert!(end <= rows.start && rows.start <= rows.end, "{rows:?} begins before {end}");
            end = rows.end;
        }
        Self { groups }
    }

    /// The runs.
    pub fn groups(&self) -> impl Iterator<Item = (&Range<usize>, &Adapter)> {
        self.groups.iter().map(|(rows, adapter)| (rows, &**adapter))
    }

    /// The runs, with their adapters as they are shared.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn shared_groups(&self) -> impl Iterator<Item = (&Range<usize>, &Arc<Adapter>)> {
        self.groups.iter().map(|(rows, adapter)| (rows, adapter))
    }

    /// Whether all rows are the base's own.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The adapter of a row.
    pub fn adapter(&self, row: usize) -> Option<&Adapter> {
        self.groups().find(|(rows, _)| rows.contains(&row)).map(|(_, adapter)| adapter)
    }

    /// The rows for which `stack` finds something to do; those of a mix once for each of its adapters.
    pub fn stacks<'a>(
        &'a self,
        stack: impl Fn(&'a Adapter) -> Option<&'a Stack>,
    ) -> Vec<StackRows<'a>> {
        let stack = &stack;
        let found = |(rows, adapter): (&'a Range<usize>, &'a Adapter)| {
            let part = move |(part, weight)| {
                Some(StackRows { rows: rows.clone(), stack: stack(part)?, weight })
            };
            adapter.parts().filter_map(part)
        };
        self.groups().flat_map(found).collect()
    }

    /// The rows whose adapter brings its own gain for `norm`.
    pub fn gains(&self, norm: Norm) -> Vec<GainRows<'_>> {
        let found = |(rows, adapter): (&Range<usize>, _)| {
            Some(GainRows { rows: rows.clone(), gain: Adapter::gain(adapter, norm)? })
        };
        self.groups().filter_map(found).collect()
    }

    /// The batch that is left when only `rows` (ascending) are kept.
    #[must_use]
    pub fn of_rows(&self, rows: &[u32]) -> Self {
        let place = |row: usize| rows.partition_point(|kept| (*kept as usize) < row);
        self.mapped(|run| place(run.start)..place(run.end))
    }

    /// The batch of a run of rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let place = |row: usize| row.clamp(rows.start, rows.end) - rows.start;
        self.mapped(|run| place(run.start)..place(run.end))
    }

    fn mapped(&self, place: impl Fn(&Range<usize>) -> Range<usize>) -> Self {
        let groups = self.groups.iter().map(|(rows, adapter)| (place(rows), Arc::clone(adapter)));
        Self { groups: groups.filter(|(rows, _)| !rows.is_empty()).collect() }
    }
}
