//! The language of a grammar, and what it may not be.

use std::{collections::BTreeSet, fmt, path::Path, sync::LazyLock};

use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_oneof, proptest,
};

use super::*;
use crate::text::{Form, Text, Walk, Ways};

static TEXT: LazyLock<Text> = LazyLock::new(|| {
    let tied = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/tied");
    Text::from_dir(&tied).unwrap()
});

/// The token that is this and nothing else.
fn token(bytes: &[u8]) -> u32 {
    let ids = 0..u32::try_from(TEXT.vocab()).unwrap();
    ids.into_iter()
        .find(|id| !TEXT.is_special(*id) && TEXT.token_bytes(*id) == Some(bytes))
        .unwrap_or_else(|| panic!("no token is {bytes:?}"))
}

/// What is said of a grammar that llguidance's compiler panics at.
const GIVEN_UP: &str = "its compiler cannot put it together";

fn begin(grammar: &str) -> Walk {
    TEXT.form(&Form::Grammar(grammar.to_owned())).unwrap_or_else(|bad| panic!("{bad}\n{grammar}"))
}

/// Takes the bytes of one character after another; nothing where it may not come.
fn step(walk: &mut Walk, before: Option<&str>, char: char) -> Option<()> {
    let mut bytes = [0; 4];
    let mut last: Option<u32> = before.map(|text| token(&text.as_bytes()[text.len() - 1..]));
    for byte in char.encode_utf8(&mut bytes).as_bytes() {
        let id = token(&[*byte]);
        let Ok(Ways::Some(words, _)) = walk.after(last) else { return None };
        if words[id as usize / 32] >> (id % 32) & 1 == 0 {
            return None;
        }
        last = Some(id);
    }
    Some(())
}

fn may_end(mut walk: Walk, text: &str) -> bool {
    let last = text.as_bytes().last().map(|byte| token(&[*byte]));
    match walk.after(last) {
        Ok(Ways::None | Ways::Some(_, true)) => true,
        Ok(Ways::Some(_, false)) => false,
        Err(why) => panic!("{why} after {text:?}"),
    }
}

/// Whether the whole text is allowed.
fn allows(grammar: &str, text: &str) -> bool {
    let mut walk = begin(grammar);
    for (at, char) in text.char_indices() {
        let before = (at > 0).then(|| &text[..at]);
        if step(&mut walk, before, char).is_none() {
            return false;
        }
    }
    may_end(walk, text)
}

fn assert_language(grammar: &str, yes: &[&str], no: &[&str]) {
    for text in yes {
        assert!(
            allows(grammar, text),
            "{text:?} is missing\n{grammar}\n{}",
            to_lark(grammar).unwrap()
        );
    }
    for text in no {
        assert!(
            !allows(grammar, text),
            "{text:?} is too much\n{grammar}\n{}",
            to_lark(grammar).unwrap()
        );
    }
}

#[test]
fn it_is_told_from_lark() {
    for ebnf in ["root ::= \"a\"", "# start: x\n\n  my-rule_2\t::=\n \"a\"", "a::=b"] {
        assert!(is_meant(ebnf), "{ebnf}");
    }
    for lark in ["start: \"a\"", "start: \"root ::= b\"", "# root ::= a\nstart: /::=/", "", "::= a"]
    {
        assert!(!is_meant(lark), "{lark}");
    }
}

