//! Frozen weights, repacked once at load into panels of 32 output columns.
//!
//! A panel interleaves 32 rows of `W [outputs, inputs]` so that one vector holds the same input position of sixteen
//! outputs: no lane is ever summed with another, and the order in which one adds up is the same whatever the number of rows.
//! Quantized weights keep their bits: every GGUF block type is re-encoded exactly, code for code and scale for scale. They are
//! multiplied as integers or, where that is asked for, widened to `f32` in registers.
//!
//! Four consecutive inputs of one output are the bytes of a word, or the low or high halves of its bytes. Their order there is
//! 0, 2, 1, 3: a shift and a mask then give two neighbours as the halves of a lane, which is what integer products take.
//!
//! Block formats: the GGUF specification and ggml's `ggml-common.h`.

mod codes;
mod dot;
mod pack;
mod widen;

use super::memory::{Part, Slab};

/// Outputs of one panel.
pub const COLUMNS: usize = 32;
/// Inputs of one group of a quantized panel.
const GROUP: usize = super::quantize::GROUP;
/// Groups of one K-quant super-block.
const SUPER: usize = 8;

/// Inputs that are widened at a time: whole groups of every encoding, and few enough to stay in the first cache.
pub(super) const BLOCK: usize = GROUP * SUPER;

/// How the weights of a file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names every user knows")]
#[expect(missing_docs, reason = "the names say all there is")]
pub enum Encoding {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Encoding {
    /// `(inputs, bytes)` of one block of the file's encoding.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of a row of `inputs`, or `None` where they do not fill whole blocks.
    pub fn row_bytes(self, inputs: usize) -> Option<usize> {
        let (length, bytes) = self.block();
        inputs.is_multiple_of(length).then(|| (inputs / length).checked_mul(bytes)).flatten()
    }
}

/// The weights do not have the shape they are said to have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWeights {
    /// Rows are not whole blocks.
    #[error("{encoding:?} rows hold multiples of {block} values and these have {inputs}")]
    Ragged {
        /// The file's encoding.
        encoding: Encoding,
        /// Values of one block.
        block: usize,
        /// Values of one row.
        inputs: usize,
    },
    /// A value or a scale that is infinite or not a number.
    #[error("row {row} has values that are not finite; the file is damaged, or its training was")]
    NotFinite {
        /// Row of the file.
        row: usize,
    },
    /// The system has no memory for them.
    #[error("there is no memory for {bytes} bytes of weights")]
    Memory {
        /// What they take.
        bytes: usize,
    },
    /// More or fewer bytes than the shape takes.
    #[error("[{outputs}, {inputs}] as {encoding:?} takes {want} bytes and there are {got}")]
    Length {
        /// The file's encoding.
        encoding: Encoding,
        /// Rows.
        outputs: usize,
        /// Values of one row.
        inputs: usize,
        /// Bytes the shape takes.
        want: usize,
        /// Bytes at hand.
        got: usize,
    },
}

/// A weight matrix `[outputs, inputs]` in panels.
pub struct Panels {
    encoding: Encoding,
    inputs: usize,
    outputs: usize,
    /// Panel after panel, each of whole cache lines.
    bytes: Part,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panels[{}, {}; {:?}]", self.outputs, self.inputs, self.encoding)
    }
}

impl Panels {
    /// Repacks rows in the file's `encoding`, one after the other, into memory of its own; output `i` is row `order(i)` of
    /// the file.
    pub fn pack(
        encoding: Encoding,
        shape: (usize, usize),
        rows: &[u8],
        order: impl Fn(usize) -> usize,
    ) -> Result<Self, BadWeights> {
        Self::check(encoding, shape, rows)?;
        let bytes = Self::bytes_of(encoding, shape);
        let slab = Slab::new(bytes).map_err(|_| BadWeights::Memory { bytes })?;
        Self::pack_in(&slab, encoding, shape, rows, order)
    }

    /// The same, into a part of a slab.
    pub fn pack_in(
        slab: &Slab,
        encoding: Encoding,
        (outputs, inputs): (usize, usize),
        rows: &[u8],
        order: impl Fn(usize) -> usize,
    ) -> Result<Self, BadWeights> {
        let row_bytes = Self::check(encoding, (outputs, inputs), rows)?;
        let layout = Layout::of(encoding);
        let panel_bytes = Slab::bytes_of(layout.panel_bytes(inputs));
        let all = outputs.div_ceil(COLUMNS) * panel_bytes;
        let mut bytes = slab.take(all).map_err(|_| BadWeights::Memory { bytes: all })?;
        for (panel, bytes) in bytes.chunks_exact_mut(panel_bytes.max(1)).enumerate() {
            for column in 0..COLUMNS.min(outputs - panel * COLUMNS) {
                let row = order(panel * COLUMNS + column);
                let stored = &rows[row * row_bytes..(row + 1) * row_bytes];
                if !layout.write_column(bytes, column, stored) {
                    return Err(BadWeights::NotFinite { row });
                }
            }
        }
        Ok(Self { encoding, inputs, outputs, bytes })
    }

