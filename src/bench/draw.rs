//! What each request asks, drawn from the seed.

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc, time::Duration};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

use super::{
    error::BenchError,
    plan::{Load, Plan},
    prompts::{Prompt, Prompts, words},
    target::Adapter,
    trace::Entry,
    weights::{Weights, below},
};

/// In which order a tenant's adapters are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Order {
    /// One after the other.
    Round,
    /// All are equally likely.
    #[default]
    Uniform,
    /// The k-th of the list is asked for as often as `1/k^s` says.
    Zipf(f64),
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let exponent = |text: &str| text.parse().ok().filter(|s| (0.0..=10.0).contains(s));
        match text.split_once(':').unwrap_or((text, "1")) {
            ("round", _) if text == "round" => Ok(Self::Round),
            ("uniform", _) if text == "uniform" => Ok(Self::Uniform),
            ("zipf", s) if exponent(s).is_some() => Ok(Self::Zipf(exponent(s).unwrap_or(1.0))),
            _ => {
                Err("choose round, uniform or zipf, which may have an exponent: zipf:1.2"
                    .to_owned())
            }
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Round => f.write_str("round"),
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(s) => write!(f, "zipf:{s}"),
        }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    /// Its place in the plan.
    pub(super) tenant: usize,
    /// `None` is the base.
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) prompt: Prompt,
    /// Words of the prompt, where it was made of words.
    pub(super) words: Option<u32>,
    /// Tokens that are asked for.
    pub(super) output: u32,
}

/// Which sequence of random numbers is for what. Each tenant has all of them.
#[derive(Clone, Copy)]
#[repr(u64)]
enum For {
    Arrivals,
    Tenants,
    Adapters,
    Lengths,
    Prompts,
    Prefixes,
}

const PURPOSES: u64 = 8;

fn sequence(seed: u64, purpose: For, tenant: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose as u64 + PURPOSES * tenant as u64);
    rng
}

/// That of the times at which requests are due.
pub(super) fn arrivals(seed: u64) -> ChaCha8Rng {
    sequence(seed, For::Arrivals, 0)
}

/// Draws the requests of one run.
pub(super) struct Drawer {
    plan: Arc<Plan>,
    shares: Weights,
    tenants: ChaCha8Rng,
    desks: Vec<Desk>,
    /// How many of a trace are done.
    replayed: usize,
}

/// One tenant's sequences.
struct Desk {
    adapters: ChaCha8Rng,
    lengths: ChaCha8Rng,
    prompts: ChaCha8Rng,
    prefixes: ChaCha8Rng,
    ranks: Option<Weights>,
    turn: usize,
    /// What prompts begin with, by adapter.
    begun: HashMap<Option<Arc<str>>, Arc<str>>,
}

impl Drawer {
    pub(super) fn new(plan: &Arc<Plan>, seed: u64) -> Result<Self, BenchError> {
        let shares = Weights::new(plan.tenants.iter().map(|tenant| tenant.share))
            .ok_or_else(|| BenchError::Plan("shares of tenants must be above 0".to_owned()))?;
        let desk = |(place, tenant): (usize, &super::plan::Tenant)| Desk {
            adapters: sequence(seed, For::Adapters, place),
            lengths: sequence(seed, For::Lengths, place),
            prompts: sequence(seed, For::Prompts, place),
            prefixes: sequence(seed, For::Prefixes, place),
            ranks: match tenant.order {
                Order::Zipf(s) => Weights::zipf(tenant.adapters.len(), s),
                Order::Round | Order::Uniform => None,
            },
            turn: 0,
            begun: HashMap::new(),
        };
        Ok(Self {
            desks: plan.tenants.iter().enumerate().map(desk).collect(),
            plan: Arc::clone(plan),
            shares,
            tenants: sequence(seed, For::Tenants, 0),
            replayed: 0,
        })
    }

    /// The next request of whomever.
    pub(super) fn next(&mut self) -> Wish {
        let tenant = self.shares.pick(&mut self.tenants);
        self.next_of(tenant)
    }

