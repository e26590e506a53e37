//! Brings adapters to the device, on a thread and a stream of its own: no step waits for it.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use candle_core::{Error, Result};

use super::adapter::{Laid, Shape, lay};
use crate::{
    kernels::cuda::{Gpu, LoraStack, Slice, bring},
    lora::{Adapter, Digest},
};

/// Bytes that are brought at a time.
const PART: usize = 4 << 20;

/// An adapter that is to be brought, and where to.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) adapter: Arc<Adapter>,
    /// Its bytes of the region.
    pub(super) place: Slice<u8>,
    /// Its entries of the tables.
    pub(super) stacks: Slice<LoraStack>,
    pub(super) gains: Slice<u64>,
}

/// An adapter that has arrived, or could not be brought.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) digest: Digest,
    pub(super) arrived: Result<()>,
}

/// The thread that brings adapters, one after the other.
#[derive(Debug)]
pub(super) struct Carrier {
    /// `None` only inside `drop`.
    orders: Option<Sender<Order>>,
    arrivals: Receiver<Arrival>,
    thread: Option<JoinHandle<()>>,
}

impl Carrier {
    /// Starts the thread.
    pub(super) fn start<G: Gpu>(gpu: &Arc<G>, shape: Shape) -> Result<Self> {
        let (orders, ordered) = mpsc::channel();
        let (arrive, arrivals) = mpsc::channel();
        let load = Load { pinned: gpu.pin(PART)?, gpu: Arc::clone(gpu), shape };
        let thread = thread::Builder::new()
            .name("adapters to device".to_owned())
            .spawn(move || load.run(&ordered, &arrive))?;
        Ok(Self { orders: Some(orders), arrivals, thread: Some(thread) })
    }

    /// Has an adapter brought; it arrives later.
    pub(super) fn bring(&self, order: Order) -> Result<()> {
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { Err(ended()) }
    }

    /// One that has arrived since.
    pub(super) fn arrived(&self) -> Option<Arrival> {
        self.arrivals.try_recv().ok()
    }

    /// Waits for the next that arrives.
    pub(super) fn wait(&self) -> Result<Arrival> {
        self.arrivals.recv().map_err(|_| ended())
    }
}

fn ended() -> Error {
    Error::Msg("the thread that brings adapters to the device has ended".to_owned())
}

impl Drop for Carrier {
    /// The memory that it copies to is given back after this.
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that brings adapters to the device had panicked");
        }
    }
}

/// What is loaded, a part at a time.
struct Load<G: Gpu> {
    gpu: Arc<G>,
    pinned: G::Pinned,
    shape: Shape,
}

impl<G: Gpu> Load<G> {
    fn run(mut self, orders: &Receiver<Order>, arrive: &Sender<Arrival>) {
        for order in orders {
            let digest = order.adapter.digest();
            // Who waits for it hears of it, whatever became of it.
            let arrived = catch_unwind(AssertUnwindSafe(|| self.bring(&order)));
            let arrived = arrived.unwrap_or_else(|_| Err(Error::Msg("it panicked".to_owned())));
            if arrive.send(Arrival { digest, arrived }).is_err() {
                return;
            }
        }
    }

    fn bring(&mut self, order: &Order) -> Result<()> {
        let Laid { pieces, stacks, gains, .. } =
            lay(&order.adapter, &self.shape, order.place.address());
        // Pieces lie side by side, but for what fills them up: many are brought at once.
        let mut filled = 0..0;
        for (piece, at) in pieces {
            let mut done = 0;
            while done < piece.len() {
                if at + done - filled.start >= self.pinned.len() {
                    self.flush(order, filled)?;
                    filled = at + done..at + done;
                }
                let to = at + done - filled.start;
                let len = (piece.len() - done).min(self.pinned.len() - to);
                self.pinned[to..to + len].copy_from_slice(&piece[done..done + len]);
                done += len;
                filled.end = at + done;
            }
        }
        self.flush(order, filled)?;
        bring(&*self.gpu, &stacks, order.stacks)?;
        bring(&*self.gpu, &gains, order.gains)
    }

    fn flush(&self, order: &Order, bytes: Range<usize>) -> Result<()> {
        bring(&*self.gpu, &self.pinned[..bytes.len()], order.place.part(bytes))
    }
}
