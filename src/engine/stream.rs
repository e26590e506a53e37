//! The reader's end of a job.

use tokio::sync::mpsc;

use super::job::{Event, Failure};

/// The events of one job, in order. Dropping it cancels the job within one step.
#[derive(Debug)]
pub struct TokenStream {
    events: mpsc::Receiver<Event>,
    /// The last event was handed out.
    ended: bool,
}

impl TokenStream {
    pub(crate) fn new(events: mpsc::Receiver<Event>) -> Self {
        Self { events, ended: false }
    }

    /// The next event; `None` after [`Event::Finished`] or [`Event::Failed`], one of which always comes.
    ///
    /// Cancel-safe: no event is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        // The engine never hangs up before the end, unless it died.
        let event = self.events.recv().await.unwrap_or(Event::Failed(Failure::Stopping));
        self.ended = matches!(event, Event::Finished(_) | Event::Failed(_));
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_ends_once_even_if_the_engine_dies() {
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        let mut stream = TokenStream::new(receiver);
        assert_eq!(stream.next().await, Some(Event::Failed(Failure::Stopping)));
        assert_eq!(stream.next().await, None);
    }
}
