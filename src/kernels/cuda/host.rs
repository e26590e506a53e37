//! Runs the kernels on the host: compiled once for each test process, and launched as a driver would.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    path::Path,
    process::Command,
    sync::OnceLock,
};

use libloading::Library;

/// What a kernel is given for one parameter.
#[derive(Debug)]
pub(super) enum Argument {
    /// The memory of a [`Buffer`].
    Memory(*mut c_void),
    Int(c_int),
    Float(f32),
    /// A struct of four ints.
    Ints([c_int; 4]),
    Maps(super::launch::LinearMaps),
}

impl Argument {
    /// Where the value is, and its size.
    fn value(&self) -> (*const c_void, usize) {
        match self {
            Self::Memory(value) => (std::ptr::from_ref(value).cast(), size_of_val(value)),
            Self::Int(value) => (std::ptr::from_ref(value).cast(), size_of_val(value)),
            Self::Float(value) => (std::ptr::from_ref(value).cast(), size_of_val(value)),
            Self::Ints(value) => (std::ptr::from_ref(value).cast(), size_of_val(value)),
            Self::Maps(value) => (std::ptr::from_ref(value).cast(), size_of_val(value)),
        }
    }
}

impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Self::Int(value.try_into().expect("small"))
    }
}

/// Which threads and blocks run first: results must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Forwards,
    Backwards,
}

/// Numbers for kernels to read and write, at a multiple of 64 bytes as a device's are, between numbers that nobody may write.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    all: Vec<T>,
    start: usize,
    len: usize,
    guard: T,
}

/// Numbers before and after those of a buffer.
const GUARD: usize = 64;

impl<T: Copy + PartialEq> Buffer<T> {
    /// A buffer of `numbers`; around them lies `guard`, which spoils what it is taken for.
    pub(super) fn new(numbers: &[T], guard: T) -> Self {
        let mut all = vec![guard; numbers.len() + 3 * GUARD];
        let start = GUARD + all[GUARD..].as_ptr().align_offset(64);
        all[start..start + numbers.len()].copy_from_slice(numbers);
        Self { all, start, len: numbers.len(), guard }
    }

    /// As a kernel is given it.
    pub(super) fn memory(&mut self) -> Argument {
        Argument::Memory(self.address())
    }

    /// The same from number `first` on.
    pub(super) fn memory_from(&mut self, first: usize) -> Argument {
        Argument::Memory(self.all[self.start + first..].as_mut_ptr().cast())
    }

    /// As a kernel finds it in a table.
    pub(super) fn address(&mut self) -> *mut c_void {
        self.all[self.start..].as_mut_ptr().cast()
    }

    /// The numbers, around which nothing was written.
    pub(super) fn numbers(&self) -> &[T] {
        let end = self.start + self.len;
        assert!(self.all[..self.start].iter().all(|number| same(number, &self.guard)));
        assert!(self.all[end..].iter().all(|number| same(number, &self.guard)));
        &self.all[self.start..end]
    }
}

/// Whether two are equal, or both no numbers.
fn same<T: PartialEq>(one: &T, other: &T) -> bool {
    let is_number = |number: &T| number.eq(number);
    one == other || !(is_number(one) || is_number(other))
}

/// Mirrors `Launch` of `launch.cpp`.
#[repr(C)]
struct Launch {
    kernel: *const c_char,
    grid: [c_uint; 3],
    block: c_uint,
    backwards: c_int,
    arguments: *const *const c_void,
    sizes: *const usize,
    count: usize,
}

type ChorusLaunch = unsafe extern "C" fn(*const Launch) -> *const c_char;

/// Runs `kernel` on `grid` blocks of `block` threads; an error is what a device would have hung or been undefined at.
pub(super) fn launch(
    kernel: &str,
    (grid, block): ([usize; 3], usize),
    order: Order,
    arguments: &[Argument],
) -> Result<(), String> {
    let kernel = CString::new(kernel).expect("a name");
    let (values, sizes): (Vec<_>, Vec<_>) = arguments.iter().map(Argument::value).unzip();
    let launch = Launch {
        kernel: kernel.as_ptr(),
        grid: grid.map(|blocks| blocks.try_into().expect("small")),
        block: block.try_into().expect("small"),
        backwards: (order == Order::Backwards).into(),
        arguments: values.as_ptr(),
        sizes: sizes.as_ptr(),
        count: values.len(),
    };
    // SAFETY: the signature is that of launch.cpp, which is what the library was made of; all that `launch` points to outlives the
    // call, and what comes back is null or a string that stands until this thread's next launch.
    let error = unsafe {
        let run = library().get::<ChorusLaunch>(b"chorus_launch").expect("it is there");
        let error = run(&raw const launch);
        (!error.is_null()).then(|| CStr::from_ptr(error).to_string_lossy().into_owned())
    };
    error.map_or(Ok(()), Err)
}

/// The kernels, compiled for the host when they are first asked for.
pub(super) fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda/host");
        let folder = tempfile::tempdir().expect("room for the kernels");
        let out = folder.path().join("kernels.so");
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]);
        // Sums are rounded as they are spelled; vectors are loaded through pointers to other types.
        compiler.args(["-ffp-contract=off", "-fno-strict-aliasing"]);
        // Of unrolling, for CUDA.
        compiler.arg("-Wno-unknown-pragmas");
        // Whose reports launch.cpp takes. The checked jumps that distributions turn on know no fibers.
        compiler.args(["-fsanitize=bounds,alignment", "-U_FORTIFY_SOURCE"]);
        compiler.arg("-I").arg(&source).args(["-include", "host.h", "-o"]).arg(&out);
        let done = compiler.arg(source.join("launch.cpp")).output();
        let done = done.unwrap_or_else(|error| {
            panic!(
                "the kernels' tests need a C++17 compiler, c++ (Debian: apt install g++): {error}"
            )
        });
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // SAFETY: it was made a moment ago from source that runs nothing when it is loaded.
        unsafe { Library::new(&out) }.expect("a library")
    })
}
