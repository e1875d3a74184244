//! Which kernel reads which format on which instruction set.
//!
//! Invariant: a [`Kernel`] is made only by [`kernels_for`], from an [`Isa`] whose token proves the instructions.

use pelton_backend::Weight;
use pelton_quant::{DType, GroupedType, WeightType};

use super::activations::{BLOCK, UNIT};
use super::blocks::{self, Format, Panels, UNITS, panel_bytes};
use super::codes::{Codes, UnitCodes};
use super::floats::{self, Element};
use super::formats::*;
use super::generic;
use super::gridformats::*;
use super::groupedformats::{
    self, AffineInt4, AffineInt8, E4m3, Int4, Int8, Kind, NormalFloat, SmallFloat, Table, kind_of,
};
use super::lanes::Scalar;
use super::superformats::*;
use super::terms::{self, Halves};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use crate::isa::{Amx, Isa};

/// What a kernel wants of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Quantized blocks.
    Blocks,
    /// Floats.
    Floats,
    /// Terms of bf16.
    Terms,
    /// Quantized rows for products of tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// Terms of bf16 for products of tiles.
    #[cfg(target_arch = "x86_64")]
    TermTiles,
}

/// Runs a task.
pub(super) type Run = unsafe fn(&Panels<'_>, DType);

/// Runs a task of many rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiled {
    from_rows: usize,
    input: Input,
    run: unsafe fn(&Panels<'_>, Amx),
    /// The same for [`Panels::gated`].
    run_gated: unsafe fn(&Panels<'_>, Amx),
    /// How many rows a task should multiply, of so many rows and input features.
    rows_of_task: fn(usize, usize) -> usize,
    /// Whether gates may be multiplied, of so many rows and input features.
    gates: fn(usize, usize) -> bool,
    proof: Amx,
}

/// A kernel and the layout of its panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// Its name in a [`pelton_backend::Placement`].
    pub(super) name: &'static str,
    pub(super) dtype: WeightType,
    input: Input,
    /// Whether its panels hold codes in groups, in the order of the groups' columns, as [`groupedformats::fits`].
    pub(super) in_groups: bool,
    /// Bytes of a panel of `k` input features.
    pub(super) panel_bytes: fn(WeightType, usize) -> usize,
    /// Packs rows `16 i..` of the weight as panel `i`, which is all zero before.
    pub(super) pack: fn(&Weight, usize, &mut [u8]),
    run: Run,
    /// Another way with many rows, from the same panels to the same bits.
    tiled: Option<Tiled>,
}

impl Kernel {
    /// What is summed in which order: kernels of the same recipe give the same bits, on all machines.
    #[cfg(test)]
    pub(super) fn recipe(&self) -> &'static str {
        match self.input {
            _ if self.name == "generic" => "decoded",
            Input::Floats => "float32",
            Input::Terms => "terms",
            _ => "fixed-point",
        }
    }

    /// What it wants of `rows` rows of activations.
    pub(super) fn input_of(&self, rows: usize) -> Input {
        self.tiled(rows).map_or(self.input, |tiled| tiled.input)
    }

    /// Whether `rows` rows take its tiles.
    pub(super) fn is_tiled(&self, rows: usize) -> bool {
        self.tiled(rows).is_some()
    }

    fn tiled(&self, rows: usize) -> Option<&Tiled> {
        self.tiled.as_ref().filter(|tiled| rows >= tiled.from_rows)
    }

    /// How many rows a task should multiply, of `rows` rows of `k` features.
    pub(super) fn rows_of_task(&self, rows: usize, k: usize) -> usize {
        self.tiled(rows).map_or(rows, |tiled| (tiled.rows_of_task)(rows, k))
    }

    /// Whether tasks with [`Panels::gated`] may be run: `rows` rows, `k` input features.
    pub(super) fn gates(&self, rows: usize, k: usize) -> bool {
        self.tiled(rows).is_some_and(|tiled| (tiled.gates)(rows, k))
    }

    /// Runs a task; one with [`Panels::gated`] only where [`Kernel::gates`] says so.
    ///
    /// # Safety
    /// The task's panels were packed by this kernel, its activations are what [`Kernel::input_of`] says, and the task
    /// owns its columns of `out`.
    pub(super) unsafe fn run(&self, task: &Panels<'_>) {
        // SAFETY: the caller's; the instructions exist, since kernels are made from an Isa alone.
        unsafe {
            match self.tiled(task.rows) {
                Some(tiled) if task.gated.is_some() => (tiled.run_gated)(task, tiled.proof),
                Some(tiled) => (tiled.run)(task, tiled.proof),
                // Grouped weights have panels of floats, whose kernel needs no type.
                None => (self.run)(task, self.dtype.blocks().unwrap_or(DType::F32)),
            }
        }
    }
}

