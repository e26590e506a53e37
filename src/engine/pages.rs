//! Who has which KV page, and which hold prefixes that others can use. Only the book-keeping: the memory is the model's.

use std::collections::{BTreeMap, HashMap};

use lru::LruCache;

use super::{job::Scope, prefix::Key};
use crate::model::PAGE;

/// Pages that hold `tokens` positions.
pub(crate) fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

/// All pages.
///
/// - A page is in the tables of its owners, or idle, or blank: one of these.
/// - A page that has a key is full, and nobody writes to it. Only such pages have more than one owner, and only such are idle.
/// - A key leads to at most one page.
/// - Ids run from 0 to `total - 1`.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Ids of pages that hold nothing of use; the next one lent is the last.
    blank: Vec<u32>,
    all: Vec<Page>,
    /// Pages by what they hold.
    kept: HashMap<Key, u32>,
    /// How many pages are in `idle`.
    idle_count: usize,
    /// Pages that nobody owns and that hold a prefix, those of each scope by when they were last of use; none is empty.
    idle: BTreeMap<Scope, LruCache<u32, ()>>,
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// Tables it is in.
    owners: usize,
    /// What it holds, and whose it is.
    name: Option<(Scope, Key)>,
}

impl Pages {
    /// All of `total` pages, blank.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            blank: (0..u32::try_from(total).unwrap_or(u32::MAX)).rev().collect(),
            all: vec![Page::default(); total],
            kept: HashMap::new(),
            idle_count: 0,
            idle: BTreeMap::new(),
        }
    }

    /// How many nobody owns.
    pub(crate) fn free(&self) -> usize {
        self.blank.len() + self.idle()
    }

    /// How many of them hold a prefix.
    pub(crate) fn idle(&self) -> usize {
        self.idle_count
    }

    /// How many there are.
    pub(crate) fn total(&self) -> usize {
        self.all.len()
    }

    /// Lengthens `table` until it covers `tokens` positions, as far as free pages go.
    pub(crate) fn lend(&mut self, tokens: usize, table: &mut Vec<u32>) {
        while table.len() < pages_for(tokens) {
            let Some(id) = self.blank.pop().or_else(|| self.evict()) else { return };
            self.page(id).owners = 1;
            table.push(id);
        }
    }

    /// Puts the pages that hold `keys` into the empty `table`, up to the first key that leads to none.
    pub(crate) fn adopt(&mut self, keys: &[Key], table: &mut Vec<u32>) {
        for id in keys.iter().map_while(|key| self.kept.get(key).copied()).collect::<Vec<_>>() {
            self.own(id);
            table.push(id);
        }
    }

    /// How many pages of `table` are in no other.
    pub(crate) fn sole(&self, table: &[u32]) -> usize {
        table.iter().filter(|id| self.all[**id as usize].owners == 1).count()
    }

    /// How many of the first `keys` lead to pages that somebody owns: to adopt those takes nothing from anybody.
    pub(crate) fn shared(&self, keys: &[Key]) -> usize {
        let owned =
            |key: &&Key| self.kept.get(key).is_some_and(|id| self.all[*id as usize].owners > 0);
        keys.iter().take_while(owned).count()
    }

    /// Page `id`, which one table has, is full of what `key` names. Yields the page that holds it from now on: where another
    /// does already, that one, and this is blank again.
    pub(crate) fn keep(&mut self, id: u32, scope: Scope, key: Key) -> u32 {
        match self.kept.get(&key).copied() {
            None => {
                self.kept.insert(key, id);
                self.page(id).name = Some((scope, key));
                id
            }
            Some(kept) => {
                self.own(kept);
                self.page(id).owners -= 1;
                self.blank.push(id);
                kept
            }
        }
    }

    /// Empties `table`. Its last page is forgotten first: without it those before are still of use.
    pub(crate) fn take_back(&mut self, table: &mut Vec<u32>) {
        for id in table.drain(..).rev() {
            let page = self.page(id);
            page.owners -= 1;
            if page.owners > 0 {
                continue;
            }
            match page.name {
                Some((scope, _)) => {
                    self.idle.entry(scope).or_insert_with(LruCache::unbounded).put(id, ());
                    self.idle_count += 1;
                }
                None => self.blank.push(id),
            }
        }
    }

    /// Makes an idle page blank: the one that was of no use for the longest time, of the scope that has most of them. Idle
    /// prefixes of one scope do not drive out those of another that has fewer.
    fn evict(&mut self) -> Option<u32> {
        let (scope, idle) = self.idle.iter_mut().max_by_key(|(_, idle)| idle.len())?;
        let (scope, (id, ())) = (*scope, idle.pop_lru()?);
        if idle.is_empty() {
            self.idle.remove(&scope);
        }
        self.idle_count -= 1;
        if let Some((_, key)) = self.page(id).name.take() {
            self.kept.remove(&key);
        }
        Some(id)
    }

    /// One more owns page `id`, which has a name.
    fn own(&mut self, id: u32) {
        let page = self.page(id);
        page.owners += 1;
        let Some((scope, _)) = page.name else { return };
        if page.owners > 1 {
            return;
        }
        if let Some(idle) = self.idle.get_mut(&scope) {
            self.idle_count -= usize::from(idle.pop(&id).is_some());
            if idle.is_empty() {
                self.idle.remove(&scope);
            }
        }
    }

    fn page(&mut self, id: u32) -> &mut Page {
        &mut self.all[id as usize]
    }

    /// Fails where an invariant does not hold; `owned` are all tables.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) {
        let mut owners = vec![0; self.total()];
        tables.flatten().for_each(|id| owners[*id as usize] += 1);
        let idle: Vec<u32> =
            self.idle.values().flat_map(|idle| idle.iter().map(|(id, ())| *id)).collect();
        assert!(self.idle.values().all(|idle| !idle.is_empty()));
        assert_eq!(idle.len(), self.idle_count);
        for (id, (page, owners)) in (0..).zip(self.all.iter().zip(owners)) {
            assert_eq!(page.owners, owners, "owners of page {id}");
            let places = usize::from(owners > 0)
                + idle.iter().filter(|idle| **idle == id).count()
                + self.blank.iter().filter(|blank| **blank == id).count();
            assert_eq!(places, 1, "page {id} is in one place");
            assert!(
                owners <= 1 || page.name.is_some(),
                "page {id} is shared and can be written to"
            );
            assert_eq!(idle.contains(&id), owners == 0 && page.name.is_some());
            if let Some((_, key)) = page.name {
                assert_eq!(self.kept.get(&key), Some(&id));
            }
        }
        assert_eq!(self.kept.len(), self.all.iter().filter(|page| page.name.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::job::Salt;
    use crate::engine::prefix::Chain;

    fn keys(scope: u32, pages: usize) -> Vec<Key> {
        Chain::new((Scope(scope), Salt::default()), None).extend(&vec![scope; pages * PAGE])
    }

    /// A table of full pages that are kept.
    fn full(pages: &mut Pages, scope: u32, count: usize) -> Vec<u32> {
        let mut table = Vec::new();
        pages.lend(count * PAGE, &mut table);
        for (id, key) in table.iter_mut().zip(keys(scope, count)) {
            *id = pages.keep(*id, Scope(scope), key);
        }
        table
    }

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
        assert_eq!((table.len(), pages.free(), pages.idle(), pages.total()), (0, 3, 0, 3));
    }

    #[test]
    fn no_more_is_lent_than_there_is() {
        let mut pages = Pages::new(2);
        let mut table = Vec::new();
        pages.lend(5 * PAGE, &mut table);
        assert_eq!((table.as_slice(), pages.free()), ([0, 1].as_slice(), 0));
    }

    #[test]
    fn a_kept_prefix_is_found_by_its_name_while_it_is_owned_and_after() {
        let mut pages = Pages::new(4);
        let mut table = full(&mut pages, 0, 3);
        let mut other = Vec::new();
        pages.adopt(&keys(0, 2), &mut other);
        assert_eq!(other, table[..2]);
        pages.check([table.as_slice(), other.as_slice()].into_iter());
        pages.take_back(&mut table);
        assert_eq!((pages.free(), pages.idle()), (2, 1));
        pages.take_back(&mut other);
        assert_eq!((pages.free(), pages.idle()), (4, 3));
        pages.adopt(&keys(1, 3), &mut other);
        assert!(other.is_empty(), "another scope's");
        pages.adopt(&keys(0, 4), &mut other);
        assert_eq!((other.len(), pages.free()), (3, 1));
        pages.check(std::iter::once(other.as_slice()));
    }

    #[test]
    fn the_end_of_a_prefix_is_forgotten_first() {
        let mut pages = Pages::new(3);
        let mut table = full(&mut pages, 0, 3);
        pages.take_back(&mut table);
        let mut other = Vec::new();
        pages.lend(PAGE, &mut other);
        let mut found = Vec::new();
        pages.adopt(&keys(0, 3), &mut found);
        assert_eq!(found.len(), 2);
        pages.check([other.as_slice(), found.as_slice()].into_iter());
    }

    #[test]
    fn who_keeps_most_loses_first() {
        let mut pages = Pages::new(6);
        let mut small = full(&mut pages, 1, 1);
        pages.take_back(&mut small);
        for _ in 0..3 {
            // One prefix after the other, as fast as they come.
            let mut large = full(&mut pages, 2, 5);
            pages.take_back(&mut large);
            let mut own = Vec::new();
            pages.lend(4 * PAGE, &mut own);
            pages.take_back(&mut own);
        }
        pages.adopt(&keys(1, 1), &mut small);
        assert_eq!(small.len(), 1);
    }

    #[test]
    fn what_two_computed_at_once_is_kept_once() {
        let mut pages = Pages::new(4);
        let (mut first, mut second) = (full(&mut pages, 0, 1), full(&mut pages, 0, 1));
        pages.check([first.as_slice(), second.as_slice()].into_iter());
        assert_eq!((&first, pages.free()), (&second, 3));
        assert_eq!((pages.shared(&keys(0, 3)), pages.shared(&keys(1, 3))), (1, 0));
        pages.take_back(&mut second);
        pages.take_back(&mut first);
        assert_eq!(pages.shared(&keys(0, 3)), 0, "it takes an idle page");
        assert_eq!((pages.free(), pages.idle()), (4, 1));
    }
}
