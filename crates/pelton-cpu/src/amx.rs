//! Advanced Matrix Extensions: tiles of 16 rows of 64 bytes and the products of tiles.
//!
//! The one place with `asm!`: stable Rust has neither the intrinsics nor the target feature. Source: Intel 64 and
//! IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2 for the instructions.
//!
//! What each block of assembly relies on, and why it holds:
//!
//! - *The instructions exist and the system lets this process use them*: [`crate::isa::Amx`] proves it.
//! - *The tiles are configured*: functions that use them take [`Tiles`], which lives on one thread (it is neither
//!   `Send` nor `Sync`) from its `ldtilecfg` to its `tilerelease`.
//! - *Nobody else uses tile registers meanwhile*: compiled Rust and C code never does of itself, and the system saves
//!   and restores them with the thread. Only [`product_step`] leaves values in tiles for the next function, and says so;
//!   each other one loads or zeroes what it reads.
//! - *Memory*: tiles read and write exactly the rows that their shape names, `stride` bytes apart, which every
//!   function states as its safety condition.
//!
//! Invariant: integer products are exact, so they equal those of any other instruction set.

use std::arch::asm;
use std::marker::PhantomData;

use crate::isa::Amx;

/// Rows of the largest tile.
pub(crate) const TILE_ROWS: usize = 16;

/// The shapes of the 8 tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
pub(crate) struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileShapes {
    /// `shapes[i]` is the shape of tile register `i`: rows (1 to 16), bytes of a row (4 to 64, whole dwords).
    pub(crate) const fn new(shapes: [(u8, u16); 8]) -> TileShapes {
        let mut all = TileShapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            let (rows, bytes) = shapes[i];
            assert!(rows >= 1 && rows as usize <= TILE_ROWS && bytes >= 4 && bytes <= 64 && bytes.is_multiple_of(4));
            (all.rows[i], all.row_bytes[i]) = (rows, bytes);
            i += 1;
        }
        all
    }
}

/// Configured tile registers of this thread; released on drop.
pub(crate) struct Tiles {
    /// Tiles belong to a thread.
    _not_send: PhantomData<*mut ()>,
}

impl Tiles {
    /// Configures the tile registers of this thread, which must not be configured already.
    #[inline(always)]
    pub(crate) fn new(_: Amx, shapes: &'static TileShapes) -> Tiles {
        // SAFETY: the token proves AMX; `shapes` is a valid configuration (its constructor saw to it) of 64 bytes.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) shapes, options(nostack, readonly, preserves_flags)) }
        Tiles { _not_send: PhantomData }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: tiles were configured, so AMX exists.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// All registers as full tiles: 16 rows of 64 bytes.
pub(crate) static FULL_TILES: TileShapes = TileShapes::new([(16, 64); 8]);

/// A loop of products of tiles and nothing else, to measure the processor's ceiling: each round is four products with
/// an accumulator each, of two tiles by two. `$product` names the instruction.
macro_rules! spin {
    ($name:ident, $product:literal) => {
        #[doc = concat!("Four `", $product, "` a round; `rounds` is at least 1.")]
        #[inline(never)]
        pub(crate) fn $name(_: &Tiles, rounds: u64) {
            assert!(rounds > 0);
            // SAFETY: the tiles are configured, all registers alike, so their shapes fit; they are zeroed before they
            // are read, and no memory is touched.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                    "2:",
                    concat!($product, " tmm0, tmm4, tmm6"),
                    concat!($product, " tmm1, tmm4, tmm7"),
                    concat!($product, " tmm2, tmm5, tmm6"),
                    concat!($product, " tmm3, tmm5, tmm7"),
                    "dec {rounds}",
                    "jnz 2b",
                    rounds = inout(reg) rounds => _,
                    options(nostack, nomem),
                )
            }
        }
    };
}

spin!(spin_int8, "tdpbssd");
spin!(spin_bf16, "tdpbf16ps");

/// Bytes of a whole tile.
pub(crate) const WHOLE_TILE: usize = 1024;

/// Steps of 64 features of a superblock's products.
pub(crate) const STEPS: usize = 4;

