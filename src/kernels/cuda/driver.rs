//! A GPU behind NVIDIA's driver, on candle's device: its context, its stream and its cuBLAS.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, PoisonError, RwLock},
};

use candle_core::{
    CudaDevice, Error, Result,
    cuda_backend::cudarc::{
        cublas::{CudaBlas, result as blas, sys as blas_sys},
        driver::{CudaContext, CudaStream, result, sys},
    },
};

use super::gpu::{Argument, Gpu, Half, Launch, Product};

/// The kernels as machine code, from `build.rs`.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// What cuBLAS computes with: what NVIDIA recommends for its GPUs from Hopper on. Its own would be allocated when it is needed,
/// and so within a step that is captured.
const WORKSPACE: usize = 32 << 20;

/// A device.
pub(crate) struct Cuda {
    /// By name, as they are first launched.
    functions: RwLock<HashMap<String, Function>>,
    module: Module,
    workspace: u64,
    blas: Arc<CudaBlas>,
    /// Of what comes beside the steps.
    copies: Arc<CudaStream>,
    /// Of the steps.
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// A handle of a kernel; it lives as long as its module.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

/// The loaded kernels.
struct Module(sys::CUmodule);

/// A captured step.
pub(crate) struct Graph {
    exec: sys::CUgraphExec,
    context: Arc<CudaContext>,
}

/// Memory of the host that the device reads and writes by itself.
pub(crate) struct Pinned {
    start: NonNull<u8>,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: handles of the driver may be used from any thread whose context is current, which each use sees to.
unsafe impl Send for Function {}
// SAFETY: as above; nothing is changed through it.
unsafe impl Sync for Function {}
// SAFETY: as above.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Graph {}
// SAFETY: it is the only one that has its memory, as a `Box` would be.
unsafe impl Send for Pinned {}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cuda").field(&self.context.ordinal()).finish()
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.len)
    }
}

impl Cuda {
    /// Device `ordinal` of this machine.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        let device = CudaDevice::new_with_stream(ordinal)?;
        let (stream, blas) = (device.cuda_stream(), device.cublas_handle());
        let context = Arc::clone(stream.context());
        let copies = context.new_stream().map_err(Error::wrap)?;
        // SAFETY: the image is what nvcc has made, and stays for ever.
        let module = unsafe { result::module::load_data(KERNELS.as_ptr().cast()) };
        let module = Module(module.map_err(Error::wrap)?);
        // SAFETY: it is given back in `drop`.
        let workspace = unsafe { result::malloc_sync(WORKSPACE) }.map_err(Error::wrap)?;
        // SAFETY: the memory is as large, and stays until the handle is gone.
        let set = unsafe {
            let memory = workspace as *mut c_void;
            blas_sys::cublasSetWorkspace_v2(*blas.handle(), memory, WORKSPACE)
        };
        set.result().map_err(Error::wrap)?;
        let functions = RwLock::default();
        Ok(Self { functions, module, workspace, blas, copies, stream, context })
    }

    /// How many devices there are, or why the driver does not say.
    pub(crate) fn count() -> Result<usize> {
        let count = CudaContext::device_count().map_err(Error::wrap)?;
        usize::try_from(count).map_err(Error::wrap)
    }

    fn current(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(Error::wrap)
    }

    fn function(&self, kernel: &str) -> Result<Function> {
        let known =
            self.functions.read().unwrap_or_else(PoisonError::into_inner).get(kernel).copied();
        if let Some(function) = known {
            return Ok(function);
        }
        let name = CString::new(kernel).map_err(Error::wrap)?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.module.0, name) };
        let function = function.map_err(|error| Error::wrap(error).context(kernel.to_owned()))?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.insert(kernel.to_owned(), Function(function));
        Ok(Function(function))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What fails here has failed before; the process goes on without this memory.
        drop(self.current());
        let _ = self.stream.synchronize();
        // SAFETY: nothing runs any more; both are from `new`.
        let _ = unsafe { result::module::unload(self.module.0) };
        // SAFETY: as above. cuBLAS does not use it when its handle goes.
        let _ = unsafe { result::free_sync(self.workspace) };
    }
}

/// Where the driver finds the value of an argument.
fn value(argument: &Argument) -> *mut c_void {
    match argument {
        Argument::Address(value) => std::ptr::from_ref(value).cast_mut().cast(),
        Argument::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
        Argument::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
        Argument::Ints(value) => std::ptr::from_ref(value).cast_mut().cast(),
        Argument::Maps(value) => std::ptr::from_ref(value).cast_mut().cast(),
    }
}

fn int(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(Error::wrap)
}

impl Gpu for Cuda {
    type Graph = Graph;
    type Pinned = Pinned;

    fn name(&self) -> String {
        let (name, capability) = (self.context.name(), self.context.compute_capability());
        let (major, minor) = capability.unwrap_or_default();
        format!("{} (compute {major}.{minor})", name.unwrap_or_else(|_| "a GPU".to_owned()))
    }

    fn free_bytes(&self) -> Result<usize> {
        self.context.mem_get_info().map(|(free, _)| free).map_err(Error::wrap)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.current()?;
        // SAFETY: whoever asks for it gives it back by `release`.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(Error::wrap)?;
        // SAFETY: it was allocated with that size. Nobody else has it, so that it may be zeroed in any stream.
        unsafe { result::memset_d8_sync(address, 0, bytes) }.map_err(Error::wrap)?;
        self.context.synchronize().map_err(Error::wrap)?;
        Ok(address)
    }

