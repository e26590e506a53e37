//! Knobs that are one of a few words.

use std::{fmt, str::FromStr};

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The fastest there is: a GPU where this build can use one and the machine has one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number.
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            "cuda" => Ok(Self::Cuda(0)),
            cuda if cuda == "cuda" || cuda.starts_with("cuda:") => Self::cuda(cuda),
            _ => Err(format!("choose {DEVICES}")),
        }
    }
}

/// The devices of this build.
const DEVICES: &str =
    if cfg!(feature = "cuda") { "auto, cpu, cuda or cuda:N" } else { "auto or cpu" };

impl Device {
    #[cfg(feature = "cuda")]
    fn cuda(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        number.map(Self::Cuda).ok_or_else(|| format!("choose {DEVICES}, with N from 0 on"))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: &str) -> Result<Self, String> {
        Err(format!("this build has no CUDA: choose {DEVICES}"))
    }
}

/// How products with a quantized base are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// In integers, with inputs rounded to 8 bits.
    Int8,
    /// In integers, with inputs rounded to 16 bits.
    #[default]
    Int16,
    /// In 32-bit floats, as the dequantized base would.
    Exact,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "int8" => Ok(Self::Int8),
            "int16" => Ok(Self::Int16),
            "exact" => Ok(Self::Exact),
            _ => Err("choose int8, int16 or exact".to_owned()),
        }
    }
}

/// The instructions that kernels are computed with. All give the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// The widest that the processor has.
    #[default]
    Auto,
    /// AVX-512 with VNNI.
    Avx512,
    /// AVX2.
    Avx2,
    /// Plain code.
    Portable,
}

impl FromStr for Kernels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "avx512" => Ok(Self::Avx512),
            "avx2" => Ok(Self::Avx2),
            "portable" => Ok(Self::Portable),
            _ => Err("choose auto, avx512, avx2 or portable".to_owned()),
        }
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

/// As what the metrics list the adapters that are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInfo {
    /// By their names where there are no keys, and not at all where there are.
    #[default]
    Auto,
    /// By their names.
    Names,
    /// By the beginning of their digests.
    Digests,
    /// Not at all.
    Off,
}

impl FromStr for LoraInfo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "names" => Ok(Self::Names),
            "digests" => Ok(Self::Digests),
            "off" => Ok(Self::Off),
            _ => Err("choose auto, names, digests or off".to_owned()),
        }
    }
}

/// The type in which keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// 32-bit floats where the base is computed exactly, half precision otherwise.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// Half precision.
    F16,
    /// 8-bit codes.
    Int8,
}

impl FromStr for KvDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            _ => Err("choose auto, f16, f32 or int8".to_owned()),
        }
    }
}

/// The type in which the low-rank matrices of adapters are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterDtype {
    /// What they were trained in.
    #[default]
    Native,
    /// 8-bit codes.
    Int8,
}

impl FromStr for AdapterDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "native" => Ok(Self::Native),
            "int8" => Ok(Self::Int8),
            _ => Err("choose native or int8".to_owned()),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err("choose pretty or json".to_owned()),
        }
    }
}
