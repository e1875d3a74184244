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
//!   and restores them with the thread. No function here leaves a value in a tile for the next one: each loads or
//!   zeroes what it reads.
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
