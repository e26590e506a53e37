//! Frozen weights, repacked once at load into panels of 32 output columns.
//!
//! A panel interleaves 32 rows of `W [outputs, inputs]` so that one vector holds the same input position of sixteen
//! outputs: a product then adds up in input order in every lane, whatever the number of rows it is computed for, and no
//! lane is ever summed with another. Quantized weights keep their bits: every GGUF block type is re-encoded exactly, code
//! for code and scale for scale, and widened to `f32` in registers.
//!
//! Four consecutive inputs of one output are adjacent (as bytes, or as nibbles of a byte's low or high half), which is the order
//! that 8-bit dot product instructions want too.
//!
//! Block formats: the GGUF specification and ggml's `ggml-common.h`.

use std::ops::Range;

use half::{bf16, f16};

use super::simd::{LANES, Simd};

/// Outputs of one panel.
pub const COLUMNS: usize = 32;
/// Inputs of one group of a quantized panel.
const GROUP: usize = 32;
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

/// One cache line; a vector of them is what makes panels start on one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A weight matrix `[outputs, inputs]` in panels.
pub struct Panels {
    encoding: Encoding,
    inputs: usize,
    outputs: usize,
    lines: Vec<Line>,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panels[{}, {}; {:?}]", self.outputs, self.inputs, self.encoding)
    }
}

impl Panels {
    /// Repacks rows in the file's `encoding`, one after the other; output `i` is row `order(i)` of the file.
    pub fn pack(
        encoding: Encoding,
        (outputs, inputs): (usize, usize),
        rows: &[u8],
        order: impl Fn(usize) -> usize,
    ) -> Result<Self, BadWeights> {
        let row_bytes = encoding.row_bytes(inputs).ok_or(BadWeights::Ragged {
            encoding,
            block: encoding.block().0,
            inputs,
        })?;
        let want = row_bytes.saturating_mul(outputs);
        if rows.len() != want {
            let got = rows.len();
            return Err(BadWeights::Length { encoding, outputs, inputs, want, got });
        }
        let layout = Layout::of(encoding);
        let panel_lines = layout.panel_bytes(inputs).div_ceil(64);
        let mut lines = vec![Line([0; 64]); outputs.div_ceil(COLUMNS) * panel_lines];
        for (panel, lines) in lines.chunks_exact_mut(panel_lines.max(1)).enumerate() {
            let panel_bytes = lines.as_flattened_bytes_mut();
            for column in 0..COLUMNS.min(outputs - panel * COLUMNS) {
                let row = order(panel * COLUMNS + column);
                let stored = &rows[row * row_bytes..(row + 1) * row_bytes];
                if !layout.write_column(panel_bytes, column, stored) {
                    return Err(BadWeights::NotFinite { row });
                }
            }
        }
        Ok(Self { encoding, inputs, outputs, lines })
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
        self.lines.len() * 64
    }