/// The kernels for `dtype` that `isa` can run, best first; the last ones are scalar and generic. Those with the same
/// [`Kernel::recipe`] give the same bits.
pub(super) fn kernels_for(dtype: impl Into<WeightType>, isa: Isa) -> Vec<Kernel> {
    let dtype = dtype.into();
    let dtype = match dtype {
        WeightType::Blocks(dtype) => dtype,
        WeightType::Grouped(dtype) => return grouped_kernels(dtype, isa),
    };
    let mut kernels = match dtype {
        DType::F32 => float_kernels::<floats::F32>(dtype, isa),
        DType::F16 => [term_kernels::<terms::F16>(dtype, isa), float_kernels::<floats::F16>(dtype, isa)].concat(),
        DType::BF16 => [term_kernels::<terms::Bf16>(dtype, isa), float_kernels::<floats::Bf16>(dtype, isa)].concat(),
        DType::Q4_0 => block_kernels::<Q4_0>(dtype, isa),
        DType::Q4_1 => block_kernels::<Q4_1>(dtype, isa),
        DType::Q5_0 => block_kernels::<Q5_0>(dtype, isa),
        DType::Q5_1 => block_kernels::<Q5_1>(dtype, isa),
        DType::Q8_0 => block_kernels::<Q8_0>(dtype, isa),
        DType::Q2_K => block_kernels::<Q2K>(dtype, isa),
        DType::Q3_K => block_kernels::<Q3K>(dtype, isa),
        DType::Q4_K => block_kernels::<Q4K>(dtype, isa),
        DType::Q5_K => block_kernels::<Q5K>(dtype, isa),
        DType::Q6_K => block_kernels::<Q6K>(dtype, isa),
        DType::IQ4_NL => block_kernels::<Iq4Nl>(dtype, isa),
        DType::IQ4_XS => block_kernels::<Iq4Xs>(dtype, isa),
        DType::MXFP4 => block_kernels::<Mxfp4>(dtype, isa),
        DType::IQ3_XXS => block_kernels::<Iq3Xxs>(dtype, isa),
        DType::IQ3_S => block_kernels::<Iq3S>(dtype, isa),
        DType::IQ2_XXS => block_kernels::<Iq2Xxs>(dtype, isa),
        DType::IQ2_XS => block_kernels::<Iq2Xs>(dtype, isa),
        DType::IQ2_S => block_kernels::<Iq2S>(dtype, isa),
        DType::IQ1_S => block_kernels::<Iq1S>(dtype, isa),
        DType::IQ1_M => block_kernels::<Iq1M>(dtype, isa),
        DType::TQ1_0 => block_kernels::<Tq1_0>(dtype, isa),
        DType::TQ2_0 => block_kernels::<Tq2_0>(dtype, isa),
        _ => Vec::new(),
    };
    kernels.push(generic_kernel(dtype, isa));
    kernels
}

/// The best of [`kernels_for`] whose panels can hold a weight.
pub(super) fn kernel_for(weight: &Weight, isa: Isa) -> Kernel {
    let holds = |kernel: &Kernel| !kernel.in_groups || groupedformats::fits(weight);
    kernels_for(weight.dtype(), isa).into_iter().find(holds).expect("the last ones hold every weight")
}

