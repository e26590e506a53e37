//! EBNF as llama.cpp has it (GBNF), which vLLM takes as a grammar: read, and written as llguidance's Lark.
//!
//! The two differ in more than their signs. Lark's matcher takes a text apart into lexemes first, each as long as it can be, and
//! EBNF has no lexemes: every way to put the parts together is meant. [`lexemes`] decides which parts may be lexemes all the same.

mod lexemes;
mod read;

/// A grammar cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    /// It is not written as it should be.
    #[error("line {line}: {problem}")]
    At {
        /// From 1.
        line: usize,
        /// What is expected there, or wrong.
        problem: String,
    },
    /// It is none.
    #[error("no rule is named 'root'")]
    NoRoot,
    /// It has too many parts.
    #[error("it has too many parts or they lie too deep in each other")]
    TooLarge,
    /// Whether its parts can be told apart is not found out in time.
    #[error("it takes too much work to tell its parts apart")]
    TooMuchWork,
}

/// A part of a grammar, by its place among all parts.
type Id = usize;

/// What a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    /// One of these characters.
    Char(Chars),
    /// One part after the other.
    Seq(Vec<Id>),
    /// One of these parts.
    Either(Vec<Id>),
    /// A part so many times: at least, and at most where there is a most.
    Repeat(Id, u32, Option<u32>),
    /// What the rule says.
    Rule(usize),
}

/// Characters: ranges that rise and do not touch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chars(Vec<(char, char)>);

/// A grammar whose rules all exist.
#[derive(Clone, Debug)]
struct Grammar {
    nodes: Vec<Node>,
    /// What each rule says.
    rules: Vec<Id>,
    /// Where it stands.
    lines: Vec<usize>,
    names: Vec<String>,
    root: usize,
}

/// Whether this is meant as EBNF: some line begins a rule of it. In Lark no line can.
pub(super) fn is_meant(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let rest = line.trim_start_matches(read::is_of_name);
        rest.len() < line.len() && rest.trim_start().starts_with("::=")
    })
}

/// The same language in llguidance's Lark.
pub(super) fn to_lark(text: &str) -> Result<String, Bad> {
    let mut grammar = read::read(text)?;
    grammar.check_ends()?;
    grammar.unroll();
    lexemes::lark(grammar)
}

