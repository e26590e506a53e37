//! Which parts of a grammar are lexemes.
//!
//! The matcher reads a lexeme on for as long as any lexeme that may stand there can go on, and forgets those that could have
//! ended sooner. That loses nothing where none of those could have been followed by what comes next. So: parts that refer to no
//! rule that comes back to itself are lexemes, as large as they can be, and it is looked at all pairs that may stand at one
//! place. Where one of a pair can end while the other goes on with what may follow the first, the other is cut there into smaller
//! lexemes, in the end into characters, which cannot go on. A grammar that never comes back to itself is one lexeme.

mod leaves;
mod map;
mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};

use self::{
    map::{Map, Pairs},
    writer::Writer,
};
use super::{Bad, Chars, Grammar, Id, Node};

/// How deep parts of one lexeme may lie in each other.
const MAX_DEPTH: usize = 150;
/// Most characters of all lexemes.
const MAX_LEAVES: usize = 20_000;
/// Most steps, each some nanoseconds.
const FUEL: u64 = 2_000_000;

/// The grammar in llguidance's Lark.
pub(super) fn lark(grammar: Grammar) -> Result<String, Bad> {
    let mut plan = Plan::new(grammar)?;
    plan.gather();
    plan.group();
    loop {
        let clashes = plan.clashes()?;
        if clashes.is_empty() {
            return Ok(Writer::new(&plan).write());
        }
        for (lexeme, seam) in clashes {
            plan.cut(lexeme, seam);
        }
    }
}

struct Plan {
    grammar: Grammar,
    /// Which parts refer to no rule that comes back to itself.
    regular: Vec<bool>,
    /// Those among them that are no lexemes, but of lexemes.
    opened: HashSet<Id>,
    fuel: u64,
}

/// Where a lexeme goes on although another one that is as long has ended: between these of its parts.
type Seam = (usize, usize);

impl Plan {
    fn new(grammar: Grammar) -> Result<Self, Bad> {
        let depths = depths(&grammar)?;
        let regular = depths.into_iter().map(|depth| depth.is_some()).collect();
        Ok(Self { grammar, regular, opened: HashSet::new(), fuel: FUEL })
    }

    /// What a name stands for, where that is known to end.
    fn resolve(&self, mut id: Id) -> Id {
        while let Node::Rule(rule) = self.grammar.nodes[id]
            && self.regular[id]
        {
            id = self.grammar.rules[rule];
        }
        id
    }

    fn is_lexeme(&self, id: Id) -> bool {
        self.regular[id] && !self.opened.contains(&id)
    }

    /// What a regular part may be: characters, and parts that are more than one.
    fn alternatives(&self, id: Id) -> (Vec<(char, char)>, Vec<Id>) {
        let (mut chars, mut others) = (Vec::new(), Vec::new());
        let (mut next, mut seen) = (vec![id], HashSet::new());
        while let Some(id) = next.pop() {
            let id = self.resolve(id);
            if !seen.insert(id) {
                continue;
            }
            match &self.grammar.nodes[id] {
                Node::Char(more) => chars.extend(&more.0),
                Node::Either(parts) => next.extend(parts),
                Node::Seq(parts) if parts.len() == 1 => next.extend(parts),
                Node::Seq(_) | Node::Repeat(..) | Node::Rule(_) => others.push(id),
            }
        }
        (chars, others)
    }

    /// Another part, of such that are regular.
    fn seq(&mut self, parts: &[Id]) -> Id {
        if let [only] = parts {
            return *only;
        }
        self.add(Node::Seq(parts.to_vec()))
    }

    /// Repeated alternatives are told apart by those that are lexemes: `(text | tag)*` is `text* (tag text*)*`, in which no text comes
    /// behind another, so that one lexeme can be all of it.
    fn gather(&mut self) {
        for id in 0..self.grammar.nodes.len() {
            let Node::Repeat(part, least, None) = self.grammar.nodes[id] else { continue };
            if self.regular[id] || least > 1 {
                continue;
            }
            let (lexemes, others) = self.apart(part);
            if lexemes.is_empty() || others.is_empty() {
                continue;
            }
            let lexeme = self.add(Node::Either(lexemes));
            let texts = self.add(Node::Repeat(lexeme, 0, None));
            let other = self.add(Node::Either(others));
            let other = self.add(Node::Seq(vec![other, texts]));
            let rest = self.add(Node::Repeat(other, 0, None));
            self.grammar.nodes[id] = if least == 0 {
                Node::Seq(vec![texts, rest])
            } else {
                let some = self.add(Node::Repeat(lexeme, 1, None));
                let first = self.add(Node::Seq(vec![some, rest]));
                Node::Either(vec![first, self.add(Node::Repeat(other, 1, None))])
            };
        }
    }

