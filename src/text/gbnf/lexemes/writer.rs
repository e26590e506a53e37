//! A plan of lexemes in llguidance's Lark.

use std::collections::HashSet;

use super::{
    super::{Chars, Id, Node},
    Plan,
};

/// Writes rules and lexemes in Lark, those that are named somewhere.
pub(super) struct Writer<'a> {
    pub(super) plan: &'a Plan,
    pub(super) rules: Vec<Id>,
    pub(super) lexemes: Vec<Id>,
    pub(super) named: HashSet<(Kind, Id)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Rule,
    Lexeme,
}

impl<'a> Writer<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Self { plan, rules: Vec::new(), lexemes: Vec::new(), named: HashSet::new() }
    }

    pub(super) fn write(mut self) -> String {
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

    pub(super) fn name(&mut self, id: Id) -> String {
        let kind = if self.plan.is_lexeme(id) { Kind::Lexeme } else { Kind::Rule };
        self.named_as(id, kind)
    }

    pub(super) fn named_as(&mut self, id: Id, kind: Kind) -> String {
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
    pub(super) fn part(&mut self, id: Id, kind: Kind) -> String {
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

    pub(super) fn body(&mut self, id: Id, kind: Kind) -> String {
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
    pub(super) fn options(&mut self, id: Id) -> String {
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
    pub(super) fn run(&mut self, parts: &[Id]) -> String {
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