impl Chars {
    /// From ranges in any order.
    fn new(mut ranges: Vec<(char, char)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(char, char)> = Vec::new();
        for (low, high) in ranges {
            match merged.last_mut() {
                Some(last) if after(last.1).is_none_or(|next| low <= next) => {
                    last.1 = last.1.max(high);
                }
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    fn any() -> Self {
        Self(vec![('\0', char::MAX)])
    }

    fn one(char: char) -> Self {
        Self(vec![(char, char)])
    }

    /// All others.
    fn negated(&self) -> Self {
        let mut others = Vec::new();
        let mut from = Some('\0');
        for &(low, high) in &self.0 {
            others.extend(from.zip(before(low)).filter(|(from, to)| from <= to));
            from = after(high);
        }
        others.extend(from.map(|from| (from, char::MAX)));
        Self(others)
    }

    fn meets(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(one), Some(two)) = (ours.peek(), theirs.peek()) {
            if one.1 < two.0 {
                ours.next();
            } else if two.1 < one.0 {
                theirs.next();
            } else {
                return true;
            }
        }
        false
    }

    /// As a regular expression.
    fn write(&self, to: &mut String) {
        let sign = |to: &mut String, char: char| {
            if char.is_ascii_alphanumeric() {
                to.push(char);
            } else {
                to.extend(char.escape_unicode());
            }
        };
        if let [(low, high)] = self.0[..]
            && low == high
        {
            return sign(to, low);
        }
        to.push('[');
        for &(low, high) in &self.0 {
            sign(to, low);
            if low != high {
                to.push('-');
                sign(to, high);
            }
        }
        to.push(']');
    }
}

/// The next character; there is a gap where UTF-16 has surrogates.
fn after(char: char) -> Option<char> {
    (char..=char::MAX).nth(1)
}

fn before(char: char) -> Option<char> {
    ('\0'..=char).nth_back(1)
}

impl Grammar {
    fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Every rule that is used comes to an end; one that does not would lead an answer to where nothing may follow.
    fn check_ends(&self) -> Result<(), Bad> {
        let mut ends = vec![false; self.nodes.len()];
        loop {
            let mut more = false;
            for (id, node) in self.nodes.iter().enumerate() {
                let now = match node {
                    Node::Char(_) => true,
                    Node::Seq(parts) => parts.iter().all(|part| ends[*part]),
                    Node::Either(parts) => parts.iter().any(|part| ends[*part]),
                    Node::Repeat(part, least, _) => *least == 0 || ends[*part],
                    Node::Rule(rule) => ends[self.rules[*rule]],
                };
                more |= now && !ends[id];
                ends[id] |= now;
            }
            if !more {
                break;
            }
        }
        let used = self.used();
        let endless = (0..self.rules.len()).find(|rule| used[*rule] && !ends[self.rules[*rule]]);
        endless.map_or(Ok(()), |rule| {
            let problem = format!("'{}' never comes to an end", self.names[rule]);
            Err(Bad::At { line: self.lines[rule], problem })
        })
    }

    /// Which rules `root` comes to.
    fn used(&self) -> Vec<bool> {
        let mut used = vec![false; self.rules.len()];
        let mut seen = vec![false; self.nodes.len()];
        let mut open = vec![self.rules[self.root]];
        used[self.root] = true;
        while let Some(id) = open.pop() {
            if std::mem::replace(&mut seen[id], true) {
                continue;
            }
            match &self.nodes[id] {
                Node::Char(_) => {}
                Node::Seq(parts) | Node::Either(parts) => open.extend(parts),
                Node::Repeat(part, ..) => open.push(*part),
                Node::Rule(rule) => {
                    used[*rule] = true;
                    open.push(self.rules[*rule]);
                }
            }
        }
        used
    }

    /// Rules that only say "and so on" are repetitions: `a ::= b a | c` is `b* c`, and `a ::= a b | c` is `c b*`. What repeats can
    /// be part of a lexeme, what refers to itself cannot.
    fn unroll(&mut self) {
        for rule in 0..self.rules.len() {
            let options = self.options(rule);
            let ahead =
                |option: &Vec<Id>| option.split_last().map(|(last, rest)| (*last, rest.to_vec()));
            let behind = |option: &Vec<Id>| {
                option.split_first().map(|(first, rest)| (*first, rest.to_vec()))
            };
            if let Some([again, once]) = self.apart(rule, &options, ahead) {
                let again = self.add(Node::Repeat(again, 0, None));
                self.rules[rule] = self.add(Node::Seq(vec![again, once]));
            } else if let Some([again, once]) = self.apart(rule, &options, behind) {
                let again = self.add(Node::Repeat(again, 0, None));
                self.rules[rule] = self.add(Node::Seq(vec![once, again]));
            }
        }
    }

    /// The alternatives of a rule, each as its parts; one that ends or begins with the rule or nothing is two.
    fn options(&self, rule: usize) -> Vec<Vec<Id>> {
        let body = self.rules[rule];
        let options = match &self.nodes[body] {
            Node::Either(options) => options.clone(),
            _ => vec![body],
        };
        let mut all = Vec::new();
        for option in options {
            let parts = match &self.nodes[option] {
                Node::Seq(parts) => parts.clone(),
                _ => vec![option],
            };
            let maybe = |part: Option<&Id>| match self.nodes.get(*part?)? {
                Node::Repeat(part, 0, Some(1)) if self.is_rule(*part, rule) => Some(*part),
                _ => None,
            };
            if let Some(part) = maybe(parts.last()) {
                let rest = &parts[..parts.len() - 1];
                all.extend([rest.to_vec(), [rest, &[part]].concat()]);
            } else if let Some(part) = maybe(parts.first()) {
                all.extend([parts[1..].to_vec(), [&[part], &parts[1..]].concat()]);
            } else {
                all.push(parts);
            }
        }
        all
    }

    /// What stands before (or behind) the rule's own name, and the alternatives without it; where some have it.
    fn apart(
        &mut self,
        rule: usize,
        options: &[Vec<Id>],
        split: impl Fn(&Vec<Id>) -> Option<(Id, Vec<Id>)>,
    ) -> Option<[Id; 2]> {
        let (mut again, mut once) = (Vec::new(), Vec::new());
        for option in options {
            match split(option) {
                Some((name, rest)) if self.is_rule(name, rule) => again.push(rest),
                _ => once.push(option.clone()),
            }
        }
        if again.is_empty() {
            return None;
        }
        Some([again, once].map(|options| {
            let options = options.into_iter().map(|parts| self.add(Node::Seq(parts))).collect();
            self.add(Node::Either(options))
        }))
    }

    fn is_rule(&self, id: Id, rule: usize) -> bool {
        self.nodes[id] == Node::Rule(rule)
    }
}

#[cfg(test)]
mod tests;
