//! How many requests find their adapter in memory: by the line's policy, and where what was used last stays.

use lru::LruCache;

use super::super::*;

/// A request, some time after the start.
struct Request {
    at: Duration,
    want: Want,
}

/// Somebody with a number.
const MANY: Owner = Owner(0);
const WALKER: Owner = Owner(1);

/// Pseudo-random numbers: splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Chooses among so many, the first most often.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: u32, exponent: f64) -> Self {
        let weights = (1..=count).scan(0.0, |sum, rank| {
            *sum += f64::from(rank).powf(-exponent);
            Some(*sum)
        });
        Self(weights.collect())
    }

    fn choose(&self, random: &mut Random) -> u32 {
        let point = random.part() * self.0.last().unwrap();
        u32::try_from(self.0.partition_point(|sum| *sum <= point)).unwrap()
    }
}

fn want(owner: Owner, adapter: u32, bytes: usize) -> Want {
    Want { owner, digest: Digest::of(&owner.0.to_be_bytes(), &adapter.to_be_bytes()), bytes }
}

/// Which requests are served at once, in a memory of so many bytes.
fn by_line(requests: &[Request], budget: usize) -> Vec<bool> {
    let loads = NonZeroUsize::MIN;
    let (mut line, start) = (Line::new(Bounds { budget, waiting: 9, loads }), Instant::now());
    let serve = |Request { at, want }: &Request| {
        let now = start + *at;
        let (asked, orders) = line.ask(*want, (), now).unwrap();
        for load in orders.loads {
            drop(line.loaded(load.digest, (), now));
        }
        drop(line.returned(*want, now));
        matches!(asked, Asked::Lent(_))
    };
    requests.iter().map(serve).collect()
}

/// The same where the least recently used goes first.
fn by_last_use(requests: &[Request], budget: usize) -> Vec<bool> {
    let (mut resident, mut taken) = (LruCache::unbounded(), 0);
    let serve = |Request { want, .. }: &Request| {
        if resident.get(&want.digest).is_some() {
            return true;
        }
        while taken + want.bytes > budget {
            taken -= resident.pop_lru().unwrap().1;
        }
        taken += want.bytes;
        resident.put(want.digest, want.bytes);
        false
    };
    requests.iter().map(serve).collect()
}

/// What part of an owner's requests was served at once, by the line and by last use.
fn ratios(requests: &[Request], budget: usize, owner: Owner, from: Duration) -> [f64; 2] {
    [by_line(requests, budget), by_last_use(requests, budget)].map(|served| {
        let its = requests.iter().zip(served);
        let its = its.filter(|(request, _)| request.want.owner == owner && request.at >= from);
        let its: Vec<_> = its.map(|(_, served)| served).collect();
        its.iter().filter(|served| **served).count() as f64 / its.len() as f64
    })
}

/// Bytes of each adapter: some are eight times as large as others.
fn size(adapter: u32) -> usize {
    2 << (adapter.wrapping_mul(0x9e37_79b9) >> 30)
}

const BUDGET: usize = 800;

/// Of a thousand adapters, a ninth of which fit: one request in each `gap`, and after each of every `walk`, if that is
/// given, three for an adapter that nobody has ever used.
fn trace(seed: u64, exponent: f64, gap: Duration, walk: Option<u32>) -> Vec<Request> {
    let (mut random, zipf) = (Random(seed), Zipf::new(1000, exponent));
    let mut requests = Vec::new();
    for number in 0..20_000_u32 {
        let at = gap * number;
        let adapter = zipf.choose(&mut random);
        requests.push(Request { at, want: want(MANY, adapter, size(adapter)) });
        if walk.is_some_and(|walk| number.is_multiple_of(walk)) {
            requests.extend([(); 3].map(|()| Request { at, want: want(WALKER, number, 8) }));
        }
    }
    requests
}

/// The issue's own words. Twenty adapters are in use all the time and fit, with room for a few more. After five minutes
/// somebody asks three times for each of 500, one a second.
#[test]
fn a_tenant_that_walks_through_500_cold_adapters_must_not_flush_the_hot_ones() {
    let (second, start) = (Duration::from_secs(1), 300);
    let (mut random, mut requests) = (Random(1), Vec::new());
    for number in 0..start + 500 {
        let (at, hot) = (second * number, u32::try_from(random.next() % 20).unwrap());
        requests.push(Request { at, want: want(MANY, hot, 10) });
        if number >= start {
            requests.extend([(); 3].map(|()| Request { at, want: want(WALKER, number, 10) }));
        }
    }
    for (budget, most_by_last_use) in [(225, 0.7), (250, 0.8)] {
        let [ours, lru] = ratios(&requests, budget, MANY, second * start);
        let [walker, _] = ratios(&requests, budget, WALKER, second * start);
        println!(
            "20 hot, 500 cold, {budget} bytes: {:.1} %, LRU {:.1} %",
            100.0 * ours,
            100.0 * lru
        );
        assert!(ours > 0.98 && lru < most_by_last_use, "{ours} and {lru}");
        assert!(walker > 0.66, "and a burst is one load: {walker}");
    }
}

#[test]
fn without_a_walker_it_is_no_worse_and_with_one_far_better() {
    for (exponent, gap) in [(0.7, 1000), (0.9, 1000), (1.1, 100), (0.9, 10)] {
        let gap = Duration::from_millis(gap);
        for (walk, better) in [(None, -0.01), (Some(2), 0.08), (Some(1), 0.1)] {
            let requests = trace(7, exponent, gap, walk);
            let [ours, lru] = ratios(&requests, BUDGET, MANY, Duration::ZERO);
            println!(
                "Zipf {exponent}, one in {gap:?}, walker {walk:?}: {:.1} %, LRU {:.1} %",
                100.0 * ours,
                100.0 * lru
            );
            assert!(ours >= lru + better, "{ours} and {lru}");
        }
    }
}

/// What is asked for changes altogether, four times.
#[test]
fn yesterdays_hot_adapters_do_not_stay() {
    let (mut random, zipf) = (Random(3), Zipf::new(300, 0.9));
    let adapter = |number| zipf.choose(&mut random) + 300 * (number / 5000);
    let adapters = (0..25_000_u32).map(adapter).collect::<Vec<_>>();
    let requests: Vec<_> = (0..)
        .map(|number| Duration::from_millis(500) * number)
        .zip(adapters)
        .map(|(at, adapter)| Request { at, want: want(MANY, adapter, size(adapter)) })
        .collect();
    let [ours, lru] = ratios(&requests, BUDGET, MANY, Duration::ZERO);
    println!("five worlds in a row: {:.1} %, LRU {:.1} %", 100.0 * ours, 100.0 * lru);
    assert!(ours >= lru, "{ours} and {lru}");
}