/// One step of a superblock's products of bytes: of a tile of 16 rows of 64 features, which are signed, with two panels of
/// 16 output features, each of two planes: a signed one and an unsigned one. `acc[p][q] (16, 16) = (or +=) a (16, 64) ·
/// b[p][q]`, where the `first` step begins new sums; they stay in the tile registers 0 to 3 until [`store_products`].
///
/// A core works on several steps at once and fills the time between with what other instructions it finds there: so
/// callers put vector work between steps (measured on Sapphire Rapids: some 60 operations a step cost nothing, as many
/// behind the last step cost their full time).
///
/// # Safety
/// `a` points to a whole tile, each `b[p]` to two; `tiles` are [`FULL_TILES`], and between the first step and
/// [`store_products`] nothing else uses them.
#[inline(always)]
pub(crate) unsafe fn product_step(_tiles: &Tiles, a: *const i8, b: [*const i8; 2], first: bool) {
    // SAFETY: see the module; the tiles that are read are the caller's promise.
    unsafe {
        if first {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        asm!(
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloadd tmm5, [{b0} + {row}*1]",
            "tdpbssd tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{b0} + {row}*1 + 1024]",
            "tdpbsud tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {row}*1]",
            "tdpbssd tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{b1} + {row}*1 + 1024]",
            "tdpbsud tmm3, tmm4, tmm5",
            a = in(reg) a, b0 = in(reg) b[0], b1 = in(reg) b[1], row = in(reg) 64usize,
            options(nostack, readonly, preserves_flags),
        )
    }
}

/// Stores the sums of steps: `out[p][q] (16, 16)`.
///
/// # Safety
/// `out` points to 4 × 256 writable i32; `tiles` are [`FULL_TILES`] after steps.
#[inline(always)]
pub(crate) unsafe fn store_products(_tiles: &Tiles, out: *mut i32) {
    // SAFETY: see the module; the rows that are written are the caller's promise.
    unsafe {
        asm!(
            "tilestored [{out} + {row}*1], tmm0",
            "tilestored [{out} + {row}*1 + 1024], tmm1",
            "tilestored [{out} + {row}*1 + 2048], tmm2",
            "tilestored [{out} + {row}*1 + 3072], tmm3",
            out = in(reg) out, row = in(reg) 64usize,
            options(nostack, preserves_flags),
        )
    }
}

/// Shapes for [`pair_products`] of 1 to 16 rows: registers 0 to 4 have those rows, the others are whole.
pub(crate) static PAIR_SHAPES: [TileShapes; TILE_ROWS] = {
    let mut all = [const { TileShapes::new([(16, 64); 8]) }; TILE_ROWS];
    let mut rows = 1;
    while rows < TILE_ROWS {
        let n = rows as u8;
        all[rows - 1] = TileShapes::new([(n, 64), (n, 64), (n, 64), (n, 64), (n, 64), (16, 64), (16, 64), (16, 64)]);
        rows += 1;
    }
    all
};

/// A bf16 tile of weights: 16 pairs of rows, 16 columns.
pub(crate) type PairTile = [half::bf16; 512];

/// `out[m][16 c..][..16] = sum over k of a[m][32 k..][..32] · b[k][c]` for 4 columns of tiles, in the order of k.
///
/// For each element of a product of tiles the processor runs one chain of fused multiply-adds over the first numbers of
/// the pairs and one over the second, each from zero, adds the two, and adds that to the accumulator; rounding to
/// nearest even, denormal numbers taken as zero (pseudo-code of `TDPBF16PS`; `attention/paired.rs` holds it to that).
///
/// # Safety
/// `tiles` are `PAIR_SHAPES[n - 1]` for n rows, which `a` has `a_stride` bytes apart, `64 b.len()` bytes each, and
/// `out` `out_stride` bytes apart, 64 writable f32 each.
#[inline(always)]
pub(crate) unsafe fn pair_products(
    _tiles: &Tiles,
    (a, a_stride): (*const half::bf16, usize),
    b: &[[&PairTile; 4]],
    (out, out_stride): (*mut f32, usize),
) {
    assert!(!b.is_empty());
    // SAFETY: see the module; `b` is a table of pointers to whole tiles; the rest is the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            "mov {tile}, [{b}]",
            "tileloadd tmm5, [{tile} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "mov {tile}, [{b} + 8]",
            "tileloadd tmm6, [{tile} + {row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "mov {tile}, [{b} + 16]",
            "tileloadd tmm7, [{tile} + {row}*1]",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "mov {tile}, [{b} + 24]",
            "tileloadd tmm5, [{tile} + {row}*1]",
            "tdpbf16ps tmm3, tmm4, tmm5",
            "add {a}, 64",
            "add {b}, 32",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {out_stride}*1], tmm0",
            "tilestored [{out} + {out_stride}*1 + 64], tmm1",
            "tilestored [{out} + {out_stride}*1 + 128], tmm2",
            "tilestored [{out} + {out_stride}*1 + 192], tmm3",
            a = inout(reg) a => _, a_stride = in(reg) a_stride,
            b = inout(reg) b.as_ptr() => _, steps = inout(reg) b.len() => _,
            out = in(reg) out, out_stride = in(reg) out_stride,
            tile = out(reg) _, row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }
}

