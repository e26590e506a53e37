//! Shows how a run goes: a line that changes on a terminal, a few lines anywhere else.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::Arc,
    time::Duration,
};

use indicatif::ProgressBar;
use tokio::{
    task::{JoinError, JoinHandle},
    time::{MissedTickBehavior, interval},
};

use crate::bench::{Live, Snapshot};

const ON_A_TERMINAL: Duration = Duration::from_millis(250);
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Waits for a run, and shows meanwhile how it goes.
pub(super) async fn watched<T>(live: &Arc<Live>, mut run: JoinHandle<T>) -> Result<T, JoinError> {
    let is_terminal = io::stderr().is_terminal();
    let line = is_terminal.then(ProgressBar::new_spinner);
    let mut ticks = interval(if is_terminal { ON_A_TERMINAL } else { ELSEWHERE });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut before = live.snapshot();
    loop {
        tokio::select! {
            done = &mut run => {
                if let Some(line) = line {
                    line.finish_and_clear();
                }
                return done;
            }
            _ = ticks.tick() => {
                let now = live.snapshot();
                let shown = shown(&before, &now);
                match &line {
                    Some(line) => {
                        line.set_message(shown);
                        line.tick();
                    }
                    // What cannot be shown must not stop what it is about.
                    None => drop(writeln!(io::stderr(), "{shown}")),
                }
                before = now;
            }
        }
    }
}

fn shown(before: &Snapshot, now: &Snapshot) -> String {
    let Some(elapsed) = now.elapsed else { return "warming up".to_owned() };
    let Snapshot { sent, running, done, refused, failed, parts, ttft, .. } = now;
    let since = elapsed.saturating_sub(before.elapsed.unwrap_or_default()).as_secs_f64().max(1e-3);
    let rate = parts.saturating_sub(before.parts) as f64 / since;
    let mut line = format!(
        "{:>5.0} s  {sent} sent, {running} under way, {done} done, {rate:.0} tokens/s",
        elapsed.as_secs_f64()
    );
    for (count, what) in [(refused, "refused"), (failed, "failed")] {
        if *count > 0 {
            line += &[", ", &count.to_string(), " ", what].concat();
        }
    }
    match ttft {
        Some(ttft) => format!("{line}, first token {:.0} ms", ttft.as_secs_f64() * 1e3),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_it_goes() {
        let none = Live::default().snapshot();
        assert_eq!(shown(&none, &none), "warming up");
        let before = Snapshot { elapsed: Some(Duration::from_secs(10)), parts: 100, ..none };
        let now = Snapshot {
            elapsed: Some(Duration::from_secs(12)),
            sent: 9,
            running: 2,
            done: 6,
            failed: 1,
            parts: 300,
            ttft: Some(Duration::from_millis(80)),
            ..none
        };
        let line =
            "   12 s  9 sent, 2 under way, 6 done, 100 tokens/s, 1 failed, first token 80 ms";
        assert_eq!(shown(&before, &now), line);
    }
}
