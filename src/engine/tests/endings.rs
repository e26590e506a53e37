//! How jobs end before their time, and how the engine does.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::lora::Lease;

/// A lease that counts when it is returned.
fn counted(returned: &Arc<AtomicUsize>) -> Lease {
    let returned = Arc::clone(returned);
    Lease::new(fake::adapter(1), move || {
        returned.fetch_add(1, Ordering::SeqCst);
    })
}

#[tokio::test]
async fn a_dropped_stream_frees_all_it_held_wherever_it_is() {
    let (engine, watch) = engine(Settings { max_running: 1, ..settings() });
    let returned = Arc::new(AtomicUsize::new(0));
    let job =
        |prompt: &[u32]| Job { adapter: Some(counted(&returned)), ..Wish::of(prompt, 400).job() };
    watch.halt_in(3);
    let mut decoding = engine.submit(job(&[1])).unwrap();
    watch.await_halt();
    assert!(matches!(decoding.next().await, Some(Event::Begun { cached: 0, .. })));
    assert!(matches!(decoding.next().await, Some(Event::Token { .. })));
    let waiting = engine.submit(job(&[2])).unwrap();
    drop((decoding, waiting));
    watch.release();
    let stats = stats_when(&engine, |stats| stats.ends.cancelled == 2).await;
    assert_nothing_held(&stats);
    assert_eq!(returned.load(Ordering::SeqCst), 2);

    watch.halt_in(2);
    let prefilling = engine.submit(job(&[3; 100])).unwrap();
    watch.await_halt();
    drop(prefilling);
    watch.release();
    let stats = stats_when(&engine, |stats| stats.ends.cancelled == 3).await;
    assert_nothing_held(&stats);
    assert_eq!(returned.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_adapter_is_back_when_the_end_is_told() {
    let (engine, _) = engine(settings());
    let returned = Arc::new(AtomicUsize::new(0));
    let job = Job { adapter: Some(counted(&returned)), ..Wish::of(&[1], 3).job() };
    let mut stream = engine.submit(job).unwrap();
    while let Some(event) = stream.next().await {
        if matches!(event, Event::Finished(_)) {
            assert_eq!(returned.load(Ordering::SeqCst), 1);
            assert_eq!(engine.stats().ends.length, 1, "counted before it is told");
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_a_job_and_no_other() {
    let (engine, _) = engine(settings());
    let other = Wish::of(&[2], 200);
    let stream = engine.submit(other.job()).unwrap();
    let late = Job { deadline: Some(Instant::now()), ..Wish::of(&[1], 400).job() };
    let late = engine.submit(late).unwrap();
    assert_eq!(all(late).await.pop(), Some(Event::Failed(Failure::Deadline)));
    assert_eq!(all(stream).await, other.alone());
    assert_eq!(engine.stats().ends.deadline, 1);
}

#[tokio::test]
async fn stopping_finishes_what_was_taken() {
    let (engine, _) = engine(settings());
    let wish = Wish::of(&[1], 100);
    let streams = [0; 12].map(|_| engine.submit(wish.job()).unwrap());
    engine.stop();
    assert_eq!(engine.submit(wish.job()).unwrap_err(), Refused::Stopping);
    engine.stopped().await;
    for stream in streams {
        assert_eq!(all(stream).await, wish.alone());
    }
    assert_eq!(engine.stats().ends.length, 12);
}

#[tokio::test]
async fn stopping_now_fails_the_rest() {
    let (engine, watch) = engine(Settings { max_running: 1, ..settings() });
    watch.halt_in(1);
    let streams = [0; 3].map(|_| engine.submit(Wish::of(&[1], 400).job()).unwrap());
    engine.stop_now();
    watch.release();
    for stream in streams {
        assert_eq!(all(stream).await.pop(), Some(Event::Failed(Failure::Stopping)));
    }
    engine.stopped().await;
    assert_nothing_held(&engine.stats());
}

#[tokio::test]
async fn the_last_handle_takes_the_engine_with_it() {
    let (engine, watch) = engine(settings());
    let other = engine.clone();
    let stream = engine.submit(Wish::of(&[1], 500).job()).unwrap();
    drop(engine);
    assert!(other.submit(Wish::of(&[1], 1).job()).is_ok());
    drop(other);
    assert_eq!(Arc::strong_count(&watch), 1, "the thread is gone, and its network");
    assert!(matches!(
        all(stream).await.pop(),
        Some(Event::Failed(Failure::Stopping) | Event::Finished(_))
    ));
}
