//! Jobs that are refused: those that cannot be, that the queue has no place for, and that would wait too long.

use super::*;

#[tokio::test]
async fn jobs_that_cannot_be_are_refused() {
    let (engine, _) = engine(Settings { pages: 2, ..settings() });
    assert_eq!(engine.context(), 32, "what the pages hold");
    let refused = |wish: Wish| engine.submit(wish.job()).unwrap_err();
    assert_eq!(refused(Wish::of(&[], 1)), Refused::BadPrompt { vocab: fake::VOCAB });
    assert_eq!(refused(Wish::of(&[1, 32], 1)), Refused::BadPrompt { vocab: fake::VOCAB });
    assert_eq!(refused(Wish::of(&[1; 3], 30)), Refused::TooLong { tokens: 33, context: 32 });
    let endless = refused(Wish::of(&[1], usize::MAX));
    assert_eq!(endless, Refused::TooLong { tokens: usize::MAX, context: 32 });
    assert_eq!(all(engine.submit(Wish::of(&[1; 2], 30).job()).unwrap()).await.len(), 31);
}

#[tokio::test]
async fn a_lane_that_fills_the_queue_leaves_room_for_another() {
    let (engine, watch) = engine(Settings { max_running: 8, max_waiting: 24, ..settings() });
    watch.halt_in(1);
    let mut streams = Vec::new();
    let mut fill = |lane| {
        let wish = Wish { lane, ..Wish::of(&[1], 2) };
        let before = streams.len();
        while let Ok(stream) = engine.submit(wish.job()) {
            streams.push((wish.clone(), stream));
        }
        streams.len() - before
    };
    assert_eq!([fill(0), fill(1), fill(2)], [28, 4, 0]);
    watch.release();
    for (wish, stream) in streams {
        assert_eq!(all(stream).await, wish.alone());
    }
}

#[tokio::test]
async fn the_queue_has_its_bound() {
    let (engine, watch) = engine(Settings { max_running: 1, max_waiting: 2, ..settings() });
    watch.halt_in(1);
    let wish = Wish::of(&[1], 2);
    let mut streams = Vec::new();
    let refused = loop {
        match engine.submit(wish.job()) {
            Ok(stream) => streams.push(stream),
            Err(refused) => break refused,
        }
    };
    watch.release();
    assert!(matches!(refused, Refused::Full { waiting: 2..=3 }), "{refused:?}");
    assert_eq!(streams.len(), 3, "one to run and two to wait");
    for stream in streams {
        assert_eq!(all(stream).await, wish.alone());
    }
}

#[tokio::test]
async fn an_engine_that_was_idle_keeps_nobody_waiting_for_its_pace() {
    let max_wait = Duration::from_millis(1);
    let (engine, _) = engine(Settings { max_running: 4, max_wait, ..settings() });
    let wish = Wish::of(&[1], 2);
    assert_eq!(all(engine.submit(wish.job()).unwrap()).await, wish.alone());
    // Longer than from which something is concluded.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for _ in 0..3 {
        let streams: Vec<_> = (0..12).map(|_| engine.submit(wish.job()).unwrap()).collect();
        for stream in streams {
            assert_eq!(all(stream).await, wish.alone());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn who_would_wait_too_long_is_refused_and_others_are_not() {
    let max_wait = Duration::from_millis(500);
    let (engine, watch) = engine(Settings { max_running: 1, max_wait, ..settings() });
    let lane = |lane: u32| Wish { lane, ..Wish::of(&[1], 2) };
    watch.halt_in(1);
    let streams: Vec<_> = (0..3).map(|_| engine.submit(lane(0).job()).unwrap()).collect();
    watch.await_halt();
    // The next step is planned with all three there, and leaves two waiting for a second and more.
    watch.halt_in(1);
    watch.await_halt();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    watch.halt_in(1);
    watch.await_halt();
    let refused = engine.submit(lane(0).job()).unwrap_err();
    assert!(matches!(refused, Refused::Slow { wait, most, .. } if wait > most), "{refused:?}");
    watch.release();
    for stream in streams {
        assert_eq!(all(stream).await, lane(0).alone());
    }
    // Free places are nobody's to wait for.
    assert_eq!(all(engine.submit(lane(0).job()).unwrap()).await, lane(0).alone());
}
