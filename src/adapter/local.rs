//! Adapters that an operator names by their path on this machine.
//!
//! Nothing outside of one directory is read, and nothing tells whether there is anything outside. A path is resolved, and
//! what comes of it is opened part by part without following a link: whoever changes the directory meanwhile can make that
//! fail, and cannot lead it out.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat},
    io::Errno,
};
use tokio::{io::AsyncReadExt as _, task::spawn_blocking};

use super::{BadFile, Part, Unreceived, Upload, files::resolve};

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;
/// Weights as they are saved pickled.
const PICKLES: [&str; 2] = ["adapter_model.bin", "adapter_model.pt"];

/// A directory below which adapters may be named by their path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraRoot(Arc<Path>);

/// Why no adapter is taken from a path.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The text is not how such a path is written.
    #[error("the path is empty, or has a NUL or `..` in it: name a folder below --lora-root")]
    Malformed,
    /// No folder, or one outside: the two are not told apart.
    #[error("there is no such folder below --lora-root")]
    Absent,
    /// One of the two files cannot be read.
    #[error(transparent)]
    File(#[from] BadFile),
    /// One of the two files is too large, or cannot be spooled.
    #[error(transparent)]
    Unreceived(#[from] Unreceived),
}

impl LoraRoot {
    /// The directory must be there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = path.canonicalize()?;
        if root.is_dir() {
            Ok(Self(root.into()))
        } else {
            Err(io::Error::from(io::ErrorKind::NotADirectory))
        }
    }

    /// Takes both files of the folder at `path`, which begins at the root where it is not absolute.
    pub async fn take(&self, path: &str, mut upload: Upload) -> Result<Upload, NotTaken> {
        let (root, folder) = (Arc::clone(&self.0), wanted(path)?);
        let opened = spawn_blocking(move || open_both(&root, &folder)).await;
        let opened = opened.map_err(|lost| unreadable(Part::Config, io::Error::other(lost)))??;
        for (part, file) in opened {
            let mut file = tokio::fs::File::from_std(file);
            let failed = |error| unreadable(part, error);
            let before = file.metadata().await.and_then(|file| file.modified()).map_err(failed)?;
            upload.begin(part).await?;
            let mut piece = vec![0; PIECE];
            loop {
                let read = file.read(&mut piece).await.map_err(failed)?;
                if read == 0 {
                    break;
                }
                upload.write(part, &piece[..read]).await?;
            }
            let after = file.metadata().await.and_then(|file| file.modified()).map_err(failed)?;
            if after != before {
                let error = io::Error::other("it changes while it is read");
                return Err(failed(error).into());
            }
        }
        Ok(upload)
    }
}

fn wanted(path: &str) -> Result<PathBuf, NotTaken> {
    let folder = PathBuf::from(path);
    let climbs = folder.components().any(|part| part == Component::ParentDir);
    if path.is_empty() || path.contains('\0') || climbs {
        return Err(NotTaken::Malformed);
    }
    Ok(folder)
}

fn unreadable(part: Part, error: io::Error) -> BadFile {
    BadFile::Unreadable { file: part.file(), error }
}

/// Opens both files of the adapter in `folder`, which is resolved once: a link that is turned meanwhile mixes nothing.
fn open_both(root: &Path, folder: &Path) -> Result<[(Part, File); 2], NotTaken> {
    // Whatever keeps it from being resolved may lie outside, and is not told.
    let folder = match resolve(root, &root.join(folder)) {
        Ok(Some(folder)) if folder.is_dir() => folder,
        _ => return Err(NotTaken::Absent),
    };
    let open = |part| Ok::<_, BadFile>((part, open_file(root, &folder, part)?));
    Ok([open(Part::Config)?, open(Part::Weights)?])
}

