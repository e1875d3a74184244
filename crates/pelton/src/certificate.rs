//! The numerics certificate: what was chosen to compute a model is probed on the model's own weights before any answer.
//!
//! Each pair of kernel and storage type multiplies a few seeded rows by the first matrix that it packed, as packed, and
//! some of the outputs are held against the definition: weights decoded one by one, sums in float64. Attention is probed
//! with the model's head sizes and the KV type that was chosen. The rule is that of the conformance suite
//! ([`pelton_backend::conformance`]): an error may be a few times that of a plain implementation in the same precision.
//!
//! Invariants: drift is an error that names the kernel, never a worse answer; the cost does not grow with the model (what
//! is probed is bounded in size and number).

use std::time::{Duration, Instant};

use pelton_backend::conformance::Yardstick;
use pelton_backend::{
    Attention, Backend, BackendError, BatchBuilder, Heads, KvLayout, KvType, LinearSpec, PAGE_LEN, Part, Place,
    Placement, Reference, Rope, Weight,
};
use pelton_formats::ModelConfig;
use pelton_model::{Decoder, LoadProgress};

use crate::{BackendChoice, Error, Model, Options};

/// How often the plain implementation's error is allowed: twice, as the conformance suite has it, and once more for
/// weights less even than that suite's.
const FACTOR: f64 = 3.0;
/// Times the largest result, allowed besides: sums in f32 are off by so much where nothing is rounded on purpose.
const FLOOR: f64 = 2e-5;
/// Rows of a product: one as in decoding, a few, and enough for the kernels of long prompts.
const ROWS: [usize; 3] = [1, 6, 40];
/// Those of them that are looked at.
const LOOKED_AT: [usize; 5] = [0, 3, 5, 20, 39];
/// Outputs of a matrix that are looked at: its first, some in the middle, its last; so many each.
const OUTPUTS: usize = 16;
/// Weights of the largest layer that is probed as it was packed; of larger ones, a few rows are packed apart.
const MOST_WEIGHTS: usize = 32 << 20;
/// Rows of such a part.
const ROWS_APART: usize = 64;
/// Tokens of the probe of attention: a prompt, then single tokens.
const TOKENS: [usize; 3] = [40, 1, 1];

/// One kernel on one type, and how far it was from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// What was computed: a storage type of weights, or a KV type.
    pub dtype: String,
    /// The kernel.
    pub kernel: String,
    /// The tensor, or `attention`.
    pub what: String,
    /// Results that were compared.
    pub compared: usize,
    /// The largest error, as a share of the largest result.
    pub error: f64,
    /// The error that would still have been allowed.
    pub allowed: f64,
}

/// What was probed when a model was loaded. Holding one means that everything passed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Certificate {
    /// In the order of loading.
    pub probes: Vec<Probe>,
    /// What it took.
    pub time: Duration,
}

impl Certificate {
    /// A line for each probe and one for all, for people.
    pub fn lines(&self) -> Vec<String> {
        let line = |p: &Probe| {
            let (error, allowed) = (p.error * 100.0, p.allowed * 100.0);
            format!("certified: {} {} max error {error:.3} % of {allowed:.3} % allowed ({})", p.dtype, p.kernel, p.what)
        };
        let (n, ms) = (self.probes.len(), self.time.as_secs_f64() * 1e3);
        let all = (n > 0).then(|| format!("certified: {n} kernels and types in {ms:.0} ms"));
        self.probes.iter().map(line).chain(all).collect()
    }
}

/// A certificate that is not complete yet.
pub(crate) struct Probing {
    /// The reference itself is not probed.
    is_needed: bool,
    kv_type: KvType,
    certificate: Certificate,
    /// Parts of layers too large to be probed as they are.
    large: Vec<(Weight, Place, Placement)>,
}