#[test]
fn all_that_it_has_is_read() {
    assert_language("root ::= \"a\" | [0-9]+", &["a", "7", "123"], &["", "a1", "aa"]);
    assert_language(
        "root ::= \"\\\"\\\\\\n\\t\\r\\x41\\u00e4\\U0001F600\"",
        &["\"\\\n\t\rA\u{e4}\u{1f600}"],
        &["\"\\", "n"],
    );
    assert_language(
        "root ::= [^a-y\\]\\n] [\\-\\^x]",
        &["z-", "\u{e9}^", "Ax"],
        &["a-", "]x", "\nx"],
    );
    assert_language("root ::= [-a] [a-]", &["--", "a-", "-a"], &["b-"]);
    assert_language("root ::= . .", &["ab", "\n\u{1f600}"], &["a", "abc"]);
    assert_language(
        "root ::= \"a\"{2} b{1,} c{,2} d{0,1} e {0}\nb ::= \"b\" c ::= \"c\"\nd ::= \"d\"\ne ::= \"e\"",
        &["aab", "aabbccd", "aabd"],
        &["ab", "aa", "aabccc", "aabe"],
    );
    assert_language(
        "# a list\nroot ::= (\n  \"x\" # one\n  | \"y\"\n)\n  | item-1? end_\nitem-1 ::= \"i\"\n\nend_ ::= | \"e\"",
        &["x", "y", "", "i", "ie", "e"],
        &["xe", "ee"],
    );
    assert_language("root ::= \"\" | ( )", &[""], &["a"]);
}

/// Where lexemes that are as long as they can be would not do.
#[test]
fn every_way_to_put_parts_together_is_meant() {
    let list = "root ::= \"(\" inner \")\" [a-z]* \"nd\"\ninner ::= root | [a-z]+ [a-z]";
    assert_language(list, &["(ab)nd", "(ab)andnd", "((ab)nd)nd"], &["(a)nd", "(ab)n", "(ab)"]);
    let words =
        "root ::= stmt | \"(\" root \")\"\nstmt ::= \"if\" name | name \"=\" name\nname ::= [a-z]+";
    assert_language(words, &["ifx", "ifx=b", "(if=a)", "a=b", "i=f"], &["if", "a", "(ifx"]);
    let chars = "root ::= a | \"(\" root \")\"\na ::= [a\u{e9}]+ \"\u{e4}\" | [a\u{e9}] \"b\"";
    assert_language(
        chars,
        &["a\u{e4}", "\u{e9}b", "(\u{e9}\u{e4})", "\u{e9}a\u{e4}"],
        &["ab\u{e4}"],
    );
    let arithmetic = "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] term)*\n\
        term ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*";
    assert_language(
        arithmetic,
        &["1=2\n", "a+b1 =c\n\n", "( 1 )=2\n", "x=y\n\nx=y\n"],
        &["1=2", "=2\n", "1+=2\n", "(1=2\n"],
    );
}

#[test]
fn rules_that_come_back_to_themselves() {
    assert_language("root ::= root \"a\" | \"b\"", &["b", "baa"], &["a", "ab", ""]);
    assert_language("root ::= \"a\" root | \"b\"", &["b", "aab"], &["a", "ba"]);
    assert_language("root ::= [a-c] root?", &["a", "abc"], &["", "d"]);
    assert_language("root ::= (\"a\" root \"b\")?", &["", "ab", "aabb"], &["a", "ba", "abb"]);
    assert_language("root ::= root root | \"a\" | root", &["a", "aaaa"], &["", "b"]);
    assert_language(
        "root ::= a\na ::= b | \"x\"\nb ::= a \"y\" | a \"z\" b",
        &["x", "xyy", "xzxy"],
        &["y", "xz"],
    );
}

const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn the_grammar_of_json_has_large_lexemes() {
    assert_language(
        JSON,
        &["{}", "{\"a\": [1, -2.5e3, {\"b\":null}],\n \"c\" :true} ", "{\"\\u00e4\\n\":\"x\"}"],
        &["[]", "{\"a\" 1}", "{\"a\":01}", "{\"a\":1,}", "{  }"],
    );
    let lark = to_lark(JSON).unwrap();
    let rules = lark.lines().filter(|line| !line.starts_with('L'));
    let words = rules.flat_map(|line| line.split(|c: char| !c.is_alphanumeric()));
    let lexemes: BTreeSet<&str> = words.filter(|word| word.starts_with('L')).collect();
    assert!(lexemes.len() < 20, "{lark}");
}

