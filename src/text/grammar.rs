//! Forms that an answer must have, and what may come next in one: grammars over the model's own tokens.
//!
//! The work is `llguidance`'s (Earley parsing over a lexer of regular-expression derivatives, and a trie of the vocabulary). A
//! form comes from a request, so all that it can cost is bounded: its size, the work of compiling it, that of each token, and the
//! memory it may fill. Compiling is work for the processor alone; callers keep it off the reactor.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    thread,
};

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};

use super::{
    Text, formats, gbnf, intersections,
    offer::{Gate, Offer},
    pieces::Pieces,
    tools::{Calls, Dialect},
};

/// Most bytes of a form as it is written.
const MAX_FORM: usize = 256 << 10;
/// Most characters of a reason that are told.
const REASON: usize = 400;
/// The stack on which a form is compiled, and what there is more of it for each byte of the form. Code that is not optimized takes
/// several times as much.
const LEAST_STACK: usize = 4 << 20;
const STACK_PER_BYTE: usize = if cfg!(debug_assertions) { 8 << 10 } else { 1 << 10 };
/// Stands before tokens that are no text, so that no text is taken for one.
pub(super) const SPECIAL: u8 = 0xff;
/// What JSON may have between its parts: a space where people write one. A model that may write any number of spaces and line
/// breaks sometimes writes nothing else.
const SEPARATORS: [(&str, &str); 2] = [("item_separator", r",[ ]?"), ("key_separator", r":[ ]?")];

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// JSON that this schema describes.
    Schema(Value),
    /// A text that this regular expression matches from its beginning to its end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar: EBNF as llama.cpp has it (GBNF), or llguidance's variant of Lark. Which of them is seen from its
    /// rules, as vLLM does: `name ::= ..` is EBNF.
    Grammar(String),
    /// Calls of tools; or, where there is one, JSON that this schema describes.
    Calls(Calls, Option<Value>),
    /// Any text, in which calls of tools have their form, and their arguments that of tools that are strict. Of dialects that mark
    /// where calls begin: see [`super::Dialect::opener`].
    Offered(Calls),
}

/// A form cannot be followed: it is none, or asks for what is not there, or for too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadForm(String);

/// Following a form takes more work than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the form of the answer takes too much work to follow")]
pub struct TooComplex;

/// What may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Nothing: the form is complete.
    None,
    /// Tokens, as the bits of these words, lowest first; and whether the text may end.
    Some(Vec<u32>, bool),
}

/// A form on the way from its beginning to its end. Clones begin where it is, and share what they find out.
#[derive(Clone, Debug)]
pub struct Walk(Way);

#[derive(Clone, Debug)]
enum Way {
    Form(Follow),
    Offer(Box<Offer>),
}

/// A grammar that is followed.
#[derive(Clone)]
pub(super) struct Follow {
    /// It is large.
    matcher: Box<Matcher>,
    /// What may come first.
    first: Option<Ways>,
    /// The token that stands for the end of the form, behind all that are real.
    end: u32,
}

/// Compiles forms for one vocabulary.
pub(super) struct Grammars {
    factory: ParserFactory,
    /// See [`Follow::end`].
    end: u32,
    /// Of dialects that mark where calls begin.
    gates: [OnceLock<Arc<Gate>>; 2],
}

/// Compiled when the first form is asked for, which most servers never are.
#[derive(Default)]
pub(super) struct Lazily(OnceLock<Result<Arc<Grammars>, BadForm>>);

impl Text {
    /// Begins a form.
    pub fn form(&self, form: &Form) -> Result<Walk, BadForm> {
        self.shared.grammars.get(&self.shared.pieces)?.begin(form)
    }
}

impl Lazily {
    pub(super) fn get(&self, pieces: &Pieces) -> Result<Arc<Grammars>, BadForm> {
        self.0.get_or_init(|| Grammars::of(pieces).map(Arc::new)).clone()
    }
}

