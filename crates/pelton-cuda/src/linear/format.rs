//! The block formats as kernels read them: how a superblock of 256 columns is described, and where its parts lie in a tile.
//!
//! The layout is drawn in `kernels/packed.cuh`; this file is the other side of it. What a file's block means,
//! `pelton_quant` says. Formats of 32 columns have a 16-bit float scale each; here the scales of a superblock are whole
//! numbers in units that it shares, so that sums over it are exact integers. A weight is thereby off by at most 2^-10 (8-bit
//! codes) to 2^-14 (4-bit codes) of the largest one of its superblock; the formats of 256 columns are exact.

use half::f16;
use pelton_quant::{DType, iq4_nl, iq4_xs, mxfp4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};

/// Columns of a superblock.
pub(crate) const SUPERBLOCK: usize = 256;
/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 8;
/// The largest |scale * code|: 256 products with an int8 stay below 2^31.
pub(super) const MAX_WEIGHT: i32 = 65_535;

/// A layout that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Format {
    /// The type of its blocks; none for integers in groups, which `groups.rs` reads.
    pub(crate) dtype: Option<DType>,
    /// In the names of its kernels.
    pub(crate) name: &'static str,
    pub(super) bits: usize,
    /// Columns that share a scale.
    pub(super) sub: usize,
    pub(super) has_minima: bool,
    /// Minima are in the unit of the scales.
    pub(super) has_one_unit: bool,
    /// 16-bit scales, 32-bit units.
    pub(super) is_wide: bool,
    /// The codes are indices of levels.
    pub(super) has_levels: bool,
    /// The largest magnitude of a code, less its offset or looked up.
    pub(super) max_code: i32,
}

/// A layout without minima, of narrow scales and plain codes.
pub(super) const fn plain(dtype: Option<DType>, name: &'static str, bits: usize, sub: usize, max_code: i32) -> Format {
    let (has_minima, has_one_unit, is_wide, has_levels) = (false, false, false, false);
    Format { dtype, name, bits, sub, has_minima, has_one_unit, is_wide, has_levels, max_code }
}

const fn format(dtype: DType, name: &'static str, bits: usize, sub: usize, max_code: i32) -> Format {
    plain(Some(dtype), name, bits, sub, max_code)
}

/// The layouts of blocks.
pub(crate) const FORMATS: [Format; 13] = [
    Format { is_wide: true, ..format(DType::Q4_0, "q4_0", 4, 32, 8) },
    Format { is_wide: true, has_minima: true, ..format(DType::Q4_1, "q4_1", 4, 32, 15) },
    Format { is_wide: true, ..format(DType::Q5_0, "q5_0", 5, 32, 16) },
    Format { is_wide: true, has_minima: true, ..format(DType::Q5_1, "q5_1", 5, 32, 31) },
    Format { is_wide: true, ..format(DType::Q8_0, "q8_0", 8, 32, 128) },
    Format { has_minima: true, ..format(DType::Q2_K, "q2_k", 2, 16, 3) },
    format(DType::Q3_K, "q3_k", 3, 16, 4),
    Format { has_minima: true, ..format(DType::Q4_K, "q4_k", 4, 32, 15) },
    Format { has_minima: true, ..format(DType::Q5_K, "q5_k", 5, 32, 31) },
    format(DType::Q6_K, "q6_k", 6, 16, 32),
    Format { is_wide: true, has_levels: true, ..format(DType::IQ4_NL, "iq4_nl", 4, 32, 127) },
    Format { has_levels: true, ..format(DType::IQ4_XS, "iq4_xs", 4, 32, 127) },
    Format { is_wide: true, has_levels: true, ..format(DType::MXFP4, "mxfp4", 4, 32, 12) },
];

/// 256 columns of one row. Columns past the end of a row have scale 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Superblock {
    /// As stored: not negative, but for 8-bit codes, which are int8.
    pub(super) codes: [u8; SUPERBLOCK],
    /// As many are used as the layout has.
    pub(super) scales: [i16; 16],
    pub(super) minima: [i16; 16],
    pub(super) unit: f32,
    unit_of_minima: f32,
}

impl Superblock {
    pub(super) const ZERO: Superblock =
        Superblock { codes: [0; SUPERBLOCK], scales: [0; 16], minima: [0; 16], unit: 0.0, unit_of_minima: 0.0 };
}

