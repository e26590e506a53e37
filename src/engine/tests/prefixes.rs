//! What is computed is of use to whoever begins alike, and to nobody else.

use super::*;

#[tokio::test]
async fn who_begins_alike_is_computed_from_where_it_differs() {
    let (engine, watch) = engine(Settings { guesses: 0, ..settings() });
    let ask = async |wish: Wish| {
        let (events, cached) = all_and_cached(engine.submit(wish.job()).unwrap()).await;
        assert_eq!(events, wish.alone());
        cached
    };
    let prompt: Vec<u32> = (0..70).map(|at| at % 20).collect();
    let first = Wish::of(&prompt, 30);
    assert_eq!(ask(first.clone()).await, 0);
    let steps = watch.seen().steps;
    assert_eq!(ask(first.clone()).await, 64, "whole pages");
    assert_eq!(
        watch.seen().steps - steps,
        30,
        "a step for each token, the first with what is left of the prompt"
    );
    // A conversation goes on: the answer's own pages are of use too.
    let mut longer = prompt.clone();
    longer.extend(first.alone().iter().filter_map(|event| match event {
        Event::Token { id, .. } => Some(*id),
        _ => None,
    }));
    longer.push(3);
    assert_eq!(ask(Wish::of(&longer, 2)).await, 96);
    let mut other = prompt.clone();
    other[20] += 1;
    assert_eq!(ask(Wish::of(&other, 2)).await, 16, "up to the page that differs");
    assert_eq!(ask(Wish { adapter: Some(1), ..first.clone() }).await, 0, "another adapter's");
    assert_eq!(ask(Wish { scope: 1, ..first.clone() }).await, 0, "another scope's");
    assert_eq!(ask(Wish { prompt_logprobs: Some(1), ..first.clone() }).await, 0, "all are scored");
    assert_eq!(ask(Wish::of(&prompt[..64], 2)).await, 48, "the last token's logits are wanted");
    assert_eq!(engine.stats().cached_tokens, 64 + 96 + 16 + 48);
}

#[tokio::test]
async fn what_a_failed_step_leaves_is_nobodys_prefix() {
    let (engine, _) = engine(settings());
    for bad in [fake::FAILS, fake::PANICS] {
        let mut prompt = vec![bad - 20; 60];
        prompt.push(bad);
        let failed = all(engine.submit(Wish::of(&prompt, 9).job()).unwrap()).await;
        assert_eq!(failed, [Event::Failed(Failure::Step)]);
        let good = Wish::of(&prompt[..60], 30);
        let (events, cached) = all_and_cached(engine.submit(good.job()).unwrap()).await;
        assert_eq!((events, cached), (good.alone(), 32), "the first step of the prompt was right");
    }
}

#[tokio::test]
async fn prefixes_that_nobody_uses_make_room() {
    let (engine, _) = engine(Settings { pages: 8, ..settings() });
    for token in 0..20 {
        let wish = Wish::of(&[token; 100], 20);
        assert_eq!(all(engine.submit(wish.job()).unwrap()).await, wish.alone());
    }
    let stats = engine.stats();
    assert_nothing_held(&stats);
    assert_eq!((stats.preemptions, stats.cached_tokens), (0, 0));
    assert_eq!(stats.pages_idle, 7, "119 positions computed");
}

#[tokio::test]
async fn salts_keep_prefixes_apart() {
    let (engine, _) = engine(settings());
    let prompt: Vec<u32> = (0..70).map(|at| at % 20).collect();
    let ask = async |salt: u8| {
        let job = Job { salt: Salt([salt; 32]), ..Wish::of(&prompt, 1).job() };
        all_and_cached(engine.submit(job).unwrap()).await.1
    };
    assert_eq!([ask(0).await, ask(1).await, ask(1).await, ask(0).await], [0, 0, 64, 64]);
}