    unsafe fn release(&self, address: u64) {
        // What fails here has failed before.
        drop(self.current());
        // SAFETY: it is from `allocate`, and nobody uses it, by this function's promise. The driver waits for what runs.
        let _ = unsafe { result::free_sync(address) };
    }

    fn pin(&self, bytes: usize) -> Result<Pinned> {
        self.current()?;
        // SAFETY: it is given back when it is dropped.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(Error::wrap)?;
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(Error::Msg(format!("no {bytes} bytes of pinned memory")));
        };
        // SAFETY: it was allocated with that size.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { start, len: bytes, context: Arc::clone(&self.context) })
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let Launch { kernel, grid, block, arguments } = launch;
        self.current()?;
        let Function(function) = self.function(kernel)?;
        let blocks = |at: usize| u32::try_from(grid[at]).map_err(Error::wrap);
        let grid = (blocks(0)?, blocks(1)?, blocks(2)?);
        let block = (u32::try_from(*block).map_err(Error::wrap)?, 1, 1);
        let mut values: Vec<_> = arguments.iter().map(value).collect();
        // SAFETY: by this function's promise; the driver copies the values before it returns.
        let launched = unsafe {
            result::launch_kernel(function, grid, block, 0, self.stream.cu_stream(), &mut values)
        };
        launched.map_err(|error| Error::wrap(error).context((*kernel).to_owned()))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        let Product { half, x, weights, y, rows, inputs, outputs } = *product;
        self.current()?;
        let kind = match half {
            Half::F16 => blas_sys::cudaDataType::CUDA_R_16F,
            Half::BF16 => blas_sys::cudaDataType::CUDA_R_16BF,
        };
        let (one, zero) = (1.0_f32, 0.0_f32);
        let (rows, inputs, outputs) = (int(rows)?, int(inputs)?, int(outputs)?);
        // cuBLAS has columns where these are rows: y^T [outputs, rows] = W x^T, where W lies there as its transpose.
        // SAFETY: by this function's promise; the handle is of the stream of steps.
        let multiplied = unsafe {
            blas::gemm_ex(
                *self.blas.handle(),
                blas_sys::cublasOperation_t::CUBLAS_OP_T,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                outputs,
                rows,
                inputs,
                std::ptr::from_ref(&one).cast(),
                weights.address() as *const c_void,
                kind,
                inputs,
                x.address() as *const c_void,
                kind,
                inputs,
                std::ptr::from_ref(&zero).cast(),
                y.address() as *mut c_void,
                blas_sys::cudaDataType::CUDA_R_32F,
                outputs,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        multiplied.map_err(Error::wrap)
    }

    unsafe fn write(&self, from: &[u8], to: u64) -> Result<()> {
        self.current()?;
        // SAFETY: by this function's promise.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.map_err(Error::wrap)
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(Error::wrap)
    }

    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.current()?;
        if !to.is_empty() {
            // SAFETY: by this function's promise; it is waited for before this returns.
            let copied = unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) };
            self.wait()?;
            return copied.map_err(Error::wrap);
        }
        self.wait()
    }

    unsafe fn bring(&self, from: &[u8], to: u64) -> Result<()> {
        self.current()?;
        if !from.is_empty() {
            // SAFETY: by this function's promise; it is waited for before this returns.
            let copied = unsafe { result::memcpy_htod_async(to, from, self.copies.cu_stream()) };
            self.copies.synchronize().map_err(Error::wrap)?;
            return copied.map_err(Error::wrap);
        }
        Ok(())
    }

    fn record(&self, launches: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.current()?;
        let stream = self.stream.cu_stream();
        // What other threads do meanwhile, as bringing adapters is, does not disturb it.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's, and its capture is ended in any case, by the value below.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(Error::wrap)?;
        let capture = Capture(stream);
        let launched = launches();
        let graph = capture.end();
        launched?;
        let graph = graph?;
        // SAFETY: the graph was captured just now, and is there until the end of this function.
        let exec = unsafe {
            let flags =
                sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            result::graph::instantiate(graph.0, flags)
        };
        let exec = exec.map_err(Error::wrap)?;
        Ok(Graph { exec, context: Arc::clone(&self.context) })
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.current()?;
        // SAFETY: it is not destroyed while there is the value; the rest by this function's promise.
        unsafe { result::graph::launch(graph.exec, self.stream.cu_stream()) }.map_err(Error::wrap)
    }
}

/// A stream that is being captured; whatever happens, it is not for ever.
struct Capture(sys::CUstream);

impl Capture {
    fn end(self) -> Result<Captured> {
        let stream = self.0;
        std::mem::forget(self);
        // SAFETY: it is being captured, by whoever made this value.
        unsafe { result::stream::end_capture(stream) }.map(Captured).map_err(Error::wrap)
    }
}

impl Drop for Capture {
    /// Where launches panicked.
    fn drop(&mut self) {
        // SAFETY: as in `end`.
        let graph = unsafe { result::stream::end_capture(self.0) };
        drop(graph.map(Captured));
    }
}

/// What was captured, before a device can run it.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: nobody else has it, and what was instantiated from it lives by itself.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: nobody else has it. The driver lets what runs of it end.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes lie there, initialised, and are borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed mutably with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: it is from `malloc_host`, and nobody else has it.
        let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
    }
}