/// Texts among what refers to itself are lexemes as long as they are.
#[test]
fn text_between_tags_is_one_lexeme() {
    let tags = "root ::= \"<\" name \">\" (text | root)* \"</\" name \">\"\nname ::= [a-z]+\ntext ::= [^<]+";
    assert_language(
        tags,
        &["<a></a>", "<a>some text<b>b</b><c></c> more</a>"],
        &["<a>", "<a></a>x", "<a><</a>", "text"],
    );
    let brackets = "root ::= \"(\" item+ \")\"\nitem ::= root | [^()]";
    assert_language(brackets, &["(a)", "((b)c(d)(e)f)"], &["()", "(a", "a", "(a))"]);
    for grammar in [tags, brackets] {
        let lark = to_lark(grammar).unwrap();
        let whole = |line: &str| line.starts_with('L') && line.contains('*') && !line.contains(' ');
        assert!(lark.lines().any(|line| whole(&line.replace(": ", ":"))), "{lark}");
    }
}

#[test]
fn what_is_wrong_is_said_by_line() {
    for (grammar, problem) in [
        ("a ::= \"b\"", "no rule is named 'root'"),
        ("root ::= a", "line 1: there is no rule 'a'"),
        ("root ::= \"a\"\n\nroot ::= \"b\"", "line 3: there is another rule 'root'"),
        ("root ::= \"a\nb", "line 1: expected '\"'"),
        ("root ::=\n [a", "line 2: expected ']'"),
        ("root ::= (\"a\"", "line 1: expected ')'"),
        ("root ::= (\"a\"\nb ::= \"c\")", "line 2: expected ')', not 'b'"),
        ("root ::= \"a\")", "line 1: expected a rule"),
        ("root ::= [z-a]", "line 1: 'z-a' is no range"),
        ("root ::= []", "line 1: expected characters"),
        ("root ::= [^]", "line 1: expected characters"),
        ("root ::= \"\\q\"", "line 1: '\\q' is none of"),
        ("root ::= \"\\ud800\"", "line 1: expected the digits"),
        ("root ::= \"\\x4\"", "line 1: expected the digits"),
        ("root ::= \"a\"{}", "line 1: expected {n}"),
        ("root ::= \"a\"{2,1}", "line 1: at least 2"),
        ("root ::= \"a\"{9999999999}", "line 1: a part may be repeated"),
        ("root ::= \"a\" *?+*", "line 1: a part is repeated by more"),
        ("root ::= <think>", "line 1: expected a text"),
        ("root ::= \"a\" (=\"b\")", "line 1: expected a text"),
        ("root ::= \"a\"\n::= b", "line 2: expected a text"),
        ("root ::= a\na ::= \"x\" a", "line 2: 'a' never comes to an end"),
    ] {
        let bad = to_lark(grammar).map(|lark| panic!("{grammar}\n{lark}")).unwrap_err().to_string();
        assert!(bad.starts_with(problem), "{bad}, not {problem}: {grammar}");
    }
}

