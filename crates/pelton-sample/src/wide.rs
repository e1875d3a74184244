//! One piece of code, compiled for each set of vectors that a processor may have.
//!
//! Invariant: a wider set of vectors changes no bit. Nothing in the pieces is fused or reassociated (Rust never does that
//! by itself), so only the number of lanes differs.

#![allow(unsafe_code, reason = "functions for instructions that not every machine has are called after a look")]

/// A piece of code.
pub(crate) trait Piece {
    /// What it gives.
    type Out;

    /// Does it. To be `#[inline(always)]`, so that it is compiled into each of the callers below.
    fn run(self) -> Self::Out;
}

/// Runs a piece with the widest vectors that the processor has.
pub(crate) fn widest<P: Piece>(piece: P) -> P::Out {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
        {
            // SAFETY: the machine has the instructions.
            return unsafe { with_avx512(piece) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the instructions.
            return unsafe { with_avx2(piece) };
        }
    }
    piece.run()
}

/// # Safety
/// The machine must have AVX-512 F, VL and DQ.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn with_avx512<P: Piece>(piece: P) -> P::Out {
    piece.run()
}

/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn with_avx2<P: Piece>(piece: P) -> P::Out {
    piece.run()
}