fn open_file(root: &Path, folder: &Path, part: Part) -> Result<File, BadFile> {
    let file = part.file();
    let Ok(Some(place)) = resolve(root, &folder.join(file)) else {
        return Err(missing(root, folder, part));
    };
    let (Some(above), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(BadFile::NotAFile { file });
    };
    let failed = |error: Errno| match error {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR => BadFile::Missing { file },
        error => unreadable(part, error.into()),
    };
    let above = walk(root, above).map_err(failed)?;
    // Before opening, because opening a device may do something; and again on what was opened.
    let found = statat(&above, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(BadFile::NotAFile { file });
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = File::from(openat(&above, name, flags, Mode::empty()).map_err(failed)?);
    let is_file = open.metadata().map_err(|error| unreadable(part, error))?.is_file();
    if is_file { Ok(open) } else { Err(BadFile::NotAFile { file }) }
}

/// Opens a directory below the root, which is resolved: a part that is a link by now is refused.
fn walk(root: &Path, end: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = end.strip_prefix(root).map_err(|_| Errno::NOENT)?;
    let mut open = openat(CWD, root, flags, Mode::empty())?;
    for part in below.components() {
        open = openat(&open, part.as_os_str(), flags, Mode::empty())?;
    }
    Ok(open)
}

/// A file that is not there, or is a link that leads out; weights may be there as something that is never read.
fn missing(root: &Path, folder: &Path, part: Part) -> BadFile {
    let has = |name: &&str| {
        let folder = walk(root, folder);
        folder.is_ok_and(|folder| statat(&folder, *name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    };
    match PICKLES.iter().find(|name| part == Part::Weights && has(name)) {
        Some(found) => BadFile::Pickle { found: (*found).to_owned() },
        None => BadFile::Missing { file: part.file() },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use tempfile::TempDir;

    use super::{
        super::{fixture, upload::Spool},
        *,
    };
    use crate::lora::{
        Digest,
        peft::{CONFIG_FILE as CONFIG, WEIGHTS_FILE as WEIGHTS},
    };

    async fn take(root: &LoraRoot, path: &str) -> Result<Digest, NotTaken> {
        let spool = Spool { folder: std::env::temp_dir(), max_weights: 1 << 20 };
        let upload = root.take(path, spool.upload()).await?;
        Ok(upload.complete().await?.digest())
    }

    fn digest(value: f32) -> Digest {
        let (config, weights) = fixture::adapter(2, value);
        Digest::of(config.as_bytes(), &weights)
    }

    #[tokio::test]
    async fn folders_below_the_root_are_taken_by_any_path_to_them() {
        let (root, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fixture::write(&root.path().join("team/sql"), 2, 0.5);
        fixture::write(&root.path().join("own"), 2, 0.25);
        symlink("team/sql", root.path().join("relative")).unwrap();
        symlink(root.path().join("team"), root.path().join("absolute")).unwrap();
        // As the model hub's cache lays files out.
        fs::create_dir(root.path().join("snapshot")).unwrap();
        symlink(root.path().join("own").join(CONFIG), root.path().join("snapshot").join(CONFIG))
            .unwrap();
        symlink("../own/adapter_model.safetensors", root.path().join("snapshot").join(WEIGHTS))
            .unwrap();
        symlink(root.path(), elsewhere.path().join("root")).unwrap();
        let whole = root.path().join("team/sql").to_str().unwrap().to_owned();
        for opened in [root.path(), &elsewhere.path().join("root")] {
            let root = LoraRoot::open(opened).unwrap();
            for path in ["team/sql", "./team//sql/", "relative", "absolute/sql", &whole] {
                assert_eq!(take(&root, path).await.unwrap(), digest(0.5), "{path}");
            }
            assert_eq!(take(&root, "snapshot").await.unwrap(), digest(0.25));
        }
        let itself = LoraRoot::open(&root.path().join("own")).unwrap();
        assert_eq!(take(&itself, ".").await.unwrap(), digest(0.25));
    }

    #[tokio::test]
    async fn what_is_outside_and_what_is_nowhere_are_answered_alike() {
        let (root, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fixture::write(&outside.path().join("secret"), 2, 0.5);
        let secret = outside.path().join("secret");
        let nowhere = outside.path().join("nowhere");
        symlink(&secret, root.path().join("link-out")).unwrap();
        symlink(&nowhere, root.path().join("link-nowhere")).unwrap();
        for (name, target) in [("file-out", &secret), ("file-nowhere", &nowhere)] {
            fixture::write(&root.path().join(name), 2, 0.5);
            fs::remove_file(root.path().join(name).join(WEIGHTS)).unwrap();
            symlink(target.join(WEIGHTS), root.path().join(name).join(WEIGHTS)).unwrap();
        }
        // A root whose name begins as this one's does is another.
        let beside = format!("{}-beside", root.path().display());
        fixture::write(Path::new(&beside), 2, 0.5);
        let root = LoraRoot::open(root.path()).unwrap();
        let absent = take(&root, "never").await.unwrap_err().to_string();
        let (secret, nowhere) = (secret.to_str().unwrap(), nowhere.to_str().unwrap());
        for path in ["link-out", "link-nowhere", secret, nowhere, &beside, "/", "/etc/shadow/x"] {
            assert_eq!(take(&root, path).await.unwrap_err().to_string(), absent, "{path}");
        }
        fs::remove_dir_all(&beside).unwrap();
        let missing = take(&root, "file-nowhere").await.unwrap_err().to_string();
        assert_eq!(missing, "adapter_model.safetensors is missing");
        assert_eq!(take(&root, "file-out").await.unwrap_err().to_string(), missing);
        let climbs = [&format!("{}/../x", root.0.display()), "..", "a/../b", "", "a\0b"];
        for path in climbs {
            let refused = take(&root, path).await.unwrap_err();
            assert!(matches!(refused, NotTaken::Malformed), "{path}: {refused}");
        }
    }

    #[tokio::test]
    async fn only_files_are_read_and_none_that_is_too_large() {
        let root = TempDir::new().unwrap();
        let spoilt = |name: &str| {
            let path = root.path().join(name);
            fixture::write(&path, 2, 0.5);
            fs::remove_file(path.join(WEIGHTS)).unwrap();
            path.join(WEIGHTS)
        };
        fs::create_dir(spoilt("folder")).unwrap();
        assert!(Command::new("mkfifo").arg(spoilt("fifo")).status().unwrap().success());
        fs::write(spoilt("large"), vec![0; (1 << 20) + 1]).unwrap();
        fs::write(spoilt("pickled").with_file_name("adapter_model.bin"), "").unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let root = LoraRoot::open(root.path()).unwrap();
        for (path, reason) in [
            ("folder", "is not a regular file"),
            ("fifo", "is not a regular file"),
            ("large", "more than 1048576 bytes"),
            ("pickled", "safetensors only"),
            ("file", "no such folder"),
        ] {
            let refused = take(&root, path).await.unwrap_err().to_string();
            assert!(refused.contains(reason), "{path}: {refused}");
        }
        assert!(LoraRoot::open(&root.0.join("file")).is_err());
        assert!(LoraRoot::open(&root.0.join("never")).is_err());
    }

    #[test]
    fn a_folder_that_becomes_a_link_after_it_was_resolved_is_not_followed() {
        let (root, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let root_path = root.path().canonicalize().unwrap();
        fs::create_dir_all(root_path.join("a/b")).unwrap();
        let resolved = root_path.join("a/b");
        walk(&root_path, &resolved).unwrap();
        fs::create_dir(outside.path().join("b")).unwrap();
        fs::rename(root_path.join("a"), root_path.join("was")).unwrap();
        symlink(outside.path(), root_path.join("a")).unwrap();
        assert!(walk(&root_path, &resolved).is_err());
        assert!(walk(&root_path, outside.path()).is_err());
    }
}
