//! Which lexemes and rules may stand where, and which pairs of characters one text reaches from one place.

use std::collections::{HashMap, HashSet};

use super::{
    super::{Bad, Id, Node},
    Leads, Plan,
    leaves::Leaves,
    spend,
};

/// Some of the lexemes, as bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Set(Vec<u64>);

impl Set {
    pub(super) fn add_all(&mut self, others: &Self) -> bool {
        let mut more = false;
        for (ours, theirs) in self.0.iter_mut().zip(&others.0) {
            more |= *theirs & !*ours != 0;
            *ours |= *theirs;
        }
        more
    }

    pub(super) fn add(&mut self, lexeme: usize) {
        self.0[lexeme / 64] |= 1 << (lexeme % 64);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit)
        })
    }
}

/// A part that is no lexeme, of others: numbers below that of lexemes are lexemes.
pub(super) enum Open {
    Seq(Vec<usize>),
    Either(Vec<usize>),
    Repeat(usize, u32, Option<u32>),
}

/// What may stand where.
pub(super) struct Map {
    pub(super) lexemes: Vec<Id>,
    pub(super) open: Vec<Open>,
    pub(super) leaves: Leaves,
    /// Of each lexeme and part: whether it may be nothing, which lexemes it may begin with.
    pub(super) empty: Vec<bool>,
    pub(super) first: Vec<Set>,
    /// Which may follow.
    pub(super) follow: Vec<Set>,
    /// The whole.
    pub(super) root: usize,
}

impl Map {
    pub(super) fn new(plan: &mut Plan) -> Result<Self, Bad> {
        let root = plan.resolve(plan.grammar.rules[plan.grammar.root]);
        let (mut lexemes, mut open, mut seen) = (Vec::new(), Vec::new(), HashSet::from([root]));
        let mut next = vec![root];
        while let Some(id) = next.pop() {
            if plan.is_lexeme(id) {
                lexemes.push(id);
                continue;
            }
            open.push(id);
            let parts = parts(plan, id);
            next.extend(parts.into_iter().filter(|part| seen.insert(*part)));
        }
        let number: HashMap<Id, usize> =
            lexemes.iter().chain(&open).enumerate().map(|(number, id)| (*id, number)).collect();
        let shape = |id: &Id| {
            let parts = parts(plan, *id).iter().map(|part| number[part]).collect::<Vec<_>>();
            match &plan.grammar.nodes[*id] {
                Node::Seq(_) => Open::Seq(parts),
                Node::Repeat(_, least, most) => Open::Repeat(parts[0], *least, *most),
                Node::Either(_) | Node::Rule(_) | Node::Char(_) => Open::Either(parts),
            }
        };
        let open: Vec<Open> = open.iter().map(shape).collect();
        let mut leaves = Leaves::default();
        for lexeme in &lexemes {
            leaves.add(plan, *lexeme)?;
        }
        let none = Set(vec![0; lexemes.len().div_ceil(64)]);
        let all = lexemes.len() + open.len();
        let mut map = Self {
            empty: leaves.empty.clone(),
            first: vec![none.clone(); all],
            follow: vec![none; all],
            root: number[&root],
            lexemes,
            open,
            leaves,
        };
        map.empty.resize(all, false);
        for lexeme in 0..map.lexemes.len() {
            map.first[lexeme].add(lexeme);
        }
        map.find_first(&mut plan.fuel)?;
        map.find_follow(&mut plan.fuel)?;
        Ok(map)
    }

    /// Spends what one look at all parts costs.
    pub(super) fn pay(&self, fuel: &mut u64) -> Result<(), Bad> {
        let parts = |open: &Open| match open {
            Open::Seq(parts) | Open::Either(parts) => parts.len(),
            Open::Repeat(..) => 1,
        };
        let cost = self.open.iter().map(parts).sum::<usize>() * (1 + self.lexemes.len() / 64);
        spend(fuel, cost as u64)
    }