#[test]
fn what_is_too_large_is_refused_soon() {
    let nested = |open: &str, close: &str, depth: usize| {
        format!("root ::= {}\"a\"{}", open.repeat(depth), close.repeat(depth))
    };
    let chain = |link: &str, length: usize| {
        let rules = (0..length)
            .map(|at| format!("r{at} ::= {}\n", link.replace('@', &format!("r{}", at + 1))));
        format!("root ::= r0\n{}r{length} ::= \"x\"\n", rules.collect::<String>())
    };
    let begun = std::time::Instant::now();
    for grammar in [
        nested("(", ")", 100_000),
        nested("(", ")?", 60),
        nested("[", "", 100_000),
        format!("root ::= {}", "\"aaaaaaaaa\" ".repeat(20_000)),
        chain("@ @", 300),
        chain("@", 1_999),
        chain("\"a\" (@ | root)?", 1_900),
        format!("root ::= \"(\" root \")\" | {}", "[a-z]* ".repeat(5_000)),
        format!("root ::= \"(\" root \")\" | ({})*", "[a-z]* | ".repeat(5_000)),
        "#".repeat(250_000) + "\nroot ::= a",
        "root ::= ".to_owned() + &"a ".repeat(100_000),
    ] {
        let form = TEXT.form(&Form::Grammar(grammar.clone()));
        assert!(form.is_err(), "{}", &grammar[..100]);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// A part of a grammar as people write it.
#[derive(Clone, Debug)]
enum Part {
    Text(&'static str),
    Class(&'static str, &'static [char]),
    Rule(usize),
    Seq(Vec<Self>),
    Either(Vec<Self>),
    Repeat(Box<Self>, &'static str, usize, usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Class(class, _) => f.write_str(class),
            Self::Rule(0) => f.write_str("root"),
            Self::Rule(rule) => write!(f, "r{rule}"),
            Self::Seq(parts) => {
                let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
                write!(f, "({})", parts.join(" "))
            }
            Self::Either(parts) => {
                let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
                write!(f, "({})", parts.join(" | "))
            }
            Self::Repeat(part, sign, ..) => write!(f, "{part}{sign}"),
        }
    }
}

const SIGNS: [char; 4] = ['a', 'b', '\u{e4}', '\u{e9}'];
const RULES: usize = 3;

fn parts() -> impl Strategy<Value = Part> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["a", "b", "ab", "ba", "\u{e4}", "a\u{e9}", ""])
            .prop_map(Part::Text),
        Just(Part::Class("[ab]", &['a', 'b'])),
        Just(Part::Class("[^a]", &['b', '\u{e4}', '\u{e9}'])),
        Just(Part::Class("[\\u00e4-\\u00e9]", &['\u{e4}', '\u{e9}'])),
        Just(Part::Class(".", &SIGNS)),
        (0..RULES).prop_map(Part::Rule),
        (0..RULES).prop_map(Part::Rule),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let signs =
            [("*", 0, 9), ("+", 1, 9), ("?", 0, 1), ("{2}", 2, 2), ("{1,2}", 1, 2), ("{,2}", 0, 2)];
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Part::Seq),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Part::Either),
            (inner, prop::sample::select(signs.to_vec())).prop_map(
                |(part, (sign, least, most))| Part::Repeat(Box::new(part), sign, least, most)
            ),
        ]
    })
}

/// Where in the text a part may end that begins at `at`, as far as it is known of rules.
fn ends(part: &Part, text: &[char], at: usize, known: &[Vec<BTreeSet<usize>>]) -> BTreeSet<usize> {
    match part {
        Part::Text(literal) => {
            let literal: Vec<char> = literal.chars().collect();
            text[at..].starts_with(&literal).then_some(at + literal.len()).into_iter().collect()
        }
        Part::Class(_, chars) => {
            text.get(at).filter(|char| chars.contains(char)).map(|_| at + 1).into_iter().collect()
        }
        Part::Rule(rule) => known[*rule][at].clone(),
        Part::Seq(parts) => parts.iter().fold(BTreeSet::from([at]), |from, part| {
            from.into_iter().flat_map(|at| ends(part, text, at, known)).collect()
        }),
        Part::Either(parts) => parts.iter().flat_map(|part| ends(part, text, at, known)).collect(),
        Part::Repeat(part, _, least, most) => {
            let (mut all, mut from) = (BTreeSet::new(), BTreeSet::from([at]));
            for time in 0..=*most {
                if time >= *least {
                    all.extend(from.iter().copied());
                }
                from = from.into_iter().flat_map(|at| ends(part, text, at, known)).collect();
            }
            all
        }
    }
}