/// Kernels of codes in groups, best first; the last ones, of panels of floats, hold weights that have no others.
fn grouped_kernels(dtype: GroupedType, isa: Isa) -> Vec<Kernel> {
    fn of<F: Format>(dtype: GroupedType, isa: Isa) -> Vec<Kernel> {
        let of = |kernel| Kernel { dtype: dtype.into(), pack: groupedformats::pack::<F>, in_groups: true, ..kernel };
        block_kernels::<F>(DType::F32, isa).into_iter().map(of).collect()
    }
    let mut kernels = match kind_of(dtype) {
        Some(Kind::Int4) => of::<Int4>(dtype, isa),
        Some(Kind::AffineInt4) => of::<AffineInt4>(dtype, isa),
        Some(Kind::Int8) => of::<Int8>(dtype, isa),
        Some(Kind::AffineInt8) => of::<AffineInt8>(dtype, isa),
        Some(Kind::Nf4) => of::<Table<NormalFloat>>(dtype, isa),
        Some(Kind::Fp4) => of::<Table<SmallFloat>>(dtype, isa),
        Some(Kind::E4m3) => of::<E4m3>(dtype, isa),
        None => Vec::new(),
    };
    let decoded = |kernel| Kernel { dtype: dtype.into(), pack: pack_decoded, ..kernel };
    kernels.extend(float_kernels::<floats::F32>(DType::F32, isa).into_iter().map(decoded));
    kernels
}

