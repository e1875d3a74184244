//! Which kernel reads which format on which instruction set.
//!
//! Invariant: a [`Kernel`] is made only by [`kernels_for`], from an [`Isa`] whose token proves the instructions.

use pelton_backend::Weight;
use pelton_quant::DType;

use super::blocks::{self, Format, Packed, Panels};
use super::floats::{self, Element};
use super::formats::*;
use super::generic;
use super::lanes::Scalar;
use super::superblocks::{self, SuperFormat};
use super::superformats::*;
use crate::isa::Isa;

/// What a kernel wants of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Quantized blocks of 32.
    Blocks,
    /// Quantized blocks of 256.
    Supers,
    /// Floats.
    Floats,
}

/// Runs a task.
pub(super) type Run = unsafe fn(&Panels<'_>, DType);

/// A kernel and the layout of its panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// Its name in a [`pelton_backend::Placement`].
    pub(super) name: &'static str,
    pub(super) dtype: DType,
    pub(super) input: Input,
    /// Bytes of a panel of `k` input features.
    pub(super) panel_bytes: fn(DType, usize) -> usize,
    /// Packs rows `16 i..` of the weight as panel `i`, which is all zero before.
    pub(super) pack: fn(&Weight, usize, &mut [u8]),
    run: Run,
}

impl Kernel {
    /// Runs a task.
    ///
    /// # Safety
    /// The task's panels were packed by this kernel, its activations are what `input` says, for `rows` rows, and the
    /// task owns its columns of `out`.
    pub(super) unsafe fn run(&self, task: &Panels<'_>) {
        // SAFETY: the caller's; the instructions exist, since kernels are made from an Isa alone.
        unsafe { (self.run)(task, self.dtype) }
    }
}

/// The kernels for `dtype` that `isa` can run, best first; the last ones are scalar and generic. Each of the first
/// (but the generic one) gives the same bits.
pub(super) fn kernels_for(dtype: DType, isa: Isa) -> Vec<Kernel> {
    let mut kernels = match dtype {
        DType::F32 => float_kernels::<floats::F32>(dtype, isa),
        DType::F16 => float_kernels::<floats::F16>(dtype, isa),
        DType::BF16 => float_kernels::<floats::Bf16>(dtype, isa),
        DType::Q4_0 => block_kernels::<Q4_0>(dtype, isa),
        DType::Q4_1 => block_kernels::<Q4_1>(dtype, isa),
        DType::Q5_0 => block_kernels::<Q5_0>(dtype, isa),
        DType::Q5_1 => block_kernels::<Q5_1>(dtype, isa),
        DType::Q8_0 => block_kernels::<Q8_0>(dtype, isa),
        DType::Q2_K => super_kernels::<Q2K>(dtype, isa),
        DType::Q3_K => super_kernels::<Q3K>(dtype, isa),
        DType::Q4_K => super_kernels::<Q4K>(dtype, isa),
        DType::Q5_K => super_kernels::<Q5K>(dtype, isa),
        DType::Q6_K => super_kernels::<Q6K>(dtype, isa),
        DType::IQ4_NL => block_kernels::<Iq4Nl>(dtype, isa),
        DType::IQ4_XS => super_kernels::<Iq4Xs>(dtype, isa),
        DType::MXFP4 => block_kernels::<Mxfp4>(dtype, isa),
        _ => Vec::new(),
    };
    kernels.push(generic_kernel(dtype, isa));
    kernels
}