    /// Panels of 32 outputs, the last one filled up with zeros.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(COLUMNS)
    }

    /// The bytes of one panel.
    fn panel(&self, panel: usize) -> &[u8] {
        let lines = self.lines.len() / self.count().max(1);
        self.lines[panel * lines..(panel + 1) * lines].as_flattened_bytes()
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

    /// `acc[r] += x[r] · W^T` for the 32 outputs of `panel` and `R` rows of inputs, in input order.
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    pub(super) fn accumulate<S: Simd, const R: usize>(
        &self,
        simd: S,
        panel: usize,
        x: [&[f32]; R],
    ) -> [[S::F; 2]; R] {
        let bytes = self.panel(panel);
        let acc = [[simd.splat(0.0); 2]; R];
        match self.encoding {
            Encoding::F32 => dense::<S, F32, R>(simd, bytes, x, acc),
            Encoding::F16 => dense::<S, F16, R>(simd, bytes, x, acc),
            Encoding::BF16 => dense::<S, Bf16, R>(simd, bytes, x, acc),
            Encoding::Q4_0 => quantized::<S, Symmetric, Nibbles<0>, R>(simd, bytes, x, acc),
            Encoding::Q4_1 => quantized::<S, Affine, Nibbles<0>, R>(simd, bytes, x, acc),
            Encoding::Q5_0 => quantized::<S, Symmetric, Nibbles<1>, R>(simd, bytes, x, acc),
            Encoding::Q5_1 => quantized::<S, Affine, Nibbles<1>, R>(simd, bytes, x, acc),
            Encoding::Q8_0 => quantized::<S, Symmetric, Bytes, R>(simd, bytes, x, acc),
            Encoding::Q4_K => quantized::<S, Super, Nibbles<0>, R>(simd, bytes, x, acc),
            Encoding::Q5_K => quantized::<S, Super, Nibbles<1>, R>(simd, bytes, x, acc),
            Encoding::Q6_K => quantized::<S, Super16, Nibbles<2>, R>(simd, bytes, x, acc),
        }
    }

    /// Widens inputs `inputs` (from a multiple of [`BLOCK`] on) of `panel` into one row of 32 columns each.
    ///
    /// The same numbers that [`Self::accumulate`] multiplies by, for many rows to share.
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    pub(super) fn widen<S: Simd>(
        &self,
        simd: S,
        panel: usize,
        inputs: Range<usize>,
        out: &mut [[f32; COLUMNS]],
    ) {
        let layout = Layout::of(self.encoding);
        let unit = layout.group() * layout.groups;
        let bytes = &self.panel(panel)[inputs.start / unit * layout.super_bytes()..];
        let out = &mut out[..inputs.len()];
        match self.encoding {
            Encoding::F32 => widen_dense::<S, F32>(simd, bytes, out),
            Encoding::F16 => widen_dense::<S, F16>(simd, bytes, out),
            Encoding::BF16 => widen_dense::<S, Bf16>(simd, bytes, out),
            Encoding::Q4_0 => widen_codes::<S, Symmetric, Nibbles<0>>(simd, bytes, out),
            Encoding::Q4_1 => widen_codes::<S, Affine, Nibbles<0>>(simd, bytes, out),
            Encoding::Q5_0 => widen_codes::<S, Symmetric, Nibbles<1>>(simd, bytes, out),
            Encoding::Q5_1 => widen_codes::<S, Affine, Nibbles<1>>(simd, bytes, out),
            Encoding::Q8_0 => widen_codes::<S, Symmetric, Bytes>(simd, bytes, out),
            Encoding::Q4_K => widen_codes::<S, Super, Nibbles<0>>(simd, bytes, out),
            Encoding::Q5_K => widen_codes::<S, Super, Nibbles<1>>(simd, bytes, out),
            Encoding::Q6_K => widen_codes::<S, Super16, Nibbles<2>>(simd, bytes, out),
        }
    }
}

/// Cache lines seen as bytes.
trait FlattenedBytes {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl FlattenedBytes for [Line] {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: `Line` is 64 initialised bytes without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(self)) }
    }

    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `Line` is 64 initialised bytes without padding, and any byte is valid in it.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), size_of_val(self)) }
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

    /// Re-encodes one row of the file into one column of a panel; false where it holds what is not finite.
    fn write_column(self, panel: &mut [u8], column: usize, row: &[u8]) -> bool {
        let blocks = row.chunks_exact(self.encoding.block().1);
        for (block, supers) in blocks.zip(panel.chunks_exact_mut(self.super_bytes())) {
            let (head, groups) = supers.split_at_mut(self.head);
            let stored = Stored::read(self.encoding, block);
            if !stored.is_finite() {
                return false;
            }
            put(head, 0, column, &stored.head);
            let groups = groups.chunks_exact_mut(self.scales + self.codes);
            for (index, group) in groups.enumerate() {
                let (scales, codes) = group.split_at_mut(self.scales);
                stored.write_group(index, column, scales, codes);
            }
        }
        true
    }

    /// Widens one column of a panel: the plain reading of the format, and the reference for the kernels.
    fn read_column(self, panel: &[u8], column: usize, row: &mut [f32]) {
        let values = row.chunks_exact_mut(self.group() * self.groups);
        for (values, supers) in values.zip(panel.chunks_exact(self.super_bytes())) {
            let (head, groups) = supers.split_at(self.head);
            let groups = groups.chunks_exact(self.scales + self.codes);
            for (values, group) in values.chunks_exact_mut(self.group()).zip(groups) {
                let (scales, codes) = group.split_at(self.scales);
                self.read_group(column, (head, scales, codes), values);
            }
        }
    }

    fn read_group(
        self,
        column: usize,
        (head, scales, codes): (&[u8], &[u8], &[u8]),
        values: &mut [f32],
    ) {
        for (k, value) in values.iter_mut().enumerate() {
            *value = match self.encoding {
                Encoding::F32 => f32::from_le_bytes(codes.as_chunks::<4>().0[column]),
                Encoding::F16 => half_at(codes, column),
                Encoding::BF16 => bf16::from_bits(u16_at(codes, column)).to_f32(),
                Encoding::Q8_0 => {
                    let code = codes[k / 4 * 128 + column * 4 + k % 4];
                    half_at(scales, column) * (f32::from(code) - 128.0)
                }
                Encoding::Q4_0 | Encoding::Q5_0 => {
                    let planes = u32::from(self.encoding == Encoding::Q5_0);
                    let zero = f32::from(8_u8 << planes);
                    half_at(scales, column) * (f32::from(code_at(codes, planes, column, k)) - zero)
                }
                Encoding::Q4_1 | Encoding::Q5_1 => {
                    let planes = u32::from(self.encoding == Encoding::Q5_1);
                    let code = f32::from(code_at(codes, planes, column, k));
                    half_at(scales, column).mul_add(code, half_at(&scales[HALVES..], column))
                }
                Encoding::Q4_K | Encoding::Q5_K => {
                    let planes = u32::from(self.encoding == Encoding::Q5_K);
                    let code = f32::from(code_at(codes, planes, column, k));
                    let scale = half_at(head, column) * f32::from(scales[column]);
                    let min = half_at(&head[HALVES..], column) * f32::from(scales[OCTETS + column]);
                    scale.mul_add(code, -min)
                }
                Encoding::Q6_K => {
                    let scale = scales[k / 16 * OCTETS + column].cast_signed();
                    let scale = half_at(head, column) * f32::from(scale);
                    scale * (f32::from(code_at(codes, 2, column, k)) - 32.0)
                }
            };
        }
    }
}