/// Loads a model's weights and probes every kernel that they are packed for.
///
/// # Errors
/// As [`pelton_model::load`]; and [`BackendError::Drift`], which names the kernel.
pub(crate) fn load<B: Backend>(
    backend: &mut B,
    model: &Model,
    options: &Options,
    context: usize,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(Decoder<B>, Probing), Error> {
    let is_needed = options.backend != BackendChoice::Reference;
    let (kv_type, certificate) = (options.kv_type, Certificate::default());
    let mut probing = Probing { is_needed, kv_type, certificate, large: Vec::new() };
    let (config, tensors) = (&model.files.config, &model.files.tensors);
    let mut check = |backend: &mut B, place: Place, spec: &LinearSpec, linear: &B::Linear| {
        probing.layer(backend, place, spec, linear)
    };
    let decoder = pelton_model::load_checked(backend, config, tensors, context, progress, &mut check)?;
    Ok((decoder, probing))
}

impl Probing {
    /// Probes the parts of a layer whose kernel and type were not probed before.
    fn layer<B: Backend>(
        &mut self,
        backend: &mut B,
        place: Place,
        spec: &LinearSpec,
        linear: &B::Linear,
    ) -> Result<(), BackendError> {
        if !self.is_needed {
            return Ok(());
        }
        let start = Instant::now();
        let placements = backend.placement(linear);
        let is_large = spec.in_features().saturating_mul(spec.out_features()) > MOST_WEIGHTS;
        // All parts of the layer that the kernel is first met in: a mistake may sit at one end of it.
        let is_new: Vec<bool> = placements.iter().map(|p| !self.has(p)).collect();
        let mut first = 0;
        for ((part, placement), is_new) in spec.parts.iter().zip(placements).zip(is_new) {
            if is_new && is_large {
                self.large.push((part.clone(), place, placement));
            } else if is_new {
                let probe = probe_part(backend, spec, linear, (part, first), &placement)?;
                if !self.has(&placement) {
                    self.certificate.probes.push(probe);
                }
            }
            first += part.rows();
        }
        self.certificate.time += start.elapsed();
        Ok(())
    }

    fn has(&self, placement: &Placement) -> bool {
        let is_it = |p: &Probe| p.kernel == placement.kernel && p.dtype == placement.dtype.to_string();
        self.certificate.probes.iter().any(is_it)
    }

    /// Probes what is left once everything is packed: some rows of the matrices that were too large, and attention.
    ///
    /// # Errors
    /// [`BackendError::Drift`].
    pub(crate) fn finish<B: Backend>(
        mut self,
        backend: &mut B,
        decoder: &Decoder<B>,
        config: &ModelConfig,
    ) -> Result<Certificate, Error> {
        if !self.is_needed {
            return Ok(self.certificate);
        }
        let start = Instant::now();
        for (part, place, placement) in std::mem::take(&mut self.large) {
            if !self.has(&placement) {
                backend.load_for(place);
                self.certificate.probes.push(probe_apart(backend, &part, &placement)?);
            }
        }
        for part in backend.parts(config.n_layers) {
            self.certificate.probes.push(probe_attention(backend, &part, config, decoder.rope(), self.kv_type)?);
        }
        self.certificate.time += start.elapsed();
        Ok(self.certificate)
    }
}

/// Probes the beginning of a large matrix, packed once more on its own.
fn probe_apart<B: Backend>(backend: &mut B, part: &Weight, placement: &Placement) -> Result<Probe, BackendError> {
    let rows = part.rows().min(ROWS_APART);
    let part = part.part(0..rows);
    let spec = LinearSpec::new(part.name(), vec![part.clone()], Vec::new())?;
    let linear = backend.load_linear(&spec)?;
    probe_part(backend, &spec, &linear, (&part, 0), placement)
}

/// Multiplies seeded rows by a layer and compares outputs of one of its parts, whose columns begin at `first`.
fn probe_part<B: Backend>(
    backend: &mut B,
    spec: &LinearSpec,
    linear: &B::Linear,
    (part, first): (&Weight, usize),
    placement: &Placement,
) -> Result<Probe, BackendError> {
    let (cols, width) = (spec.in_features(), spec.out_features());
    let mut random = Random(0x5EED);
    let x: Vec<f32> = random.normals(ROWS[2] * cols);
    let outputs = sampled(part.rows());
    let seen: Vec<&[f32]> = LOOKED_AT.iter().map(|r| &x[r * cols..(r + 1) * cols]).collect();
    let (truth, plain) = exact(part, &outputs, &seen, &spec.bias, first);
    let mut worst = Worst::default();
    for rows in ROWS {
        let input = upload(backend, rows, cols, &x[..rows * cols])?;
        let mut out = backend.alloc(rows, width);
        backend.linear(&input, linear, &mut out);
        let got = download(backend, &out);
        for (nth, &r) in LOOKED_AT.iter().enumerate().filter(|(_, r)| **r < rows) {
            for (i, &o) in outputs.iter().enumerate() {
                let at = nth * outputs.len() + i;
                worst.add(f64::from(got[r * width + first + o]), truth[at], plain[at]);
            }
        }
    }
    worst.judge(&placement.dtype.to_string(), placement.kernel, part.name())
}

/// Rows of a matrix that are looked at.
fn sampled(rows: usize) -> Vec<usize> {
    let middle = rows / 2;
    let mut all: Vec<usize> = (0..rows.min(OUTPUTS)).collect();
    all.extend(middle..rows.min(middle + OUTPUTS));
    all.extend(rows.saturating_sub(OUTPUTS)..rows);
    all.sort_unstable();
    all.dedup();
    all
}

/// The products of each row of `x` and each of `outputs`, `(rows, outputs)`: by the definition, and with the rounding that
/// a kernel may do (activations to int8 per 256 values, where weights are not plain floats).
fn exact(part: &Weight, outputs: &[usize], x: &[&[f32]], bias: &[f32], first: usize) -> (Vec<f64>, Vec<f64>) {
    let rounds = !part.dtype().is_float();
    let rounded: Vec<Vec<f32>> = x.iter().map(|row| if rounds { round(row) } else { row.to_vec() }).collect();
    let (mut truth, mut plain) = (vec![0.0; x.len() * outputs.len()], vec![0.0; x.len() * outputs.len()]);
    let mut weights = vec![0.0; part.cols()];
    for (i, &o) in outputs.iter().enumerate() {
        part.decode_row(o, &mut weights);
        let bias = bias.get(first + o).map_or(0.0, |&b| f64::from(b));
        for (r, (row, rounded)) in x.iter().zip(&rounded).enumerate() {
            truth[r * outputs.len() + i] = dot(row, &weights) + bias;
            plain[r * outputs.len() + i] = dot(rounded, &weights) + bias;
        }
    }
    (truth, plain)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// A row of activations as the kernels of quantized weights see it.
fn round(row: &[f32]) -> Vec<f32> {
    let block = |block: &[f32]| {
        let d = block.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
        block.iter().map(|v| if d > 0.0 { (v / d).round_ties_even() * d } else { 0.0 }).collect::<Vec<f32>>()
    };
    row.chunks(256).flat_map(block).collect()
}

/// Attention of a part of the backend with the model's head sizes, over a prompt of a few pages and single tokens after it.
fn probe_attention<B: Backend>(
    backend: &mut B,
    part: &Part,
    config: &ModelConfig,
    rope: &Rope,
    kv_type: KvType,
) -> Result<Probe, Error> {
    // Every KV head is like any other: two of them will do.
    let n_kv_heads = config.n_kv_heads.clamp(1, 2);
    let n_heads = config.n_heads / config.n_kv_heads.max(1) * n_kv_heads;
    let heads = Heads { n_heads, n_kv_heads, head_dim: config.head_dim };
    let window = config.sliding_window.iter().flatten().next().map(|&w| w.clamp(1, 24));
    let mut worst = Worst::default();
    for window in [None, window].into_iter().take(1 + usize::from(window.is_some())) {
        let attention = Attention { heads, scale: config.attn_scale, softcap: config.attn_softcap, window };
        let layers = (part.first_layer, config.n_layers);
        let probe = AttentionProbe { attention, rope, kv_type, layers };
        let (got, truth) = (probe.run(backend)?, probe.run(&mut Reference)?);
        let plain = probe.run(&mut Yardstick::default())?;
        got.iter().zip(truth).zip(plain).for_each(|((&got, truth), plain)| {
            worst.add(f64::from(got), f64::from(truth), f64::from(plain));
        });
    }
    Ok(worst.judge(&format!("KV {}", kv_type.name()), &part.describe, "attention")?)
}

struct AttentionProbe<'a> {
    attention: Attention,
    rope: &'a Rope,
    kv_type: KvType,
    /// The layer that is probed, and how many the model has.
    layers: (usize, usize),
}

impl AttentionProbe<'_> {
    /// The answers of all tokens, `(tokens, q_dim)`.
    fn run<B: Backend>(&self, b: &mut B) -> Result<Vec<f32>, BackendError> {
        let heads = self.attention.heads;
        let n_tokens: usize = TOKENS.iter().sum();
        let n_pages = n_tokens.div_ceil(PAGE_LEN);
        let Heads { n_kv_heads, head_dim, .. } = heads;
        let (layer, n_layers) = self.layers;
        let layout = KvLayout { n_layers, n_kv_heads, head_dim, n_pages, dtype: self.kv_type };
        let mut kv = b.kv_pool(&layout)?;
        // Pages in another order than positions.
        let pages: Vec<u32> = (0..n_pages as u32).rev().collect();
        let (mut random, mut answers, mut cached) = (Random(0xA77E), Vec::new(), 0);
        for rows in TOKENS {
            let values = random.normals(rows * heads.qkv_dim());
            let mut qkv = upload(b, rows, heads.qkv_dim(), &values)?;
            let mut batch = BatchBuilder::new(n_pages);
            batch.push(&vec![0; rows], cached, &pages, 0)?;
            let prepared = b.prepare(&batch.finish(), self.rope);
            b.rope_store_kv(&mut qkv, &prepared, heads, None, layer, &mut kv);
            let mut out = b.alloc(rows, heads.q_dim());
            b.paged_attention(&qkv, &prepared, &self.attention, layer, &kv, &mut out);
            answers.extend(download(b, &out));
            cached += rows;
        }
        Ok(answers)
    }
}

