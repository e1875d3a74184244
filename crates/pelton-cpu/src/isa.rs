//! What the machine's processor can do.
//!
//! Invariant: a token ([`Avx2`], [`Avx512`], [`Amx`], [`Neon`]) exists only where its instructions were detected, so whoever holds one
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

/// Proof of AMX tiles with int8 and bf16 products, granted to this process by the system; implies [`Avx512`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Amx(Avx512);

impl Amx {
    /// The token, where the machine has AMX-TILE, AMX-INT8 and AMX-BF16, all that [`Avx512`] asks, and a system
    /// (Linux 5.16 or later) that grants the tile registers. The grant holds for all threads of the process.
    pub fn new() -> Option<Amx> {
        let avx512 = Avx512::new()?;
        (amx::exists() && amx::is_granted()).then_some(Amx(avx512))
    }

    /// The proof that it implies.
    pub fn avx512(self) -> Avx512 {
        self.0
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::x86_64::__cpuid_count;
    use std::sync::LazyLock;

    /// Whether the processor has AMX-BF16, AMX-TILE and AMX-INT8: CPUID leaf 7, EDX bits 22, 24 and 25.
    pub(super) fn exists() -> bool {
        const ALL: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        __cpuid_count(7, 0).edx & ALL == ALL
    }

    /// Asks the system for the tile registers, once.
    pub(super) fn is_granted() -> bool {
        static GRANTED: LazyLock<bool> = LazyLock::new(|| {
            const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
            const XFEATURE_XTILEDATA: libc::c_long = 18;
            // SAFETY: this request takes two numbers and touches no memory of ours; where it is unknown it fails.
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
        });
        *GRANTED
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod amx {
    pub(super) fn exists() -> bool {
        false
    }

    pub(super) fn is_granted() -> bool {
        false
    }
}

/// Proof of NEON, which all 64-bit Arm processors have, and of the products of bytes that a processor has beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Neon(ByteProducts);

/// Products of bytes, weakest first; each processor with the later ones has those before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ByteProducts {
    /// Multiplications that widen.
    Widening,
    /// FEAT_DotProd: `sdot`.
    Dot,
    /// FEAT_I8MM: `usdot`, `smmla` and `usmmla`.
    Matrix,
}

impl Neon {
    /// The token of the best that the machine has; `None` where it is no 64-bit Arm.
    pub fn new() -> Option<Neon> {
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            let dot = is_aarch64_feature_detected!("dotprod");
            let products = match dot && is_aarch64_feature_detected!("i8mm") {
                true => ByteProducts::Matrix,
                false if dot => ByteProducts::Dot,
                false => ByteProducts::Widening,
            };
            Some(Neon(products))
        }
        #[cfg(not(target_arch = "aarch64"))]
        None
    }

    /// Those that the machine has, weakest first.
    fn available() -> Vec<Neon> {
        let all = [ByteProducts::Widening, ByteProducts::Dot, ByteProducts::Matrix];
        Neon::new().map_or(Vec::new(), |best| all.into_iter().filter(|p| *p <= best.0).map(Neon).collect())
    }

    /// Whether `sdot` is there and may be used.
    pub fn has_dot(self) -> bool {
        self.0 >= ByteProducts::Dot
    }

    /// Whether `usdot`, `smmla` and `usmmla` are there and may be used; `sdot` is too.
    pub fn has_matrix(self) -> bool {
        self.0 >= ByteProducts::Matrix
    }

    /// `neon`, `dotprod` or `i8mm`.
    pub fn name(self) -> &'static str {
        match self.0 {
            ByteProducts::Widening => "neon",
            ByteProducts::Dot => "dotprod",
            ByteProducts::Matrix => "i8mm",
        }
    }
}

impl fmt::Debug for Neon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Neon({})", self.name())
    }
}

impl fmt::Debug for Amx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Amx")
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

/// An instruction set that kernels are written for, those of an architecture weakest first. Each runs all kernels of the
/// ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: every machine.
    Scalar,
    /// 256-bit vectors.
    Avx2(Avx2),
    /// 512-bit vectors with integer dot products.
    Avx512(Avx512),
    /// 512-bit vectors, and tiles for many rows.
    Amx(Amx),
    /// 128-bit vectors of 64-bit Arm, with the products of bytes that the token tells.
    Neon(Neon),
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
        if let Some(token) = Amx::new() {
            return Isa::Amx(token);
        }
        if let Some(token) = Avx512::new() {
            return Isa::Avx512(token);
        }
        if let Some(token) = Neon::new() {
            return Isa::Neon(token);
        }
        Avx2::new().map_or(Isa::Scalar, Isa::Avx2)
    }

    /// All that this machine has, weakest first.
    pub fn available() -> Vec<Isa> {
        let better = [Avx2::new().map(Isa::Avx2), Avx512::new().map(Isa::Avx512), Amx::new().map(Isa::Amx)];
        let neon = Neon::available().into_iter().map(Isa::Neon);
        std::iter::once(Isa::Scalar).chain(better.into_iter().flatten()).chain(neon).collect()
    }

    /// The instruction set called `name` (`scalar`; `avx2`, `avx512`, `amx`; `neon`, `dotprod`, `i8mm`), so that nothing
    /// better is used.
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
            Isa::Amx(_) => "amx",
            Isa::Neon(token) => token.name(),
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
