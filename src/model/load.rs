//! From a file to a network: what GGUF and Hugging Face directories have in common.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Layer, Llama, Spec, gguf, hugging_face, llama::Compute};
use crate::{
    kernels::{
        linear::{Precision, Projection},
        memory::Slab,
        panels::{BadWeights, Encoding, Panels},
        pool::Pool,
        simd::Tier,
    },
    lora::{Module, Norm, Proj, Site},
};

/// Why a base cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system starts fewer.
    #[error("the system does not start {threads} threads ({source}): choose fewer with --threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why.
        source: std::io::Error,
    },
    /// The system has no memory for it.
    #[error("no memory for {}: {source}", path.display())]
    Memory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what its name says.
    #[error("{} is not a {kind} that can be read: {why}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A network of another family.
    #[error("{} holds a `{architecture}` network; this server runs {supported}", path.display())]
    Architecture {
        /// Which.
        path: PathBuf,
        /// What the file says it is.
        architecture: String,
        /// What would have been fine.
        supported: &'static str,
    },
    /// Metadata that is missing or out of range.
    #[error("{}: {why}", path.display())]
    Spec {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A tensor that is missing, of another shape, or cut off.
    #[error("{}: tensor `{tensor}`: {why}", path.display())]
    Tensor {
        /// Which file.
        path: PathBuf,
        /// Which tensor, by its name in the file.
        tensor: String,
        /// What is wrong.
        why: String,
    },
}

/// A weight matrix or vector as it lies in a file.
pub(super) struct Stored<'a> {
    pub(super) encoding: Encoding,
    /// `[outputs, inputs]`, or `[values]`.
    pub(super) shape: Vec<usize>,
    pub(super) bytes: &'a [u8],
}

/// A file that weights can be taken from by what they are.
pub(super) trait Source: Sync {
    /// The tensor's name in the file, for messages.
    fn name(&self, tensor: Tensor) -> String;
    /// The tensor, if the file has it.
    fn tensor(&self, tensor: Tensor) -> Result<Option<Stored<'_>>, LoadError>;
    /// Where output `row` of a site is in the file.
    fn row(&self, site: Site, row: usize) -> usize;
    /// Whether a head that the file does not have is the embedding.
    fn may_tie(&self) -> bool;
    /// All its tensors.
    fn names(&self) -> Vec<&str>;
    /// Whether a tensor of this name changes nothing where the network does not take it.
    fn is_spare(&self, name: &str) -> bool;
    /// The file, for messages.
    fn path(&self) -> &Path;
}

/// The tensors of a base.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tensor {
    Weight(Site),
    Bias(Site),
    Gain(Norm),
}

impl Llama {
    /// Loads a `.gguf` file or a directory in Hugging Face layout, and repacks its weights on `threads` threads.
    pub fn load(
        path: &Path,
        tier: Tier,
        threads: usize,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let pool = Pool::new(threads).map_err(|source| LoadError::Threads { threads, source })?;
        let compute = Compute { tier, pool, precision };
        if path.is_dir() {
            let (spec, source) = hugging_face::open(path)?;
            Self::assemble(spec, &source, compute)
        } else {
            gguf::with(path, |spec, source| Self::assemble(spec, source, compute))
        }
    }

    fn assemble(spec: Spec, source: &dyn Source, compute: Compute) -> Result<Self, LoadError> {
        spec.check().map_err(|why| LoadError::Spec { path: source.path().to_owned(), why })?;
        let slab = Slab::growing()
            .map_err(|why| LoadError::Memory { path: source.path().to_owned(), source: why })?;
        let layers = {
            let slots: Vec<_> = (0..spec.layers).map(|_| std::sync::Mutex::new(None)).collect();
            compute.pool.run(spec.layers, |layer| {
                let loaded = Reader { spec: &spec, source, slab: &slab }.layer(layer);
                *slots[layer].lock().expect("each is locked once") = Some(loaded);
            });
            let taken = |slot: std::sync::Mutex<Option<Result<Layer, LoadError>>>| {
                let loaded = slot.into_inner().expect("no task panicked with the lock");
                loaded.expect("every task ran")
            };
            slots.into_iter().map(taken).collect::<Result<Vec<_>, _>>()?
        };
        let reader = Reader { spec: &spec, source, slab: &slab };
        reader.leave_nothing_over()?;
        let embedding = reader.projection(Site::Embed)?;
        let tied = source.may_tie() && source.tensor(Tensor::Weight(Site::Head))?.is_none();
        let head = if tied { None } else { Some(reader.projection(Site::Head)?) };
        let norm = reader.gain(Norm::Final)?;
        let (frequencies, attention) =
            (spec.rope.frequencies(spec.heads.dim), spec.rope.attention());
        let weights = super::Weights { embedding, head, norm, layers, frequencies, attention };
        Ok(Self::new(spec, compute, weights))
    }
}