    pub(super) fn find_first(&mut self, fuel: &mut u64) -> Result<(), Bad> {
        let begin = self.lexemes.len();
        loop {
            self.pay(fuel)?;
            let mut more = false;
            for (at, open) in self.open.iter().enumerate().rev() {
                let mut first = self.first[begin + at].clone();
                let empty = match open {
                    Open::Seq(parts) => parts.iter().all(|part| {
                        more |= first.add_all(&self.first[*part]);
                        self.empty[*part]
                    }),
                    Open::Either(parts) => parts.iter().fold(false, |empty, part| {
                        more |= first.add_all(&self.first[*part]);
                        empty || self.empty[*part]
                    }),
                    Open::Repeat(part, least, _) => {
                        more |= first.add_all(&self.first[*part]);
                        *least == 0 || self.empty[*part]
                    }
                };
                more |= empty && !self.empty[begin + at];
                self.empty[begin + at] |= empty;
                self.first[begin + at] = first;
            }
            if !more {
                return Ok(());
            }
        }
    }

    pub(super) fn find_follow(&mut self, fuel: &mut u64) -> Result<(), Bad> {
        let begin = self.lexemes.len();
        loop {
            self.pay(fuel)?;
            let mut more = false;
            for (at, open) in self.open.iter().enumerate() {
                let mut after = self.follow[begin + at].clone();
                match open {
                    Open::Seq(parts) => {
                        for part in parts.iter().rev() {
                            more |= self.follow[*part].add_all(&after);
                            if self.empty[*part] {
                                after.add_all(&self.first[*part]);
                            } else {
                                after.clone_from(&self.first[*part]);
                            }
                        }
                    }
                    Open::Either(parts) => {
                        for part in parts {
                            more |= self.follow[*part].add_all(&after);
                        }
                    }
                    Open::Repeat(part, _, most) => {
                        if *most != Some(1) {
                            after.add_all(&self.first[*part]);
                        }
                        more |= self.follow[*part].add_all(&after);
                    }
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    pub(super) fn first_of_all(&self) -> Set {
        self.first[self.root].clone()
    }

    pub(super) fn leads(&self, lexemes: &Set) -> Leads {
        let leaves = lexemes.iter().flat_map(|lexeme| &self.leaves.first[lexeme]);
        leaves.fold(Leads::default(), |leads, leaf| leads.or(self.leaves.leads[*leaf]))
    }
}

/// The parts of a part, where it is no lexeme.
pub(super) fn parts(plan: &Plan, id: Id) -> Vec<Id> {
    match &plan.grammar.nodes[id] {
        Node::Char(_) => Vec::new(),
        Node::Seq(parts) | Node::Either(parts) => {
            parts.iter().map(|part| plan.resolve(*part)).collect()
        }
        Node::Repeat(part, ..) => vec![plan.resolve(*part)],
        Node::Rule(rule) => vec![plan.resolve(plan.grammar.rules[*rule])],
    }
}

/// Pairs of characters that may be reached by one text from one place.
#[derive(Default)]
pub(super) struct Pairs {
    pub(super) lexemes: HashSet<(usize, usize)>,
    pub(super) seen: HashSet<(usize, usize)>,
    pub(super) next: Vec<(usize, usize)>,
}

impl Pairs {
    /// Each of these lexemes may stand where each of those may.
    pub(super) fn add_lexemes(
        &mut self,
        map: &Map,
        ones: &Set,
        twos: &Set,
        fuel: &mut u64,
    ) -> Result<(), Bad> {
        for one in ones.iter() {
            for two in twos.iter() {
                spend(fuel, 1)?;
                for pair in [(one, two), (two, one)] {
                    if self.lexemes.insert(pair) {
                        let leaves = &map.leaves;
                        self.add_leaves(
                            leaves,
                            &leaves.first[pair.0],
                            &leaves.first[pair.1],
                            fuel,
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn add_leaves(
        &mut self,
        leaves: &Leaves,
        ones: &[usize],
        twos: &[usize],
        fuel: &mut u64,
    ) -> Result<(), Bad> {
        for &one in ones {
            for &two in twos {
                spend(fuel, 1)?;
                if leaves.leads[one].meets(leaves.leads[two])
                    && leaves.sets[one].meets(&leaves.sets[two])
                    && self.seen.insert((one, two))
                {
                    self.next.push((one, two));
                }
            }
        }
        Ok(())
    }
}
