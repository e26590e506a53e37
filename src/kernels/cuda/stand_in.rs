//! A device made of the host: memory is the host's, and what is captured is a list.
//!
//! As on a device, launches and copies into it wait until somebody waits for them, or reads: whoever uses memory anew before that,
//! or gives it to what is brought beside the steps, finds it spoilt.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::HashMap,
    mem,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::{Result, bail};
use half::{bf16, f16};

use super::{
    gpu::{ALIGNMENT, Argument, Gpu, Half, Launch, Product},
    host::{self, Order},
};

/// What lies before and after memory that was handed out, and nobody may write.
const GUARD: [u8; ALIGNMENT] = [0xa5; ALIGNMENT];

/// The device.
#[derive(Debug)]
pub(crate) struct Host {
    /// Bytes that it has.
    bytes: usize,
    /// Bytes of each piece of memory that was handed out, by address.
    memory: Mutex<HashMap<u64, usize>>,
    /// What is being captured.
    recording: Mutex<Option<Vec<Recorded>>>,
    /// What was launched, and copied into it, since somebody waited.
    queue: Mutex<Vec<Recorded>>,
    /// Copies beside the steps that are still to fail.
    failing: AtomicUsize,
    /// Launches so far, replayed ones too.
    launches: AtomicUsize,
    /// Launches that were replayed.
    replayed: AtomicUsize,
    /// Copies beside the steps.
    brought: AtomicUsize,
}

/// What was captured.
#[derive(Clone, Debug)]
pub(crate) enum Recorded {
    Launch {
        kernel: String,
        grid: [usize; 3],
        block: usize,
        arguments: Vec<Argument>,
    },
    Product(Product),
    /// So many bytes from one address to the other.
    Copy(u64, u64, usize),
}

impl Host {
    /// A device with so many bytes of memory.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            memory: Mutex::default(),
            recording: Mutex::default(),
            queue: Mutex::default(),
            failing: AtomicUsize::new(0),
            launches: AtomicUsize::new(0),
            replayed: AtomicUsize::new(0),
            brought: AtomicUsize::new(0),
        }
    }

    /// Launches so far, and those of them that were replayed.
    pub(crate) fn launches(&self) -> (usize, usize) {
        (self.launches.load(Ordering::Relaxed), self.replayed.load(Ordering::Relaxed))
    }

    /// Copies beside the steps so far.
    pub(crate) fn brought(&self) -> usize {
        self.brought.load(Ordering::Relaxed)
    }

    /// Bytes that were handed out.
    pub(crate) fn held(&self) -> usize {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Fails where something was written beside memory that was handed out.
    pub(crate) fn check(&self) {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        for (address, bytes) in memory.iter() {
            for guard in [address - ALIGNMENT as u64, address + *bytes as u64] {
                // SAFETY: `allocate` has put a guard there.
                let guard = unsafe { std::slice::from_raw_parts(pointer::<u8>(guard), ALIGNMENT) };
                assert_eq!(guard, GUARD, "written beside {bytes} bytes");
            }
        }
    }

    fn run(&self, recorded: &Recorded) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        match recorded {
            Recorded::Copy(from, to, bytes) => {
                // SAFETY: both were that long when it was asked for, and stay as they are until it is waited for.
                unsafe { pointer::<u8>(*to).copy_from(pointer::<u8>(*from), *bytes) };
                Ok(())
            }
            Recorded::Product(product) => {
                multiply(product);
                Ok(())
            }
            Recorded::Launch { kernel, grid, block, arguments } => {
                let arguments: Vec<_> = arguments.iter().map(on_host).collect();
                let run = host::launch(kernel, (*grid, *block), Order::Forwards, &arguments);
                run.map_err(|why| candle_core::Error::Msg(format!("{kernel}: {why}")))
            }
        }
    }

    fn run_or_record(&self, launched: Recorded) {
        let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *recording {
            Some(recording) => recording.push(launched),
            None => self.later([launched]),
        }
    }

    fn later(&self, launched: impl IntoIterator<Item = Recorded>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).extend(launched);
    }

    /// The next so many copies beside the steps fail.
    pub(crate) fn fail(&self, copies: usize) {
        self.failing.store(copies, Ordering::Relaxed);
    }
}

fn pointer<T>(address: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).expect("64 bits"))
}

fn on_host(argument: &Argument) -> host::Argument {
    match argument {
        Argument::Address(0) => host::Argument::Memory(std::ptr::null_mut()),
        Argument::Address(address) => host::Argument::Memory(pointer(*address)),
        Argument::Int(value) => host::Argument::Int(*value),
        Argument::Float(value) => host::Argument::Float(*value),
        Argument::Ints(values) => host::Argument::Ints(*values),
        Argument::Maps(maps) => host::Argument::Maps(*maps),
    }
}