    /// The next request of one tenant.
    pub(super) fn next_of(&mut self, tenant: usize) -> Wish {
        let desk = &mut self.desks[tenant];
        let who = &self.plan.tenants[tenant];
        let count = who.adapters.len();
        let place = match (&desk.ranks, who.order) {
            (Some(ranks), _) => ranks.pick(&mut desk.adapters),
            (None, Order::Round) => desk.turn % count,
            (None, _) => below(&mut desk.adapters, count),
        };
        desk.turn = desk.turn.wrapping_add(1);
        self.wish(tenant, who.adapters[place].clone(), None, None)
    }

    /// A request for one of a tenant's adapters, whose answer has one token.
    pub(super) fn first_of(&mut self, tenant: usize, adapter: Option<&Arc<Adapter>>) -> Wish {
        self.wish(tenant, adapter.cloned(), None, Some(1))
    }

    /// The next request of a trace, and when it is due.
    pub(super) fn replay(&mut self) -> Option<(Duration, Wish)> {
        let plan = Arc::clone(&self.plan);
        let Load::Replay { trace, speed } = &plan.load else { return None };
        let Entry { t, tenant, adapter, prompt_tokens, output_tokens } =
            trace.entries().get(self.replayed)?;
        self.replayed += 1;
        let tenant = tenant
            .as_ref()
            .and_then(|name| plan.tenants.iter().position(|tenant| tenant.name == *name));
        let tenant = tenant.unwrap_or(0);
        let known = adapter.as_ref().and_then(|name| {
            let of = |adapter: &&Option<Arc<Adapter>>| {
                adapter.as_ref().is_some_and(|adapter| *adapter.name == **name)
            };
            plan.tenants[tenant].adapters.iter().find(of).cloned()
        });
        let adapter = match (known, adapter) {
            (Some(known), _) => known,
            (None, Some(name)) => Adapter::at(0, name),
            (None, None) => None,
        };
        let due = Duration::try_from_secs_f64(t / speed).ok()?;
        Some((due, self.wish(tenant, adapter, *prompt_tokens, *output_tokens)))
    }

    fn wish(
        &mut self,
        tenant: usize,
        adapter: Option<Arc<Adapter>>,
        words_asked: Option<u32>,
        output_asked: Option<u32>,
    ) -> Wish {
        let desk = &mut self.desks[tenant];
        // Drawn in any case, so that one request's trace does not shift what the next one draws.
        let drawn = self.plan.output.draw(&mut desk.lengths);
        let (prompt, counted, output) = match (&self.plan.prompts, words_asked) {
            (Prompts::Dataset(dataset), None) => {
                let record = dataset.draw(&mut desk.prompts);
                (record.prompt.clone(), None, record.output)
            }
            (Prompts::Words(_) | Prompts::Dataset(_), Some(count)) => {
                (Prompt::Text(words(count.max(1), &mut desk.prompts)), Some(count), None)
            }
            (Prompts::Words(lengths), None) => {
                let count = lengths.draw(&mut desk.lengths);
                (Prompt::Text(words(count, &mut desk.prompts)), Some(count), None)
            }
        };
        let prompt = match prompt {
            Prompt::Text(text) if self.plan.prefix_words > 0 => {
                let name = adapter.as_ref().map(|adapter| Arc::clone(&adapter.name));
                let begin = desk
                    .begun
                    .entry(name)
                    .or_insert_with(|| words(self.plan.prefix_words, &mut desk.prefixes).into());
                Prompt::Text(format!("{begin} {text}"))
            }
            other => other,
        };
        let output = output_asked.or(output).unwrap_or(drawn).max(1);
        Wish { tenant, adapter, prompt, words: counted, output }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{tests::plan, trace::Trace},
        *,
    };

    fn drawn(plan: &Plan, seed: u64, count: usize) -> Vec<Wish> {
        let mut drawer = Drawer::new(&Arc::new(plan.clone()), seed).unwrap();
        (0..count).map(|_| drawer.next()).collect()
    }