fn u16_at(halves: &[u8], column: usize) -> u16 {
    u16::from_le_bytes([halves[column * 2], halves[column * 2 + 1]])
}

fn half_at(halves: &[u8], column: usize) -> f32 {
    f16::from_bits(u16_at(halves, column)).to_f32()
}

/// Where input `k` of a group is among a column's nibbles: `(word, bit)`.
///
/// A word holds eight inputs, the first four in the low halves of its bytes and the next four in the high ones.
const fn nibble(k: usize) -> (usize, usize) {
    (k / 8, k % 4 * 8 + k / 4 % 2 * 4)
}

/// The code of `4 + planes` bits of input `k`.
fn code_at(codes: &[u8], planes: u32, column: usize, k: usize) -> u8 {
    let (word, bit) = nibble(k);
    let low = codes[(word * COLUMNS + column) * 4 + bit / 8] >> (bit % 8) & 15;
    (0..planes as usize).fold(low, |code, plane| {
        let word = NIBBLE_PLANE + plane * BIT_PLANE + column * 4;
        code | (codes[word + k / 8] >> (k % 8) & 1) << (4 + plane)
    })
}

/// Puts a column's bytes of each `field` (`bytes.len() / width` columns wide) in place.
fn put(fields: &mut [u8], at: usize, column: usize, bytes: &[[u8; 2]]) {
    for (index, half) in bytes.iter().enumerate() {
        let start = at + index * HALVES + column * 2;
        fields[start..start + 2].copy_from_slice(half);
    }
}

/// One block of one row, taken apart.
struct Stored {
    encoding: Encoding,
    /// Halves of the super-block.
    head: Vec<[u8; 2]>,
    /// Halves (or, for K-quants, bytes) of each group.
    halves: Vec<[u8; 2]>,
    octets: Vec<[u8; 2]>,
    /// Codes, or a dense value's bytes.
    codes: Vec<u8>,
}

