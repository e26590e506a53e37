//! Neighbours leave no trace in what anybody gets.

use proptest::prelude::*;

use super::*;

pub(super) fn wishes() -> impl Strategy<Value = Wish> {
    let sampling = (0..4_u8, any::<u64>()).prop_map(|(kind, seed)| match kind {
        0 => Sampling {
            temperature: 0.0,
            bias: [(3, 2.5), (9, -100.0)].into(),
            ..Sampling::default()
        },
        1 => Sampling { temperature: 0.0, ..Sampling::default() },
        2 => Sampling { seed, top_k: 5, repetition_penalty: 1.3, ..Sampling::default() },
        _ => Sampling { seed, top_p: 0.8, frequency_penalty: 0.5, ..Sampling::default() },
    });
    // Some begin alike.
    let prompt =
        (0..90_usize, prop::collection::vec(0..fake::FAILS, 1..90)).prop_map(|(same, rest)| {
            let same = vec![7; same].into_iter();
            same.chain(rest).take(90).collect::<Vec<_>>()
        });
    (
        prop_oneof![prompt, prop::collection::vec(0..fake::FAILS, 1..90)],
        prop::option::of(0..5_u8),
        sampling,
        0..40_usize,
        prop::collection::vec(0..fake::FAILS, 0..3),
        prop::option::of(0..4_usize),
        prop::option::of(0..4_usize),
        (0..3_u32, 0..2_u32),
        (
            (0..20_usize, prop::option::of(any::<u64>())),
            prop_oneof![
                3 => Just(None),
                1 => Just(Some(Pooling::Mean)),
                1 => Just(Some(Pooling::Last)),
            ],
        ),
    )
        .prop_map(|parts| {
            let (prompt, adapter, sampling, max_tokens, stop_tokens, logprobs, scores, whose, form) =
                parts;
            let mut wish = Wish::of(&prompt, max_tokens);
            wish = Wish { adapter, sampling, stop_tokens, logprobs, ..wish };
            let ((min_tokens, guide), pooling) = form;
            wish = Wish { min_tokens, guide, pooling, ..wish };
            Wish { prompt_logprobs: scores, lane: whose.0, scope: whose.1, ..wish }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Chunks, neighbours, preemptions and their order leave no trace in what anybody gets.
    #[test]
    fn everybody_gets_what_they_would_get_alone(
        wishes in prop::collection::vec(wishes(), 1..16),
        (pages, step_tokens) in (9..24_usize, 1..80_usize),
        (max_running, slots, keep_prefixes) in (1..9_usize, 1..4_usize, any::<bool>()),
        guesses in 0..6_usize,
        room in prop::option::of(1..4_usize),
    ) {
        let settings = Settings { pages, context: usize::MAX, step_tokens, max_running, max_waiting: 64, max_wait: Duration::MAX, slots, keep_prefixes, guesses };
        let (network, watch) = Fake::with_room(pages, room);
        let engine = Engine::over(network, settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let streams: Vec<_> =
            wishes.iter().map(|wish| engine.submit(wish.job()).unwrap()).collect();
        let mut saved = 0;
        for (wish, stream) in wishes.iter().zip(streams) {
            let (events, cached) = runtime.block_on(all_and_cached(stream));
            prop_assert_eq!(events, wish.alone());
            prop_assert!(cached < wish.prompt.len() && (keep_prefixes || cached == 0));
            saved += cached as u64;
        }
        let stats = engine.stats();
        assert_nothing_held(&stats);
        prop_assert_eq!(stats.cached_tokens, saved);
        prop_assert_eq!(stats.ends.total(), wishes.len() as u64);
        prop_assert_eq!(
            stats.prompt_tokens,
            wishes.iter().map(|wish| wish.prompt.len() as u64).sum::<u64>()
        );
        prop_assert_eq!(stats.queue_seconds.count(), wishes.len() as u64);
        let seen = watch.seen();
        prop_assert!(seen.rows <= step_tokens && seen.adapters <= slots);
        prop_assert_eq!(seen.rows, stats.max_rows);
    }
}

#[tokio::test]
async fn a_full_pool_preempts_and_nobody_notices() {
    let (engine, watch) = engine(Settings { pages: 6, ..settings() });
    let wishes = [0, 1, 2].map(|token| {
        let sampling = Sampling { seed: u64::from(token), ..Sampling::default() };
        Wish { sampling, adapter: Some(1), ..Wish::of(&[token; 10], 60) }
    });
    // All three are there before the first of them has its second token: each wants five of the six pages.
    watch.halt_in(1);
    let streams = wishes.clone().map(|wish| engine.submit(wish.job()).unwrap());
    watch.release();
    for (wish, stream) in wishes.iter().zip(streams) {
        assert_eq!(all(stream).await, wish.alone());
    }
    let stats = engine.stats();
    assert!(stats.preemptions > 0);
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (30, 180), "each counted once");
}

#[tokio::test]
async fn steps_mix_adapters_prompts_and_answers() {
    let (engine, _) = engine(settings());
    let wish = |adapter, length| Wish { adapter: Some(adapter), ..Wish::of(&vec![1; length], 20) };
    let first = [0, 1, 2, 3].map(|adapter| wish(adapter, 2).job());
    let second = [0, 1, 2].map(|adapter| wish(adapter, 60).job());
    // All are there before the first step.
    let streams = engine.submit_all(first.into_iter().chain(second).collect()).unwrap();
    for stream in streams {
        assert_eq!(all(stream).await.len(), 21);
    }
    let stats = engine.stats();
    assert!(stats.mixed_steps > 0 && stats.max_rows == 32, "{stats:?}");
    assert_eq!((stats.decode_seconds.count(), stats.prefill_seconds.count()), (7, 7));
    assert_eq!(stats.step_seconds.count(), stats.steps);
}
