//! bf16, int8 and fp8 pages: neighbours in the summed dimension lie side by side, as products of pairs want them.
//!
//! A page is made of *tiles* of 16 pairs by 16 columns (1 KiB of bf16), each a run of memory:
//!
//! ```text
//! tile     [16 pairs][16 columns][2]
//! K tiles  [2 halves of the slots][head_dim / 32]    pairs of elements of the head, columns are 16 slots
//! V tiles  [head_dim / 16]                           pairs of slots, columns are 16 elements of the head
//! codes    K tiles, V tiles, then 32 scales of keys and 32 of values (f32): one for each token and KV head
//! ```
//!
//! A tile is what `tdpbf16ps` multiplies by, and plain vectors read it as well: even elements by a shift, odd ones
//! by a mask. head_dim is padded up to whole tiles.
//!
//! Numbers below [`SMALLEST`] in magnitude become 0 (see `attention/paired.rs` for why). A code times its token's scale
//! is the number: `x / scale` rounded to nearest even, `scale = max |x| / 127` (int8) or `/ 448` (fp8, e4m3 of the OCP
//! 8-bit floating point specification, 1.0). Codes are exact in bf16. A token with a NaN or an infinity gets the scale
//! NaN, so that it is not hidden; one whose numbers are all below 2^-100 is 0.
//!
//! Invariant: padding stays zero, and codes are finite whatever was stored.

use std::marker::PhantomData;

use half::bf16;
use pelton_backend::PAGE_LEN;

use super::{Format, PANEL};
use crate::simd::{Simd, load_from};

/// Elements of a tile.
pub(crate) const TILE_LEN: usize = 512;

/// Elements of a sum in one tile: 16 pairs.
pub(crate) const DEPTH: usize = 32;

/// 16 pairs by 16 columns.
pub(crate) type Tile = [bf16; TILE_LEN];

/// Smaller magnitudes are stored, and multiplied, as 0.
pub(crate) const SMALLEST: f32 = f32::from_bits((127 - 50) << 23);

/// Tiles of K in a page.
pub(crate) const fn k_tiles(head_dim: usize) -> usize {
    2 * head_dim.div_ceil(DEPTH)
}

/// Tiles of V in a page.
pub(crate) const fn v_tiles(head_dim: usize) -> usize {
    head_dim.div_ceil(PANEL)
}

/// Writes one key and one value, already codes or rounded, to their places in the tiles.
#[inline(always)]
fn scatter<E: Copy>(key: &[E], value: &[E], slot: usize, at: usize, dim: usize, tiles: &mut [E]) {
    let groups = dim.div_ceil(DEPTH);
    let (half, column) = (slot / PANEL, slot % PANEL);
    for (i, (&k, &v)) in key.iter().zip(value).enumerate() {
        let d = at + i;
        let tile = half * groups + d / DEPTH;
        tiles[tile * TILE_LEN + d % DEPTH / 2 * 2 * PANEL + 2 * column + d % 2] = k;
        let tile = 2 * groups + d / PANEL;
        tiles[tile * TILE_LEN + slot / 2 * 2 * PANEL + 2 * (d % PANEL) + slot % 2] = v;
    }
}

/// bf16 pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs;

impl Format for Pairs {
    type Element = bf16;

    fn block_len(head_dim: usize) -> usize {
        (k_tiles(head_dim) + v_tiles(head_dim)) * TILE_LEN
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, key: &[f32], value: &[f32], slot: usize, block: &mut [bf16]) {
        let (mut k, mut v) = ([bf16::ZERO; 16], [bf16::ZERO; 16]);
        for at in (0..key.len()).step_by(S::LANES) {
            let n = S::LANES.min(key.len() - at);
            s.store_bf16(s.round_bf16(load_from(s, key, at)), &mut k);
            s.store_bf16(s.round_bf16(load_from(s, value, at)), &mut v);
            scatter(&k[..n], &v[..n], slot, at, key.len(), block);
        }
    }
}

/// A number in 8 bits.
pub(crate) trait Code: Copy + Send + Sync + 'static {
    /// The largest magnitude.
    const MAX: f32;
    /// The code of a number within `-MAX..=MAX`.
    fn encode(x: f32) -> u8;
    /// The number of a code; exact.
    fn decode(code: u8) -> f32;
    /// The numbers of a vector of codes.
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F;
}