/// Floats as whole numbers of magnitude up to `most`, in units of the second answer.
pub(super) fn whole(values: &[f32], most: i32) -> ([i16; 16], f32) {
    let largest = values.iter().fold(0.0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::NAN });
    let unit = largest / most as f32;
    let mut out = [0; 16];
    if unit > 0.0 {
        out.iter_mut().zip(values).for_each(|(o, v)| *o = (v / unit).round_ties_even() as i16);
    }
    // A scale that is no number makes the superblock no number; `max` would have dropped it.
    let is_finite = values.iter().all(|v| v.is_finite());
    (out, if is_finite { unit } else { f32::NAN })
}

fn blocks<const N: usize>(bytes: &[u8]) -> &[[u8; N]] {
    bytes.as_chunks::<N>().0
}

fn block<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("a whole block")
}

/// Up to eight blocks of 32: each deals its codes and says its scale and minimum.
fn small_blocks<const N: usize>(
    format: &Format,
    bytes: &[u8],
    mut read: impl FnMut(&[u8; N], &mut [u8; 32]) -> (f32, f32),
) -> Superblock {
    let mut sb = Superblock::ZERO;
    let (mut scales, mut minima) = ([0.0; 8], [0.0; 8]);
    for (i, block) in blocks::<N>(bytes).iter().enumerate() {
        let codes = &mut sb.codes.as_chunks_mut::<32>().0[i];
        (scales[i], minima[i]) = read(block, codes);
    }
    (sb.scales, sb.unit) = whole(&scales, (MAX_WEIGHT / format.max_code).min(32_767));
    if format.has_minima {
        // value = scale * code + m; kernels subtract minima.
        let negated = minima.map(|m: f32| -m);
        (sb.minima, sb.unit_of_minima) = whole(&negated, 32_767);
    }
    sb
}

fn widened<T: Copy + Into<i16>>(values: &[T]) -> [i16; 16] {
    let mut out = [0; 16];
    out.iter_mut().zip(values).for_each(|(o, &v)| *o = v.into());
    out
}

fn signed(codes: [i8; 32], out: &mut [u8; 32]) {
    *out = codes.map(i8::cast_unsigned);
}

/// The formats whose block is the superblock.
fn read_large(dtype: DType, bytes: &[u8]) -> Superblock {
    let mut sb = Superblock::ZERO;
    let affine = |sb: &mut Superblock, d: f16, dmin: f16| (sb.unit, sb.unit_of_minima) = (d.to_f32(), dmin.to_f32());
    match dtype {
        DType::Q2_K => {
            let b = block(bytes);
            q2_k::codes(b, &mut sb.codes);
            let (scales, minima) = q2_k::scales_mins(b);
            (sb.scales, sb.minima) = (widened(&scales), widened(&minima));
            affine(&mut sb, q2_k::d(b), q2_k::dmin(b));
        }
        DType::Q3_K => {
            let b = block(bytes);
            q3_k::codes(b, &mut sb.codes);
            (sb.scales, sb.unit) = (widened(&q3_k::scales(b)), q3_k::d(b).to_f32());
        }
        DType::Q4_K => {
            let b = block(bytes);
            q4_k::codes(b, &mut sb.codes);
            let (scales, minima) = q4_k::scales_mins(b);
            (sb.scales, sb.minima) = (widened(&scales), widened(&minima));
            affine(&mut sb, q4_k::d(b), q4_k::dmin(b));
        }
        DType::Q5_K => {
            let b = block(bytes);
            q5_k::codes(b, &mut sb.codes);
            let (scales, minima) = q5_k::scales_mins(b);
            (sb.scales, sb.minima) = (widened(&scales), widened(&minima));
            affine(&mut sb, q5_k::d(b), q5_k::dmin(b));
        }
        DType::Q6_K => {
            let b = block(bytes);
            q6_k::codes(b, &mut sb.codes);
            (sb.scales, sb.unit) = (widened(&q6_k::scales(b)), q6_k::d(b).to_f32());
        }
        DType::IQ4_XS => {
            let b = block(bytes);
            iq4_xs::indices(b, &mut sb.codes);
            (sb.scales, sb.unit) = (widened(&iq4_xs::scales(b)), iq4_xs::d(b).to_f32());
        }
        other => panic!("{other} is not in FORMATS"),
    }
    sb
}