impl Grammars {
    fn of(pieces: &Pieces) -> Result<Self, BadForm> {
        let tokens = pieces.len();
        let word = |id: usize| {
            let id = u32::try_from(id).expect("ids have 32 bits");
            match pieces.get(id) {
                Some(piece) if piece.special => [&[SPECIAL], piece.bytes].concat(),
                Some(piece) => piece.bytes.to_vec(),
                None => Vec::new(),
            }
        };
        let mut words: Vec<Vec<u8>> = (0..tokens).map(word).collect();
        // An end of its own, so that it is no question which of the model's ends a form means.
        words.push([&[SPECIAL], "<the end of the form>".as_bytes()].concat());
        let end = u32::try_from(tokens).expect("ids have 32 bits");
        let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
        let environment = Arc::new(ApproximateTokEnv::new(trie));
        let capabilities = InferenceCapabilities::default();
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&(environment as _), capabilities, &slices)
            .map_err(|error| BadForm::of(&error))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Self { factory, end, gates: Default::default() })
    }

    /// The vocabulary.
    pub(super) fn tokens(&self) -> TokEnv {
        Arc::clone(self.factory.tok_env())
    }

    fn begin(&self, form: &Form) -> Result<Walk, BadForm> {
        let size = form.size();
        if size > MAX_FORM {
            return Err(BadForm(format!("it has {size} bytes, at most {MAX_FORM}")));
        }
        form.check_intersections()?;
        let follow = self.follow(form)?;
        let Form::Offered(calls) = form else { return Ok(Walk(Way::Form(follow))) };
        let (gate, opener) = match (calls.dialect, calls.dialect.opener()) {
            (Dialect::Tagged, Some(opener)) => (&self.gates[0], opener),
            (_, Some(opener)) => (&self.gates[1], opener),
            (_, None) => return Err(BadForm("nothing marks where a call begins".to_owned())),
        };
        let make = || Gate::new(self.tokens(), opener, self.special(opener), self.end).into();
        let gate = Arc::clone(gate.get_or_init(make));
        let offer = Offer::new(gate, follow, calls.dialect, calls.number);
        Ok(Walk(Way::Offer(offer.into())))
    }

    /// Compiles a form. That goes as deep as its parts lie in each other or refer to each other, which is as deep as it has bytes to
    /// say so: the stack is as large as that needs, of which only what is used takes memory.
    fn follow(&self, form: &Form) -> Result<Follow, BadForm> {
        let stack = LEAST_STACK + form.size() * STACK_PER_BYTE;
        thread::scope(|scope| {
            let compiler = thread::Builder::new().name("form".to_owned()).stack_size(stack);
            let compiling = compiler
                .spawn_scoped(scope, || self.compile(form))
                .map_err(|_| BadForm("there is no memory to compile it".to_owned()))?;
            compiling.join().unwrap_or_else(|_| Err(BadForm("it cannot be compiled".to_owned())))
        })
    }

    fn compile(&self, form: &Form) -> Result<Follow, BadForm> {
        let parser = self.factory.create_parser(self.grammar(form)?);
        let matcher = Matcher::new(Ok(parser.map_err(|error| BadForm::of(&error))?));
        if let Some(error) = matcher.get_error() {
            return Err(BadForm(short(&error)));
        }
        let mut follow = Follow { matcher: Box::new(matcher), first: None, end: self.end };
        // A form without a beginning, such as one that is itself before it is anything, is none.
        let first = follow.after(None);
        follow.first = Some(first.map_err(|_| {
            BadForm("nothing can begin it, or finding out what can takes too much work".to_owned())
        })?);
        Ok(follow)
    }
}

impl Grammars {
    fn grammar(&self, form: &Form) -> Result<TopLevelGrammar, BadForm> {
        Ok(match form {
            Form::Schema(schema) => TopLevelGrammar::from_json_schema(compact(schema)),
            Form::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Form::Choice(texts) if texts.is_empty() => {
                return Err(BadForm("there is nothing to choose from".to_owned()));
            }
            Form::Choice(texts) => {
                let texts: Vec<_> = texts.iter().map(|text| regex::escape(text)).collect();
                TopLevelGrammar::from_regex(&texts.join("|"))
            }
            Form::Grammar(text) if gbnf::is_meant(text) => {
                TopLevelGrammar::from_lark(gbnf::to_lark(text).map_err(|bad| BadForm::of(&bad))?)
            }
            Form::Grammar(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Form::Calls(calls, otherwise) => {
                let special = |text: &str| self.special(text);
                TopLevelGrammar::from_lark(calls.lark(otherwise.as_ref(), special))
            }
            Form::Offered(calls) => {
                TopLevelGrammar::from_lark(calls.lark_behind_opener(|text| self.special(text)))
            }
        })
    }

    /// The token that is this text, and no text but itself.
    fn special(&self, text: &str) -> Option<u32> {
        let word = [&[SPECIAL], text.as_bytes()].concat();
        self.factory.tok_env().tok_trie().token_id_at_bytes(&word)
    }
}

/// What a form may cost. Real ones stay far below: see the test.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

impl Form {
    /// Any JSON object.
    pub fn object() -> Self {
        Self::Schema(json!({"type": "object"}))
    }

