//! An adapter on its way in: spooled and hashed as it arrives, never whole in memory.

use std::{
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::files::{Files, MAX_CONFIG_BYTES, Pages};
use crate::lora::{
    Digest,
    peft::{CONFIG_FILE, WEIGHTS_FILE},
};

/// One of the two files of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `adapter_config.json`
    Config,
    /// `adapter_model.safetensors`
    Weights,
}

impl Part {
    /// The part of this file's name.
    pub fn of_file(name: &str) -> Option<Self> {
        match name {
            CONFIG_FILE => Some(Self::Config),
            WEIGHTS_FILE => Some(Self::Weights),
            _ => None,
        }
    }

    /// The file's name.
    pub fn file(self) -> &'static str {
        match self {
            Self::Config => CONFIG_FILE,
            Self::Weights => WEIGHTS_FILE,
        }
    }
}

/// Why an upload cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Unreceived {
    /// A file came a second time.
    #[error("{} is there twice", .0.file())]
    Twice(Part),
    /// A file did not come.
    #[error("{} is missing: an adapter is adapter_config.json and adapter_model.safetensors, as PEFT's save_pretrained writes them", .0.file())]
    Missing(Part),
    /// A file has more bytes than are taken.
    #[error("{} has more than {max} bytes", part.file())]
    TooLarge {
        /// Which.
        part: Part,
        /// The limit.
        max: u64,
    },
    /// The disk on which uploads wait does not take them.
    #[error("the upload cannot be spooled: {0}")]
    Spool(#[from] io::Error),
}

/// Takes uploads.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    /// Where files wait until they are checked; they have no name there and vanish with the process.
    pub(super) folder: PathBuf,
    /// Most bytes of weights.
    pub(super) max_weights: u64,
}

/// What has arrived of an adapter.
#[derive(Debug)]
pub struct Upload {
    spool: Spool,
    config: Option<(Vec<u8>, Sha256)>,
    weights: Option<(tokio::fs::File, Sha256, u64)>,
}

/// Both files, complete.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) config: Vec<u8>,
    pub(super) config_sha256: [u8; 32],
    pub(super) weights: tokio::fs::File,
    pub(super) weights_sha256: [u8; 32],
    pub(super) weights_bytes: u64,
}

impl Spool {
    pub(super) fn upload(&self) -> Upload {
        Upload { spool: self.clone(), config: None, weights: None }
    }
}

impl Upload {
    /// Most bytes of both files together.
    pub fn most_bytes(&self) -> u64 {
        self.spool.max_weights.saturating_add(MAX_CONFIG_BYTES)
    }

    /// A file begins. What follows belongs to it.
    pub async fn begin(&mut self, part: Part) -> Result<(), Unreceived> {
        match part {
            Part::Config if self.config.is_none() => {
                self.config = Some((Vec::new(), Sha256::new()));
            }
            Part::Weights if self.weights.is_none() => {
                let file = nameless(&self.spool.folder).await?;
                self.weights = Some((file, Sha256::new(), 0));
            }
            again => return Err(Unreceived::Twice(again)),
        }
        Ok(())
    }

    /// More bytes of a file that has begun.
    pub async fn write(&mut self, part: Part, bytes: &[u8]) -> Result<(), Unreceived> {
        let more = bytes.len() as u64;
        match part {
            Part::Config => {
                let (config, hasher) = self.config.as_mut().ok_or(Unreceived::Missing(part))?;
                if config.len() as u64 + more > MAX_CONFIG_BYTES {
                    return Err(Unreceived::TooLarge { part, max: MAX_CONFIG_BYTES });
                }
                hasher.update(bytes);
                config.extend_from_slice(bytes);
            }
            Part::Weights => {
                let (file, hasher, len) = self.weights.as_mut().ok_or(Unreceived::Missing(part))?;
                *len += more;
                if *len > self.spool.max_weights {
                    return Err(Unreceived::TooLarge { part, max: self.spool.max_weights });
                }
                hasher.update(bytes);
                file.write_all(bytes).await?;
            }
        }
        Ok(())
    }