impl Format {
    /// The layout of a storage type, where there is one.
    pub(crate) fn of(dtype: DType) -> Option<&'static Format> {
        FORMATS.iter().find(|f| f.dtype == Some(dtype))
    }

    /// Reads a superblock: `bytes` are the blocks of up to 256 columns of one row.
    pub(crate) fn read(&self, bytes: &[u8]) -> Superblock {
        match self.dtype.expect("a layout of blocks") {
            DType::Q4_0 => small_blocks(self, bytes, |b, codes| {
                q4_0::codes(b, codes);
                (q4_0::scale(b), 0.0)
            }),
            DType::Q4_1 => small_blocks(self, bytes, |b, codes| {
                q4_1::codes(b, codes);
                (q4_1::scale(b), q4_1::min(b))
            }),
            DType::Q5_0 => small_blocks(self, bytes, |b, codes| {
                q5_0::codes(b, codes);
                (q5_0::scale(b), 0.0)
            }),
            DType::Q5_1 => small_blocks(self, bytes, |b, codes| {
                q5_1::codes(b, codes);
                (q5_1::scale(b), q5_1::min(b))
            }),
            DType::Q8_0 => small_blocks(self, bytes, |b, codes| {
                let mut q = [0; 32];
                q8_0::codes(b, &mut q);
                signed(q, codes);
                (q8_0::scale(b), 0.0)
            }),
            DType::IQ4_NL => small_blocks(self, bytes, |b, codes| {
                iq4_nl::indices(b, codes);
                (iq4_nl::scale(b), 0.0)
            }),
            DType::MXFP4 => small_blocks(self, bytes, |b, codes| {
                mxfp4::indices(b, codes);
                (mxfp4::scale(b), 0.0)
            }),
            dtype => read_large(dtype, bytes),
        }
    }

    fn has_nibbles(&self) -> bool {
        matches!(self.bits, 4..=6)
    }

    fn has_pairs(&self) -> bool {
        matches!(self.bits, 2 | 3 | 6)
    }

    fn has_bits(&self) -> bool {
        matches!(self.bits, 3 | 5)
    }

    fn at_pairs(&self) -> usize {
        if self.has_nibbles() {
            1024
        } else if self.bits == 8 {
            2048
        } else {
            0
        }
    }

    fn at_bits(&self) -> usize {
        self.at_pairs() + if self.has_pairs() { 512 } else { 0 }
    }

    fn at_scales(&self) -> usize {
        self.at_bits() + if self.has_bits() { 256 } else { 0 }
    }

    /// Scales of half a row of a superblock.
    fn per_half(&self) -> usize {
        128 / self.sub
    }

    fn scales_bytes(&self) -> usize {
        16 * self.per_half() * if self.is_wide { 2 } else { 1 }
    }

    fn at_units(&self) -> usize {
        self.at_scales() + self.scales_bytes() * if self.has_minima { 2 } else { 1 }
    }

    /// Bytes of a tile.
    pub(crate) fn tile_bytes(&self) -> usize {
        self.at_units() + if self.has_minima && self.is_wide && !self.has_one_unit { 64 } else { 32 }
    }

    /// Shared memory of a block of `kernels/matmul_many.cu`: three stages of half a superblock each, of 16 tiles (without
    /// what the other half has, but all minima) and 64 rows.
    pub(crate) fn ring_bytes(&self) -> usize {
        let minima = if self.has_minima { self.scales_bytes() } else { 0 };
        let halves = self.at_scales() + self.scales_bytes();
        let tile = halves / 2 + minima + self.tile_bytes() - self.at_units();
        3 * (16 * tile + 64 * (128 + 16 + 4) + if self.has_minima { 64 * 32 } else { 0 })
    }

    /// Puts a superblock into row `g` of a tile of zeros.
    pub(crate) fn write(&self, sb: &Superblock, g: usize, tile: &mut [u8]) {
        for (column, &code) in sb.codes.iter().enumerate() {
            self.write_code(column, code, g, tile);
        }
        let width = if self.is_wide { 2 } else { 1 };
        let mut put = |at: usize, values: &[i16; 16]| {
            for (k, v) in values[..2 * self.per_half()].iter().enumerate() {
                let (h, k) = (k / self.per_half(), k % self.per_half());
                let to = at + ((h * TILE_ROWS + g) * self.per_half() + k) * width;
                tile[to..to + width].copy_from_slice(&v.to_le_bytes()[..width]);
            }
        };
        put(self.at_scales(), &sb.scales);
        if self.has_minima {
            put(self.at_scales() + self.scales_bytes(), &sb.minima);
        }
        let at = self.at_units() + 4 * g;
        if self.has_minima && !self.is_wide {
            let both = [f16::from_f32(sb.unit), f16::from_f32(sb.unit_of_minima)].map(f16::to_le_bytes);
            tile[at..at + 4].copy_from_slice(both.as_flattened());
            return;
        }
        tile[at..at + 4].copy_from_slice(&sb.unit.to_le_bytes());
        if self.has_minima && !self.has_one_unit {
            tile[at + 32..at + 36].copy_from_slice(&sb.unit_of_minima.to_le_bytes());
        }
    }

    fn write_code(&self, column: usize, code: u8, g: usize, tile: &mut [u8]) {
        let (h, j, p, t, i) = (column / 128, column / 32 % 4, column / 16 % 2, column / 4 % 4, column % 4);
        let lane = h * 32 + 4 * g + t;
        match self.bits {
            8 => tile[(lane + h * 32 + p * 32) * 16 + 4 * j + i] = code,
            _ if self.has_levels => tile[lane * 16 + 4 * j + 2 * p + i / 2] |= code << (4 * (i % 2)),
            4..=6 => tile[lane * 16 + 4 * j + i] |= (code & 15) << (4 * p),
            _ => {}
        }
        if self.has_pairs() {
            let pair = if self.bits == 6 { code >> 4 } else { code & 3 };
            tile[self.at_pairs() + lane * 8 + 4 * p + i] |= pair << (2 * j);
        }
        if self.has_bits() {
            let bit = if self.bits == 5 { code >> 4 } else { code >> 2 };
            tile[self.at_bits() + lane * 4 + i] |= bit << (2 * j + p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::groups;
    use super::*;

    #[test]
    fn tiles_are_hardly_longer_than_the_file() {
        for f in FORMATS {
            let dtype = f.dtype.unwrap();
            let rows = TILE_ROWS * SUPERBLOCK / dtype.block_len() * dtype.block_bytes();
            let share = f.tile_bytes() as f64 / rows as f64;
            assert!(f.tile_bytes().is_multiple_of(16), "{}: {}", f.name, f.tile_bytes());
            // Scales of 4 bits become bytes, those of MXFP4 16 bits.
            let most = match dtype {
                DType::Q2_K => 1.2,
                DType::MXFP4 => 1.09,
                _ => 1.06,
            };
            assert!((0.99..most).contains(&share), "{}: {share:.3} of the file", f.name);
        }
    }

    #[test]
    fn every_bit_of_a_tile_belongs_to_one_code() {
        for f in FORMATS.iter().chain(groups::ALL) {
            let mut seen = vec![0u8; f.tile_bytes()];
            let largest = if f.bits == 8 { 0xff } else { (1u8 << f.bits) - 1 };
            for g in 0..TILE_ROWS {
                for column in 0..SUPERBLOCK {
                    let mut tile = vec![0u8; f.tile_bytes()];
                    f.write_code(column, largest, g, &mut tile);
                    assert_eq!(tile.iter().map(|b| b.count_ones()).sum::<u32>(), f.bits as u32, "{}", f.name);
                    assert!(seen.iter().zip(&tile).all(|(a, b)| a & b == 0), "{} column {column}", f.name);
                    seen.iter_mut().zip(&tile).for_each(|(a, b)| *a |= b);
                }
            }
            assert!(seen[..f.at_scales()].iter().all(|&b| b == 0xff), "{} leaves gaps", f.name);
        }
    }

    #[test]
    fn scales_become_whole_numbers_that_are_near() {
        let (whole_scales, unit) = whole(&[0.5, -0.25, 0.001, 0.0], 8191);
        assert_eq!(whole_scales[..4], [8191, -4096, 16, 0]);
        assert!((unit * 8191.0 - 0.5).abs() < 1e-7);
        assert!(whole(&[1.0, f32::INFINITY], 100).1.is_nan());
        assert_eq!(whole(&[0.0; 8], 100), ([0; 16], 0.0));
    }
}
