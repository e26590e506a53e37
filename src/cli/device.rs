//! What computes, as it was chosen with `--device`.

use std::sync::Arc;

use super::{error::CliError, plan};
use crate::{
    config,
    engine::{self, Engine},
    kernels::linear::Precision,
    model::{Kv, KvType, Llama},
};

/// What computes.
#[derive(Debug)]
pub(crate) enum Computer {
    /// This machine's processor.
    Processor,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<crate::kernels::cuda::Cuda>),
}

impl Computer {
    /// What was asked for, if it is there.
    pub(crate) fn choose(config: &config::Engine) -> Result<Self, CliError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = on_gpu::choose(config)? {
            return Ok(Self::Gpu(gpu));
        }
        match config.device_adapter_bytes {
            None => Ok(Self::Processor),
            Some(_) => Err(CliError::NoDeviceMemory),
        }
    }

    /// Bytes of a page of keys and values.
    pub(crate) fn page_bytes(&self, config: &config::Engine, llama: &Llama) -> u64 {
        let bytes = match self {
            Self::Processor => Kv::page_bytes(llama.spec(), kv_type(config, llama)),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => crate::model::gpu::page_bytes(llama),
        };
        bytes as u64
    }

    /// Bytes that an adapter may have at most, of so many that there are for all of them in memory.
    pub(crate) fn largest_adapter(&self, config: &config::Engine, cache: u64) -> u64 {
        let _ = config;
        match self {
            Self::Processor => cache,
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => cache.min(on_gpu::adapter_bytes(config)),
        }
    }

    /// For people: what it is, what it computes with, and what its memory is for.
    pub(crate) fn plan(&self, llama: &Llama, size: &Size) -> plan::Device {
        let precision = match llama.precision() {
            Precision::Int8 => "8-bit inputs",
            Precision::Int16 => "16-bit inputs",
            Precision::Exact => "32-bit floats",
        };
        let _ = size;
        match self {
            Self::Processor => plan::Device::Processor {
                threads: llama.threads(),
                tier: llama.tier().to_string(),
                precision,
            },
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => on_gpu::plan(gpu, llama, size),
        }
    }

    /// Starts the engine on it.
    pub(crate) fn start(self, llama: Arc<Llama>, size: &Size) -> Result<Engine, CliError> {
        match self {
            Self::Processor => {
                let kv = kv_type(&size.engine, &llama);
                Ok(Engine::start(llama, kv, size.settings)?)
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => on_gpu::start(gpu, llama, size),
        }
    }
}

/// How large the engine is to be.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) engine: config::Engine,
    pub(crate) settings: engine::Settings,
    /// The greatest rank.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "a processor needs no room for it")
    )]
    pub(crate) rank: usize,
}

/// The type of keys and values; where 32-bit floats are computed with, they are kept.
fn kv_type(config: &config::Engine, llama: &Llama) -> KvType {
    match (config.kv_dtype, llama.precision()) {
        (config::KvDtype::Int8, _) => KvType::Int8,
        (config::KvDtype::F32, _) | (config::KvDtype::Auto, Precision::Exact) => KvType::F32,
        _ => KvType::F16,
    }
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use super::{Arc, CliError, Engine, Llama, Size, config, plan};
    use crate::{
        config::Device,
        engine::SCORED_ROWS,
        http::MOST_PARTS,
        kernels::cuda::{Cuda, Gpu as _},
        model::gpu::{self, Network, Products},
    };

    /// Memory for adapters where nothing is said.
    const ADAPTER_BYTES: u64 = 1 << 30;

    /// The GPU that was asked for, or is there; `None` is the processor.
    pub(super) fn choose(config: &config::Engine) -> Result<Option<Arc<Cuda>>, CliError> {
        if config.device == Device::Cpu {
            return Ok(None);
        }
        let there = match Cuda::count() {
            Ok(there) => there,
            Err(error) if config.device == Device::Auto => {
                tracing::warn!(%error, "no GPU can be used: the processor computes");
                return Ok(None);
            }
            Err(error) => return Err(CliError::NoDriver(error)),
        };
        let ordinal = match config.device {
            Device::Cpu => return Ok(None),
            Device::Auto if there == 0 => return Ok(None),
            Device::Auto => 0,
            Device::Cuda(ordinal) if ordinal >= there => {
                return Err(CliError::NoGpu { ordinal, there });
            }
            Device::Cuda(ordinal) => ordinal,
        };
        if config.precision != config::Precision::default() {
            return Err(CliError::DevicePrecision);
        }
        if matches!(config.kv_dtype, config::KvDtype::F32 | config::KvDtype::Int8) {
            return Err(CliError::DeviceKv);
        }
        Ok(Some(Arc::new(Cuda::new(ordinal).map_err(CliError::Device)?)))
    }

    /// Memory for adapters.
    pub(super) fn adapter_bytes(engine: &config::Engine) -> u64 {
        engine.device_adapter_bytes.map_or(ADAPTER_BYTES, |config::ByteSize(bytes)| bytes)
    }

    fn size(size: &Size) -> gpu::Size {
        let Size { engine, settings, rank } = size;
        gpu::Size {
            pages: settings.pages,
            context: settings.context,
            rows: settings.step_tokens,
            sequences: settings.max_running,
            scored: SCORED_ROWS,
            parts: MOST_PARTS,
            rank: *rank,
            adapter_bytes: usize::try_from(adapter_bytes(engine)).unwrap_or(usize::MAX),
            products: if engine.deterministic { Products::Fixed } else { Products::Fastest },
        }
    }

    pub(super) fn plan(gpu: &Cuda, llama: &Llama, of: &Size) -> plan::Device {
        let (size, name) = (size(of), gpu.name());
        plan::Device::Gpu {
            name,
            precision: gpu::precision(llama),
            products: if of.engine.deterministic { ", in fixed order" } else { "" },
            memory: size.plan(llama),
            free: gpu.free_bytes().unwrap_or(0),
        }
    }

    pub(super) fn start(gpu: Arc<Cuda>, llama: Arc<Llama>, of: &Size) -> Result<Engine, CliError> {
        let network = Network::new(gpu, llama, size(of)).map_err(CliError::Device)?;
        Ok(Engine::over(network, of.settings)?)
    }
}
