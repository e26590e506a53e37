//! What a step asks of a GPU: memory that is taken once, launches and copies in the order of a stream, and graphs of them.
//!
//! The driver's side is `driver`; in tests it is the host, which runs the same kernels thread by thread. Everything above this
//! trait, and so all that decides which kernel is given which memory, is the same for both.

use std::{
    fmt::Debug,
    marker::PhantomData,
    ops::{DerefMut, Range},
    sync::Arc,
};

use candle_core::Result;

/// A device with two streams: one for steps, and one for copies that come beside them.
pub(crate) trait Gpu: Debug + Send + Sync + Sized + 'static {
    /// Launches and copies that were recorded once, to be run again as they are.
    type Graph: Debug + Send;
    /// Memory of the host that the device copies from and to by itself.
    type Pinned: DerefMut<Target = [u8]> + Debug + Send;

    /// What it is, for people.
    fn name(&self) -> String;

    /// Bytes of memory that nobody has yet.
    fn free_bytes(&self) -> Result<usize>;

    /// Memory of the device, zeros, from a multiple of 256 on; an error where there is not so much.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back.
    ///
    /// # Safety
    /// It is from [`Self::allocate`], and nobody uses it any more.
    unsafe fn release(&self, address: u64);

    /// Memory of the host.
    fn pin(&self, bytes: usize) -> Result<Self::Pinned>;

    /// Runs a kernel after everything before it in the stream of steps.
    ///
    /// # Safety
    /// The arguments are the kernel's parameters, and what it reads and writes is memory of this device of that size.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Multiplies after everything before it in the stream of steps.
    ///
    /// # Safety
    /// Each matrix is memory of this device of its size.
    unsafe fn multiply(&self, product: &Product) -> Result<()>;

    /// Copies into the device, in the stream of steps: now or later.
    ///
    /// # Safety
    /// `to` is memory of this device of that size, and what is copied stays as it is until the next [`Self::wait`].
    unsafe fn write(&self, from: &[u8], to: u64) -> Result<()>;

    /// Waits until everything in the stream of steps is done.
    fn wait(&self) -> Result<()>;

    /// Copies out of the device what everything before it in the stream of steps has left, and waits for it.
    ///
    /// # Safety
    /// `from` is memory of this device of that size.
    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Copies into the device beside the stream of steps, and waits for it: the caller is no step's thread.
    ///
    /// # Safety
    /// `to` is memory of this device of that size which no step reads meanwhile.
    unsafe fn bring(&self, from: &[u8], to: u64) -> Result<()>;

    /// Records what `launches` would run, and runs nothing.
    fn record(&self, launches: impl FnOnce() -> Result<()>) -> Result<Self::Graph>;

    /// Runs what was recorded.
    ///
    /// # Safety
    /// As for each launch in it.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;
}

/// A kernel on blocks of threads.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// Its name, with the type of its numbers.
    pub(crate) kernel: &'a str,
    /// Blocks.
    pub(crate) grid: [usize; 3],
    /// Threads of a block.
    pub(crate) block: usize,
    /// Its parameters, in their order.
    pub(crate) arguments: &'a [Argument],
}

/// What a kernel is given for one parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    /// Where memory of the device begins, or 0 where there is none.
    Address(u64),
    /// An int.
    Int(i32),
    /// A float.
    Float(f32),
    /// A struct of four ints.
    Ints([i32; 4]),
    /// [`super::launch::LinearMaps`].
    Maps(super::launch::LinearMaps),
}

impl<T> From<Slice<T>> for Argument {
    fn from(slice: Slice<T>) -> Self {
        Self::Address(slice.address)
    }
}

impl<T> From<Option<Slice<T>>> for Argument {
    fn from(slice: Option<Slice<T>>) -> Self {
        Self::Address(slice.map_or(0, |slice| slice.address))
    }
}

impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Self::Int(value.try_into().expect("what kernels count is below 2^31"))
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

/// The 16-bit type that products take and keys and values are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl Half {
    /// How the names of its kernels end.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

/// `y [rows, outputs] = x [rows, inputs] W^T`: 16-bit numbers, summed in `f32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// The type of x and W.
    pub(crate) half: Half,
    /// `[rows, inputs]`
    pub(crate) x: Slice<u16>,
    /// `[outputs, inputs]`
    pub(crate) weights: Slice<u16>,
    /// `[rows, outputs]`
    pub(crate) y: Slice<f32>,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// Numbers in memory of a device: where they begin and how many they are. Whoever has the [`Region`] keeps them.
pub(crate) struct Slice<T> {
    address: u64,
    len: usize,
    numbers: PhantomData<fn() -> T>,
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<T> {}

impl<T> Debug for Slice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}[{}]", self.address, self.len)
    }
}

impl<T> Slice<T> {
    /// How many.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Where they begin.
    pub(crate) fn address(self) -> u64 {
        self.address
    }

