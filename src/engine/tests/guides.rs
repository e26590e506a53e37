//! Guides that panic or take their time.

use super::*;

/// Panics, or thinks until it is let go.
#[derive(Debug)]
enum Trying {
    Panics,
    Waits(std::sync::mpsc::Receiver<()>),
}

impl Guide for Trying {
    fn after(&mut self, _: Option<u32>) -> Result<Allowed, Lost> {
        match self {
            Self::Panics => panic!("a guide that panics"),
            Self::Waits(go) => {
                go.recv_timeout(Duration::from_secs(20)).map_err(|_| Lost)?;
                Ok(Allowed::Nothing)
            }
        }
    }
}

#[tokio::test]
async fn a_guide_that_panics_ends_its_own_answer() {
    let (engine, _) = engine(settings());
    let guide = Some(Box::new(Trying::Panics) as _);
    let guided = engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap();
    let other = Wish { guide: Some(3), ..Wish::of(&[2], 9) };
    let neighbour = engine.submit(other.job()).unwrap();
    assert_eq!(all(guided).await, [Event::Failed(Failure::Guide)]);
    assert_eq!(all(neighbour).await, other.alone());
    assert_eq!(
        engine.stats().ends.guide,
        1 + u64::from(other.alone() == [Event::Failed(Failure::Guide)])
    );
    assert_nothing_held(&engine.stats());
}

#[tokio::test]
async fn a_guide_that_thinks_holds_nobody_up_and_no_answer_is_lost() {
    let (engine, _) = engine(settings());
    let (go, gone) = std::sync::mpsc::channel();
    let guide = Some(Box::new(Trying::Waits(gone)) as _);
    let guided = engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap();
    // Its logits are there by now, and it stands back.
    let other = Wish::of(&[2], 60);
    assert_eq!(all(engine.submit(other.job()).unwrap()).await, other.alone());
    stats_when(&engine, |stats| stats.running == 1).await;
    go.send(()).unwrap();
    assert_eq!(all(guided).await, [Event::Finished(Finish::Stop)]);
    assert_nothing_held(&engine.stats());
}

#[tokio::test]
async fn who_leaves_while_the_guide_thinks_leaves_nothing_behind() {
    let (engine, _) = engine(settings());
    let (go, gone) = std::sync::mpsc::channel();
    let guide = Some(Box::new(Trying::Waits(gone)) as _);
    drop(engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap());
    go.send(()).unwrap();
    let stats = stats_when(&engine, |stats| stats.ends.cancelled == 1).await;
    assert_nothing_held(&stats);
}

#[tokio::test]
async fn an_engine_stops_although_a_guide_thinks() {
    let (engine, _) = engine(settings());
    let (_go, gone) = std::sync::mpsc::channel();
    let guide = Some(Box::new(Trying::Waits(gone)) as _);
    let guided = engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap();
    stats_when(&engine, |stats| stats.running == 1).await;
    engine.stop_now();
    engine.stopped().await;
    assert_eq!(all(guided).await, [Event::Failed(Failure::Stopping)]);
}