/// The largest error so far, that of the plain implementation, and the largest result.
#[derive(Default)]
struct Worst {
    error: f64,
    plain: f64,
    size: f64,
    compared: usize,
}

impl Worst {
    fn add(&mut self, got: f64, truth: f64, plain: f64) {
        // Weights that are no numbers are the file's fault, not the kernel's.
        if !truth.is_finite() {
            return;
        }
        let error = (got - truth).abs();
        // What is not a number is infinitely far from any.
        self.error = self.error.max(if error.is_nan() { f64::INFINITY } else { error });
        self.plain = self.plain.max((plain - truth).abs());
        self.size = self.size.max(truth.abs());
        self.compared += 1;
    }

    /// The probe, or the drift that it found.
    fn judge(self, dtype: &str, kernel: &str, what: &str) -> Result<Probe, BackendError> {
        let share = |error: f64| if self.size > 0.0 { error / self.size } else { error };
        let (error, allowed) = (share(self.error), share(FACTOR * self.plain + FLOOR * self.size));
        if error > allowed {
            let problem = format!(
                "an error of {:.3} % of the largest of {} results, {:.3} % is allowed",
                error * 100.0,
                self.compared,
                allowed * 100.0
            );
            let what = format!("{what} ({dtype})");
            return Err(BackendError::Drift { kernel: kernel.into(), what, problem });
        }
        let (dtype, kernel, what) = (dtype.into(), kernel.into(), what.into());
        Ok(Probe { dtype, kernel, what, compared: self.compared, error, allowed })
    }
}