impl Stored {
    fn read(encoding: Encoding, block: &[u8]) -> Self {
        let half = |at: usize| [block[at], block[at + 1]];
        let (head, halves, octets, codes) = match encoding {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {
                (vec![], vec![], vec![], block.to_vec())
            }
            Encoding::Q4_0 => (vec![], vec![half(0)], vec![], nibbles(&block[2..], None)),
            Encoding::Q4_1 => (vec![], vec![half(0), half(2)], vec![], nibbles(&block[4..], None)),
            Encoding::Q5_0 => {
                (vec![], vec![half(0)], vec![], nibbles(&block[6..], Some(&block[2..6])))
            }
            Encoding::Q5_1 => {
                (vec![], vec![half(0), half(2)], vec![], nibbles(&block[8..], Some(&block[4..8])))
            }
            Encoding::Q8_0 => {
                // Biased by 128, as unsigned operand of a dot product.
                let codes = block[2..].iter().map(|code| code ^ 0x80).collect();
                (vec![], vec![half(0)], vec![], codes)
            }
            Encoding::Q4_K => {
                let codes = k_nibbles(&block[16..], |_, _| 0);
                (vec![half(0), half(2)], vec![], k_scales(&block[4..16]), codes)
            }
            Encoding::Q5_K => {
                let codes = k_nibbles(&block[48..], |group, i| block[16 + i] >> group & 1);
                (vec![half(0), half(2)], vec![], k_scales(&block[4..16]), codes)
            }
            Encoding::Q6_K => {
                let scales = block[192..208].as_chunks::<2>().0.to_vec();
                (vec![half(208)], vec![], scales, six_bits(&block[..128], &block[128..192]))
            }
        };
        Self { encoding, head, halves, octets, codes }
    }

    /// Codes always are; scales and dense values are numbers of their own.
    fn is_finite(&self) -> bool {
        let f16 = |half: &[u8; 2]| u16::from_le_bytes(*half) & 0x7c00 != 0x7c00;
        let dense = match (self.encoding, self.codes.as_slice()) {
            (Encoding::F32 | Encoding::BF16, [.., low, high]) => {
                // Both have their exponent at the top.
                u16::from_le_bytes([*low, *high]) & 0x7f80 != 0x7f80
            }
            (Encoding::F16, [low, high]) => f16(&[*low, *high]),
            _ => true,
        };
        dense && self.head.iter().chain(&self.halves).all(f16)
    }

    fn write_group(&self, index: usize, column: usize, scales: &mut [u8], planes: &mut [u8]) {
        put(scales, 0, column, &self.halves);
        if let Some(octets) = self.octets.get(index) {
            scales[column] = octets[0];
            scales[OCTETS + column] = octets[1];
        }
        let width = match self.encoding {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {
                let width = self.codes.len();
                planes[column * width..(column + 1) * width].copy_from_slice(&self.codes);
                return;
            }
            Encoding::Q8_0 => {
                for (k, code) in self.codes.iter().enumerate() {
                    planes[k / 4 * 128 + column * 4 + k % 4] = *code;
                }
                return;
            }
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q4_K => 0,
            Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q5_K => 1,
            Encoding::Q6_K => 2,
        };
        for (k, code) in self.codes[index * GROUP..(index + 1) * GROUP].iter().enumerate() {
            let (word, bit) = nibble(k);
            planes[(word * COLUMNS + column) * 4 + bit / 8] |= (code & 15) << (bit % 8);
            for plane in 0..width {
                let word = NIBBLE_PLANE + plane * BIT_PLANE + column * 4;
                planes[word + k / 8] |= (code >> (4 + plane) & 1) << (k % 8);
            }
        }
    }
}

/// 32 codes of the plain 4- and 5-bit types: byte j has input j low and input j + 16 high; fifth bits are one word.
fn nibbles(bytes: &[u8], fifth: Option<&[u8]>) -> Vec<u8> {
    let high = |k: usize| fifth.map_or(0, |bits| (bits[k / 8] >> (k % 8) & 1) << 4);
    let low = bytes[..16].iter().map(|byte| byte & 15);
    let codes = low.chain(bytes[..16].iter().map(|byte| byte >> 4));
    codes.enumerate().map(|(k, code)| code | high(k)).collect()
}

/// 256 codes of `Q4_K` and `Q5_K`: 32 bytes hold one group low and the next one high.
fn k_nibbles(bytes: &[u8], fifth: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let code = |k: usize| {
        let (group, i) = (k / 32, k % 32);
        let byte = bytes[group / 2 * 32 + i];
        (if group % 2 == 0 { byte & 15 } else { byte >> 4 }) | fifth(group, i) << 4
    };
    (0..256).map(code).collect()
}

/// The eight 6-bit `(scale, min)` pairs of `Q4_K` and `Q5_K` (ggml's `get_scale_min_k4`).
fn k_scales(s: &[u8]) -> Vec<[u8; 2]> {
    let pair = |j: usize| {
        if j < 4 {
            [s[j] & 63, s[j + 4] & 63]
        } else {
            [s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4]
        }
    };
    (0..8).map(pair).collect()
}

