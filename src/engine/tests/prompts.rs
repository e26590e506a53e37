//! Prompts that nothing follows: they are scored or pooled.

use super::*;

#[tokio::test]
async fn a_prompt_alone_is_only_scored() {
    let (engine, _) = engine(settings());
    for prompt_logprobs in [None, Some(2)] {
        for prompt in [vec![1], vec![3; 70], (0..20).collect()] {
            let wish = Wish { prompt_logprobs, ..Wish::of(&prompt, 0) };
            assert_eq!(all(engine.submit(wish.job()).unwrap()).await, wish.alone());
        }
    }
    assert_eq!(engine.stats().generated_tokens, 0);
}

#[tokio::test]
async fn a_prompt_is_pooled_whole_and_its_pages_serve_others() {
    let (engine, watch) = engine(settings());
    let prompt: Vec<u32> = (0..70).map(|at| at % 20).collect();
    let ask = async |wish: Wish| {
        let (events, cached) = all_and_cached(engine.submit(wish.job()).unwrap()).await;
        assert_eq!(events, wish.alone());
        cached
    };
    let of = |pooling| Wish { pooling: Some(pooling), ..Wish::of(&prompt, 0) };
    assert_eq!(ask(of(Pooling::Mean)).await, 0);
    assert_eq!(ask(Wish::of(&prompt, 9)).await, 64, "pages are pages");
    assert_eq!(ask(of(Pooling::Mean)).await, 0, "each position's state is wanted");
    assert_eq!(ask(of(Pooling::Last)).await, 64, "only the last one's is");
    assert_eq!((watch.seen().pooled, watch.seen().sampled), (32, 1));
    let also = Wish { max_tokens: 9, prompt_logprobs: Some(1), ..of(Pooling::Mean) };
    assert_eq!(ask(also).await, 0, "nothing is generated or scored");
    let bad = Wish { pooling: Some(Pooling::Mean), ..Wish::of(&[1, fake::OVERFLOWS, 2], 0) };
    let told = all(engine.submit(bad.job()).unwrap()).await;
    assert_eq!(told, [Event::Failed(Failure::NotANumber)]);
    let stats = engine.stats();
    assert_nothing_held(&stats);
    assert_eq!((stats.generated_tokens, stats.decode_seconds.count()), (9, 1));
}