/// Whole numbers from -127 to 127.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8;

impl Code for Int8 {
    const MAX: f32 = 127.0;

    #[inline(always)]
    fn encode(x: f32) -> u8 {
        // Adding 1.5 * 2^23 rounds to nearest even and leaves the whole number in the low bits.
        (x + 12_582_912.0).to_bits() as u8
    }

    #[inline(always)]
    fn decode(code: u8) -> f32 {
        f32::from(code.cast_signed())
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F {
        s.load_int8(from)
    }
}

/// e4m3: 1 sign, 4 exponent and 3 mantissa bits, bias 7, up to 448.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fp8;

impl Code for Fp8 {
    const MAX: f32 = 448.0;

    #[inline(always)]
    fn encode(x: f32) -> u8 {
        let sign = x.to_bits() >> 24 & 0x80;
        let size = f32::from_bits(x.to_bits() & 0x7fff_ffff);
        let bits = size.to_bits();
        // Rounded to 3 bits of mantissa, exponent 2^e stored as e + 7.
        let normal = ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
        // Multiples of 2^-9 below 2^-6, by the magic number of `Int8`.
        let small = (size * 512.0 + 12_582_912.0).to_bits() & 0xf;
        let code = if size < 1.0 / 64.0 { small } else { normal };
        (sign | code.min(0x7e)) as u8
    }

    #[inline(always)]
    fn decode(code: u8) -> f32 {
        let (sign, size) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7f));
        let normal = f32::from_bits((size << 20) + (120 << 23));
        // Where the exponent is 0: the same mantissa, a power higher, without its leading one.
        let small = 2.0 * normal - 1.0 / 64.0;
        let value = if size < 8 { small } else { normal };
        f32::from_bits(value.to_bits() | sign)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F {
        s.load_fp8(from)
    }
}

/// Pages of 8-bit codes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coded<C>(PhantomData<C>);

/// Bytes of the scales of a page.
const SCALE_BYTES: usize = 2 * PAGE_LEN * size_of::<f32>();

impl<C> Coded<C> {
    /// Codes of a block; the scales follow.
    pub(crate) const fn codes_len(head_dim: usize) -> usize {
        (k_tiles(head_dim) + v_tiles(head_dim)) * TILE_LEN
    }
}

/// Scale and its inverse.
#[inline(always)]
fn scale_of(x: &[f32], max: f32) -> (f32, f32) {
    // As integers, so that a NaN is the largest.
    let mut bits = 0;
    for v in x {
        bits = bits.max(v.to_bits() & 0x7fff_ffff);
    }
    let top = f32::from_bits(bits);
    match top {
        t if !t.is_finite() => (f32::NAN, 0.0),
        t if t < f32::from_bits((127 - 100) << 23) => (0.0, 0.0),
        t => (t / max, max / t),
    }
}

#[inline(always)]
fn encode<C: Code>(x: &[f32], inverse: f32, codes: &mut [u8; 16]) {
    for (code, v) in codes.iter_mut().zip(x) {
        let v = (v * inverse).clamp(-C::MAX, C::MAX);
        *code = C::encode(if inverse == 0.0 { 0.0 } else { v });
    }
}

impl<C: Code> Format for Coded<C> {
    type Element = u8;

    fn block_len(head_dim: usize) -> usize {
        Coded::<C>::codes_len(head_dim) + SCALE_BYTES
    }

    #[inline(always)]
    fn store<S: Simd>(_: S, key: &[f32], value: &[f32], slot: usize, block: &mut [u8]) {
        let (codes, scales) = block.split_at_mut(Coded::<C>::codes_len(key.len()));
        let ((k_scale, k_inverse), (v_scale, v_inverse)) = (scale_of(key, C::MAX), scale_of(value, C::MAX));
        let (mut k, mut v) = ([0; 16], [0; 16]);
        for at in (0..key.len()).step_by(16) {
            let n = 16.min(key.len() - at);
            encode::<C>(&key[at..at + n], k_inverse, &mut k);
            encode::<C>(&value[at..at + n], v_inverse, &mut v);
            scatter(&k[..n], &v[..n], slot, at, key.len(), codes);
        }
        let (k_scales, v_scales) = scales.split_at_mut(SCALE_BYTES / 2);
        k_scales[4 * slot..4 * slot + 4].copy_from_slice(&k_scale.to_ne_bytes());
        v_scales[4 * slot..4 * slot + 4].copy_from_slice(&v_scale.to_ne_bytes());
    }
}