    /// Bytes of a row, where `rows` are of the shape.
    fn check(
        encoding: Encoding,
        (outputs, inputs): (usize, usize),
        rows: &[u8],
    ) -> Result<usize, BadWeights> {
        let row_bytes = encoding.row_bytes(inputs).ok_or(BadWeights::Ragged {
            encoding,
            block: encoding.block().0,
            inputs,
        })?;
        let (want, got) = (row_bytes.saturating_mul(outputs), rows.len());
        if got == want {
            Ok(row_bytes)
        } else {
            Err(BadWeights::Length { encoding, outputs, inputs, want, got })
        }
    }

    /// Bytes that weights `[outputs, inputs]` take once they are packed.
    pub fn bytes_of(encoding: Encoding, (outputs, inputs): (usize, usize)) -> usize {
        let panel = Layout::of(encoding).panel_bytes(inputs).next_multiple_of(64);
        outputs.div_ceil(COLUMNS) * panel
    }

    /// How the file stored them, which is also what they compute as.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Columns of `W`.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows of `W`.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Panel after panel, as they lie in memory: what a device is given.
    pub fn stored(&self) -> &[u8] {
        &self.bytes
    }

    /// Panels of 32 outputs, the last one filled up with zeros.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(COLUMNS)
    }

    /// Whether weights are codes, which multiply rounded inputs; otherwise they are numbers.
    pub fn are_codes(&self) -> bool {
        Layout::of(self.encoding).group() == GROUP
    }

    /// The bytes of one panel.
    fn panel(&self, panel: usize) -> &[u8] {
        let bytes = self.bytes.len() / self.count().max(1);
        &self.bytes[panel * bytes..(panel + 1) * bytes]
    }

    /// The bytes of a panel and of all after it.
    fn panels_from(&self, panel: usize) -> &[u8] {
        let bytes = self.bytes.len() / self.count().max(1);
        &self.bytes[panel * bytes..]
    }

    /// Widens row `output` of `W` into `row [inputs]`.
    ///
    /// # Panics
    /// Where `output` is not a row or `row` has another length.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert_eq!(row.len(), self.inputs, "one value for each input");
        assert!(output < self.outputs, "row {output} of {}", self.outputs);
        let layout = Layout::of(self.encoding);
        layout.read_column(self.panel(output / COLUMNS), output % COLUMNS, row);
    }
}

/// Where things are in a panel: per super-block of `groups` groups a head of `head` bytes, then per group `scales` and `codes` bytes.
#[derive(Clone, Copy)]
struct Layout {
    encoding: Encoding,
    groups: usize,
    head: usize,
    scales: usize,
    codes: usize,
}

/// Bytes of one plane of 4-bit codes, of one-bit codes, of 8-bit codes of a group.
const NIBBLE_PLANE: usize = GROUP * COLUMNS / 2;
const BIT_PLANE: usize = GROUP * COLUMNS / 8;
const BYTE_PLANE: usize = GROUP * COLUMNS;
/// One half-precision number, one byte, for each column.
const HALVES: usize = COLUMNS * 2;
const OCTETS: usize = COLUMNS;

impl Layout {
    fn of(encoding: Encoding) -> Self {
        let (groups, head, scales, codes) = match encoding {
            Encoding::F32 => (1, 0, 0, COLUMNS * 4),
            Encoding::F16 | Encoding::BF16 => (1, 0, 0, COLUMNS * 2),
            Encoding::Q4_0 => (1, 0, HALVES, NIBBLE_PLANE),
            Encoding::Q4_1 => (1, 0, 2 * HALVES, NIBBLE_PLANE),
            Encoding::Q5_0 => (1, 0, HALVES, NIBBLE_PLANE + BIT_PLANE),
            Encoding::Q5_1 => (1, 0, 2 * HALVES, NIBBLE_PLANE + BIT_PLANE),
            Encoding::Q8_0 => (1, 0, HALVES, BYTE_PLANE),
            Encoding::Q4_K => (SUPER, 2 * HALVES, 2 * OCTETS, NIBBLE_PLANE),
            Encoding::Q5_K => (SUPER, 2 * HALVES, 2 * OCTETS, NIBBLE_PLANE + BIT_PLANE),
            Encoding::Q6_K => (SUPER, HALVES, 2 * OCTETS, NIBBLE_PLANE + 2 * BIT_PLANE),
        };
        Self { encoding, groups, head, scales, codes }
    }

    /// Inputs of one group; a dense weight is a group of its own.
    fn group(self) -> usize {
        match self.encoding {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => 1,
            _ => GROUP,
        }
    }

    fn super_bytes(self) -> usize {
        self.head + self.groups * (self.scales + self.codes)
    }

    fn panel_bytes(self, inputs: usize) -> usize {
        inputs / (self.group() * self.groups) * self.super_bytes()
    }
}