    /// Some of them.
    ///
    /// # Panics
    /// Where there are not so many.
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let address = self.address + (range.start * size_of::<T>()) as u64;
        Self { address, len: range.len(), numbers: PhantomData }
    }

    /// The same memory as numbers of another type.
    ///
    /// # Panics
    /// Where they are not whole numbers, or do not begin where such may.
    pub(crate) fn cast<U>(self) -> Slice<U> {
        let bytes = self.len * size_of::<T>();
        assert!(bytes.is_multiple_of(size_of::<U>()), "{bytes} bytes are not whole numbers");
        assert!(self.address.is_multiple_of(align_of::<U>() as u64), "{self:?} is not aligned");
        Slice { address: self.address, len: bytes / size_of::<U>(), numbers: PhantomData }
    }
}

/// Memory of a device, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Region<G: Gpu> {
    gpu: Arc<G>,
    address: u64,
    bytes: usize,
    /// Bytes of it that were handed out by [`Self::take`].
    taken: usize,
}

/// What parts of a region begin at a multiple of: whatever a kernel, or cuBLAS, loads at once.
pub(crate) const ALIGNMENT: usize = 256;

/// Bytes of a region that so many numbers take.
pub(crate) fn bytes_of<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGNMENT)
}

impl<G: Gpu> Region<G> {
    /// So many zeros.
    pub(crate) fn new(gpu: &Arc<G>, bytes: usize) -> Result<Self> {
        let address = gpu.allocate(bytes)?;
        Ok(Self { gpu: Arc::clone(gpu), address, bytes, taken: 0 })
    }

    /// All of it.
    pub(crate) fn all(&self) -> Slice<u8> {
        Slice { address: self.address, len: self.bytes, numbers: PhantomData }
    }

    /// The next numbers of it, as many as were planned for with [`bytes_of`].
    ///
    /// # Panics
    /// Where there are not so many.
    pub(crate) fn take<T>(&mut self, len: usize) -> Slice<T> {
        let bytes = len * size_of::<T>();
        let part = self.all().part(self.taken..self.taken + bytes).cast();
        self.taken += bytes_of::<T>(len);
        part
    }
}

impl<G: Gpu> Drop for Region<G> {
    fn drop(&mut self) {
        // SAFETY: it is from `allocate`, and whoever launches holds the region; what was launched is done when memory is
        // given back, in the order of the stream.
        unsafe { self.gpu.release(self.address) };
    }
}

/// Numbers whose bytes are those that a device has.
pub(crate) trait Plain: Copy {
    /// The bytes of some.
    fn bytes(numbers: &[Self]) -> &[u8];
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(impl Plain for $type {
            fn bytes(numbers: &[Self]) -> &[u8] {
                // SAFETY: the numbers have no padding, and bytes may lie anywhere.
                unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
            }
        })*
    };
}
plain!(u8, u16, i32, f32, u64, super::launch::LoraStack);

/// Memory of the host by which numbers come to a device, and from it.
#[derive(Debug)]
pub(crate) struct Staging<G: Gpu> {
    gpu: Arc<G>,
    pinned: G::Pinned,
}

impl<G: Gpu> Staging<G> {
    /// So many bytes.
    pub(crate) fn new(gpu: &Arc<G>, bytes: usize) -> Result<Self> {
        Ok(Self { gpu: Arc::clone(gpu), pinned: gpu.pin(bytes)? })
    }

    /// The bytes, to be filled: nothing of what was sent before is still on its way.
    pub(crate) fn fill(&mut self) -> Result<&mut [u8]> {
        self.gpu.wait()?;
        Ok(&mut self.pinned)
    }

    /// Sends some of its bytes to the same place in `all`.
    pub(crate) fn send(&self, bytes: Range<usize>, all: Slice<u8>) -> Result<()> {
        let to = all.part(bytes.clone());
        // SAFETY: the place is as long; nobody writes here before `fill` has waited.
        unsafe { self.gpu.write(&self.pinned[bytes], to.address) }
    }

    /// What the step has left in `from`.
    pub(crate) fn receive(&mut self, from: Slice<u8>) -> Result<&[u8]> {
        let to = &mut self.pinned[..from.len];
        // SAFETY: the place is as long.
        unsafe { self.gpu.read(from.address, to) }?;
        Ok(to)
    }
}

/// Copies numbers to a place that no step reads yet, and waits for it: of a base when it is loaded, or beside the steps.
pub(crate) fn bring<G: Gpu, T: Plain>(gpu: &G, numbers: &[T], to: Slice<T>) -> Result<()> {
    assert!(numbers.len() <= to.len, "{} numbers for {to:?}", numbers.len());
    // SAFETY: the place is as long.
    unsafe { gpu.bring(T::bytes(numbers), to.address) }
}

/// Runs what was captured from launches of [`super::launch::Kernels`], whose memory is still there.
pub(crate) fn replay<G: Gpu>(gpu: &G, graph: &G::Graph) -> Result<()> {
    // SAFETY: each launch was checked when it was captured, and whoever has the graph has its memory.
    unsafe { gpu.replay(graph) }
}
