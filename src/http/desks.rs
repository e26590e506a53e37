//! Where work that takes time is done: at few desks, because the processor belongs to the engine.

use std::sync::{Arc, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    error::ApiError,
    places::{self, Places, acquire},
};
use crate::tenant::TenantId;

/// Inputs up to so many bytes are parsed, rendered and encoded where they arrive: it takes less than a millisecond or two.
const INLINE: usize = 8 << 10;
/// Larger inputs are worked on side by side, at most so many.
const DESKS: usize = 2;
/// From so many bytes on an input is huge: it keeps a desk for some tenths of a second or more.
const HUGE: usize = 256 << 10;
/// Huge inputs are worked on one after the other, so that the other desks are always free for the rest.
const HUGE_DESKS: usize = 1;
/// The most huge inputs that wait: each holds its bytes meanwhile.
const HUGE_WAITING: usize = 32;

/// Forms that are compiled at once. How long that takes is not to be seen by their size, so they have a desk of their own.
const FORM_DESKS: usize = 1;

/// Places to work at. Each line is served in order; who leaves it takes nobody's time.
#[derive(Debug)]
pub(super) struct Desks {
    all: Arc<Semaphore>,
    huge: Arc<Semaphore>,
    waiting: Semaphore,
    forms: Places,
}

/// Whoever asked for the work, as the work sees them.
#[derive(Clone, Debug)]
pub(super) struct Asker(Weak<()>);

impl Asker {
    /// Refuses to go on once nobody waits for the outcome: the client has left, or its time is over.
    pub(super) fn still_there(&self) -> Result<(), ApiError> {
        if self.0.strong_count() == 0 { Err(ApiError::deadline()) } else { Ok(()) }
    }
}

/// A desk.
enum Desk {
    /// And the right to fill it with something huge, where that is needed.
    Input { _desk: OwnedSemaphorePermit, _huge: Option<OwnedSemaphorePermit> },
    /// One for forms.
    Form { _desk: places::Place },
}