struct Reader<'a> {
    spec: &'a Spec,
    source: &'a dyn Source,
    /// Where its weights go.
    slab: &'a Slab,
}

impl Reader<'_> {
    /// A tensor that nothing takes is a part of another network than the metadata describe.
    fn leave_nothing_over(&self) -> Result<(), LoadError> {
        let sites = self.spec.sites();
        let mut known = HashSet::new();
        for module in sites.modules() {
            match module {
                Module::Norm(norm) => drop(known.insert(self.source.name(Tensor::Gain(norm)))),
                Module::Site(site) => {
                    known.insert(self.source.name(Tensor::Weight(site)));
                    if sites.has_bias(site) {
                        known.insert(self.source.name(Tensor::Bias(site)));
                    }
                }
            }
        }
        let names = self.source.names();
        match names.into_iter().find(|name| !known.contains(*name) && !self.source.is_spare(name)) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::Tensor {
                path: self.source.path().to_owned(),
                tensor: tensor.to_owned(),
                why: "nothing in the network that the metadata describe takes it".to_owned(),
            }),
        }
    }

    fn layer(&self, layer: usize) -> Result<Layer, LoadError> {
        let projections = |projs: &[Proj]| -> Result<Vec<_>, _> {
            projs.iter().map(|proj| self.projection(Site::Layer(layer, *proj))).collect()
        };
        Ok(Layer {
            attention_norm: self.gain(Norm::Attention(layer))?,
            qkv: projections(&[Proj::Q, Proj::K, Proj::V])?,
            o: projections(&[Proj::O])?,
            feed_forward_norm: self.gain(Norm::FeedForward(layer))?,
            gate_up: projections(&[Proj::Gate, Proj::Up])?,
            down: projections(&[Proj::Down])?,
        })
    }

    fn refuse(&self, tensor: Tensor, why: String) -> LoadError {
        let path = self.source.path().to_owned();
        LoadError::Tensor { path, tensor: self.source.name(tensor), why }
    }

    fn stored(&self, tensor: Tensor, shape: &[usize]) -> Result<Stored<'_>, LoadError> {
        let Some(stored) = self.source.tensor(tensor)? else {
            return Err(self.refuse(tensor, "the file does not have it".to_owned()));
        };
        if stored.shape != shape {
            let why = format!("its shape is {:?} and the rest needs {shape:?}", stored.shape);
            return Err(self.refuse(tensor, why));
        }
        Ok(stored)
    }

    /// A site's weights, `[outputs, inputs]`; the embedding as the head has it, `[vocab, hidden]`.
    fn projection(&self, site: Site) -> Result<Projection, LoadError> {
        let tensor = Tensor::Weight(site);
        let sites = self.spec.sites();
        let (inputs, outputs) = match site {
            Site::Embed => (self.spec.hidden, self.spec.vocab),
            Site::Head | Site::Layer(..) => sites.dims(site),
        };
        let stored = self.stored(tensor, &[outputs, inputs])?;
        let order = |row| self.source.row(site, row);
        let shape = (outputs, inputs);
        let weights = Panels::pack_in(self.slab, stored.encoding, shape, stored.bytes, order)
            .map_err(|why: BadWeights| self.refuse(tensor, why.to_string()))?;
        let bias = sites.has_bias(site).then(|| self.bias(site, outputs)).transpose()?;
        Ok(Projection { weights: Arc::new(weights), bias })
    }

    fn bias(&self, site: Site, outputs: usize) -> Result<Vec<f32>, LoadError> {
        let values = self.vector(Tensor::Bias(site), outputs)?;
        Ok((0..outputs).map(|row| values[self.source.row(site, row)]).collect())
    }

    fn gain(&self, norm: Norm) -> Result<Vec<f32>, LoadError> {
        self.vector(Tensor::Gain(norm), self.spec.hidden)
    }

    fn vector(&self, tensor: Tensor, len: usize) -> Result<Vec<f32>, LoadError> {
        let stored = self.stored(tensor, &[len])?;
        let panels = Panels::pack(stored.encoding, (1, len), stored.bytes, |row| row)
            .map_err(|why| self.refuse(tensor, why.to_string()))?;
        let mut values = vec![0.0; len];
        panels.row(0, &mut values);
        Ok(values)
    }
}
