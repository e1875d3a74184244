//! What the machine's processor can do.
//!
//! Invariant: a token ([`Avx2`], [`Avx512`]) exists only where its instructions were detected, so whoever holds one
//! may call the functions compiled for it. Kernels are chosen by [`Isa`], which carries the token.

use std::fmt;

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the machine has AVX2, FMA and F16C.
    pub fn new() -> Option<Avx2> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Some(Avx2(()));
        }
        None
    }

    /// Whether the VEX-coded VNNI instructions (AVX-VNNI) are there too.
    pub fn has_vnni(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("avxvnni");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Proof of AVX-512 F, BW, DQ, VL and VNNI; implies [`Avx2`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    /// The token, where the machine has AVX-512 F, BW, DQ, VL and VNNI, and all that [`Avx2`] asks.
    pub fn new() -> Option<Avx512> {
        Avx2::new()?;
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
        {
            return Some(Avx512(()));
        }
        None
    }
}

impl fmt::Debug for Avx2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Avx2")
    }
}

impl fmt::Debug for Avx512 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Avx512")
    }
}

/// An instruction set that kernels are written for, weakest first. Each runs all kernels of the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: every machine.
    Scalar,
    /// 256-bit vectors.
    Avx2(Avx2),
    /// 512-bit vectors with integer dot products.
    Avx512(Avx512),
}

/// A forced instruction set that is unknown or absent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction set {asked:?} is not available; this machine has {}", .available.join(", "))]
pub struct IsaError {
    /// What was asked for.
    pub asked: String,
    /// Names that would work here.
    pub available: Vec<&'static str>,
}

impl Isa {
    /// The best that this machine has.
    pub fn detect() -> Isa {
        if let Some(token) = Avx512::new() {
            return Isa::Avx512(token);
        }
        Avx2::new().map_or(Isa::Scalar, Isa::Avx2)
    }

    /// All that this machine has, weakest first.
    pub fn available() -> Vec<Isa> {
        [Some(Isa::Scalar), Avx2::new().map(Isa::Avx2), Avx512::new().map(Isa::Avx512)].into_iter().flatten().collect()
    }

    /// The instruction set called `name` (`scalar`, `avx2`, `avx512`), so that nothing better is used.
    ///
    /// # Errors
    /// [`IsaError`] where the name is unknown or the machine lacks it; names what would work.
    pub fn best_at_most(name: &str) -> Result<Isa, IsaError> {
        let available = Isa::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| IsaError {
            asked: name.to_string(),
            available: available.iter().map(|isa| isa.name()).collect(),
        })
    }

    /// The name that options and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2(_) => "avx2",
            Isa::Avx512(_) => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_can_be_forced_and_the_best_is_last() {
        let all = Isa::available();
        assert_eq!(all[0], Isa::Scalar);
        assert_eq!(all.last(), Some(&Isa::detect()));
        for isa in all {
            assert_eq!(Isa::best_at_most(isa.name()), Ok(isa));
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_what_works() {
        let error = Isa::best_at_most("sse9").unwrap_err();
        assert_eq!(error.asked, "sse9");
        assert!(error.to_string().contains("scalar"), "{error}");
    }
}
