//! From text to a grammar.

use std::collections::HashMap;

use super::{Bad, Chars, Grammar, Id, Node};

/// How deep groups may lie in each other.
const MAX_GROUPS: usize = 50;
/// Most parts of a grammar: characters, groups, names.
const MAX_NODES: usize = 30_000;
/// Most rules, named ones included.
const MAX_RULES: usize = 2_000;
/// Most signs for how often behind one part.
const MAX_SIGNS: usize = 3;
/// How often a part may have to be repeated by number, as llama.cpp has it.
const MAX_TIMES: u32 = 2_000;

/// Reads a grammar.
pub(super) fn read(text: &str) -> Result<Grammar, Bad> {
    let mut reader = Reader {
        text,
        at: 0,
        nodes: Vec::new(),
        rules: Vec::new(),
        numbers: HashMap::new(),
        groups: 0,
    };
    reader.rules()?;
    reader.finish()
}

/// Whether a rule's name may have this in it.
pub(super) fn is_of_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '-' || char == '_'
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    nodes: Vec<Node>,
    rules: Vec<Rule<'a>>,
    /// Of the rules by their names.
    numbers: HashMap<&'a str, usize>,
    /// How many groups are open.
    groups: usize,
}

/// A rule that is named, or also there.
struct Rule<'a> {
    name: &'a str,
    /// Where it is named first.
    named: usize,
    /// What it says, and its line.
    body: Option<(Id, usize)>,
}

/// Where a character is written.
#[derive(Clone, Copy)]
enum Within {
    Quotes,
    Brackets,
}

