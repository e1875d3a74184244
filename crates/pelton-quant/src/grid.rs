//! What the codebook formats (IQ1, IQ2, IQ3) share: a few bits of an index name a point of a *grid*, which is the
//! magnitudes of eight (IQ2, IQ1) or four (IQ3) consecutive elements; signs are stored apart.
//!
//! The grids themselves are in `grids.rs`. For kernels, every format offers each element alone, as an index into its
//! few levels: the magnitude in the low bits, the sign above. No grid is needed past that.

use half::f16;

/// Levels of IQ2: magnitude in bits 0 and 1 (3 never occurs), sign in bit 2.
pub(crate) const LEVELS_2: [i8; 8] = [8, 25, 43, 0, -8, -25, -43, 0];
/// Levels of IQ1, eight times the ternary digit plus or minus one: digit + 1 in bits 0 and 1 (3 never occurs), minus
/// in bit 2.
pub(crate) const LEVELS_1: [i8; 8] = [-7, 1, 9, 0, -9, -1, 7, 0];

/// Indices of eight elements: magnitudes of 2 bits in `point`, sign `i` in bit `i` of `signs`.
#[inline]
pub(crate) fn spread_8(point: u16, signs: u8, out: &mut [u8; 8]) {
    for (i, index) in out.iter_mut().enumerate() {
        *index = (point >> (2 * i) & 3) as u8 | (signs >> i & 1) << 2;
    }
}

/// Indices of eight elements from two points of four magnitudes of 3 bits, sign `i` in bit `i` of `signs`.
#[inline]
pub(crate) fn spread_4_4(points: [u16; 2], signs: u8, out: &mut [u8; 8]) {
    for (i, index) in out.iter_mut().enumerate() {
        *index = (points[i / 4] >> (3 * (i % 4)) & 7) as u8 | (signs >> i & 1) << 3;
    }
}

/// Eight signs from the seven that IQ2_XXS, IQ2_XS and IQ3_XXS store: the last makes the number of minuses even.
#[inline]
pub(crate) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// The scales of nibbles, low first: `2·nibble + 1`.
#[inline]
pub(crate) fn odd_scales<const N: usize>(packed: &[u8]) -> [u8; N] {
    std::array::from_fn(|s| 2 * (packed[s / 2] >> (4 * (s % 2)) & 15) + 1)
}

/// The inverse of [`odd_scales`], from the nibbles themselves.
pub(crate) fn pack_nibbles(scales: &[u8], packed: &mut [u8]) {
    for (byte, pair) in packed.iter_mut().zip(scales.as_chunks::<2>().0) {
        *byte = pair[0] | pair[1] << 4;
    }
}

/// The level of each index.
pub(crate) fn look_up<const N: usize>(indices: &[u8; 256], levels: &[i8; N], out: &mut [i8; 256]) {
    for (code, &index) in out.iter_mut().zip(indices) {
        *code = levels[usize::from(index) % N];
    }
}

/// `value = (d · unit) · scale · code`, exact in f32: an f16 of 11 bits times integers of together 12 or fewer.
pub(crate) fn decode(d: f16, unit: f32, scales: &[u8], codes: &[i8; 256], out: &mut [f32; 256]) {
    let d = d.to_f32() * unit;
    let sub_len = 256 / scales.len();
    for ((values, codes), scale) in out.chunks_exact_mut(sub_len).zip(codes.chunks_exact(sub_len)).zip(scales) {
        let scale = d * f32::from(*scale);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = scale * f32::from(*code);
        }
    }
}

/// What every format of levels has: its constants, the codes and the values of a block.
///
/// A module adds where its bits lie: `d`, `scales` and `indices`.
macro_rules! level_format {
    ($bytes:literal bytes, $sub_len:expr, unit $unit:expr, $(#[$of_levels:meta])* levels $levels:expr) => {
        /// Elements in a block.
        pub const BLOCK_LEN: usize = 256;
        /// Bytes of a block.
        pub const BLOCK_BYTES: usize = $bytes;
        /// Elements that share a scale.
        pub const SUB_LEN: usize = $sub_len;
        /// `value = (d · UNIT) · scale · level`.
        pub const UNIT: f32 = $unit;
        $(#[$of_levels])*
        pub const LEVELS: [i8; $levels.len()] = $levels;

        /// The codes (values of [`LEVELS`]) in element order.
        pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [i8; BLOCK_LEN]) {
            let mut index = [0; BLOCK_LEN];
            indices(block, &mut index);
            crate::grid::look_up(&index, &LEVELS, out);
        }

        /// The values of a block.
        pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
            let mut q = [0; BLOCK_LEN];
            codes(block, &mut q);
            crate::grid::decode(d(block), UNIT, &scales(block), &q, out);
        }
    };
}
pub(crate) use level_format;

/// What every codebook format has: what [`level_format`] gives, and the way from values to a block.
///
/// A module adds `pack` for the way back.
macro_rules! grid_format {
    ($codebook:ident: $bytes:literal bytes, $(#[$of_levels:meta])* levels $levels:expr) => {
        crate::grid::level_format! {
            $bytes bytes, <$codebook as crate::grid_search::Codebook>::SUB_LEN,
            unit <$codebook as crate::grid_search::Codebook>::UNIT,
            $(#[$of_levels])*
            levels $levels
        }

        /// Searches for points and scales of least squared error, weighted with `w`; `None` if the scale exceeds f16.
        pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
            crate::grid_search::search::<$codebook>(x, w).map(|found| pack(&found))
        }
    };
}
pub(crate) use grid_format;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_signs_are_an_even_number_of_minuses_and_keep_the_seven() {
        for seven in 0..128 {
            let signs = even_signs(seven | 0x80);
            assert_eq!(signs.count_ones() % 2, 0);
            assert_eq!(u32::from(signs) & 127, seven);
        }
    }
}
