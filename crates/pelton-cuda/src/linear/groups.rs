//! Integers in groups of columns (AWQ, GPTQ, compressed-tensors) as tiles of their own size.
//!
//! `weight = scale * (code - zero)`, `pelton_quant::Grouped` says. A superblock of a row keeps the codes, and of each 32, 64
//! or 128 columns a scale and, where the file has zero points, a minimum, `scale * zero`: whole numbers in a unit that the
//! superblock shares. Groups that are a multiple of 128 columns long, or the whole row, lie as groups of 128.
//!
//! Invariants: a code at its zero point is exactly 0. A weight is off by at most 2^-10 (8 bits) or 2^-13 (4 bits) of the
//! largest that its superblock's scales allow, with zero points 2^-9 or 2^-11; by nothing but the unit's rounding where the
//! superblock has one scale.

use pelton_quant::{CodeBook, Grouped, GroupedType, ZeroPoint};

use super::format::{Format, MAX_WEIGHT, SUPERBLOCK, Superblock, TILE_ROWS, plain, whole};
use super::pack::in_parallel;

const fn about_middle(name: &'static str, bits: usize, max_code: i32) -> Format {
    Format { is_wide: true, ..plain(None, name, bits, 128, max_code) }
}

const fn with_zeros(name: &'static str, bits: usize, sub: usize) -> Format {
    let max_code = if bits == 8 { 128 } else { (1 << bits) - 1 };
    Format { is_wide: true, has_minima: true, has_one_unit: true, ..plain(None, name, bits, sub, max_code) }
}

/// The layouts that blocks do not have.
pub(super) static ALL: &[Format] = &[
    about_middle("int4_128", 4, 8),
    about_middle("int8_128", 8, 128),
    with_zeros("int2z_128", 2, 128),
    with_zeros("int3z_128", 3, 128),
    with_zeros("int4z_32", 4, 32),
    with_zeros("int4z_64", 4, 64),
    with_zeros("int4z_128", 4, 128),
    with_zeros("int8z_32", 8, 32),
    with_zeros("int8z_128", 8, 128),
];

/// The layout of a type in a matrix of `cols` columns; `None` where there is none: tables of levels, groups that are no
/// multiple of 32, zero points far from all codes.
pub(super) fn format_of(kind: GroupedType, cols: usize) -> Option<&'static Format> {
    let CodeBook::Int { bits } = kind.book else { return None };
    let is_whole = |step: &u32| kind.group.is_none_or(|group| group as usize >= cols || group.is_multiple_of(*step));
    let step = [128, 64, 32].into_iter().find(is_whole)?;
    let name = match (bits, kind.zero, step) {
        (4, ZeroPoint::At(8), 128) => "int4_128",
        (4, ZeroPoint::At(8), _) => return Format::of(pelton_quant::DType::Q4_0),
        (8, ZeroPoint::At(128), 128) => "int8_128",
        (8, ZeroPoint::At(128), _) => return Format::of(pelton_quant::DType::Q8_0),
        (2, ZeroPoint::At(0..=16) | ZeroPoint::PerGroup, 128) => "int2z_128",
        (3, ZeroPoint::At(0..=16) | ZeroPoint::PerGroup, 128) => "int3z_128",
        (1..=4, ZeroPoint::At(0..=16) | ZeroPoint::PerGroup, 128) => "int4z_128",
        (1..=4, ZeroPoint::At(0..=16) | ZeroPoint::PerGroup, 64) => "int4z_64",
        (1..=4, ZeroPoint::At(0..=16) | ZeroPoint::PerGroup, _) => "int4z_32",
        (5..=8, ZeroPoint::At(0..=256) | ZeroPoint::PerGroup, 128) => "int8z_128",
        (5..=8, ZeroPoint::At(0..=256) | ZeroPoint::PerGroup, _) => "int8z_32",
        _ => return None,
    };
    ALL.iter().find(|format| format.name == name)
}