/// Brings `(rows, cols)` values onto the backend: as rows of an embedding table, the one op that takes host values.
fn upload<B: Backend>(b: &mut B, rows: usize, cols: usize, values: &[f32]) -> Result<B::Tensor, BackendError> {
    let table = b.load_embedding(&Weight::from_f32("probe", rows, cols, values)?)?;
    let ids: Vec<u32> = (0..rows as u32).collect();
    let n_pages = rows.div_ceil(PAGE_LEN);
    let mut batch = BatchBuilder::new(n_pages);
    batch.push(&ids, 0, &(0..n_pages as u32).collect::<Vec<u32>>(), 0)?;
    let prepared = b.prepare(&batch.finish(), &Rope { inv_freq: Vec::new(), scale: 1.0 });
    let mut out = b.alloc(rows, cols);
    b.embed(&prepared, &table, 1.0, &mut out);
    Ok(out)
}

fn download<B: Backend>(b: &mut B, tensor: &B::Tensor) -> Vec<f32> {
    let mut out = Vec::new();
    b.read(tensor, &mut out);
    out
}

/// Seeded numbers (SplitMix64), roughly normal.
struct Random(u64);

impl Random {
    /// Mean 0, deviation 1: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let sum: f32 = (0..4).map(|i| ((z >> (16 * i)) & 0xffff) as f32 / 65536.0).sum();
        (sum - 2.0) * 1.732
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

#[cfg(test)]
mod tests;
