//! What an adapter's files say, complete and checked, before it is brought into the form that runs.

use std::{collections::BTreeMap, fmt, ops::Range};

use half::{bf16, f16};

use super::{
    extras::Extras,
    site::{Norm, Site},
};

/// An adapter that was read completely. Its tensors are still the bytes of the file.
///
/// - Every tensor of the file is in exactly one field, and every value is finite.
/// - Every shape fits the [`Sites`](super::site::Sites) that it was read for.
/// - There is at least one delta.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest<'a> {
    /// The low-rank deltas.
    pub deltas: BTreeMap<Site, Delta<'a>>,
    /// Gains that replace the base's, `[hidden]` (`modules_to_save`).
    pub norms: BTreeMap<Norm, View<'a>>,
    /// Biases that replace the base's, `[outputs]` (`bias` of `all` or `lora_only`).
    pub biases: BTreeMap<Site, View<'a>>,
    /// Weights that replace the base's, `[vocab, hidden]`; only of the embedding and the head (`modules_to_save`).
    pub replaced: BTreeMap<Site, View<'a>>,
    /// Base weights that PEFT stored beside the adapter, `[vocab, hidden]`; only of the embedding and the head.
    ///
    /// PEFT loads them over the base (over both, where the two are tied). The adapter is right only where they equal the base's weight, which nobody
    /// here has seen: [`Adapter::compare_copies`](super::Adapter::compare_copies) refuses a difference.
    pub copies: Vec<(Site, View<'a>)>,
    /// The largest rank of any delta.
    pub rank: usize,
    /// The modules with a delta by the last part of their name, sorted, without repetition.
    pub targets: Vec<String>,
    /// What it brings besides weights.
    pub extras: Extras,
}

/// A low-rank change of one weight: `W + scale * B A`, of which the rows are rescaled where there is a magnitude.
///
/// Inputs and outputs are those of [`Sites::dims`](super::site::Sites::dims): the embedding's weight is the
/// transpose of what is stored, and its outputs are the hidden units.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta<'a> {
    /// `[rank, inputs]`
    pub a: View<'a>,
    /// `[outputs, rank]`
    pub b: View<'a>,
    /// At least 1.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f32,
    /// DoRA, `[outputs]`: output row `o` becomes `magnitude[o] * row / |row|`. A base's bias is not rescaled.
    pub magnitude: Option<View<'a>>,
    /// `lora_bias`, `[outputs]`: `scale * bias` is added to the output. Never together with a magnitude.
    pub bias: Option<View<'a>>,
}

/// The types of number that adapters are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Size of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A tensor in the bytes of a safetensors file: little-endian, row by row, at any alignment.
#[derive(Clone, PartialEq, Eq)]
pub struct View<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// `None` where the shape does not fill the bytes exactly.
    pub fn new(dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Option<Self> {
        let size = shape.iter().try_fold(dtype.bytes(), |size, axis| size.checked_mul(*axis))?;
        (size == bytes.len()).then(|| Self { dtype, shape: shape.to_vec(), bytes })
    }

    /// How the numbers are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Lengths of the axes, the slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The numbers as they are stored.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// Whether an axis has length 0.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All numbers in order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = f32> + 'a {
        let dtype = self.dtype;
        self.bytes.chunks_exact(dtype.bytes()).map(move |number| match (dtype, number) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("chunks_exact gives the length that was asked for"),
        })
    }

    /// Writes the numbers at `range` (counted in numbers) to `target`, which has that length.
    ///
    /// # Panics
    /// Where `range` leaves the tensor or differs in length from `target`.
    pub fn read(&self, range: Range<usize>, target: &mut [f32]) {
        let size = self.dtype.bytes();
        let bytes = &self.bytes[range.start * size..range.end * size];
        match self.dtype {
            Dtype::F32 => decode(bytes, target, f32::from_le_bytes),
            Dtype::F16 => decode(bytes, target, |number| f16::from_le_bytes(number).to_f32()),
            Dtype::Bf16 => decode(bytes, target, |number| bf16::from_le_bytes(number).to_f32()),
        }
    }

    /// The first number that is not finite or whose magnitude is above `limit`, with its index.
    pub(crate) fn first_beyond(&self, limit: f32) -> Option<(usize, f32)> {
        // Without its sign, the bits of a number order as its magnitude does, infinities and NaN last.
        let beyond = match self.dtype {
            Dtype::F32 => {
                any_above(self.bytes, |n| u32::from_le_bytes(n) << 1 >> 1, limit.to_bits())
            }
            Dtype::F16 => {
                any_above(self.bytes, |n| u16::from_le_bytes(n) << 1 >> 1, f16_at_most(limit))
            }
            Dtype::Bf16 => {
                let limit = u16::try_from(limit.to_bits() >> 16).expect("32 - 16 bits");
                any_above(self.bytes, |n| u16::from_le_bytes(n) << 1 >> 1, limit)
            }
        };
        if !beyond {
            return None;
        }
        self.values().enumerate().find(|(_, value)| !value.is_finite() || value.abs() > limit)
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{:?}", self.dtype, self.shape)
    }
}

