//! Which KV pages are free. Only the book-keeping: the memory itself is the model's.

use crate::model::PAGE;

/// Pages that hold `tokens` positions.
pub(crate) fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

/// The pages nobody owns.
///
/// - A page is either here or in exactly one sequence's table.
/// - Ids run from 0 to `total - 1`.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Free ids; the next one lent is the last.
    free: Vec<u32>,
    /// All pages there are.
    total: usize,
}

impl Pages {
    /// All of `total` pages, free.
    pub(crate) fn new(total: usize) -> Self {
        Self { free: (0..u32::try_from(total).unwrap_or(u32::MAX)).rev().collect(), total }
    }

    /// How many nobody owns.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many there are.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Lengthens `table` until it covers `tokens` positions, as far as free pages go.
    pub(crate) fn lend(&mut self, tokens: usize, table: &mut Vec<u32>) {
        let missing = pages_for(tokens).saturating_sub(table.len());
        let rest = self.free.len().saturating_sub(missing);
        table.extend(self.free.drain(rest..).rev());
    }

    /// Empties `table`.
    pub(crate) fn take_back(&mut self, table: &mut Vec<u32>) {
        self.free.extend(table.drain(..).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_grows_by_whole_pages_and_comes_back_whole() {
        let mut pages = Pages::new(3);
        let mut table = Vec::new();
        pages.lend(1, &mut table);
        pages.lend(PAGE, &mut table);
        assert_eq!(table, [0], "the first page holds {PAGE} positions");
        pages.lend(PAGE + 1, &mut table);
        assert_eq!((table.as_slice(), pages.free()), ([0, 1].as_slice(), 1));
        pages.take_back(&mut table);
        assert_eq!((table.len(), pages.free(), pages.total()), (0, 3, 3));
    }

    #[test]
    fn no_more_is_lent_than_there_is() {
        let mut pages = Pages::new(2);
        let mut table = Vec::new();
        pages.lend(5 * PAGE, &mut table);
        assert_eq!((table.as_slice(), pages.free()), ([0, 1].as_slice(), 0));
    }
}