    /// The alternatives of a part that are regular, and the others.
    fn apart(&self, id: Id) -> (Vec<Id>, Vec<Id>) {
        let (mut lexemes, mut others) = (Vec::new(), Vec::new());
        let (mut next, mut seen) = (vec![id], HashSet::new());
        while let Some(id) = next.pop() {
            if !seen.insert(id) {
                continue;
            }
            match &self.grammar.nodes[id] {
                _ if self.regular[id] => lexemes.push(id),
                Node::Either(parts) => next.extend(parts),
                Node::Seq(parts) if parts.len() == 1 => next.extend(parts),
                Node::Rule(rule) => next.push(self.grammar.rules[*rule]),
                _ => others.push(id),
            }
        }
        (lexemes, others)
    }

    /// Another part; it is regular where its parts are.
    fn add(&mut self, node: Node) -> Id {
        let regular = match &node {
            Node::Char(_) => true,
            Node::Seq(parts) | Node::Either(parts) => parts.iter().all(|part| self.regular[*part]),
            Node::Repeat(part, ..) => self.regular[*part],
            Node::Rule(rule) => self.regular[self.grammar.rules[*rule]],
        };
        self.regular.push(regular);
        self.grammar.add(node)
    }

    /// Joins parts that stand side by side and would clash, such as `[a-z] [a-z0-9]*`, to one lexeme each. This is for speed: that
    /// they clash would be found out, and they would be cut.
    fn group(&mut self) {
        let mut looks = HashMap::new();
        for id in 0..self.grammar.nodes.len() {
            let Node::Seq(parts) = &self.grammar.nodes[id] else { continue };
            if self.regular[id] {
                continue;
            }
            let parts = parts.clone();
            let mut groups: Vec<(Vec<Id>, Option<Look>)> = Vec::new();
            for part in parts {
                let look = self.regular[part].then(|| self.look(part, &mut looks));
                match (groups.last_mut(), look) {
                    (Some((group, Some(before))), Some(look)) if before.clashes(&look) => {
                        group.push(part);
                        *before = before.then(&look);
                    }
                    (_, look) => groups.push((vec![part], look)),
                }
            }
            let parts = groups.iter().map(|(group, _)| self.seq(group)).collect();
            self.grammar.nodes[id] = Node::Seq(parts);
        }
    }

    /// How a regular part looks from outside.
    fn look(&self, id: Id, known: &mut HashMap<Id, Look>) -> Look {
        if let Some(look) = known.get(&id) {
            return *look;
        }
        let look = match &self.grammar.nodes[id] {
            Node::Char(chars) => Look { first: Leads::of(chars), ..Look::default() },
            Node::Seq(parts) => {
                let nothing = Look { empty: true, ..Look::default() };
                parts.iter().fold(nothing, |before, part| before.then(&self.look(*part, known)))
            }
            Node::Either(parts) => parts.iter().fold(Look::default(), |one, part| {
                let other = self.look(*part, known);
                Look {
                    empty: one.empty || other.empty,
                    first: one.first.or(other.first),
                    more: one.more.or(other.more),
                }
            }),
            Node::Repeat(part, least, most) => {
                let once = self.look(*part, known);
                let more = if *most == Some(1) { once.more } else { once.more.or(once.first) };
                Look { empty: once.empty || *least == 0, more, ..once }
            }
            Node::Rule(rule) => self.look(self.grammar.rules[*rule], known),
        };
        known.insert(id, look);
        look
    }