/// The bits of the largest f16 that is not above `limit`, a positive number.
fn f16_at_most(limit: f32) -> u16 {
    let nearest = f16::from_f32(limit);
    if nearest.to_f32() > limit { nearest.to_bits() - 1 } else { nearest.to_bits() }
}

fn decode<const SIZE: usize>(bytes: &[u8], target: &mut [f32], number: impl Fn([u8; SIZE]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<SIZE>();
    assert_eq!(numbers.len(), target.len(), "as many numbers as there is room for");
    for (target, bytes) in target.iter_mut().zip(numbers) {
        *target = number(*bytes);
    }
}

/// Whether any number's magnitude is above `limit`; written so that it is vectorised.
fn any_above<const SIZE: usize, Bits: Ord + Copy + Default>(
    bytes: &[u8],
    magnitude: impl Fn([u8; SIZE]) -> Bits,
    limit: Bits,
) -> bool {
    const BLOCK: usize = 4096;
    let (numbers, _) = bytes.as_chunks::<SIZE>();
    numbers.chunks(BLOCK).any(|block| {
        let largest = block.iter().fold(Bits::default(), |largest, n| largest.max(magnitude(*n)));
        largest > limit
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of `values` in `dtype`, behind one byte that spoils their alignment.
    fn stored(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0xAA];
        for value in values {
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f32(*value).to_le_bytes()),
                Dtype::Bf16 => bytes.extend(bf16::from_f32(*value).to_le_bytes()),
            }
        }
        bytes
    }

    const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    #[test]
    fn unaligned_numbers_are_read_as_they_were_written() {
        let values = [0.0, -1.5, 2.0, 0.125, -65_280.0, 3.0];
        for dtype in DTYPES {
            let bytes = stored(dtype, &values);
            let view = View::new(dtype, &[2, 3], &bytes[1..]).unwrap();
            assert_eq!(view.len(), 6);
            assert_eq!(view.values().collect::<Vec<_>>(), values);
            let mut middle = vec![0.0; 3];
            view.read(2..5, &mut middle);
            assert_eq!(middle, values[2..5].to_vec());
        }
    }

    #[test]
    fn a_view_fills_its_bytes_exactly() {
        assert!(View::new(Dtype::F32, &[2, 2], &[0; 15]).is_none());
        assert!(View::new(Dtype::F32, &[2, 2], &[0; 17]).is_none());
        assert!(View::new(Dtype::F16, &[usize::MAX, 2], &[]).is_none());
        assert!(View::new(Dtype::F16, &[0, 7], &[]).unwrap().is_empty());
    }

    #[test]
    fn the_first_value_beyond_is_found_wherever_it_is() {
        for dtype in DTYPES {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for index in [0, 4095, 4096, 9999] {
                    let mut values = vec![1.0; 10_000];
                    values[index] = bad;
                    let bytes = stored(dtype, &values);
                    let view = View::new(dtype, &[10_000], &bytes[1..]).unwrap();
                    assert_eq!(view.first_beyond(65_504.0).map(|(at, _)| at), Some(index));
                }
            }
            let bytes = stored(dtype, &[1.0, -2.0, 0.5]);
            let view = View::new(dtype, &[3], &bytes[1..]).unwrap();
            assert_eq!(view.first_beyond(1.5), Some((1, -2.0)));
            assert_eq!(view.first_beyond(2.0), None);
            assert_eq!(view.first_beyond(1.999_999), Some((1, -2.0)), "{dtype:?} cannot hold it");
        }
    }

    proptest! {
        #[test]
        fn the_fast_check_agrees_with_the_plain_one(bits in prop::collection::vec(any::<u32>(), 0..40)) {
            let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            for dtype in DTYPES {
                let view = View::new(dtype, &[bytes.len() / dtype.bytes()], &bytes).unwrap();
                let plain = view
                    .values()
                    .enumerate()
                    .find(|(_, value)| !value.is_finite() || value.abs() > 65_504.0)
                    .map(|(index, _)| index);
                prop_assert_eq!(view.first_beyond(65_504.0).map(|(index, _)| index), plain);
            }
        }
    }
}