/// 256 codes of `Q6_K`, biased by 32.
fn six_bits(low: &[u8], high: &[u8]) -> Vec<u8> {
    let code = |k: usize| {
        let (half, quarter, i) = (k / 128, k / 32 % 4, k % 32);
        let byte = low[half * 64 + quarter % 2 * 32 + i];
        let four = if quarter < 2 { byte & 15 } else { byte >> 4 };
        four | (high[half * 32 + i] >> (2 * quarter) & 3) << 4
    };
    (0..256).map(code).collect()
}

/// A dense element type.
trait Dense {
    const WIDTH: usize;
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F;
}

struct F32;
struct F16;
struct Bf16;

/// Sixteen little-endian 16-bit words.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn words16(bytes: &[u8]) -> &[u16; LANES] {
    let bytes: &[u8; 2 * LANES] = bytes.try_into().expect("callers cut vectors");
    // SAFETY: 32 readable bytes; panels are line-aligned and their halves at even offsets; x86-64 and aarch64 are little-endian.
    unsafe { &*bytes.as_ptr().cast() }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Dense for F32 {
    const WIDTH: usize = 4;
    #[inline(always)]
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F {
        let bytes: &[u8; 4 * LANES] = bytes.try_into().expect("callers cut vectors");
        // SAFETY: 64 readable bytes at a multiple of four; any bits are an `f32`.
        simd.load(unsafe { &*bytes.as_ptr().cast() })
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Dense for F16 {
    const WIDTH: usize = 2;
    #[inline(always)]
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F {
        simd.load_f16(words16(bytes))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Dense for Bf16 {
    const WIDTH: usize = 2;
    #[inline(always)]
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F {
        simd.load_bf16(words16(bytes))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn dense<S: Simd, D: Dense, const R: usize>(
    simd: S,
    bytes: &[u8],
    x: [&[f32]; R],
    mut acc: [[S::F; 2]; R],
) -> [[S::F; 2]; R] {
    for (k, w) in bytes.chunks_exact(COLUMNS * D::WIDTH).take(x[0].len()).enumerate() {
        let (left, right) = w.split_at(LANES * D::WIDTH);
        let w = [D::widen(simd, left), D::widen(simd, right)];
        for r in 0..R {
            let x = simd.splat(x[r][k]);
            acc[r] = [simd.fma(x, w[0], acc[r][0]), simd.fma(x, w[1], acc[r][1])];
        }
    }
    acc
}

/// How a group's codes become values: `scale * code + offset`, exactly the file's arithmetic.
trait Scales {
    /// Groups of a super-block, bytes of its head, bytes of a group's scales.
    const GROUPS: usize;
    const HEAD: usize;
    const SCALES: usize;
    /// Inputs that share a scale.
    const RUN: usize;
    /// `(scale, offset)` of sixteen columns from `column` on, for run `run` of a group; `zero` is the code that means 0.
    fn read<S: Simd>(
        simd: S,
        bytes: (&[u8], &[u8]),
        column: usize,
        run: usize,
        zero: f32,
    ) -> (S::F, S::F);
}

/// A half-precision scale; offset = -scale * zero. (`Q4_0`, `Q5_0`, `Q8_0`)
struct Symmetric;
/// A half-precision scale and minimum. (`Q4_1`, `Q5_1`)
struct Affine;
/// Byte scale and minimum for each group, times halves of the super-block. (`Q4_K`, `Q5_K`)
struct Super;
/// Signed byte scale for each 16 inputs, times a half of the super-block. (`Q6_K`)
struct Super16;

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn halves<S: Simd>(simd: S, bytes: &[u8], column: usize) -> S::F {
    simd.load_f16(words16(&bytes[column * 2..(column + LANES) * 2]))
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn octets<S: Simd>(simd: S, bytes: &[u8], column: usize) -> S::I {
    simd.load_bytes(bytes[column..column + LANES].try_into().expect("sixteen were cut"))
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Symmetric {
    const GROUPS: usize = 1;
    const HEAD: usize = 0;
    const SCALES: usize = HALVES;
    const RUN: usize = GROUP;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (_, scales): (&[u8], &[u8]),
        column: usize,
        _: usize,
        zero: f32,
    ) -> (S::F, S::F) {
        let scale = halves(simd, scales, column);
        (scale, simd.mul(scale, simd.splat(-zero)))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Affine {
    const GROUPS: usize = 1;
    const HEAD: usize = 0;
    const SCALES: usize = 2 * HALVES;
    const RUN: usize = GROUP;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (_, scales): (&[u8], &[u8]),
        column: usize,
        _: usize,
        _: f32,
    ) -> (S::F, S::F) {
        (halves(simd, scales, column), halves(simd, &scales[HALVES..], column))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Super {
    const GROUPS: usize = SUPER;
    const HEAD: usize = 2 * HALVES;
    const SCALES: usize = 2 * OCTETS;
    const RUN: usize = GROUP;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (head, scales): (&[u8], &[u8]),
        column: usize,
        _: usize,
        _: f32,
    ) -> (S::F, S::F) {
        let scale = simd.to_float(octets(simd, scales, column));
        let min = simd.to_float(octets(simd, &scales[OCTETS..], column));
        let min = simd.mul(min, halves(simd, &head[HALVES..], column));
        (simd.mul(scale, halves(simd, head, column)), simd.mul(min, simd.splat(-1.0)))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Super16 {
    const GROUPS: usize = SUPER;
    const HEAD: usize = HALVES;
    const SCALES: usize = 2 * OCTETS;
    const RUN: usize = GROUP / 2;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (head, scales): (&[u8], &[u8]),
        column: usize,
        run: usize,
        zero: f32,
    ) -> (S::F, S::F) {
        let byte = octets(simd, &scales[run * OCTETS..], column);
        // Two's complement from the unsigned byte: b - 2 * (b & 128).
        let sign = simd.to_float(simd.field(byte, 0, 128));
        let scale = simd.fma(sign, simd.splat(-2.0), simd.to_float(byte));
        let scale = simd.mul(scale, halves(simd, head, column));
        (scale, simd.mul(scale, simd.splat(-zero)))
    }
}

/// Codes of eight inputs of sixteen columns, as they are stored.
struct Octet<S: Simd> {
    low: [S::I; 2],
    planes: [S::I; 2],
}

/// How a group's codes are stored.
trait Codes {
    const BYTES: usize;
    /// The code that means 0 where the scale is symmetric.
    const ZERO: f32;
    /// Inputs `octet * 8` to `octet * 8 + 7` of the columns from `column` on.
    fn load<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> Octet<S>;
    /// Input `octet * 8 + k` of them.
    fn code<S: Simd>(simd: S, stored: &Octet<S>, octet: usize, k: usize) -> S::F;
}

/// A plane of nibbles and so many planes of single bits.
struct Nibbles<const PLANES: usize>;
/// Whole bytes.
struct Bytes;

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn words<S: Simd>(simd: S, codes: &[u8], word: usize) -> S::I {
    simd.load_words(codes[word * 4..(word + LANES) * 4].try_into().expect("sixteen were cut"))
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[expect(clippy::cast_possible_truncation, reason = "bits of a word")]
impl<const PLANES: usize> Codes for Nibbles<PLANES> {
    const BYTES: usize = NIBBLE_PLANE + PLANES * BIT_PLANE;
    const ZERO: f32 = (8 << PLANES) as f32;
    #[inline(always)]
    fn load<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> Octet<S> {
        let low = words(simd, codes, octet * COLUMNS + column);
        let plane = |plane: usize| {
            if plane < PLANES {
                words(simd, &codes[NIBBLE_PLANE + plane * BIT_PLANE..], column)
            } else {
                low
            }
        };
        Octet { low: [low, low], planes: [plane(0), plane(1)] }
    }
    #[inline(always)]
    fn code<S: Simd>(simd: S, stored: &Octet<S>, octet: usize, k: usize) -> S::F {
        let mut code = simd.field(stored.low[0], nibble(k).1 as u32, 15);
        for plane in 0..PLANES {
            let high = simd.field(stored.planes[plane], (octet * 8 + k) as u32, 1);
            code = simd.join(code, high, 4 + plane as u32);
        }
        simd.to_float(code)
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[expect(clippy::cast_possible_truncation, reason = "bits of a word")]
impl Codes for Bytes {
    const BYTES: usize = BYTE_PLANE;
    const ZERO: f32 = 128.0;
    #[inline(always)]
    fn load<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> Octet<S> {
        let low = [0, 1].map(|quad| words(simd, codes, (octet * 2 + quad) * COLUMNS + column));
        Octet { low, planes: low }
    }
    #[inline(always)]
    fn code<S: Simd>(simd: S, stored: &Octet<S>, _: usize, k: usize) -> S::F {
        simd.to_float(simd.field(stored.low[k / 4], (k % 4 * 8) as u32, 255))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn quantized<S: Simd, Q: Scales, C: Codes, const R: usize>(
    simd: S,
    bytes: &[u8],
    x: [&[f32]; R],
    mut acc: [[S::F; 2]; R],
) -> [[S::F; 2]; R] {
    let x = x.map(|row| row.as_chunks::<8>().0);
    let super_bytes = Q::HEAD + Q::GROUPS * (Q::SCALES + C::BYTES);
    let supers = x[0].len() * 8 / (Q::GROUPS * GROUP);
    for (s, block) in bytes.chunks_exact(super_bytes).take(supers).enumerate() {
        let (head, groups) = block.split_at(Q::HEAD);
        for (g, group) in groups.chunks_exact(Q::SCALES + C::BYTES).enumerate() {
            let (scales, codes) = group.split_at(Q::SCALES);
            let first = (s * Q::GROUPS + g) * (GROUP / 8);
            for run in 0..GROUP / Q::RUN {
                let left = Q::read(simd, (head, scales), 0, run, C::ZERO);
                let right = Q::read(simd, (head, scales), LANES, run, C::ZERO);
                for octet in run * Q::RUN / 8..(run + 1) * Q::RUN / 8 {
                    let a = C::load(simd, codes, octet, 0);
                    let b = C::load(simd, codes, octet, LANES);
                    for k in 0..8 {
                        let a = C::code(simd, &a, octet, k);
                        let b = C::code(simd, &b, octet, k);
                        let w = [simd.fma(left.0, a, left.1), simd.fma(right.0, b, right.1)];
                        for r in 0..R {
                            let x = simd.splat(x[r][first + octet][k]);
                            acc[r] = [simd.fma(x, w[0], acc[r][0]), simd.fma(x, w[1], acc[r][1])];
                        }
                    }
                }
            }
        }
    }
    acc
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn put_row<S: Simd>(simd: S, w: [S::F; 2], out: &mut [f32; COLUMNS]) {
    let [left, right] = out.as_chunks_mut::<LANES>().0 else { unreachable!("two halves") };
    simd.store(w[0], left);
    simd.store(w[1], right);
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn widen_dense<S: Simd, D: Dense>(simd: S, bytes: &[u8], out: &mut [[f32; COLUMNS]]) {
    for (w, out) in bytes.chunks_exact(COLUMNS * D::WIDTH).zip(out) {
        let (left, right) = w.split_at(LANES * D::WIDTH);
        put_row(simd, [D::widen(simd, left), D::widen(simd, right)], out);
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn widen_codes<S: Simd, Q: Scales, C: Codes>(simd: S, bytes: &[u8], out: &mut [[f32; COLUMNS]]) {
    let super_bytes = Q::HEAD + Q::GROUPS * (Q::SCALES + C::BYTES);
    let blocks = bytes.chunks_exact(super_bytes).zip(out.chunks_exact_mut(Q::GROUPS * GROUP));
    for (block, out) in blocks {
        let (head, groups) = block.split_at(Q::HEAD);
        let groups = groups.chunks_exact(Q::SCALES + C::BYTES);
        for (group, out) in groups.zip(out.chunks_exact_mut(GROUP)) {
            let (scales, codes) = group.split_at(Q::SCALES);
            for run in 0..GROUP / Q::RUN {
                let left = Q::read(simd, (head, scales), 0, run, C::ZERO);
                let right = Q::read(simd, (head, scales), LANES, run, C::ZERO);
                for octet in run * Q::RUN / 8..(run + 1) * Q::RUN / 8 {
                    let a = C::load(simd, codes, octet, 0);
                    let b = C::load(simd, codes, octet, LANES);
                    for k in 0..8 {
                        let a = C::code(simd, &a, octet, k);
                        let b = C::code(simd, &b, octet, k);
                        let w = [simd.fma(left.0, a, left.1), simd.fma(right.0, b, right.1)];
                        put_row(simd, w, &mut out[octet * 8 + k]);
                    }
                }
            }
        }
    }
}