/// The candidates of an instruction set, best first: names and entry functions.
fn candidates(isa: Isa, all: &[(&'static str, Run)]) -> Vec<(&'static str, Run)> {
    let wanted: &[&str] = match isa {
        Isa::Scalar => &["scalar"],
        Isa::Avx2(token) if token.has_vnni() => &["avx-vnni", "avx2", "scalar"],
        Isa::Avx2(_) => &["avx2", "scalar"],
        Isa::Avx512(_) | Isa::Amx(_) => &["avx512-vnni", "avx512", "scalar"],
    };
    wanted.iter().filter_map(|name| all.iter().find(|entry| entry.0 == *name).copied()).collect()
}

fn block_kernels<F: Format>(dtype: DType, isa: Isa) -> Vec<Kernel> {
    let entries: [(&'static str, Run); _] = [
        #[cfg(target_arch = "x86_64")]
        ("avx512-vnni", x86::blocks_avx512::<F>),
        #[cfg(target_arch = "x86_64")]
        ("avx-vnni", x86::blocks_avx_vnni::<F>),
        #[cfg(target_arch = "x86_64")]
        ("avx2", x86::blocks_avx2::<F>),
        ("scalar", blocks_scalar::<F>),
    ];
    let of = |(name, run)| Kernel {
        name,
        dtype,
        input: Input::Blocks,
        panel_bytes: |dtype, k| k / dtype.block_len() * F::PANEL_BYTES,
        pack: pack_blocks::<F>,
        run,
    };
    candidates(isa, &entries).into_iter().map(of).collect()
}

fn super_kernels<F: SuperFormat>(dtype: DType, isa: Isa) -> Vec<Kernel> {
    let entries: [(&'static str, Run); _] = [
        #[cfg(target_arch = "x86_64")]
        ("avx512-vnni", x86::supers_avx512::<F>),
        #[cfg(target_arch = "x86_64")]
        ("avx-vnni", x86::supers_avx_vnni::<F>),
        #[cfg(target_arch = "x86_64")]
        ("avx2", x86::supers_avx2::<F>),
        ("scalar", supers_scalar::<F>),
    ];
    let of = |(name, run)| Kernel {
        name,
        dtype,
        input: Input::Supers,
        panel_bytes: |dtype, k| k / dtype.block_len() * F::PANEL_BYTES,
        pack: pack_blocks::<F>,
        run,
    };
    candidates(isa, &entries).into_iter().map(of).collect()
}

fn float_kernels<E: Element>(dtype: DType, isa: Isa) -> Vec<Kernel> {
    let entries: [(&'static str, Run); _] = [
        #[cfg(target_arch = "x86_64")]
        ("avx512", x86::floats_avx512::<E>),
        #[cfg(target_arch = "x86_64")]
        ("avx2", x86::floats_avx2::<E>),
        ("scalar", floats_scalar::<E>),
    ];
    let of = |(name, run)| Kernel {
        name,
        dtype,
        input: Input::Floats,
        panel_bytes: |_, k| k * 16 * E::BYTES,
        pack: pack_floats::<E>,
        run,
    };
    candidates(isa, &entries).into_iter().map(of).collect()
}

fn generic_kernel(dtype: DType, isa: Isa) -> Kernel {
    let run: Run = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Amx(_) => x86::generic_avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => x86::generic_avx2,
        _ => generic_scalar,
    };
    let panel_bytes = |dtype: DType, k: usize| 16 * (k / dtype.block_len() * dtype.block_bytes());
    let pack = |weight: &Weight, panel: usize, out: &mut [u8]| {
        let rows = 16 * panel..weight.rows().min(16 * panel + 16);
        let bytes = weight.row_range(rows);
        out[..bytes.len()].copy_from_slice(bytes);
    };
    Kernel { name: "generic", dtype, input: Input::Floats, panel_bytes, pack, run }
}

/// The rows of panel `i`, with their place in it.
fn rows_of(weight: &Weight, i: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let rows = 16 * i..weight.rows().min(16 * i + 16);
    weight.row_range(rows).chunks_exact(weight.row_bytes()).enumerate()
}

fn pack_blocks<F: Packed>(weight: &Weight, panel: usize, out: &mut [u8]) {
    for (row, file) in rows_of(weight, panel) {
        for (file, out) in file.chunks_exact(F::FILE_BYTES).zip(out.chunks_exact_mut(F::PANEL_BYTES)) {
            F::put(file, row, out);
        }
    }
}

fn pack_floats<E: Element>(weight: &Weight, panel: usize, out: &mut [u8]) {
    for (row, file) in rows_of(weight, panel) {
        for (file, out) in file.chunks_exact(E::BYTES).zip(out.chunks_exact_mut(16 * E::BYTES)) {
            out[row * E::BYTES..][..E::BYTES].copy_from_slice(file);
        }
    }
}

/// # Safety
/// As [`Kernel::run`].
unsafe fn blocks_scalar<F: Format>(task: &Panels<'_>, _: DType) {
    // SAFETY: the caller's.
    unsafe { blocks::run::<F, Scalar>(task) }
}

/// # Safety
/// As [`Kernel::run`].
unsafe fn supers_scalar<F: SuperFormat>(task: &Panels<'_>, _: DType) {
    // SAFETY: the caller's.
    unsafe { superblocks::run::<F, Scalar>(task) }
}

/// # Safety
/// As [`Kernel::run`].
unsafe fn floats_scalar<E: Element>(task: &Panels<'_>, _: DType) {
    // SAFETY: the caller's.
    unsafe { floats::run::<E, Scalar>(task) }
}

/// # Safety
/// As [`Kernel::run`].
unsafe fn generic_scalar(task: &Panels<'_>, dtype: DType) {
    // SAFETY: the caller's.
    unsafe { generic::run::<Scalar>(task, dtype) }
}

/// Entry functions: here the generic kernels become code of an instruction set.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::lanes_x86::{Maddubs, VexVnni, Ymm, Zmm};
    use super::*;

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn blocks_avx512<F: Format>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { blocks::run::<F, Zmm>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
    pub(super) unsafe fn blocks_avx_vnni<F: Format>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { blocks::run::<F, Ymm<VexVnni>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn blocks_avx2<F: Format>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { blocks::run::<F, Ymm<Maddubs>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn supers_avx512<F: SuperFormat>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { superblocks::run::<F, Zmm>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
    pub(super) unsafe fn supers_avx_vnni<F: SuperFormat>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { superblocks::run::<F, Ymm<VexVnni>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn supers_avx2<F: SuperFormat>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { superblocks::run::<F, Ymm<Maddubs>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn floats_avx512<E: Element>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { floats::run::<E, Zmm>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn floats_avx2<E: Element>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { floats::run::<E, Ymm<Maddubs>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn generic_avx512(task: &Panels<'_>, dtype: DType) {
        // SAFETY: the caller's.
        unsafe { generic::run::<Zmm>(task, dtype) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn generic_avx2(task: &Panels<'_>, dtype: DType) {
        // SAFETY: the caller's.
        unsafe { generic::run::<Ymm<Maddubs>>(task, dtype) }
    }
}
