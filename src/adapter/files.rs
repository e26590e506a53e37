//! The two files of a PEFT adapter, read from a folder that is not trusted.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    ops::Deref,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use memmap2::MmapMut;

use crate::lora::{
    Digest,
    peft::{CONFIG_FILE as CONFIG, WEIGHTS_FILE as WEIGHTS},
};

/// Name of the weights that mlx-lm writes.
const MLX_WEIGHTS: &str = "adapters.safetensors";
/// The longest config that is read. Real ones have about 1 KiB, and with a pattern for every module a few dozen.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The content of both files.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) config: Pages,
    pub(super) weights: Pages,
}

/// A file's bytes in memory pages of their own.
///
/// An allocator keeps what a loading thread frees for that thread's next allocation. Megabytes that are needed for
/// milliseconds, on threads that come and go, would make the process larger than its budgets say.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pages: Option<MmapMut>,
    len: usize,
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], |pages| &pages[..self.len])
    }
}

impl Pages {
    /// So many zeros.
    pub(super) fn zeros(len: usize) -> io::Result<Self> {
        // A mapping has at least one byte.
        Ok(Self { pages: Some(MmapMut::map_anon(len.max(1))?), len })
    }

    /// A copy of these bytes.
    pub(super) fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut pages = Self::zeros(bytes.len())?;
        pages.bytes_mut().copy_from_slice(bytes);
        Ok(pages)
    }

    /// All of it, to be written to.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut().map_or(&mut [], |pages| &mut pages[..self.len])
    }

    /// Takes all of `file`, which is `len` bytes long, in place of what was there.
    pub(super) fn fill(&mut self, mut file: File, len: u64) -> io::Result<()> {
        self.len = 0;
        // One byte more tells whether the file grew since it was measured.
        let room = usize::try_from(len.saturating_add(1)).map_err(io::Error::other)?;
        let pages = match &mut self.pages {
            Some(pages) if pages.len() >= room => pages,
            small => small.insert(MmapMut::map_anon(room)?),
        };
        let mut read = 0;
        while read < room {
            match file.read(&mut pages[read..room]) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if read == room {
            return Err(io::Error::other("it grows while it is read"));
        }
        self.len = read;
        Ok(())
    }
}

/// Why an adapter's files cannot be read. Says no more of where they are than their own names.
#[derive(Debug, thiserror::Error)]
pub enum BadFile {
    /// The folder has no such file.
    #[error("{file} is missing")]
    Missing {
        /// The file's name.
        file: &'static str,
    },
    /// There are weights, but pickled ones, which run code when they are read.
    #[error(
        "{WEIGHTS} is missing and {found:?} is a pickle, which is never read: safetensors only"
    )]
    Pickle {
        /// The pickle's name.
        found: String,
    },
    /// There are weights as mlx-lm writes them.
    #[error(
        "{WEIGHTS} is missing and {MLX_WEIGHTS} is an MLX adapter (no peft_type): convert it to PEFT's format"
    )]
    Mlx,
    /// A folder, FIFO, socket or device has the file's name.
    #[error("{file} is not a regular file")]
    NotAFile {
        /// The file's name.
        file: &'static str,
    },
    /// A link leads out of the adapters' folder.
    #[error("{file} is a link that leads out of the adapters' folder")]
    Outside {
        /// The file's name.
        file: &'static str,
    },
    /// More bytes than are allowed.
    #[error(
        "{file} has {bytes} bytes and at most {max} are read (--adapter-cache-bytes bounds weights)"
    )]
    TooLarge {
        /// The file's name.
        file: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The operating system refused.
    #[error("{file} cannot be read: {error}")]
    Unreadable {
        /// The file's name.
        file: &'static str,
        /// What it said.
        error: io::Error,
    },
}

impl Files {
    /// Reads both files of `folder` in place of what `self` held, and returns when the weights were last changed, in
    /// unix seconds.
    ///
    /// Links are followed as long as they stay below `root`, which must be canonical. The buffers are kept, so that one
    /// `Files` reads a thousand adapters with the memory of the largest.
    pub(super) fn read(&mut self, root: &Path, folder: &Path, max: u64) -> Result<u64, BadFile> {
        let home = Home { root, folder };
        home.read(CONFIG, MAX_CONFIG_BYTES, &mut self.config)?;
        home.read(WEIGHTS, max, &mut self.weights).map_err(|error| match error {
            BadFile::Missing { .. } => home.other_weights().unwrap_or(error),
            _ => error,
        })
    }

    /// What the two files are together.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.config, &self.weights)
    }

    /// Length of both.
    pub(super) fn bytes(&self) -> u64 {
        (self.config.len() + self.weights.len()) as u64
    }
}

/// One adapter's folder.
struct Home<'a> {
    root: &'a Path,
    folder: &'a Path,
}

impl Home<'_> {
    fn read(&self, file: &'static str, max: u64, into: &mut Pages) -> Result<u64, BadFile> {
        let unreadable = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => BadFile::Missing { file },
            _ => BadFile::Unreadable { file, error },
        };
        let path = resolve(self.root, &self.folder.join(file))
            .map_err(unreadable)?
            .ok_or(BadFile::Outside { file })?;
        // Before opening, because opening a device may do something; and again on what was opened.
        if !path.metadata().map_err(unreadable)?.is_file() {
            return Err(BadFile::NotAFile { file });
        }
        let open = open(&path).map_err(unreadable)?;
        let metadata = open.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(BadFile::NotAFile { file });
        }
        if metadata.len() > max {
            return Err(BadFile::TooLarge { file, bytes: metadata.len(), max });
        }
        into.fill(open, metadata.len()).map_err(unreadable)?;
        Ok(metadata.modified().map_or(0, unix_seconds))
    }

    /// What lies where the weights should be, if it is something we know.
    fn other_weights(&self) -> Option<BadFile> {
        let names = || {
            let entries = self.folder.read_dir().into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok())
        };
        if names().any(|name| name == MLX_WEIGHTS) {
            return Some(BadFile::Mlx);
        }
        let pickled = |name: &String| {
            let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|e| ["bin", "pt", "pth", "ckpt", "pkl"].contains(&e))
        };
        names().filter(pickled).min().map(|found| BadFile::Pickle { found })
    }
}

/// Where a path leads once every link is followed; `None` if that is not below `root`, which must be canonical.
pub(super) fn resolve(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let end = path.canonicalize()?;
    Ok(end.starts_with(root).then_some(end))
}

/// Opens without following a link (there is none in a resolved path) and without waiting for the other end of a FIFO.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