    /// Lexemes that go on where another has ended, with what may follow that.
    fn clashes(&mut self) -> Result<BTreeMap<Id, Seam>, Bad> {
        let map = Map::new(self)?;
        if map.lexemes.len() == 1 && map.open.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut clashes = BTreeMap::new();
        let follow: Vec<Leads> = map.follow.iter().map(|after| map.leads(after)).collect();
        // Many lexemes are followed by the same ones: what may stand side by side then is looked at once.
        let mut kinds = HashMap::new();
        let kind: Vec<usize> = map.follow[..map.lexemes.len()]
            .iter()
            .map(|after| {
                let next = kinds.len();
                *kinds.entry(after).or_insert(next)
            })
            .collect();
        let mut beside = HashSet::new();
        let mut walk = Pairs::default();
        let first = map.first_of_all();
        walk.add_lexemes(&map, &first, &first, &mut self.fuel)?;
        while let Some((one, two)) = walk.next.pop() {
            let (ended, going) = (map.leaves.lexeme[one], map.leaves.lexeme[two]);
            if map.leaves.last[one] {
                for &further in &map.leaves.next[two] {
                    if map.leaves.leads[further].meets(follow[ended]) {
                        let seam = (map.leaves.part[two], map.leaves.part[further]);
                        clashes.entry(map.lexemes[going]).or_insert(seam);
                    }
                }
                if map.leaves.last[two] && beside.insert((kind[ended], kind[going])) {
                    let [ones, twos] = [ended, going].map(|lexeme| &map.follow[lexeme]);
                    walk.add_lexemes(&map, ones, twos, &mut self.fuel)?;
                }
            }
            let [ones, twos] = [one, two].map(|leaf| &map.leaves.next[leaf]);
            walk.add_leaves(&map.leaves, ones, twos, &mut self.fuel)?;
        }
        Ok(clashes)
    }

    /// Makes smaller lexemes of one.
    fn cut(&mut self, id: Id, (before, after): Seam) {
        self.opened.insert(id);
        let Node::Seq(parts) = &self.grammar.nodes[id] else { return };
        let parts = parts.clone();
        let cuts = if before == after {
            vec![&parts[..before], &parts[before..=before], &parts[before + 1..]]
        } else {
            vec![&parts[..=before], &parts[before + 1..]]
        };
        let parts =
            cuts.into_iter().filter(|cut| !cut.is_empty()).map(|cut| self.seq(cut)).collect();
        self.grammar.nodes[id] = Node::Seq(parts);
    }
}

/// How deep the parts of each regular part lie in each other; nothing for parts that are not regular.
fn depths(grammar: &Grammar) -> Result<Vec<Option<usize>>, Bad> {
    let mut depths: Vec<Option<usize>> = vec![None; grammar.nodes.len()];
    loop {
        let mut more = false;
        for (id, node) in grammar.nodes.iter().enumerate() {
            if depths[id].is_some() {
                continue;
            }
            let deepest = |parts: &[Id]| {
                parts.iter().try_fold(0, |most, part| Some(depths[*part]?.max(most)))
            };
            let below = match node {
                Node::Char(_) => Some(0),
                Node::Seq(parts) | Node::Either(parts) => deepest(parts),
                Node::Repeat(part, ..) => depths[*part],
                Node::Rule(rule) => depths[grammar.rules[*rule]],
            };
            depths[id] = below.map(|below| below + 1);
            if depths[id].is_some_and(|depth| depth > MAX_DEPTH) {
                return Err(Bad::TooLarge);
            }
            more |= below.is_some();
        }
        if !more {
            return Ok(depths);
        }
    }
}

/// First bytes of characters.
#[derive(Clone, Copy, Debug, Default)]
struct Leads([u128; 2]);

impl Leads {
    fn of(chars: &Chars) -> Self {
        let first = |char: char| {
            let mut bytes = [0; 4];
            char.encode_utf8(&mut bytes);
            bytes[0]
        };
        let mut leads = Self::default();
        for &(low, high) in &chars.0 {
            for byte in first(low)..=first(high) {
                leads.0[usize::from(byte / 128)] |= 1 << (byte % 128);
            }
        }
        leads
    }

    fn or(self, other: Self) -> Self {
        Self([self.0[0] | other.0[0], self.0[1] | other.0[1]])
    }

    fn meets(self, other: Self) -> bool {
        self.0[0] & other.0[0] != 0 || self.0[1] & other.0[1] != 0
    }
}

/// How a part looks from outside, roughly.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    /// It may be nothing.
    empty: bool,
    first: Leads,
    /// What it may go on with when it could have ended.
    more: Leads,
}

impl Look {
    fn then(&self, next: &Self) -> Self {
        let first = if self.empty { self.first.or(next.first) } else { self.first };
        let more = if next.empty { next.more.or(next.first).or(self.more) } else { next.more };
        Self { empty: self.empty && next.empty, first, more }
    }

    fn clashes(&self, next: &Self) -> bool {
        let goes_on = next.more.meets(next.first) && self.first.meets(next.first);
        self.more.meets(next.first) || goes_on
    }
}

fn spend(fuel: &mut u64, cost: u64) -> Result<(), Bad> {
    *fuel = fuel.checked_sub(cost).ok_or(Bad::TooMuchWork)?;
    Ok(())
}