impl<'a> Reader<'a> {
    fn rules(&mut self) -> Result<(), Bad> {
        self.space();
        let (mut line, mut counted) = (1, 0);
        while self.at < self.text.len() {
            let begin = self.at;
            line += self.text[counted..begin].matches('\n').count();
            counted = begin;
            let Some(name) = self.next_rule() else {
                return Err(self.expected("a rule (name ::= ..)"));
            };
            self.groups = 0;
            let body = self.alternatives()?;
            if self.peek() == Some(')') {
                return Err(self.expected("a rule or its next part, as no '(' is open"));
            }
            let number = self.number(name, begin);
            if self.rules[number].body.replace((body, line)).is_some() {
                return Err(self.wrong(begin, format!("there is another rule '{name}'")));
            }
            if self.rules.len() > MAX_RULES {
                return Err(Bad::TooLarge);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Grammar, Bad> {
        let mut rules = Vec::new();
        for rule in &self.rules {
            let Some(body) = rule.body else {
                return Err(self.wrong(rule.named, format!("there is no rule '{}'", rule.name)));
            };
            rules.push(body);
        }
        let root = *self.numbers.get("root").ok_or(Bad::NoRoot)?;
        Ok(Grammar {
            lines: rules.iter().map(|(_, line)| *line).collect(),
            names: self.rules.iter().map(|rule| rule.name.to_owned()).collect(),
            rules: rules.iter().map(|(body, _)| *body).collect(),
            nodes: self.nodes,
            root,
        })
    }

    /// `name ::=`, and nothing where something else follows.
    fn next_rule(&mut self) -> Option<&'a str> {
        let begin = self.at;
        let name = self.name();
        self.space();
        if name.is_empty() || !self.take("::=") {
            self.at = begin;
            return None;
        }
        self.space();
        Some(name)
    }

    fn alternatives(&mut self) -> Result<Id, Bad> {
        let mut options = vec![self.sequence()?];
        while self.take("|") {
            self.space();
            options.push(self.sequence()?);
        }
        match options[..] {
            [only] => Ok(only),
            _ => self.add(Node::Either(options)),
        }
    }

    /// Up to what cannot be a part: `|`, `)`, the next rule or the end.
    fn sequence(&mut self) -> Result<Id, Bad> {
        let mut parts = Vec::new();
        while !matches!(self.peek(), None | Some('|' | ')')) {
            let begin = self.at;
            if self.next_rule().is_some() {
                self.at = begin;
                if self.groups > 0 {
                    return Err(self.expected("')'"));
                }
                break;
            }
            let mut part = self.part()?;
            self.space();
            let mut signs = 0;
            while let Some((least, most)) = self.times()? {
                signs += 1;
                if signs > MAX_SIGNS {
                    let problem = format!("a part is repeated by more than {MAX_SIGNS} signs");
                    return Err(self.wrong(begin, problem));
                }
                part = match (least, most) {
                    (_, Some(0)) => self.add(Node::Seq(Vec::new()))?,
                    (1, Some(1)) => part,
                    _ => self.add(Node::Repeat(part, least, most))?,
                };
                self.space();
            }
            parts.push(part);
        }
        match parts[..] {
            [only] => Ok(only),
            _ => self.add(Node::Seq(parts)),
        }
    }

    fn part(&mut self) -> Result<Id, Bad> {
        match self.peek() {
            Some('"') => self.literal(),
            Some('[') => self.class(),
            Some('.') => {
                self.at += 1;
                self.add(Node::Char(Chars::any()))
            }
            Some('(') => self.group(),
            Some(char) if is_of_name(char) => {
                let begin = self.at;
                let name = self.name();
                let number = self.number(name, begin);
                self.add(Node::Rule(number))
            }
            _ => Err(self.expected("a text in \", characters in [], '.', '(', a name or '|'")),
        }
    }

    fn group(&mut self) -> Result<Id, Bad> {
        if self.groups == MAX_GROUPS {
            let problem = format!("more than {MAX_GROUPS} groups lie in each other");
            return Err(self.wrong(self.at, problem));
        }
        self.groups += 1;
        self.at += 1;
        self.space();
        let inside = self.alternatives()?;
        if !self.take(")") {
            return Err(self.expected("')'"));
        }
        self.groups -= 1;
        Ok(inside)
    }

    fn literal(&mut self) -> Result<Id, Bad> {
        let begin = self.at;
        self.at += 1;
        let mut parts = Vec::new();
        while !self.take("\"") {
            let Some(char) = self.char(Within::Quotes)? else {
                return Err(self.wrong(begin, "expected '\"' at the end of the text".to_owned()));
            };
            parts.push(self.add(Node::Char(Chars::one(char)))?);
        }
        match parts[..] {
            [only] => Ok(only),
            _ => self.add(Node::Seq(parts)),
        }
    }

    fn class(&mut self) -> Result<Id, Bad> {
        let begin = self.at;
        let unended = |reader: &Self| {
            Err(reader.wrong(begin, "expected ']' at the end of the characters".to_owned()))
        };
        self.at += 1;
        let others = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            let from = self.at;
            let Some(low) = self.char(Within::Brackets)? else { return unended(self) };
            let is_range = self.peek() == Some('-') && !self.text[self.at + 1..].starts_with(']');
            let high = if is_range {
                self.at += 1;
                let Some(high) = self.char(Within::Brackets)? else { return unended(self) };
                high
            } else {
                low
            };
            if high < low {
                let range = &self.text[from..self.at];
                return Err(self.wrong(from, format!("'{range}' is no range, it falls")));
            }
            ranges.push((low, high));
        }
        let chars = Chars::new(ranges);
        let chars = if others { chars.negated() } else { chars };
        if chars.0.is_empty() || (others && chars == Chars::any()) {
            return Err(self.wrong(begin, "expected characters between '[' and ']'".to_owned()));
        }
        self.add(Node::Char(chars))
    }

    /// A character as it is or as an escape; nothing at the end.
    fn char(&mut self, within: Within) -> Result<Option<char>, Bad> {
        let begin = self.at;
        let Some(char) = self.peek() else { return Ok(None) };
        self.at += char.len_utf8();
        if char != '\\' {
            return Ok(Some(char));
        }
        let Some(escape) = self.peek() else { return Ok(None) };
        self.at += escape.len_utf8();
        let number = match (escape, within) {
            ('n', _) => return Ok(Some('\n')),
            ('r', _) => return Ok(Some('\r')),
            ('t', _) => return Ok(Some('\t')),
            ('"' | '\'' | '\\' | '[' | ']' | '/', _) | ('-' | '^', Within::Brackets) => {
                return Ok(Some(escape));
            }
            ('x', _) => self.hex(2),
            ('u', _) => self.hex(4),
            ('U', _) => self.hex(8),
            _ => {
                let problem = format!(
                    "'\\{escape}' is none of \\n \\r \\t \\\" \\\\ \\[ \\] \\xNN \\uNNNN \\UNNNNNNNN"
                );
                return Err(self.wrong(begin, problem));
            }
        };
        let Some(char) = number.and_then(char::from_u32) else {
            let problem = format!("expected the digits of a character after '\\{escape}'");
            return Err(self.wrong(begin, problem));
        };
        Ok(Some(char))
    }

    fn hex(&mut self, digits: usize) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + digits)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        self.at += digits.len();
        u32::from_str_radix(digits, 16).ok()
    }

    /// What may stand behind a part: `*`, `+`, `?`, `{n}`, `{n,}`, `{,m}` or `{n,m}`.
    fn times(&mut self) -> Result<Option<(u32, Option<u32>)>, Bad> {
        let begin = self.at;
        for (sign, times) in [("*", (0, None)), ("+", (1, None)), ("?", (0, Some(1)))] {
            if self.take(sign) {
                return Ok(Some(times));
            }
        }
        if !self.take("{") {
            return Ok(None);
        }
        let least = self.count()?;
        let times = if self.take(",") {
            (least.unwrap_or(0), self.count()?)
        } else {
            (least.unwrap_or(0), least)
        };
        if !self.take("}") || (least, times.1) == (None, None) {
            return Err(self.wrong(begin, "expected {n}, {n,}, {,m} or {n,m}".to_owned()));
        }
        if times.1.is_some_and(|most| most < times.0) {
            return Err(self.wrong(begin, format!("at least {} is more than at most", times.0)));
        }
        Ok(Some(times))
    }

    fn count(&mut self) -> Result<Option<u32>, Bad> {
        self.space();
        let rest = &self.text[self.at..];
        let digits =
            &rest[..rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len()];
        if digits.is_empty() {
            return Ok(None);
        }
        let Some(count) = digits.parse().ok().filter(|count| *count <= MAX_TIMES) else {
            let problem = format!("a part may be repeated {MAX_TIMES} times at most by number");
            return Err(self.wrong(self.at, problem));
        };
        self.at += digits.len();
        self.space();
        Ok(Some(count))
    }

    /// Skips white space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.text[self.at..].trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with('#') {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    /// Empty where there is none.
    fn name(&mut self) -> &'a str {
        let text: &'a str = self.text;
        let rest = &text[self.at..];
        let name = &rest[..rest.len() - rest.trim_start_matches(is_of_name).len()];
        self.at += name.len();
        name
    }

    fn number(&mut self, name: &'a str, at: usize) -> usize {
        *self.numbers.entry(name).or_insert_with(|| {
            self.rules.push(Rule { name, named: at, body: None });
            self.rules.len() - 1
        })
    }

    fn add(&mut self, node: Node) -> Result<Id, Bad> {
        if self.nodes.len() == MAX_NODES {
            return Err(Bad::TooLarge);
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, sign: &str) -> bool {
        let taken = self.text[self.at..].starts_with(sign);
        self.at += if taken { sign.len() } else { 0 };
        taken
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn wrong(&self, at: usize, problem: String) -> Bad {
        Bad::At { line: self.line(at), problem }
    }

    fn expected(&self, what: &str) -> Bad {
        let found: String =
            self.text[self.at..].chars().take_while(|c| !c.is_whitespace()).take(20).collect();
        let found = if found.is_empty() { "the end".to_owned() } else { format!("'{found}'") };
        self.wrong(self.at, format!("expected {what}, not {found}"))
    }
}
