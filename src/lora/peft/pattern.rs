//! The regular expressions of a PEFT configuration, matched in linear time.
//!
//! PEFT matches them with Python's `re` against module paths. Those are ASCII, so patterns are compiled for bytes: that
//! is small and quick, and the Unicode rules of the two languages cannot differ. Syntax that only Python has is
//! refused by the `regex` crate, syntax that both have with different meanings is refused here.

use regex::bytes::{Regex, RegexBuilder};

use crate::lora::refusal::{Quoted, Refusal};

/// Most characters of one pattern.
const LONGEST: usize = 2048;

/// Most patterns of one configuration that are more than literal names. Together with [`LARGEST`] it bounds the time
/// to match all of them against all modules of a large base.
const MOST: usize = 64;

/// Largest compiled pattern in bytes; PEFT's own examples take about 4,000.
const LARGEST: usize = 1 << 14;

/// Valid for both, but Python reads possessive repetitions, plain set members and escaped punctuation in them.
const READ_DIFFERENTLY: [&str; 11] =
    ["++", "*+", "?+", "}+", "&&", "--", "~~", "[[", r"\<", r"\>", r"\b{"];

/// Compiles the patterns of one configuration.
pub(super) struct Compiler {
    /// How many may follow that are more than literal names.
    left: usize,
}

/// A pattern that was understood.
#[derive(Debug)]
pub(super) enum Pattern {
    /// A name at the end of a path, beginning after a dot: by far the most frequent, and far cheaper.
    Name(Name),
    /// Anything else, anchored at both ends.
    Regex(Regex),
}

/// Letters, digits, `_` and dots, escaped or not.
#[derive(Debug)]
pub(super) struct Name {
    /// `None` is a dot that is not escaped: as in any regular expression it stands for any character.
    name: Box<[Option<u8>]>,
    /// Began with `^`: is the whole path.
    anchored: bool,
}

impl Compiler {
    pub(super) fn new() -> Self {
        Self { left: MOST }
    }

    /// What `re.match(rf"(.*\.)?({pattern})$", path)` finds: PEFT's rule for `rank_pattern` and `alpha_pattern`.
    pub(super) fn suffix(&mut self, key: &'static str, pattern: &str) -> Result<Pattern, Refusal> {
        match Name::parse(pattern) {
            Some(name) => Ok(Pattern::Name(name)),
            None => self.regex(key, pattern, |pattern| format!(r"^(?:(?:.*\.)?(?:{pattern}))$")),
        }
    }

    /// What `re.fullmatch(pattern, path)` finds: PEFT's rule for `target_modules` and `exclude_modules` as a string.
    pub(super) fn whole(&mut self, key: &'static str, pattern: &str) -> Result<Pattern, Refusal> {
        self.regex(key, pattern, |pattern| format!("^(?:{pattern})$"))
    }

    fn regex(
        &mut self,
        key: &'static str,
        pattern: &str,
        anchored: impl Fn(&str) -> String,
    ) -> Result<Pattern, Refusal> {
        let refuse = |reason: &str| Refusal::Pattern {
            key,
            pattern: Quoted::new(pattern),
            reason: Quoted::new(reason),
        };
        if pattern.len() > LONGEST {
            return Err(refuse(&format!("it is longer than {LONGEST} characters")));
        }
        if !pattern.is_ascii() {
            return Err(refuse("module names are ASCII"));
        }
        if let Some(syntax) = READ_DIFFERENTLY.iter().find(|syntax| pattern.contains(**syntax)) {
            return Err(refuse(&format!("Python gives {syntax} a meaning of its own")));
        }
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| refuse(&format!("at most {MOST} regular expressions are read")))?;
        // By itself first: "a)|(b" must not find its other halves in what is put around it.
        compile(pattern)
            .and_then(|_| compile(&anchored(pattern)))
            .map(Pattern::Regex)
            .map_err(|error| refuse(&in_words(&error)))
    }
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).unicode(false).size_limit(LARGEST).nest_limit(64).build()
}