impl<C: Code> Coded<C> {
    /// Turns the codes of a block into bf16 tiles and reads its scales.
    #[inline(always)]
    pub(crate) fn open<S: Simd>(s: S, block: &[u8], tiles: &mut [bf16], k_scales: &mut [f32], v_scales: &mut [f32]) {
        let (codes, scales) = block.split_at(tiles.len());
        for (tile, codes) in tiles.chunks_exact_mut(2 * S::LANES).zip(codes.chunks_exact(2 * S::LANES)) {
            s.store_two_bf16(C::load(s, codes), C::load(s, &codes[S::LANES..]), tile);
        }
        let (k, v) = scales.as_chunks::<4>().0.split_at(PAGE_LEN);
        for i in 0..PAGE_LEN {
            k_scales[i] = f32::from_ne_bytes(k[i]);
            v_scales[i] = f32::from_ne_bytes(v[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{self, Kernel};

    #[test]
    fn every_code_comes_back_and_rounds_to_itself() {
        for code in 0..=255u8 {
            if code != 0x80 {
                assert_eq!(Int8::encode(Int8::decode(code)), code);
            }
            if code & 0x7f != 0x7f {
                assert_eq!(Fp8::encode(Fp8::decode(code)), code, "{}", Fp8::decode(code));
            }
        }
        // From the specification: the largest, the smallest normal, the largest and smallest subnormal.
        let exact = [(0x7e, 448.0), (0x08, 0.015625), (0x07, 0.013671875), (0x01, 0.001953125), (0xbc, -1.5)];
        exact.into_iter().for_each(|(code, value)| assert_eq!(Fp8::decode(code), value));
    }

    #[test]
    fn fp8_rounds_to_the_nearest_and_ties_to_even() {
        let values: Vec<f32> = (0..0x7f).map(Fp8::decode).collect();
        assert!(values.is_sorted_by(|a, b| a < b));
        for (code, pair) in values.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = code + (code & 1);
            assert_eq!(usize::from(Fp8::encode(middle)), even, "{middle}");
            assert_eq!(usize::from(Fp8::encode(middle * 0.999)), code);
            assert_eq!(usize::from(Fp8::encode(-middle * 1.001)), 0x80 | (code + 1));
        }
    }

    struct Load<'a, C>(&'a [u8], &'a mut [f32], PhantomData<C>);

    impl<C: Code> Kernel for Load<'_, C> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (codes, to) in self.0.chunks_exact(S::LANES).zip(self.1.chunks_exact_mut(S::LANES)) {
                s.store(C::load(s, codes), to);
            }
        }
    }

    #[test]
    fn vectors_of_codes_are_what_the_codes_are() {
        let codes: Vec<u8> = (0..=255u8).map(|c| if c & 0x7f == 0x7f { 0 } else { c }).collect();
        for isa in Isa::available() {
            let mut got = [0.0; 256];
            simd::run(isa, Load::<Int8>(&codes, &mut got, PhantomData));
            codes.iter().zip(&got).for_each(|(&c, v)| assert_eq!(v.to_bits(), Int8::decode(c).to_bits()));
            simd::run(isa, Load::<Fp8>(&codes, &mut got, PhantomData));
            codes.iter().zip(&got).for_each(|(&c, v)| assert_eq!(v.to_bits(), Fp8::decode(c).to_bits(), "{c:#x}"));
        }
    }

    #[test]
    fn numbers_that_are_none_poison_the_scale() {
        assert!(scale_of(&[1.0, f32::NAN, 2.0], 127.0).0.is_nan());
        assert!(scale_of(&[1.0, f32::NEG_INFINITY], 127.0).0.is_nan());
        assert_eq!(scale_of(&[0.0, 1e-38], 127.0), (0.0, 0.0));
        assert_eq!(scale_of(&[-254.0, 1.0], 127.0), (2.0, 0.5));
    }
}