/// The rows of a panel as floats, a feature of all rows after another.
fn pack_decoded(weight: &Weight, panel: usize, out: &mut [u8]) {
    let mut values = vec![0.0; weight.cols()];
    for (lane, row) in (16 * panel..weight.rows().min(16 * panel + 16)).enumerate() {
        weight.decode_row(row, &mut values);
        for (value, out) in values.iter().zip(out.as_chunks_mut::<64>().0) {
            out[4 * lane..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// The candidates of an instruction set, best first: names and entry functions.
fn candidates(isa: Isa, all: &[(&'static str, Run)]) -> Vec<(&'static str, Run)> {
    let wanted: &[&str] = match isa {
        Isa::Scalar => &["scalar"],
        Isa::Avx2(token) if token.has_vnni() => &["avx-vnni", "avx2", "scalar"],
        Isa::Avx2(_) => &["avx2", "scalar"],
        Isa::Avx512(_) | Isa::Amx(_) => &["avx512-vnni", "avx512", "scalar"],
        Isa::Neon(token) if token.has_matrix() => &["i8mm", "neon", "scalar"],
        Isa::Neon(token) if token.has_dot() => &["dotprod", "neon", "scalar"],
        Isa::Neon(_) => &["neon", "scalar"],
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
        #[cfg(target_arch = "aarch64")]
        ("i8mm", neon::blocks_i8mm::<F>),
        #[cfg(target_arch = "aarch64")]
        ("dotprod", neon::blocks_dotprod::<F>),
        #[cfg(target_arch = "aarch64")]
        ("neon", neon::blocks::<F>),
        ("scalar", blocks_scalar::<F>),
    ];
    let of = |(name, run)| Kernel {
        name,
        dtype: dtype.into(),
        input: Input::Blocks,
        panel_bytes: |_, k| panel_bytes::<F>(k),
        pack: pack_blocks::<F>,
        run,
        in_groups: false,
        tiled: None,
    };
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "only tiles are put before them"))]
    let mut kernels: Vec<Kernel> = candidates(isa, &entries).into_iter().map(of).collect();
    #[cfg(target_arch = "x86_64")]
    if let Isa::Amx(proof) = isa {
        let (run, run_gated) = (tiles::run::<F, false>, tiles::run::<F, true>);
        let (rows_of_task, gates) = (tiles::rows_of_task, tiles::gates);
        let tiled =
            Tiled { from_rows: tiles::FROM_ROWS, input: Input::Tiles, run, run_gated, rows_of_task, gates, proof };
        let tiled = Some(tiled);
        kernels.insert(0, Kernel { name: "amx", tiled, ..kernels[0] });
    }
    kernels
}

fn float_kernels<E: Element>(dtype: DType, isa: Isa) -> Vec<Kernel> {
    let entries: [(&'static str, Run); _] = [
        #[cfg(target_arch = "x86_64")]
        ("avx512", x86::floats_avx512::<E>),
        #[cfg(target_arch = "x86_64")]
        ("avx2", x86::floats_avx2::<E>),
        #[cfg(target_arch = "aarch64")]
        ("neon", neon::floats::<E>),
        ("scalar", floats_scalar::<E>),
    ];
    let of = |(name, run)| Kernel {
        name,
        dtype: dtype.into(),
        input: Input::Floats,
        panel_bytes: |_, k| k * 16 * E::BYTES,
        pack: pack_floats::<E>,
        run,
        in_groups: false,
        tiled: None,
    };
    candidates(isa, &entries).into_iter().map(of).collect()
}

/// Kernels that sum products of bf16; on machines where that is much faster than of float32.
fn term_kernels<W: Halves>(dtype: DType, isa: Isa) -> Vec<Kernel> {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Amx(proof) = isa {
        let few = |name, run| Kernel {
            name,
            dtype: dtype.into(),
            input: Input::Terms,
            panel_bytes: |_, k| terms::panel_bytes(k),
            pack: W::pack,
            run,
            in_groups: false,
            tiled: None,
        };
        let (run, run_gated) = (tiles::terms::run::<W, false>, tiles::terms::run::<W, true>);
        let tiled = Some(Tiled {
            from_rows: tiles::terms::FROM_ROWS,
            input: Input::TermTiles,
            run,
            run_gated,
            rows_of_task: tiles::terms::rows_of_task,
            gates: tiles::terms::gates,
            proof,
        });
        let vectors = few("avx512-terms", x86::terms_avx512::<W>);
        return vec![Kernel { name: "amx", tiled, ..vectors }, vectors, few("scalar-terms", terms_scalar::<W>)];
    }
    let _ = (dtype, isa);
    Vec::new()
}

fn generic_kernel(dtype: DType, isa: Isa) -> Kernel {
    let run: Run = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Amx(_) => x86::generic_avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => x86::generic_avx2,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(_) => neon::generic,
        _ => generic_scalar,
    };
    let panel_bytes = |dtype: WeightType, k: usize| {
        let dtype = dtype.blocks().expect("the generic kernel reads blocks");
        16 * (k / dtype.block_len() * dtype.block_bytes())
    };
    let pack = |weight: &Weight, panel: usize, out: &mut [u8]| {
        let rows = 16 * panel..weight.rows().min(16 * panel + 16);
        let bytes = weight.row_range(rows);
        out[..bytes.len()].copy_from_slice(bytes);
    };
    Kernel {
        name: "generic",
        dtype: dtype.into(),
        input: Input::Floats,
        panel_bytes,
        pack,
        run,
        in_groups: false,
        tiled: None,
    }
}

/// Packs the rows of a panel from blocks of the file.
fn pack_blocks<F: Format>(weight: &Weight, panel: usize, out: &mut [u8]) {
    let rows = 16 * panel..weight.rows().min(16 * panel + 16);
    fill_panel::<F>(weight.row_range(rows), weight.row_bytes(), out);
}

/// Superblock after superblock of the panel: takes that of each of its at most 16 rows of `file` apart, then puts their
/// codes side by side.
pub(super) fn fill_panel<F: Format>(file: &[u8], row_bytes: usize, out: &mut [u8]) {
    let n_rows = file.len() / row_bytes;
    let file_bytes = const { BLOCK / F::FILE_LEN * F::FILE_BYTES };
    // Rows past the last one stay zero.
    let mut codes: [UnitCodes; UNITS] = [[[0; UNIT]; 16]; UNITS];
    for (i, out) in out.chunks_mut(F::BYTES).enumerate() {
        let from = i * file_bytes;
        let to = row_bytes.min(from + file_bytes);
        for row in 0..n_rows {
            F::put(&file[row * row_bytes + from..row * row_bytes + to], row, &mut codes, out);
        }
        for (codes, out) in codes.iter().zip(out[F::HEAD..].chunks_exact_mut(F::UNIT)) {
            F::Codes::put(codes, out);
        }
    }
}

/// Elements of a row that are put side by side before the next rows': their part of the panel stays in cache.
const FLOAT_RUN: usize = 256;

/// In runs of [`FLOAT_RUN`] elements, two rows and two elements at a time where there are two.
pub(super) fn pack_floats<E: Element>(weight: &Weight, panel: usize, out: &mut [u8]) {
    let (row_bytes, rows) = (weight.row_bytes(), 16 * panel..weight.rows().min(16 * panel + 16));
    let (n_rows, file) = (rows.len().min(16), weight.row_range(rows));
    for (i, out) in out.chunks_mut(16 * E::BYTES * FLOAT_RUN).enumerate() {
        let len = out.len() / 16;
        let run = |row: usize| &file[row * row_bytes + i * FLOAT_RUN * E::BYTES..][..len];
        for row in (0..n_rows).step_by(2) {
            let pairs = if row + 1 < n_rows { put_pairs::<E>(run(row), run(row + 1), row, out) } else { 0 };
            for row in row..n_rows.min(row + 2) {
                let left = run(row).chunks_exact(E::BYTES).zip(out.chunks_exact_mut(16 * E::BYTES)).skip(pairs);
                for (element, out) in left {
                    out[row * E::BYTES..][..E::BYTES].copy_from_slice(element);
                }
            }
        }
    }
}

/// Puts the elements of rows `row` and `row + 1`, as many as there are pairs of; says how many.
#[inline(always)]
fn put_pairs<E: Element>(a: &[u8], b: &[u8], row: usize, out: &mut [u8]) -> usize {
    let out = out.chunks_exact_mut(2 * 16 * E::BYTES);
    match E::BYTES {
        2 => {
            for ((a, b), out) in a.as_chunks::<4>().0.iter().zip(b.as_chunks::<4>().0).zip(out) {
                let (a, b) = (u32::from_le_bytes(*a), u32::from_le_bytes(*b));
                out[2 * row..][..4].copy_from_slice(&(a & 0xffff | b << 16).to_le_bytes());
                out[32 + 2 * row..][..4].copy_from_slice(&(a >> 16 | b & 0xffff_0000).to_le_bytes());
            }
            a.len() / 4 * 2
        }
        4 => {
            for ((a, b), out) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).zip(out) {
                let (a, b) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b));
                out[4 * row..][..8].copy_from_slice(&(a & 0xffff_ffff | b << 32).to_le_bytes());
                out[64 + 4 * row..][..8].copy_from_slice(&(a >> 32 | b & !0xffff_ffff).to_le_bytes());
            }
            a.len() / 8 * 2
        }
        _ => 0,
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
unsafe fn floats_scalar<E: Element>(task: &Panels<'_>, _: DType) {
    // SAFETY: the caller's.
    unsafe { floats::run::<E, Scalar>(task) }
}

/// # Safety
/// As [`Kernel::run`].
#[cfg(target_arch = "x86_64")]
unsafe fn terms_scalar<W: Halves>(task: &Panels<'_>, _: DType) {
    // SAFETY: the caller's.
    unsafe { terms::run::<W, Scalar>(task) }
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
    pub(super) unsafe fn terms_avx512<W: Halves>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { terms::run::<W, Zmm>(task) }
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

/// The same for 64-bit Arm.
#[cfg(target_arch = "aarch64")]
mod neon {
    use super::super::lanes_arm::{Dot, Matrix, Quad, Widening};
    use super::*;

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "neon,dotprod,i8mm")]
    pub(super) unsafe fn blocks_i8mm<F: Format>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { blocks::run::<F, Quad<Matrix>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`], on a machine with these instructions.
    #[target_feature(enable = "neon,dotprod")]
    pub(super) unsafe fn blocks_dotprod<F: Format>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's.
        unsafe { blocks::run::<F, Quad<Dot>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`].
    pub(super) unsafe fn blocks<F: Format>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's; NEON is part of the architecture.
        unsafe { blocks::run::<F, Quad<Widening>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`].
    pub(super) unsafe fn floats<E: Element>(task: &Panels<'_>, _: DType) {
        // SAFETY: the caller's; NEON is part of the architecture.
        unsafe { floats::run::<E, Quad<Widening>>(task) }
    }

    /// # Safety
    /// As [`Kernel::run`].
    pub(super) unsafe fn generic(task: &Panels<'_>, dtype: DType) {
        // SAFETY: the caller's; NEON is part of the architecture.
        unsafe { generic::run::<Quad<Widening>>(task, dtype) }
    }
}