/// The last line of a syntax error says what is wrong; the others draw where.
fn in_words(error: &regex::Error) -> String {
    if matches!(error, regex::Error::CompiledTooBig(_)) {
        return "it is too large when compiled".to_owned();
    }
    let message = error.to_string();
    message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl Pattern {
    pub(super) fn is_match(&self, path: &str) -> bool {
        match self {
            Self::Name(name) => name.is_match(path.as_bytes()),
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }
}

impl Name {
    fn parse(pattern: &str) -> Option<Self> {
        let (name, anchored) = match pattern.strip_prefix('^') {
            Some(name) => (name, true),
            None => (pattern, false),
        };
        let mut rest = name.bytes();
        let mut name = Vec::with_capacity(rest.len());
        while let Some(byte) = rest.next() {
            name.push(match byte {
                b'.' => None,
                b'\\' if rest.next() == Some(b'.') => Some(b'.'),
                b'_' => Some(byte),
                _ if byte.is_ascii_alphanumeric() => Some(byte),
                _ => return None,
            });
        }
        (!name.is_empty()).then(|| Self { name: name.into(), anchored })
    }

    fn is_match(&self, path: &[u8]) -> bool {
        let Some(start) = path.len().checked_sub(self.name.len()) else { return false };
        let (before, end) = path.split_at(start);
        let begins_a_name = before.is_empty() || (before.ends_with(b".") && !self.anchored);
        begins_a_name
            && self.name.iter().zip(end).all(|(name, byte)| name.is_none_or(|name| name == *byte))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const Q: &str = "model.layers.1.self_attn.q_proj";
    const Q11: &str = "model.layers.11.self_attn.q_proj";

    fn refusal(pattern: &str) -> String {
        Compiler::new().whole("target_modules", pattern).unwrap_err().to_string()
    }

    /// The expectations were computed with Python's `re`.
    #[test]
    fn suffixes_match_as_in_peft() {
        for (pattern, path, expected) in [
            ("q_proj", Q, true),
            ("proj", Q, false),
            ("_proj", Q, false),
            ("self_attn.q_proj", Q, true),
            ("layers.1.self_attn.q_proj", Q, true),
            ("layers.1.self_attn.q_proj", Q11, false),
            ("^layers.1.self_attn.q_proj", Q, false),
            ("^model.layers.1.self_attn.q_proj", Q, true),
            ("model.layers.1.self_attn.q_proj", Q, true),
            ("q.proj", Q, true),
            (r"self_attn\.q_proj", Q, true),
            (r"self\.attn\.q_proj", Q, false),
            ("attn.q_proj", Q, false),
            ("q_proj$", Q, true),
            (r".*\.(0|1|2|3)\.self_attn\..*", Q, true),
            (r".*\.(0|1|2|3)\.self_attn\..*", Q11, false),
            (r"layers\.[0-9]\..*", Q, true),
            (r"layers\.[0-9]\..*", Q11, false),
            (r"q_proj|k_proj", Q, true),
            ("lm_head", "lm_head", true),
        ] {
            let compiled = Compiler::new().suffix("rank_pattern", pattern).unwrap();
            assert_eq!(compiled.is_match(path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn whole_patterns_match_all_of_the_path() {
        let mut compiler = Compiler::new();
        let german = r".*\.(self_attn\.(q|v|o)_proj|mlp\.(up|down)_proj)";
        let german = compiler.whole("target_modules", german).unwrap();
        assert!(german.is_match(Q));
        assert!(!german.is_match("model.layers.1.self_attn.k_proj"));
        assert!(!compiler.whole("target_modules", "q_proj").unwrap().is_match(Q));
        assert!(compiler.whole("target_modules", "lm_head|x").unwrap().is_match("lm_head"));
        assert!(!compiler.whole("target_modules", "lm|lm_hea").unwrap().is_match("lm_head"));
    }

    #[test]
    fn what_python_alone_understands_is_refused_in_words() {
        assert!(refusal("(?!k)._proj").contains("look-around"), "{}", refusal("(?!k)._proj"));
        assert!(refusal(r"(a)\1").contains("backreferences"));
        assert!(refusal("([").contains("unclosed"), "{}", refusal("(["));
        assert!(refusal("a++b").contains("meaning of its own"));
        assert!(refusal("ä").contains("ASCII"));
        assert!(refusal("a)|(b").contains("unopened group"), "{}", refusal("a)|(b"));
    }

    #[test]
    fn size_and_number_are_bounded() {
        assert!(refusal(&"(a|b)".repeat(1000)).contains("longer than"));
        assert!(refusal("(a{1000}){1000}").contains("too large"));
        assert!(refusal(&format!("{}a{}", "(".repeat(500), ")".repeat(500))).contains("nest"));
        let mut compiler = Compiler::new();
        for _ in 0..MOST {
            compiler.suffix("rank_pattern", "a|b").unwrap();
        }
        assert!(compiler.suffix("rank_pattern", "a|b").is_err());
        compiler.suffix("rank_pattern", "q_proj").unwrap();
    }

    proptest! {
        /// Beside the fast path stands the slow one.
        #[test]
        fn names_match_as_the_same_regular_expressions(
            pattern in r"\^?([ab_.]|\\\.){1,6}",
            path in r"[ab_]{1,3}(\.[ab_]{1,3}){0,3}",
        ) {
            let name = Name::parse(&pattern).unwrap();
            let regex = compile(&format!(r"^(?:(?:.*\.)?(?:{pattern}))$")).unwrap();
            prop_assert_eq!(name.is_match(path.as_bytes()), regex.is_match(path.as_bytes()));
        }

        #[test]
        fn no_pattern_panics(pattern in ".{0,40}") {
            let mut compiler = Compiler::new();
            if let Ok(pattern) = compiler.suffix("rank_pattern", &pattern) {
                pattern.is_match(Q);
            }
            if let Ok(pattern) = compiler.whole("target_modules", &pattern) {
                pattern.is_match(Q);
            }
        }
    }
}
