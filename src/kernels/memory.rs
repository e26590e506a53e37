//! Memory for weights, which stay for long: pages of their own, huge ones where the system has them.
//!
//! A step reads every weight once, so that with pages of 4 KiB the processor looks up as many addresses as it reads lines;
//! with those of 2 MiB two threads read half as much again in a second. And what is not of a common heap goes back to the
//! system when it is dropped: a cache of adapters would leave holes there, and the process would be larger than its budget says.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex},
};

use memmap2::{MmapMut, MmapRaw};

/// Cache lines, at which parts begin.
const LINE: usize = 64;
/// Bytes that a slab takes at a time where nobody knows how many it will be. What is not written takes no memory.
const CHUNK: usize = 64 << 20;

/// Pages that are handed out in parts, and live as long as the last of them.
#[derive(Debug)]
pub struct Slab {
    grows: bool,
    open: Mutex<Open>,
}

/// The pages that parts are cut from.
#[derive(Debug)]
struct Open {
    pages: Arc<MmapRaw>,
    bytes: usize,
    used: usize,
}

impl Open {
    fn new(bytes: usize) -> io::Result<Self> {
        let pages = MmapMut::map_anon(bytes.max(1))?;
        // Advice: without it all is as it was, only slower.
        #[cfg(target_os = "linux")]
        drop(pages.advise(memmap2::Advice::HugePage));
        Ok(Self { pages: Arc::new(pages.into()), bytes, used: 0 })
    }
}

impl Slab {
    /// Room for parts of so many bytes in all, as [`Slab::bytes_of`] counts them; an error where the system has no memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        Ok(Self { grows: false, open: Mutex::new(Open::new(bytes)?) })
    }

    /// Room that grows with what is asked for.
    pub fn growing() -> io::Result<Self> {
        Ok(Self { grows: true, open: Mutex::new(Open::new(CHUNK)?) })
    }

    /// Bytes that a part of `len` takes: whole cache lines.
    pub fn bytes_of(len: usize) -> usize {
        len.next_multiple_of(LINE)
    }

    /// So many zeros; an error where a slab that grows finds no memory.
    ///
    /// # Panics
    /// Where the slab does not grow and they do not fit.
    pub fn take(&self, len: usize) -> io::Result<Part> {
        let bytes = Self::bytes_of(len);
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if bytes > open.bytes - open.used {
            assert!(self.grows, "{bytes} more than {} of {}", open.used, open.bytes);
            *open = Open::new(bytes.max(CHUNK))?;
        }
        // SAFETY: the map is `open.bytes` long, and the part ends within it.
        let start = unsafe { open.pages.as_mut_ptr().add(open.used) };
        open.used += bytes;
        Ok(Part { start, len, pages: Arc::clone(&open.pages) })
    }
}

/// Bytes of a [`Slab`] that nobody else has, from a multiple of 64 on.
pub struct Part {
    start: *mut u8,
    len: usize,
    /// Keeps the memory.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pages: Arc<MmapRaw>,
}

// SAFETY: a `Part` is the only one that has its part of the pages, as a `Box` would be; the pages themselves are only
// unmapped, by whoever drops the last part.
unsafe impl Send for Part {}
// SAFETY: as above; writing needs `&mut`.
unsafe impl Sync for Part {}

impl Deref for Part {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes lie from `start` on, initialised to zero, and are borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Part {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed mutably with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Part({} bytes)", self.len)
    }
}

/// Tells the allocator to keep what a step gives back for the next one. This is a setting of the whole process.
///
/// A step's tensors are megabytes each. glibc takes such from the system one by one, and gives what is freed at a heap's end
/// back: every step would have its memory zeroed page by page again, which costs a tenth of a prefill.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest that glibc takes for the one, and twice that for the other, as it does itself.
        const LARGEST: libc::c_int = 32 << 20;
        // SAFETY: both set a number in the allocator, under its own lock.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_larger_than_all_memory_is_an_error() {
        let refused = Slab::new(1 << 60).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory, "{refused}");
        let refused = Slab::growing().unwrap().take(1 << 60).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory, "{refused}");
    }

    #[test]
    fn parts_begin_at_lines_and_do_not_touch() {
        for slab in [Slab::new(64 + 128 + 64).unwrap(), Slab::growing().unwrap()] {
            let mut parts = [1, 65, 64].map(|len| slab.take(len).unwrap());
            for (value, part) in (1..).zip(&mut parts) {
                assert!(part.as_ptr().addr().is_multiple_of(LINE));
                assert!(part.iter().all(|byte| *byte == 0));
                part.fill(value);
            }
            let mut own = (1..).zip(&parts);
            assert!(own.all(|(value, part)| part.iter().all(|byte| *byte == value)));
        }
    }

    #[test]
    fn a_slab_that_grows_outlives_itself_in_its_parts() {
        let slab = Slab::growing().unwrap();
        let parts: Vec<_> =
            [CHUNK - 64, 128, CHUNK + 1].iter().map(|len| slab.take(*len).unwrap()).collect();
        drop(slab);
        assert!(parts.iter().all(|part| part[part.len() - 1] == 0));
    }

    #[test]
    #[should_panic(expected = "64 more than 64 of 64")]
    fn a_slab_of_known_size_does_not_grow() {
        let slab = Slab::new(64).unwrap();
        drop(slab.take(1));
        drop(slab.take(1));
    }
}