impl Desks {
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(DESKS)),
            huge: Arc::new(Semaphore::new(HUGE_DESKS)),
            waiting: Semaphore::new(HUGE_WAITING),
            // However much one tenant wants, it stands in the line once.
            forms: Places::new(FORM_DESKS, 1),
        }
    }

    /// Does work that takes time linear in `bytes`: at once where that is short, else off the reactor.
    ///
    /// Dropping the future leaves the line. Work that has begun is told through [`Asker`].
    pub(super) async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Asker) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let here = Arc::new(());
        let asker = Asker(Arc::downgrade(&here));
        if bytes <= INLINE {
            return work(&asker);
        }
        let desk = self.desk(bytes).await?;
        Self::at(desk, asker, work).await
    }

    /// Compiles a form of a tenant's, off the reactor and away from the desks that prompts need.
    pub(super) async fn compile<T: Send + 'static>(
        &self,
        tenant: TenantId,
        work: impl FnOnce(&Asker) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let here = Arc::new(());
        let asker = Asker(Arc::downgrade(&here));
        let desk = Desk::Form { _desk: self.forms.take(tenant).await };
        Self::at(desk, asker, work).await
    }

    async fn at<T: Send + 'static>(
        desk: Desk,
        asker: Asker,
        work: impl FnOnce(&Asker) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        // The desk goes along: the work may go on although nobody waits for it any more.
        let worked = tokio::task::spawn_blocking(move || {
            let _desk = desk;
            asker.still_there()?;
            work(&asker)
        });
        worked.await.unwrap_or_else(|error| {
            tracing::error!(%error, "work on a request broke off");
            Err(ApiError::internal())
        })
    }

    async fn desk(&self, bytes: usize) -> Result<Desk, ApiError> {
        let huge = if bytes < HUGE { None } else { Some(self.huge().await?) };
        Ok(Desk::Input { _desk: acquire(&self.all).await, _huge: huge })
    }

    async fn huge(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let in_line = self.waiting.try_acquire();
        let _in_line =
            in_line.map_err(|_| ApiError::overloaded("too many large requests are waiting"))?;
        Ok(acquire(&self.huge).await)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::{Mutex, mpsc},
        task::{Context, Waker},
    };

    use super::*;

    /// Work that begins when it is told to the first, and ends when the second is dropped.
    struct Gate {
        begun: tokio::sync::mpsc::Receiver<()>,
        end: mpsc::Sender<()>,
    }

    fn gated() -> (Gate, impl FnOnce(&Asker) -> Result<(), ApiError> + Send + 'static) {
        let (begin, begun) = tokio::sync::mpsc::channel(1);
        let (end, ended) = mpsc::channel::<()>();
        let work = move |asker: &Asker| {
            begin.blocking_send(()).unwrap();
            let _ = ended.recv();
            asker.still_there()
        };
        (Gate { begun, end }, work)
    }

    fn is_waiting(work: &mut Pin<Box<impl Future>>) -> bool {
        work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    fn code(worked: Result<(), ApiError>) -> Option<String> {
        worked.err().and_then(|error| error.body().error.code.map(str::to_owned))
    }

    #[tokio::test]
    async fn huge_inputs_leave_a_desk_for_others() {
        let desks = Arc::new(Desks::new());
        let (mut first, work) = gated();
        let at = Arc::clone(&desks);
        let huge = tokio::spawn(async move { at.work(HUGE, work).await });
        first.begun.recv().await.unwrap();
        let at = Arc::clone(&desks);
        let second = tokio::spawn(async move { at.work(4 << 20, |_| Ok(())).await });
        // This would hang if the second huge one, or those in line, kept it from its desk.
        for _ in 0..3 {
            desks.work(HUGE - 1, |_| Ok(())).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert!(!second.is_finished());
        drop(first.end);
        huge.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn tenants_with_many_forms_and_with_one_take_turns() {
        let (many, one) = (TenantId::DEFAULT, TenantId::OTHER);
        let desks = Arc::new(Desks::new());
        let (mut gate, work) = gated();
        let at = Arc::clone(&desks);
        let first = tokio::spawn(async move { at.compile(many, work).await });
        gate.begun.recv().await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let done = |who: TenantId| {
            let order = Arc::clone(&order);
            move |_: &Asker| {
                order.lock().unwrap().push(who);
                Ok(())
            }
        };
        let mut waiting: Vec<_> =
            (0..5).map(|_| Box::pin(desks.compile(many, done(many)))).collect();
        waiting.push(Box::pin(desks.compile(one, done(one))));
        assert!(waiting.iter_mut().all(is_waiting));
        drop(gate.end);
        first.await.unwrap().unwrap();
        for worked in futures_util::future::join_all(waiting).await {
            worked.unwrap();
        }
        // The first of the five came into the line when the form before it was done.
        let order = order.lock().unwrap();
        assert_eq!((order.len(), order.iter().position(|who| *who == one)), (6, Some(0)));
        drop(order);
    }

    #[tokio::test]
    async fn work_is_skipped_once_nobody_waits_for_it() {
        let desks = Arc::new(Desks::new());
        let (mut gate, work) = gated();
        let (told, mut hears) = tokio::sync::mpsc::channel(1);
        let at = Arc::clone(&desks);
        let begun = tokio::spawn(async move {
            at.work(HUGE, move |asker: &Asker| {
                let worked = work(asker);
                told.blocking_send(code(worked)).unwrap();
                Ok(())
            })
            .await
        });
        gate.begun.recv().await.unwrap();
        let (ran, mut runs) = tokio::sync::mpsc::channel(1);
        let mut in_line = Box::pin(desks.work(HUGE, move |_| {
            ran.blocking_send(()).unwrap();
            Ok(())
        }));
        assert!(is_waiting(&mut in_line));
        drop(in_line);
        assert_eq!(runs.recv().await, None);
        begun.abort();
        assert!(begun.await.unwrap_err().is_cancelled());
        drop(gate.end);
        assert_eq!(hears.recv().await, Some(Some("deadline_exceeded".to_owned())));
    }

    #[tokio::test]
    async fn the_line_of_huge_inputs_is_bounded() {
        let desks = Arc::new(Desks::new());
        let (mut gate, work) = gated();
        let at = Arc::clone(&desks);
        let first = tokio::spawn(async move { at.work(HUGE, work).await });
        gate.begun.recv().await.unwrap();
        let mut line = Vec::new();
        for _ in 0..HUGE_WAITING {
            let mut next = Box::pin(desks.work(HUGE, |_| Ok(())));
            assert!(is_waiting(&mut next));
            line.push(next);
        }
        assert_eq!(code(desks.work(HUGE, |_| Ok(())).await).unwrap(), "overloaded");
        drop(line.pop());
        let mut next = Box::pin(desks.work(HUGE, |_| Ok(())));
        assert!(is_waiting(&mut next));
        drop(gate.end);
        first.await.unwrap().unwrap();
        for waiting in line {
            waiting.await.unwrap();
        }
        next.await.unwrap();
    }
}