/// A matrix as tiles, row blocks first; columns in the order in which the file stores them.
pub(super) fn tiles(format: &Format, grouped: &Grouped) -> Vec<u8> {
    let (cols, group, n_groups) = (grouped.cols(), grouped.group(), grouped.n_groups());
    let row_of_tiles = cols.div_ceil(SUPERBLOCK) * format.tile_bytes();
    let mut out = vec![0; grouped.rows().div_ceil(TILE_ROWS) * row_of_tiles];
    in_parallel(&mut out, row_of_tiles, |block, out| {
        let rows = block * TILE_ROWS..grouped.rows().min((block + 1) * TILE_ROWS);
        let mut codes = vec![0; rows.len() * cols];
        let (mut scales, mut zeros) = (vec![0.0; rows.len() * n_groups], vec![0; rows.len() * n_groups]);
        grouped.codes(rows.clone(), &mut codes);
        grouped.scales(rows.clone(), &mut scales);
        grouped.zeros(rows, &mut zeros);
        for (g, codes) in codes.chunks_exact(cols).enumerate() {
            let tiles = out.chunks_exact_mut(format.tile_bytes()).zip(codes.chunks(SUPERBLOCK));
            for (sb, (tile, codes)) in tiles.enumerate() {
                let group_at = |column: usize| g * n_groups + (sb * SUPERBLOCK + column) / group;
                let step = |i: usize| (scales[group_at(i * format.sub)], zeros[group_at(i * format.sub)]);
                format.write(&superblock(format, codes, step), g, tile);
            }
        }
    });
    out
}

/// The most that `|scale * (code - zero)|` becomes; with half a scale from rounding it is still no more than
/// [`MAX_WEIGHT`].
const MOST: i32 = 65_000;

