//! The format of panels, one column at a time: how a row of a file gets in, and what it reads as.

use half::{bf16, f16};

use super::{BIT_PLANE, COLUMNS, Encoding, GROUP, HALVES, Layout, NIBBLE_PLANE, OCTETS};

impl Layout {
    /// Re-encodes one row of the file into one column of a panel; false where it holds what is not finite.
    pub(super) fn write_column(self, panel: &mut [u8], column: usize, row: &[u8]) -> bool {
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
    pub(super) fn read_column(self, panel: &[u8], column: usize, row: &mut [f32]) {
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
                    let code = codes[k / 4 * 4 * COLUMNS + column * 4 + byte_of(k)];
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

/// The byte of a word that one of four consecutive inputs is in.
///
/// Neighbours are two bytes apart: a shift and a mask make them the halves of a lane.
fn byte_of(k: usize) -> usize {
    k % 2 * 2 + k % 4 / 2
}

/// Where input `k` of a group is among a column's nibbles: `(word, byte of the word, bit of the byte)`.
///
/// A word holds eight inputs, the first four in the low halves of its bytes and the next four in the high ones.
fn nibble(k: usize) -> (usize, usize, usize) {
    (k / 8, byte_of(k), k / 4 % 2 * 4)
}

/// Where it is in a column's word of single bits: `(byte, bit)`, so that one shift aligns those of four inputs.
fn single(k: usize) -> (usize, usize) {
    (byte_of(k), k / 4)
}

/// The code of `4 + planes` bits of input `k`.
fn code_at(codes: &[u8], planes: u32, column: usize, k: usize) -> u8 {
    let (word, byte, bit) = nibble(k);
    let low = codes[(word * COLUMNS + column) * 4 + byte] >> bit & 15;
    (0..planes as usize).fold(low, |code, plane| {
        let (byte, bit) = single(k);
        let word = NIBBLE_PLANE + plane * BIT_PLANE + column * 4;
        code | (codes[word + byte] >> bit & 1) << (4 + plane)
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
                // Biased by 128, so that no code has a sign: it is widened by masks.
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
                    planes[k / 4 * 4 * COLUMNS + column * 4 + byte_of(k)] = *code;
                }
                return;
            }
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q4_K => 0,
            Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q5_K => 1,
            Encoding::Q6_K => 2,
        };
        for (k, code) in self.codes[index * GROUP..(index + 1) * GROUP].iter().enumerate() {
            let (word, byte, bit) = nibble(k);
            planes[(word * COLUMNS + column) * 4 + byte] |= (code & 15) << bit;
            for plane in 0..width {
                let (byte, bit) = single(k);
                let word = NIBBLE_PLANE + plane * BIT_PLANE + column * 4;
                planes[word + byte] |= (code >> (4 + plane) & 1) << bit;
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