    /// All has arrived.
    pub(super) async fn complete(self) -> Result<Received, Unreceived> {
        let (config, config_hash) = self.config.ok_or(Unreceived::Missing(Part::Config))?;
        let (mut weights, weights_hash, weights_bytes) =
            self.weights.ok_or(Unreceived::Missing(Part::Weights))?;
        weights.flush().await?;
        Ok(Received {
            config,
            config_sha256: config_hash.finalize().into(),
            weights,
            weights_sha256: weights_hash.finalize().into(),
            weights_bytes,
        })
    }
}

impl Received {
    /// What the two files are together.
    pub(super) fn digest(&self) -> Digest {
        Digest::of_hashes(self.config_sha256, self.weights_sha256)
    }

    /// What reads both into memory, on a thread that may wait.
    pub(super) async fn reading(
        &mut self,
    ) -> io::Result<impl FnOnce() -> io::Result<Files> + Send + 'static> {
        self.weights.rewind().await?;
        let file = self.weights.try_clone().await?.into_std().await;
        let (config, len) = (self.config.clone(), self.weights_bytes);
        Ok(move || {
            let mut files = Files { config: Pages::of(&config)?, weights: Pages::default() };
            files.weights.fill(file, len)?;
            Ok(files)
        })
    }
}

/// A file that is gone when it is closed.
async fn nameless(folder: &Path) -> io::Result<tokio::fs::File> {
    let folder = folder.to_owned();
    let made = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder));
    Ok(tokio::fs::File::from_std(made.await.map_err(io::Error::other)??))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool() -> (tempfile::TempDir, Spool) {
        let folder = tempfile::TempDir::new().unwrap();
        let spool = Spool { folder: folder.path().to_owned(), max_weights: 10 };
        (folder, spool)
    }

    #[tokio::test]
    async fn what_arrives_in_pieces_is_hashed_as_a_whole() {
        let (folder, spool) = spool();
        let mut upload = spool.upload();
        for (part, pieces) in
            [(Part::Weights, [b"we".as_slice(), b"", b"ights"]), (Part::Config, [b"{", b"", b"}"])]
        {
            upload.begin(part).await.unwrap();
            for piece in pieces {
                upload.write(part, piece).await.unwrap();
            }
        }
        let mut received = upload.complete().await.unwrap();
        assert_eq!(received.digest(), Digest::of(b"{}", b"weights"));
        for _ in 0..2 {
            let files = received.reading().await.unwrap()().unwrap();
            assert_eq!((&*files.config, &*files.weights), (&b"{}"[..], &b"weights"[..]));
            assert_eq!(files.digest(), received.digest());
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the spool shows no name");
    }

    #[tokio::test]
    async fn too_much_twice_and_too_little_are_refused() {
        let (_folder, spool) = spool();
        let mut upload = spool.upload();
        upload.begin(Part::Weights).await.unwrap();
        upload.write(Part::Weights, &[0; 10]).await.unwrap();
        let large = upload.write(Part::Weights, &[0]).await.unwrap_err();
        assert!(matches!(large, Unreceived::TooLarge { part: Part::Weights, max: 10 }), "{large}");
        upload.begin(Part::Config).await.unwrap();
        let config = vec![b' '; 1 << 20];
        upload.write(Part::Config, &config).await.unwrap();
        let large = upload.write(Part::Config, b" ").await.unwrap_err();
        assert!(matches!(large, Unreceived::TooLarge { part: Part::Config, .. }), "{large}");
        let twice = upload.begin(Part::Config).await.unwrap_err();
        assert!(matches!(twice, Unreceived::Twice(Part::Config)), "{twice}");
        let mut upload = spool.upload();
        upload.begin(Part::Config).await.unwrap();
        let missing = upload.complete().await.unwrap_err();
        assert!(
            missing.to_string().starts_with("adapter_model.safetensors is missing"),
            "{missing}"
        );
    }
}