/// In the plainest order.
fn multiply(product: &Product) {
    let Product { half, x, weights, y, rows, inputs, outputs } = *product;
    let numbers = |slice: super::gpu::Slice<u16>, len: usize| -> Vec<f32> {
        // SAFETY: `Kernels::multiply` has checked the sizes.
        let bits = unsafe { std::slice::from_raw_parts(pointer::<u16>(slice.address()), len) };
        let widen = |bits: &u16| match half {
            Half::F16 => f16::from_bits(*bits).to_f32(),
            Half::BF16 => bf16::from_bits(*bits).to_f32(),
        };
        bits.iter().map(widen).collect()
    };
    let (x, weights) = (numbers(x, rows * inputs), numbers(weights, outputs * inputs));
    // SAFETY: as above.
    let y = unsafe { std::slice::from_raw_parts_mut(pointer::<f32>(y.address()), rows * outputs) };
    for (y, x) in y.chunks_exact_mut(outputs).zip(x.chunks_exact(inputs)) {
        for (y, weights) in y.iter_mut().zip(weights.chunks_exact(inputs)) {
            *y = x.iter().zip(weights).map(|(x, weight)| x * weight).sum();
        }
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * ALIGNMENT, ALIGNMENT).expect("small")
}

impl Gpu for Host {
    type Graph = Vec<Recorded>;
    type Pinned = Box<[u8]>;

    fn name(&self) -> String {
        "the host".to_owned()
    }

    fn free_bytes(&self) -> Result<usize> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.bytes - memory.values().sum::<usize>())
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        if bytes > self.free_bytes()? {
            bail!("there are no {bytes} bytes");
        }
        // SAFETY: it is not empty; all of it is written before it is handed out.
        let address = unsafe {
            let start = alloc(layout(bytes));
            assert!(!start.is_null(), "no memory");
            start.copy_from(GUARD.as_ptr(), ALIGNMENT);
            start.add(ALIGNMENT).write_bytes(0, bytes);
            start.add(ALIGNMENT + bytes).copy_from(GUARD.as_ptr(), ALIGNMENT);
            start.add(ALIGNMENT).expose_provenance() as u64
        };
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(address, bytes);
        Ok(address)
    }

    unsafe fn release(&self, address: u64) {
        // As a driver does.
        drop(self.wait());
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        let bytes = memory.expect("it was handed out");
        // SAFETY: `allocate` has made it so, and nobody uses it, by this function's promise.
        unsafe { dealloc(pointer::<u8>(address - ALIGNMENT as u64), layout(bytes)) }
    }

    fn pin(&self, bytes: usize) -> Result<Box<[u8]>> {
        Ok(vec![0; bytes].into())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let Launch { kernel, grid, block, arguments } = *launch;
        let (kernel, arguments) = (kernel.to_owned(), arguments.to_vec());
        // A device's own bounds.
        assert!(grid[1] <= 65_535 && grid[2] <= 65_535 && block <= 1024, "{kernel}: {grid:?}");
        self.run_or_record(Recorded::Launch { kernel, grid, block, arguments });
        Ok(())
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        self.run_or_record(Recorded::Product(*product));
        Ok(())
    }

    unsafe fn write(&self, from: &[u8], to: u64) -> Result<()> {
        self.later([Recorded::Copy(from.as_ptr().expose_provenance() as u64, to, from.len())]);
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let launched = mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner));
        launched.iter().try_for_each(|launched| self.run(launched))
    }

    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.wait()?;
        // SAFETY: it is memory of that size, by this function's promise.
        unsafe { pointer::<u8>(from).copy_to(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn bring(&self, from: &[u8], to: u64) -> Result<()> {
        self.brought.fetch_add(1, Ordering::Relaxed);
        if self.failing.load(Ordering::Relaxed) > 0 {
            self.failing.fetch_sub(1, Ordering::Relaxed);
            bail!("as the test wished");
        }
        // SAFETY: it is memory of that size, by this function's promise.
        unsafe { pointer::<u8>(to).copy_from(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn record(&self, launches: impl FnOnce() -> Result<()>) -> Result<Vec<Recorded>> {
        *self.recording.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
        let launched = launches();
        let recorded =
            mem::take(&mut *self.recording.lock().unwrap_or_else(PoisonError::into_inner));
        launched.map(|()| recorded.expect("it was begun above"))
    }

    unsafe fn replay(&self, graph: &Vec<Recorded>) -> Result<()> {
        self.replayed.fetch_add(graph.len(), Ordering::Relaxed);
        self.later(graph.iter().cloned());
        Ok(())
    }
}