/// Whether the text is one of the grammar: what is known of each rule at each place grows until it does not.
fn is_text(rules: &[Part], text: &[char]) -> bool {
    let mut known = vec![vec![BTreeSet::new(); text.len() + 1]; rules.len()];
    loop {
        let mut more = false;
        for (rule, part) in rules.iter().enumerate() {
            for at in 0..=text.len() {
                let now = ends(part, text, at, &known);
                more |= !now.is_subset(&known[rule][at]);
                known[rule][at].extend(now);
            }
        }
        if !more {
            return known[0][0].contains(&text.len());
        }
    }
}

/// Compares all texts of some length that begin so; where one may not go on, there must be none.
fn compare(walk: &Walk, rules: &[Part], text: &mut Vec<char>, room: usize) -> Result<(), String> {
    let said: String = text.iter().collect();
    if may_end(walk.clone(), &said) != is_text(rules, text) {
        return Err(format!("{said:?} is {} text", if is_text(rules, text) { "a" } else { "no" }));
    }
    if room == 0 {
        return Ok(());
    }
    for sign in SIGNS {
        let mut further = walk.clone();
        text.push(sign);
        let before = (!said.is_empty()).then_some(said.as_str());
        if step(&mut further, before, sign).is_some() {
            compare(&further, rules, text, room - 1)?;
        } else {
            none(rules, text, room - 1)?;
        }
        text.pop();
    }
    Ok(())
}

fn none(rules: &[Part], text: &mut Vec<char>, room: usize) -> Result<(), String> {
    if is_text(rules, text) {
        return Err(format!("{text:?} cannot be said"));
    }
    for sign in SIGNS.into_iter().filter(|_| room > 0) {
        text.push(sign);
        none(rules, text, room - 1)?;
        text.pop();
    }
    Ok(())
}

/// A fault of llguidance's (1.9): the same class by itself and before a rule that is empty. It is refused, and nothing else is taken
/// for it.
#[test]
fn a_grammar_that_the_compiler_gives_up_is_refused() {
    let grammar = "root ::= (a | [\\u00e4-\\u00e9])\na ::= ([\\u00e4-\\u00e9] b)\nb ::= \"\"\n";
    let bad = TEXT.form(&Form::Grammar(grammar.to_owned())).unwrap_err();
    assert!(bad.to_string().contains(GIVEN_UP), "{bad}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Ours and a naive matcher agree on all short texts.
    #[test]
    fn the_language_is_exact(rules in prop::collection::vec(parts(), RULES)) {
        let lines = rules.iter().enumerate().map(|(rule, part)| format!("{} ::= {part}\n", Part::Rule(rule)));
        let grammar: String = lines.collect();
        match to_lark(&grammar) {
            Ok(lark) => {
                let walk = match TEXT.form(&Form::Grammar(grammar.clone())) {
                    Ok(walk) => walk,
                    Err(bad) => {
                        prop_assert!(bad.to_string().contains(GIVEN_UP), "{bad}\n{grammar}");
                        return Ok(());
                    }
                };
                if let Err(problem) = compare(&walk, &rules, &mut Vec::new(), 4) {
                    panic!("{problem}\n{grammar}\n{lark}");
                }
            }
            Err(bad) => prop_assert!(bad.to_string().contains("never comes to an end"), "{bad}\n{grammar}"),
        }
    }

    /// Anything is a grammar or is not, and nothing worse.
    #[test]
    fn anything_is_read_or_refused(
        pieces in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "root ::= ", "a ::= ", "\n", "\"a\"", "[a-z]", "[^", "]", "(", ")", "|", "*", "{2,", "}", "3", "\\", "\\x", "\\u12",
                "#", "a", "root", ".", "-", "\"", "\u{e4}",
            ]).prop_map(str::to_owned),
            any::<String>(),
        ], 0..20),
    ) {
        drop(to_lark(&pieces.concat()));
    }
}
