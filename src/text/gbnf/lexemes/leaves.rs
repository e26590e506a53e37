//! The characters of lexemes, and which may follow which.

use super::{
    super::{Bad, Chars, Id, Node},
    Leads, MAX_LEAVES, Plan,
};

/// The characters of all lexemes, as often as they stand in one, and which come after which.
#[derive(Default)]
pub(super) struct Leaves {
    pub(super) leads: Vec<Leads>,
    pub(super) sets: Vec<Chars>,
    pub(super) lexeme: Vec<usize>,
    /// In which part of its lexeme it is.
    pub(super) part: Vec<usize>,
    pub(super) next: Vec<Vec<usize>>,
    pub(super) last: Vec<bool>,
    /// Of each lexeme.
    pub(super) first: Vec<Vec<usize>>,
    pub(super) empty: Vec<bool>,
    pub(super) edges: usize,
}

/// Where a part of a lexeme begins and ends.
pub(super) struct Ends {
    pub(super) empty: bool,
    pub(super) first: Vec<usize>,
    pub(super) last: Vec<usize>,
}

impl Leaves {
    pub(super) fn add(&mut self, plan: &Plan, lexeme: Id) -> Result<(), Bad> {
        let ends = match &plan.grammar.nodes[lexeme] {
            Node::Seq(parts) => {
                let mut ends = Ends { empty: true, first: Vec::new(), last: Vec::new() };
                for (part, id) in parts.iter().enumerate() {
                    let next = self.grow(plan, *id, part)?;
                    ends = self.then(ends, next)?;
                }
                ends
            }
            _ => self.grow(plan, lexeme, 0)?,
        };
        for leaf in ends.last {
            self.last[leaf] = true;
        }
        self.first.push(ends.first);
        self.empty.push(ends.empty);
        Ok(())
    }

    pub(super) fn grow(&mut self, plan: &Plan, id: Id, part: usize) -> Result<Ends, Bad> {
        match &plan.grammar.nodes[id] {
            Node::Char(chars) => self.leaf(chars, part),
            Node::Seq(parts) => {
                let mut ends = Ends { empty: true, first: Vec::new(), last: Vec::new() };
                for id in parts {
                    let next = self.grow(plan, *id, part)?;
                    ends = self.then(ends, next)?;
                }
                Ok(ends)
            }
            Node::Either(parts) => {
                let mut ends = Ends { empty: false, first: Vec::new(), last: Vec::new() };
                for id in parts {
                    let other = self.grow(plan, *id, part)?;
                    ends.empty |= other.empty;
                    ends.first.extend(other.first);
                    ends.last.extend(other.last);
                }
                Ok(ends)
            }
            Node::Repeat(once, least, most) => self.repeat(plan, *once, (*least, *most), part),
            Node::Rule(rule) => self.grow(plan, plan.grammar.rules[*rule], part),
        }
    }

    /// High numbers of times are taken for any number: that may find a clash where there is none, and costs no more than speed.
    pub(super) fn repeat(
        &mut self,
        plan: &Plan,
        once: Id,
        (least, most): (u32, Option<u32>),
        part: usize,
    ) -> Result<Ends, Bad> {
        const FEW: u32 = 8;
        let mut ends = Ends { empty: true, first: Vec::new(), last: Vec::new() };
        let copies = most.filter(|most| *most <= FEW).unwrap_or(least.clamp(1, FEW));
        for copy in 1..=copies {
            let mut next = self.grow(plan, once, part)?;
            if copy == copies && most.is_none_or(|most| most > FEW) {
                self.link(&next.last, &next.first)?;
            }
            next.empty |= copy > least;
            ends = self.then(ends, next)?;
        }
        ends.empty |= least == 0;
        Ok(ends)
    }

    pub(super) fn then(&mut self, mut before: Ends, next: Ends) -> Result<Ends, Bad> {
        self.link(&before.last, &next.first)?;
        if before.empty {
            before.first.extend(next.first);
        }
        if next.empty {
            before.last.extend(next.last);
        } else {
            before.last = next.last;
        }
        before.empty &= next.empty;
        Ok(before)
    }

    pub(super) fn link(&mut self, from: &[usize], to: &[usize]) -> Result<(), Bad> {
        self.edges += from.len() * to.len();
        if self.edges > MAX_LEAVES * 20 {
            return Err(Bad::TooMuchWork);
        }
        for leaf in from {
            self.next[*leaf].extend(to);
        }
        Ok(())
    }

    pub(super) fn leaf(&mut self, chars: &Chars, part: usize) -> Result<Ends, Bad> {
        let leaf = self.sets.len();
        if leaf == MAX_LEAVES {
            return Err(Bad::TooMuchWork);
        }
        self.sets.push(chars.clone());
        self.leads.push(Leads::of(chars));
        self.lexeme.push(self.first.len());
        self.part.push(part);
        self.next.push(Vec::new());
        self.last.push(false);
        Ok(Ends { empty: false, first: vec![leaf], last: vec![leaf] })
    }
}