    /// Where schemas have more alternatives in all than may be, or more that may be left out, says so.
    fn check_intersections(&self) -> Result<(), BadForm> {
        let own = match self {
            Self::Schema(schema) => Some(schema),
            Self::Calls(_, otherwise) => otherwise.as_ref(),
            _ => None,
        };
        let tools = match self {
            Self::Calls(calls, _) | Self::Offered(calls) => &*calls.tools,
            _ => &[],
        };
        let schemas = tools.iter().map(|tool| &tool.parameters).chain(own);
        let count = schemas.clone().map(intersections::alternatives).fold(0, u64::saturating_add);
        if count > intersections::MOST {
            let most = intersections::MOST;
            return Err(BadForm(format!(
                "what 'allOf' brings together has more than {most} alternatives"
            )));
        }
        if schemas.map(intersections::pairs).fold(0, u64::saturating_add)
            > intersections::MOST_PAIRS
        {
            let most = "at most some 1,500 that may be left out, or 4,000 that must be there";
            return Err(BadForm(format!("its objects have too many properties: {most}")));
        }
        Ok(())
    }

    fn size(&self) -> usize {
        match self {
            Self::Schema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
            Self::Calls(calls, otherwise) => {
                let schemas = calls.tools.iter().map(|tool| &tool.parameters).chain(otherwise);
                schemas.map(|schema| schema.to_string().len()).sum()
            }
            Self::Offered(calls) => {
                calls.tools.iter().map(|tool| tool.parameters.to_string().len()).sum()
            }
        }
    }
}

/// The schema, with the spaces that its JSON may have. What a request says of how it is compiled does not count.
pub(super) fn compact(schema: &Value) -> Value {
    let mut schema = schema.clone();
    formats::spell_out(&mut schema);
    if let Some(fields) = schema.as_object_mut() {
        let how = SEPARATORS.into_iter().map(|(name, is)| (name.to_owned(), is.into()));
        let mut how: serde_json::Map<String, Value> = how.collect();
        how.insert("whitespace_flexible".to_owned(), false.into());
        fields.insert("x-guidance".to_owned(), how.into());
    }
    schema
}

impl BadForm {
    fn of(error: &impl fmt::Display) -> Self {
        let reason = short(&format!("{error:#}"));
        // llguidance gives up so where it has a fault, and says which line of it.
        let own = reason.starts_with("panic:");
        Self(if own { "its compiler cannot put it together".to_owned() } else { reason })
    }
}

/// The first line, not too long: what follows are the insides of the parser, or options of it that nobody here can set.
fn short(reason: &str) -> String {
    let first = reason.lines().next().unwrap_or_default();
    let first = first.split(". Enable '").next().unwrap_or_default();
    // A regex is shown and marked before it is said what is wrong with it.
    let why = reason.lines().find_map(|line| line.trim_start().strip_prefix("error: "));
    let why = why.filter(|_| first.ends_with("regex parse error:"));
    let said = [first, why.unwrap_or_default()].join(" ");
    said.trim_end().chars().take(REASON).collect()
}

impl Walk {
    /// What may come after `token`, or first where it is `None`.
    pub fn after(&mut self, token: Option<u32>) -> Result<Ways, TooComplex> {
        match &mut self.0 {
            Way::Form(follow) => follow.after(token),
            Way::Offer(offer) => offer.after(token),
        }
    }
}

impl Follow {
    /// See [`Walk::after`].
    pub(super) fn after(&mut self, token: Option<u32>) -> Result<Ways, TooComplex> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        if let Some(token) = token {
            self.matcher.consume_token(token).map_err(|_| TooComplex)?;
        }
        if self.matcher.is_stopped() {
            return if self.matcher.is_error() { Err(TooComplex) } else { Ok(Ways::None) };
        }
        let mut ways: SimpleVob = self.matcher.compute_mask().map_err(|_| TooComplex)?;
        let may_end = ways.is_allowed(self.end);
        ways.disallow_token(self.end);
        Ok(Ways::Some(ways.as_slice().to_vec(), may_end))
    }
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow")
            .field("stopped", &self.matcher.is_stopped())
            .finish_non_exhaustive()
    }
}