/// Up to 256 columns of a row; `step` gives scale and zero point of each [`Format::sub`] of them.
fn superblock(format: &Format, codes: &[u8], step: impl Fn(usize) -> (f32, i16)) -> Superblock {
    let mut sb = Superblock::ZERO;
    let middle: u8 = if format.bits == 8 { 128 } else { 0 };
    sb.codes.iter_mut().zip(codes).for_each(|(to, code)| *to = code ^ middle);
    let steps: Vec<(f32, i16)> = (0..codes.len().div_ceil(format.sub)).map(step).collect();
    let scales: Vec<f32> = steps.iter().map(|s| s.0).collect();
    if !format.has_minima {
        (sb.scales, sb.unit) = whole(&scales, (MAX_WEIGHT / format.max_code).min(32_767));
        return sb;
    }
    let zero_of = |zero: i16| i32::from(zero) - i32::from(middle);
    // The farthest code from its zero point; minima have 16 bits with a sign.
    let reach = |zero: i16| {
        let (zero, least) = (zero_of(zero), -i32::from(middle));
        (format.max_code - zero).max(zero - least).max(2 * zero.abs()).max(format.max_code)
    };
    let largest = steps.iter().map(|&(scale, zero)| scale.abs() * reach(zero) as f32).fold(0.0, f32::max);
    // `max` drops what is no number.
    let is_finite = scales.iter().all(|s| s.is_finite());
    sb.unit = if is_finite { largest / MOST as f32 } else { f32::NAN };
    if sb.unit > 0.0 {
        for (i, &(scale, zero)) in steps.iter().enumerate() {
            let most = (MAX_WEIGHT / reach(zero)) as f32;
            let scale = (scale / sb.unit).round_ties_even().clamp(-most, most) as i16;
            let minimum = i32::from(scale) * zero_of(zero);
            (sb.scales[i], sb.minima[i]) = (scale, i16::try_from(minimum).expect("twice the zero point is in reach"));
        }
    }
    sb
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bits: u8, group: Option<u32>, zero: ZeroPoint) -> GroupedType {
        GroupedType { book: CodeBook::Int { bits }, group, zero }
    }

    #[test]
    fn tiles_are_hardly_longer_than_the_file() {
        // Bits of a weight in the file: codes, f16 scales and zero points of as many bits as a code.
        for (bits, group, most) in
            [(4, 128, 1.06), (4, 64, 1.08), (4, 32, 1.11), (8, 128, 1.03), (3, 128, 1.1), (2, 128, 1.12)]
        {
            let format = format_of(kind(bits, Some(group), ZeroPoint::PerGroup), 4096).unwrap();
            assert!(format.tile_bytes().is_multiple_of(16), "{}", format.name);
            let file = f64::from(bits) + (16.0 + f64::from(bits)) / f64::from(group);
            let share = format.tile_bytes() as f64 / (TILE_ROWS * SUPERBLOCK / 8) as f64 / file;
            assert!((1.0..most).contains(&share), "{}: {share:.3} of the file", format.name);
        }
    }

    #[test]
    fn each_group_length_has_the_widest_layout_that_it_fills() {
        let name = |kind: GroupedType, cols| format_of(kind, cols).map(|f| f.name);
        let asym = |group| kind(4, Some(group), ZeroPoint::PerGroup);
        let found = [128, 256, 64, 32, 96, 16, 48].map(|group| name(asym(group), 4096));
        assert_eq!(
            found,
            [Some("int4z_128"), Some("int4z_128"), Some("int4z_64"), Some("int4z_32"), Some("int4z_32"), None, None]
        );
        // One group of any length is a whole row.
        assert_eq!(name(asym(48), 48), Some("int4z_128"));
        assert_eq!(name(kind(8, None, ZeroPoint::At(128)), 100), Some("int8_128"));
        assert_eq!(name(kind(4, Some(32), ZeroPoint::At(8)), 4096), Some("q4_0"));
        assert_eq!(name(kind(4, Some(32), ZeroPoint::At(-3)), 4096), None);
        assert_eq!(name(GroupedType { book: CodeBook::Nf4, ..asym(64) }, 4096), None);
    }

    #[test]
    fn weights_are_near_and_zero_is_zero() {
        for (bits, bound) in [(2u8, 2f32.powi(-11)), (3, 2f32.powi(-11)), (4, 2f32.powi(-11)), (8, 2f32.powi(-9))] {
            let format =
                format_of(kind(bits, Some(if bits < 4 { 128 } else { 32 }), ZeroPoint::PerGroup), 4096).unwrap();
            let most = ((1u16 << bits) - 1) as u8;
            for seed in 0..200u32 {
                let random = |i: u32| (seed * 7919 + i).wrapping_mul(0x9e37_79b9) >> 8;
                let codes: Vec<u8> = (0..256).map(|i| (random(i) % (u32::from(most) + 1)) as u8).collect();
                let step = |i: usize| {
                    let zero = random(1000 + i as u32) % (u32::from(most) + 2);
                    ((random(2000 + i as u32) % 2000) as f32 * 1e-5 - 0.01, zero as i16)
                };
                let sb = superblock(format, &codes, step);
                let allowed = (0..256 / format.sub).map(|i| step(i).0.abs()).fold(0.0, f32::max) * f32::from(most);
                for (column, &code) in codes.iter().enumerate() {
                    let (scale, zero) = step(column / format.sub);
                    let code_there = if bits == 8 { i32::from(code) - 128 } else { i32::from(code) };
                    let i = column / format.sub;
                    let whole = i32::from(sb.scales[i]) * code_there - i32::from(sb.minima[i]);
                    let want = scale * (f32::from(code) - f32::from(zero));
                    assert!(whole.abs() <= MAX_WEIGHT && (want != 0.0 || whole == 0), "{bits} bits: {whole}");
                    let off = (sb.unit * whole as f32 - want).abs();
                    assert!(off <= bound * allowed * 1.01, "{bits} bits: off by {off}, {} allowed", bound * allowed);
                }
            }
        }
        let format = format_of(kind(4, Some(32), ZeroPoint::PerGroup), 64).unwrap();
        assert!(superblock(format, &[1; 64], |i| ([1.0, f32::NAN][i], 3)).unit.is_nan());
    }
}