/// [`pair_products`] for 32 rows and 2 columns of tiles: each tile is loaded once for two tiles of rows.
///
/// # Safety
/// `tiles` are `PAIR_SHAPES[15]`; `a` has 32 rows `a_stride` bytes apart, `64 b.len()` bytes each, and `out` has 32 rows
/// `out_stride` bytes apart, 32 writable f32 each.
#[inline(always)]
pub(crate) unsafe fn pair_products_32(
    _tiles: &Tiles,
    (a, a_stride): (*const half::bf16, usize),
    b: &[[&PairTile; 2]],
    (out, out_stride): (*mut f32, usize),
) {
    assert!(!b.is_empty());
    // SAFETY: see the module; `b` is a table of pointers to whole tiles; the rest is the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            "mov {tile}, [{b}]",
            "tileloadd tmm6, [{tile} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a2} + {a_stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "mov {tile}, [{b} + 8]",
            "tileloadd tmm7, [{tile} + {row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {a2}, 64",
            "add {b}, 16",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {out_stride}*1], tmm0",
            "tilestored [{out} + {out_stride}*1 + 64], tmm1",
            "tilestored [{out2} + {out_stride}*1], tmm2",
            "tilestored [{out2} + {out_stride}*1 + 64], tmm3",
            a = inout(reg) a => _, a2 = inout(reg) a.byte_add(16 * a_stride) => _, a_stride = in(reg) a_stride,
            b = inout(reg) b.as_ptr() => _, steps = inout(reg) b.len() => _,
            out = in(reg) out, out2 = in(reg) out.byte_add(16 * out_stride), out_stride = in(reg) out_stride,
            tile = out(reg) _, row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }
}

/// Products of terms of bf16: a tile of rows with 4 panels of 16 output features, of activations of two terms, `steps` groups
/// of 32 features on. For panel `p`, `sums[p] (16, 16)` is (or, but for the `first`, grows by), group by group:
/// `a[g][0] · b[p][g][0] + a[g][1] · b[p][g][0]`, and with two `TERMS` of weights
/// `+ a[g][0] · b[p][g][1] + a[g][1] · b[p][g][1]`; each in the order of [`pair_products`].
///
/// # Safety
/// `a` points to `steps` times 2 whole tiles, each `b[p]` to `steps` times `TERMS`, `sums` to 4 × 256 f32; `steps` is not 0;
/// `tiles` are [`FULL_TILES`].
#[inline(always)]
pub(crate) unsafe fn term_products<const TERMS: usize>(
    _tiles: &Tiles,
    a: *const half::bf16,
    b: [*const half::bf16; 4],
    sums: *mut f32,
    (steps, first): (usize, bool),
) {
    const { assert!(TERMS == 1 || TERMS == 2) };
    // One panel: its tile of weights for two products. Tile registers 6 and 7 take the weights in turn.
    macro_rules! one {
        ($sum:literal, $b:literal, $tile:literal) => {
            concat!(
                "tileloadd ",
                $tile,
                ", [",
                $b,
                " + {row}*1]\n",
                "tdpbf16ps ",
                $sum,
                ", tmm4, ",
                $tile,
                "\n",
                "tdpbf16ps ",
                $sum,
                ", tmm5, ",
                $tile,
                "\n",
            )
        };
    }
    macro_rules! two {
        ($sum:literal, $b:literal) => {
            concat!(
                one!($sum, $b, "tmm6"),
                "tileloadd tmm7, [",
                $b,
                " + {row}*1 + 1024]\n",
                "tdpbf16ps ",
                $sum,
                ", tmm4, tmm7\n",
                "tdpbf16ps ",
                $sum,
                ", tmm5, tmm7\n",
            )
        };
    }
    macro_rules! all {
        ($($step:expr),*) => {
            asm!(
                "test {first:l}, {first:l}",
                "jz 3f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 2f",
                "3:",
                "tileloadd tmm0, [{sums} + {row}*1]",
                "tileloadd tmm1, [{sums} + {row}*1 + 1024]",
                "tileloadd tmm2, [{sums} + {row}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {row}*1 + 3072]",
                "2:",
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm5, [{a} + {row}*1 + 1024]",
                $($step,)*
                "add {a}, 2048",
                "add {b0}, {b_step}",
                "add {b1}, {b_step}",
                "add {b2}, {b_step}",
                "add {b3}, {b_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {row}*1], tmm0",
                "tilestored [{sums} + {row}*1 + 1024], tmm1",
                "tilestored [{sums} + {row}*1 + 2048], tmm2",
                "tilestored [{sums} + {row}*1 + 3072], tmm3",
                first = in(reg) usize::from(first),
                a = inout(reg) a => _, steps = inout(reg) steps => _, sums = in(reg) sums,
                b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
                b2 = inout(reg) b[2] => _, b3 = inout(reg) b[3] => _,
                b_step = const 1024 * TERMS, row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: see the module; the rows that tiles of these shapes read and write are the caller's promise.
    unsafe {
        if TERMS == 1 {
            all!(
                one!("tmm0", "{b0}", "tmm6"),
                one!("tmm1", "{b1}", "tmm7"),
                one!("tmm2", "{b2}", "tmm6"),
                one!("tmm3", "{b3}", "tmm7")
            )
        } else {
            all!(two!("tmm0", "{b0}"), two!("tmm1", "{b1}"), two!("tmm2", "{b2}"), two!("tmm3", "{b3}"))
        }
    }
}
