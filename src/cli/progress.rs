//! Shows how far a fetch has come: a bar on a terminal, a few lines anywhere else.

use std::{
    io::{self, IsTerminal as _},
    sync::{Mutex, PoisonError},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{catalog::Progress, config::ByteSize};

/// Of a stage, lines are written each time another such part of it is done.
const PARTS: u64 = 4;

/// What fits standard error.
pub(crate) fn on_stderr() -> Box<dyn Progress> {
    if io::stderr().is_terminal() {
        Box::new(Bar(ProgressBar::no_length()))
    } else {
        Box::new(Lines { stage: Mutex::default(), out: Mutex::new(io::stderr()) })
    }
}

struct Bar(ProgressBar);

impl Progress for Bar {
    fn begin(&self, stage: &str, bytes: u64) {
        let style = ProgressStyle::with_template(
            "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        self.0.set_style(style.expect("a test parses the template").progress_chars("=> "));
        self.0.set_length(bytes);
        self.0.reset();
        self.0.set_message(stage.to_owned());
    }

    fn at(&self, done: u64) {
        // pip copies what it has fetched: for a moment there is more of it than it is.
        self.0.set_position(done.min(self.0.length().unwrap_or(done)));
    }

    fn note(&self, line: &str) {
        self.0.println(line);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

struct Lines<W> {
    stage: Mutex<Stage>,
    out: Mutex<W>,
}

#[derive(Default)]
struct Stage {
    bytes: u64,
    /// Parts that were reported.
    parts: u64,
}

impl<W: io::Write> Lines<W> {
    fn line(&self, line: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // Progress that cannot be shown must not stop what it is the progress of.
        drop(writeln!(out, "{line}"));
    }
}

impl<W: io::Write + Send> Progress for Lines<W> {
    fn begin(&self, stage: &str, bytes: u64) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = Stage { bytes, parts: 0 };
        self.line(&format!("{stage} ({})", ByteSize(bytes)));
    }

    fn at(&self, done: u64) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = (done.saturating_mul(PARTS) / stage.bytes.max(1)).min(PARTS);
        if parts > stage.parts {
            stage.parts = parts;
            self.line(&format!("  {} %", parts * 100 / PARTS));
        }
    }

    fn note(&self, line: &str) {
        self.line(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few() {
        let lines = Lines { stage: Mutex::default(), out: Mutex::new(Vec::new()) };
        lines.begin("fetching it", 1000);
        (0..=1000).for_each(|done| lines.at(done));
        lines.at(1000);
        let shown = String::from_utf8(lines.out.into_inner().unwrap()).unwrap();
        assert_eq!(shown, "fetching it (1000 bytes)\n  25 %\n  50 %\n  75 %\n  100 %\n");
    }

    #[test]
    fn the_bars_template_parses() {
        let bar = Bar(ProgressBar::hidden());
        bar.begin("fetching it", 10);
        bar.at(5);
        assert_eq!(bar.0.position(), 5);
    }

    #[test]
    fn a_bar_does_not_go_beyond_its_end() {
        let bar = Bar(ProgressBar::hidden());
        bar.begin("fetching it", 10);
        bar.at(13);
        assert_eq!(bar.0.position(), 10);
    }
}