    fn names(wishes: &[Wish]) -> Vec<&str> {
        let name = |wish: &Wish| {
            wish.adapter.as_ref().map_or("base", |adapter| {
                // The adapter outlives the wish's borrow only by the slice's lifetime.
                match &*adapter.name {
                    "a" => "a",
                    "b" => "b",
                    _ => "c",
                }
            })
        };
        wishes.iter().map(name).collect()
    }

    #[test]
    fn one_seed_draws_the_same_and_another_something_else() {
        let mut plan = plan("http://127.0.0.1:1", &["a", "b", "c"]);
        plan.output = "1..100".parse().unwrap();
        assert_eq!(drawn(&plan, 1, 50), drawn(&plan, 1, 50));
        assert_ne!(drawn(&plan, 1, 50), drawn(&plan, 2, 50));
    }

    #[test]
    fn a_tenant_asks_the_same_whoever_asks_between() {
        let mut plan = plan("http://127.0.0.1:1", &["a", "b", "c"]);
        plan.tenants.push(super::super::plan::Tenant {
            name: "other".to_owned(),
            ..plan.tenants[0].clone()
        });
        let plan = Arc::new(plan);
        let of_first = |between: usize| {
            let mut drawer = Drawer::new(&plan, 1).unwrap();
            let mut wishes = Vec::new();
            for _ in 0..10 {
                wishes.push(drawer.next_of(0));
                for _ in 0..between {
                    drawer.next_of(1);
                }
            }
            wishes
        };
        assert_eq!(of_first(0), of_first(3));
    }

    #[test]
    fn rounds_go_round() {
        let mut plan = plan("http://127.0.0.1:1", &["base", "a", "b"]);
        plan.tenants[0].order = Order::Round;
        assert_eq!(names(&drawn(&plan, 1, 5)), ["base", "a", "b", "base", "a"]);
    }

    #[test]
    fn prompts_for_one_adapter_begin_alike() {
        let mut plan = plan("http://127.0.0.1:1", &["a", "b"]);
        plan.tenants[0].order = Order::Round;
        plan.prefix_words = 20;
        let wishes = drawn(&plan, 1, 4);
        let begin = |wish: &Wish| {
            wish.prompt.text().split(' ').take(20).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(begin(&wishes[0]), begin(&wishes[2]));
        assert_ne!(begin(&wishes[0]), begin(&wishes[1]));
        assert_ne!(wishes[0].prompt, wishes[2].prompt);
    }

    #[test]
    fn a_trace_says_when_who_and_how_much() {
        let mut plan = plan("http://127.0.0.1:1", &["a"]);
        let lines = "{\"t\":0,\"adapter\":\"a\",\"prompt_tokens\":3,\"output_tokens\":9}\n{\"t\":4,\"adapter\":\"b\"}\n{\"t\":5}";
        let trace = Arc::new(Trace::parse(lines).unwrap());
        plan.load = Load::Replay { trace, speed: 2.0 };
        let mut drawer = Drawer::new(&Arc::new(plan), 1).unwrap();
        let (due, first) = drawer.replay().unwrap();
        assert_eq!((due, first.output, first.words), (Duration::ZERO, 9, Some(3)));
        assert_eq!(first.prompt.text().split(' ').count(), 3);
        let (due, second) = drawer.replay().unwrap();
        assert_eq!((due, names(&[second])), (Duration::from_secs(2), vec!["b"]));
        assert_eq!(drawer.replay().unwrap().1.adapter, None);
        assert_eq!(drawer.replay(), None);
    }

    #[test]
    fn orders_are_read_and_shown() {
        for text in ["round", "uniform", "zipf:1.2", "zipf:0"] {
            assert_eq!(text.parse::<Order>().unwrap().to_string(), text);
        }
        assert_eq!("zipf".parse(), Ok(Order::Zipf(1.0)));
        for text in ["", "zipf:", "zipf:-1", "zipf:nan", "round:2", "uniform:", "trace"] {
            assert!(text.parse::<Order>().is_err(), "{text}");
        }
    }
}
