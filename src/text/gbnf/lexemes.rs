//! Which parts of a grammar are lexemes.
//!
//! The matcher reads a lexeme on for as long as any lexeme that may stand there can go on, and forgets those that could have
//! ended sooner. That loses nothing where none of those could have been followed by what comes next. So: parts that refer to no
//! rule that comes back to itself are lexemes, as large as they can be, and it is looked at all pairs that may stand at one
//! place. Where one of a pair can end while the other goes on with what may follow the first, the other is cut there into smaller
//! lexemes, in the end into characters, which cannot go on. A grammar that never comes back to itself is one lexeme.

use std::collections::{BTreeMap, HashMap, HashSet};

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

/// Some of the lexemes, as bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

impl Set {
    fn add_all(&mut self, others: &Self) -> bool {
        let mut more = false;
        for (ours, theirs) in self.0.iter_mut().zip(&others.0) {
            more |= *theirs & !*ours != 0;
            *ours |= *theirs;
        }
        more
    }

    fn add(&mut self, lexeme: usize) {
        self.0[lexeme / 64] |= 1 << (lexeme % 64);
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit)
        })
    }
}

/// A part that is no lexeme, of others: numbers below that of lexemes are lexemes.
enum Open {
    Seq(Vec<usize>),
    Either(Vec<usize>),
    Repeat(usize, u32, Option<u32>),
}

/// What may stand where.
struct Map {
    lexemes: Vec<Id>,
    open: Vec<Open>,
    leaves: Leaves,
    /// Of each lexeme and part: whether it may be nothing, which lexemes it may begin with.
    empty: Vec<bool>,
    first: Vec<Set>,
    /// Which may follow.
    follow: Vec<Set>,
    /// The whole.
    root: usize,
}

