//! Tokens that are guessed beside others: faster, and never another answer.

use proptest::prelude::*;

use super::{company::wishes, *};

/// Steps that one answer takes.
async fn steps(engine: &Engine, wish: &Wish) -> u64 {
    let before = engine.stats().steps;
    assert_eq!(all(engine.submit(wish.job()).unwrap()).await, wish.alone());
    engine.stats().steps - before
}

fn greedy(adapter: Option<u8>, prompt: &[u32], max_tokens: usize) -> Wish {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Wish { adapter, sampling, ..Wish::of(prompt, max_tokens) }
}

#[tokio::test]
async fn what_was_answered_before_is_answered_in_fewer_steps() {
    let (engine, watch) = engine(settings());
    let wish = greedy(Some(1), &[1, 2, 3, 4, 5], 60);
    assert_eq!(steps(&engine, &wish).await, 60);
    let again = steps(&engine, &wish).await;
    assert!((12..30).contains(&again), "four guesses and one more in a step: {again}");
    let stats = engine.stats();
    assert_eq!(stats.generated_tokens, 120);
    assert!(stats.foreseen_tokens >= 30 && stats.foreseen_tokens <= stats.guessed_tokens);
    assert!(watch.seen().rows >= 5);
    // A sampled answer with the same generator, with log-probabilities, and one that ends early.
    let sampled = Wish {
        sampling: Sampling { seed: 3, top_k: 4, repetition_penalty: 1.1, ..Sampling::default() },
        logprobs: Some(2),
        ..wish.clone()
    };
    let first = steps(&engine, &sampled).await;
    assert!(steps(&engine, &sampled).await < first);
    let Some(Event::Token { id, .. }) = wish.alone().into_iter().nth(41) else { unreachable!() };
    for ends in [
        Wish { stop_tokens: vec![id], ..wish.clone() },
        Wish { max_tokens: 33, ..wish.clone() },
        Wish { max_tokens: 1, ..wish },
    ] {
        steps(&engine, &ends).await;
    }
    assert_nothing_held(&engine.stats());
}

#[tokio::test]
async fn what_others_were_answered_is_nobodys_guess() {
    let (engine, _) = engine(settings());
    let wish = greedy(Some(1), &[1, 2, 3, 4, 5], 40);
    steps(&engine, &wish).await;
    for other in [
        Wish { scope: 1, ..wish.clone() },
        greedy(Some(2), &[1, 2, 3, 4, 5], 40),
        greedy(None, &[1, 2, 3, 4, 5], 40),
    ] {
        assert_eq!(steps(&engine, &other).await, 40);
    }
    assert_eq!(engine.stats().foreseen_tokens, 0);
    assert!(steps(&engine, &wish).await < 40);
}

#[tokio::test]
async fn nothing_is_guessed_where_nobody_wants_it() {
    let wish = greedy(None, &[1, 2, 3], 30);
    for none in
        [Settings { guesses: 0, ..settings() }, Settings { keep_prefixes: false, ..settings() }]
    {
        let (engine, _) = engine(none);
        assert_eq!((steps(&engine, &wish).await, steps(&engine, &wish).await), (30, 30));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Few pages, few rows, many who say the same: all that is guessed right and wrong leaves no trace.
    #[test]
    fn guesses_change_no_answer(
        kinds in prop::collection::vec(wishes(), 1..4),
        order in prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize), 2..24),
        (pages, step_tokens, guesses) in (9..24_usize, 1..40_usize, 1..9_usize),
        (max_running, room) in (1..6_usize, prop::option::of(1..4_usize)),
    ) {
        let settings = Settings { pages, step_tokens, max_running, guesses, ..settings() };
        let (network, watch) = Fake::with_room(pages, room);
        let engine = Engine::over(network, settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let wishes: Vec<_> = order.iter().map(|(kind, max_tokens)| {
            Wish { max_tokens: *max_tokens, ..kind.get(&kinds).clone() }
        }).collect();
        let streams: Vec<_> =
            wishes.iter().map(|wish| engine.submit(wish.job()).unwrap()).collect();
        for (wish, stream) in wishes.iter().zip(streams) {
            prop_assert_eq!(runtime.block_on(all(stream)), wish.alone());
        }
        assert_nothing_held(&engine.stats());
        prop_assert!(watch.seen().rows <= step_tokens);
    }
}