impl Map {
    fn new(plan: &mut Plan) -> Result<Self, Bad> {
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
    fn pay(&self, fuel: &mut u64) -> Result<(), Bad> {
        let parts = |open: &Open| match open {
            Open::Seq(parts) | Open::Either(parts) => parts.len(),
            Open::Repeat(..) => 1,
        };
        let cost = self.open.iter().map(parts).sum::<usize>() * (1 + self.lexemes.len() / 64);
        spend(fuel, cost as u64)
    }

    fn find_first(&mut self, fuel: &mut u64) -> Result<(), Bad> {
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

    fn find_follow(&mut self, fuel: &mut u64) -> Result<(), Bad> {
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

    fn first_of_all(&self) -> Set {
        self.first[self.root].clone()
    }

    fn leads(&self, lexemes: &Set) -> Leads {
        let leaves = lexemes.iter().flat_map(|lexeme| &self.leaves.first[lexeme]);
        leaves.fold(Leads::default(), |leads, leaf| leads.or(self.leaves.leads[*leaf]))
    }
}

/// The parts of a part, where it is no lexeme.
fn parts(plan: &Plan, id: Id) -> Vec<Id> {
    match &plan.grammar.nodes[id] {
        Node::Char(_) => Vec::new(),
        Node::Seq(parts) | Node::Either(parts) => {
            parts.iter().map(|part| plan.resolve(*part)).collect()
        }
        Node::Repeat(part, ..) => vec![plan.resolve(*part)],
        Node::Rule(rule) => vec![plan.resolve(plan.grammar.rules[*rule])],
    }
}

/// The characters of all lexemes, as often as they stand in one, and which come after which.
#[derive(Default)]
struct Leaves {
    leads: Vec<Leads>,
    sets: Vec<Chars>,
    lexeme: Vec<usize>,
    /// In which part of its lexeme it is.
    part: Vec<usize>,
    next: Vec<Vec<usize>>,
    last: Vec<bool>,
    /// Of each lexeme.
    first: Vec<Vec<usize>>,
    empty: Vec<bool>,
    edges: usize,
}

/// Where a part of a lexeme begins and ends.
struct Ends {
    empty: bool,
    first: Vec<usize>,
    last: Vec<usize>,
}

impl Leaves {
    fn add(&mut self, plan: &Plan, lexeme: Id) -> Result<(), Bad> {
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

    fn grow(&mut self, plan: &Plan, id: Id, part: usize) -> Result<Ends, Bad> {
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
    fn repeat(
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

    fn then(&mut self, mut before: Ends, next: Ends) -> Result<Ends, Bad> {
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

    fn link(&mut self, from: &[usize], to: &[usize]) -> Result<(), Bad> {
        self.edges += from.len() * to.len();
        if self.edges > MAX_LEAVES * 20 {
            return Err(Bad::TooMuchWork);
        }
        for leaf in from {
            self.next[*leaf].extend(to);
        }
        Ok(())
    }

    fn leaf(&mut self, chars: &Chars, part: usize) -> Result<Ends, Bad> {
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

/// Pairs of characters that may be reached by one text from one place.
#[derive(Default)]
struct Pairs {
    lexemes: HashSet<(usize, usize)>,
    seen: HashSet<(usize, usize)>,
    next: Vec<(usize, usize)>,
}

impl Pairs {
    /// Each of these lexemes may stand where each of those may.
    fn add_lexemes(
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

    fn add_leaves(
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

fn spend(fuel: &mut u64, cost: u64) -> Result<(), Bad> {
    *fuel = fuel.checked_sub(cost).ok_or(Bad::TooMuchWork)?;
    Ok(())
}

/// Writes rules and lexemes in Lark, those that are named somewhere.
struct Writer<'a> {
    plan: &'a Plan,
    rules: Vec<Id>,
    lexemes: Vec<Id>,
    named: HashSet<(Kind, Id)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Rule,
    Lexeme,
}

impl<'a> Writer<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { plan, rules: Vec::new(), lexemes: Vec::new(), named: HashSet::new() }
    }

    fn write(mut self) -> String {
        let root = self.plan.resolve(self.plan.grammar.rules[self.plan.grammar.root]);
        let name = self.name(root);
        let mut lark = format!("start: {name}\n");
        loop {
            if let Some(id) = self.rules.pop() {
                let body = self.body(id, Kind::Rule);
                lark.extend(["r", &id.to_string(), ": ", &body, "\n"]);
            } else if let Some(id) = self.lexemes.pop() {
                let body = self.body(id, Kind::Lexeme);
                lark.extend(["L", &id.to_string(), ": ", &body, "\n"]);
            } else {
                return lark;
            }
        }
    }

    fn name(&mut self, id: Id) -> String {
        let kind = if self.plan.is_lexeme(id) { Kind::Lexeme } else { Kind::Rule };
        self.named_as(id, kind)
    }

    fn named_as(&mut self, id: Id, kind: Kind) -> String {
        let (list, letter) = match kind {
            Kind::Rule => (&mut self.rules, 'r'),
            Kind::Lexeme => (&mut self.lexemes, 'L'),
        };
        if self.named.insert((kind, id)) {
            list.push(id);
        }
        format!("{letter}{id}")
    }

    /// A part of a rule or of a lexeme: its name, or in brackets.
    fn part(&mut self, id: Id, kind: Kind) -> String {
        match (&self.plan.grammar.nodes[id], kind) {
            (Node::Seq(parts), _) if parts.is_empty() => "\"\"".to_owned(),
            (Node::Rule(rule), Kind::Lexeme) => {
                let body = self.plan.resolve(self.plan.grammar.rules[*rule]);
                self.named_as(body, Kind::Lexeme)
            }
            (Node::Rule(rule), Kind::Rule) => {
                let body = self.plan.resolve(self.plan.grammar.rules[*rule]);
                self.name(body)
            }
            // By name, as parts of rules may be parts of themselves.
            (_, Kind::Rule) => self.name(id),
            (_, Kind::Lexeme) => format!("({})", self.body(id, kind)),
        }
    }

    fn body(&mut self, id: Id, kind: Kind) -> String {
        let nodes = &self.plan.grammar.nodes;
        match &nodes[id] {
            Node::Char(chars) => {
                let mut regex = "/".to_owned();
                chars.write(&mut regex);
                regex + "/"
            }
            Node::Seq(parts) if parts.is_empty() => "\"\"".to_owned(),
            Node::Seq(parts) if kind == Kind::Lexeme => self.run(parts),
            Node::Seq(parts) => {
                parts.iter().map(|part| self.part(*part, kind)).collect::<Vec<_>>().join(" ")
            }
            Node::Either(_) if kind == Kind::Lexeme => self.options(id),
            Node::Either(parts) => {
                parts.iter().map(|part| self.part(*part, kind)).collect::<Vec<_>>().join(" | ")
            }
            Node::Repeat(part, least, most) => {
                let part = self.part(*part, kind);
                match (least, most) {
                    (0, None) => format!("{part}*"),
                    (1, None) => format!("{part}+"),
                    (0, Some(1)) => format!("{part}?"),
                    (least, None) => format!("{part}{{{least},}}"),
                    (least, Some(most)) => format!("{part}{{{least},{most}}}"),
                }
            }
            Node::Rule(_) => self.part(id, kind),
        }
    }

    /// All that a lexeme's part may be, with what of it is one character put together. The matcher's own way to put alternatives
    /// together fails where two come to the same but are not written alike.
    fn options(&mut self, id: Id) -> String {
        let (chars, others) = self.plan.alternatives(id);
        let mut options = Vec::new();
        if !chars.is_empty() {
            let mut regex = String::new();
            Chars::new(chars).write(&mut regex);
            options.push(format!("/{regex}/"));
        }
        // By name, as a rule that is referred to twice in each of many rules would be written out very often.
        options.extend(others.into_iter().map(|other| self.named_as(other, Kind::Lexeme)));
        options.join(" | ")
    }

    /// Parts that follow each other; what of them is characters is one regular expression.
    fn run(&mut self, parts: &[Id]) -> String {
        let mut pieces: Vec<String> = Vec::new();
        let mut regex = String::new();
        let mut next: Vec<Id> = parts.iter().rev().copied().collect();
        while let Some(part) = next.pop() {
            let nodes = &self.plan.grammar.nodes;
            if let Node::Seq(parts) = &nodes[part]
                && parts.iter().all(|part| matches!(nodes[*part], Node::Char(_)))
            {
                next.extend(parts.iter().rev());
                continue;
            }
            let (chars, others) = self.plan.alternatives(part);
            if others.is_empty() && !chars.is_empty() {
                Chars::new(chars).write(&mut regex);
                continue;
            }
            if !regex.is_empty() {
                pieces.push(format!("/{}/", std::mem::take(&mut regex)));
            }
            pieces.push(self.part(part, Kind::Lexeme));
        }
        if !regex.is_empty() {
            pieces.push(format!("/{regex}/"));
        }
        if pieces.is_empty() { "\"\"".to_owned() } else { pieces.join(" ") }
    }
}
