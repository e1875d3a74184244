//! Kernels that are wrong on purpose, and what the certificate says of them.

use std::borrow::Borrow;
use std::path::Path;

use pelton_backend::{Batch, Gate, HeadNorms, Moe};
use pelton_cpu::{Cpu, CpuOptions};

use super::*;
use crate::{Llm, ModelRef};

/// A mistake in one op.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// One output of every product is off by 5 % of the largest.
    OneOutput,
    /// Products of more than 16 rows swap their last two rows.
    ManyRows,
    /// Weights of the last matrix row are packed wrong.
    LastOutput,
    /// Attention leaves the last token out.
    Attention,
    /// Keys are not rotated.
    Rope,
    /// A result is not a number.
    NotANumber,
}

/// The CPU backend with a mistake.
struct Faulty {
    cpu: Cpu,
    fault: Fault,
}

impl Faulty {
    fn new(fault: Fault) -> Faulty {
        let options = CpuOptions { threads: Some(1), batch_threads: None, isa: None };
        Faulty { cpu: Cpu::new(options).unwrap(), fault }
    }
}

impl Backend for Faulty {
    type Tensor = <Cpu as Backend>::Tensor;
    type Vector = <Cpu as Backend>::Vector;
    type Linear = <Cpu as Backend>::Linear;
    type Embedding = <Cpu as Backend>::Embedding;
    type Kv = <Cpu as Backend>::Kv;
    type Prepared = (<Cpu as Backend>::Prepared, <Cpu as Backend>::Prepared);

    fn describe(&self) -> String {
        "a faulty processor".into()
    }
    fn load_linear(&mut self, spec: &LinearSpec) -> Result<Self::Linear, BackendError> {
        self.cpu.load_linear(spec)
    }
    fn placement(&self, linear: &Self::Linear) -> Vec<Placement> {
        self.cpu.placement(linear)
    }
    fn load_embedding(&mut self, table: &Weight) -> Result<Self::Embedding, BackendError> {
        self.cpu.load_embedding(table)
    }
    fn load_vector(&mut self, values: &[f32]) -> Self::Vector {
        self.cpu.load_vector(values)
    }
    fn kv_pool(&mut self, layout: &KvLayout) -> Result<Self::Kv, BackendError> {
        self.cpu.kv_pool(layout)
    }
    fn copy_page(&mut self, kv: &mut Self::Kv, from: u32, to: u32) {
        self.cpu.copy_page(kv, from, to);
    }
    fn page_bytes(&self, kv: &Self::Kv) -> usize {
        self.cpu.page_bytes(kv)
    }
    fn read_page(&mut self, kv: &Self::Kv, page: u32, out: &mut Vec<u8>) {
        self.cpu.read_page(kv, page, out);
    }
    fn write_page(&mut self, kv: &mut Self::Kv, page: u32, bytes: &[u8]) {
        self.cpu.write_page(kv, page, bytes);
    }
    fn alloc(&mut self, rows: usize, cols: usize) -> Self::Tensor {
        self.cpu.alloc(rows, cols)
    }
    fn set_rows(&mut self, tensor: &mut Self::Tensor, rows: usize) {
        self.cpu.set_rows(tensor, rows);
    }
    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> Self::Prepared {
        // The batch, and the same with every token seen one position earlier.
        let mut earlier = BatchBuilder::new(64);
        for span in &batch.spans {
            let pages = batch.page_table(span);
            earlier.push(&batch.ids[span.row..span.row + span.len], span.cached_len.max(1) - 1, pages, 0).unwrap();
        }
        (self.cpu.prepare(batch, rope), self.cpu.prepare(&earlier.finish(), rope))
    }
    fn embed(&mut self, batch: &Self::Prepared, table: &Self::Embedding, scale: f32, out: &mut Self::Tensor) {
        self.cpu.embed(&batch.0, table, scale, out);
    }
    fn rms_norm(&mut self, x: &Self::Tensor, weight: &Self::Vector, eps: f32, out: &mut Self::Tensor) {
        self.cpu.rms_norm(x, weight, eps, out);
    }
    fn add(&mut self, x: &mut Self::Tensor, y: &Self::Tensor) {
        self.cpu.add(x, y);
    }
    fn linear(&mut self, x: &Self::Tensor, linear: &Self::Linear, out: &mut Self::Tensor) {
        self.cpu.linear(x, linear, out);
        let width: usize = linear.out_features();
        let mut values = download(&mut self.cpu, out);
        let rows = values.len() / width;
        let most = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        match self.fault {
            Fault::OneOutput => values[0] += 0.05 * most,
            Fault::ManyRows if rows > 16 => values[(rows - 2) * width..].rotate_left(width),
            Fault::LastOutput => values.chunks_exact_mut(width).for_each(|row| row[width - 1] = row[width - 2]),
            Fault::NotANumber => values[width / 2] = f32::NAN,
            _ => return,
        }
        *out = upload(&mut self.cpu, rows, width, &values).unwrap();
    }
    fn rope_store_kv(
        &mut self,
        qkv: &mut Self::Tensor,
        batch: &Self::Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Self::Vector>>,
        layer: usize,
        kv: &mut Self::Kv,
    ) {
        if self.fault == Fault::Rope {
            // Rotated once by hand at position 0 of a batch of its own: not at all.
            let unrotated = download(&mut self.cpu, qkv);
            self.cpu.rope_store_kv(qkv, &batch.0, heads, norms, layer, kv);
            *qkv = upload(&mut self.cpu, unrotated.len() / heads.qkv_dim(), heads.qkv_dim(), &unrotated).unwrap();
            return;
        }
        self.cpu.rope_store_kv(qkv, &batch.0, heads, norms, layer, kv);
    }
    fn paged_attention(
        &mut self,
        qkv: &Self::Tensor,
        batch: &Self::Prepared,
        attention: &Attention,
        layer: usize,
        kv: &Self::Kv,
        out: &mut Self::Tensor,
    ) {
        let batch = if self.fault == Fault::Attention { &batch.1 } else { &batch.0 };
        self.cpu.paged_attention(qkv, batch, attention, layer, kv, out);
    }
    fn gate(&mut self, x: &Self::Tensor, gate: Gate, out: &mut Self::Tensor) {
        self.cpu.gate(x, gate, out);
    }
    fn moe<L: Borrow<Self::Linear>>(&mut self, x: &Self::Tensor, moe: &Moe<L>, out: &mut Self::Tensor) {
        self.cpu.moe(x, moe, out);
    }
    fn gather_logit_rows(&mut self, x: &Self::Tensor, batch: &Self::Prepared, out: &mut Self::Tensor) {
        self.cpu.gather_logit_rows(x, &batch.0, out);
    }
    fn softcap(&mut self, x: &mut Self::Tensor, cap: f32) {
        self.cpu.softcap(x, cap);
    }
    fn read(&mut self, x: &Self::Tensor, out: &mut Vec<f32>) {
        self.cpu.read(x, out);
    }
    fn write(&mut self, x: &mut Self::Tensor, values: &[f32]) {
        self.cpu.write(x, values);
    }
}

fn certify(model: &Model, kv_type: KvType, fault: Fault) -> Result<Certificate, Error> {
    let mut backend = Faulty::new(fault);
    let options = Options { kv_type, ..Options::default() };
    let (decoder, probing) = load(&mut backend, model, &options, 128, &mut |_| ())?;
    probing.finish(&mut backend, &decoder, &model.files.config)
}

fn embedded() -> Model {
    Model::open(&ModelRef::Embedded, None).unwrap()
}

fn fixture(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    Model::open(&ModelRef::Path(path), None).unwrap()
}

#[test]
fn sound_kernels_pass_on_every_model_and_kv_type() {
    let fixtures = ["gemma2", "llama3-rope", "mistral-window", "phi3", "qwen2-tied", "qwen3-moe", "qwen3-yarn"];
    for model in fixtures.map(fixture).iter().chain([&embedded()]) {
        for kv_type in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8, KvType::Fp8] {
            let certificate = certify(model, kv_type, Fault::None).unwrap();
            assert!(certificate.probes.len() >= 2, "{certificate:?}");
            for probe in &certificate.probes {
                // Nine rows of a router of eight experts are all there is.
                let least = if probe.what.ends_with("ffn_gate_inp.weight") { 72 } else { 101 };
                assert!(probe.error <= probe.allowed && probe.allowed < 0.25 && probe.compared >= least, "{probe:?}");
            }
            let lines = certificate.lines();
            assert!(lines[lines.len() - 2].contains(kv_type.name()), "{lines:?}");
        }
    }
}

#[test]
fn a_wrong_kernel_is_named_and_no_answer_is_given() {
    let (embedded, float) = (embedded(), fixture("qwen3"));
    for fault in [Fault::OneOutput, Fault::ManyRows, Fault::LastOutput, Fault::NotANumber] {
        for model in [&embedded, &float] {
            let error = certify(model, KvType::Bf16, fault).expect_err(&format!("{fault:?}")).to_string();
            assert!(error.contains("blk.0.attn_"), "{fault:?}: {error}");
            assert!(error.contains("kernel") && error.contains("allowed"), "{error}");
        }
    }
    for fault in [Fault::Attention, Fault::Rope] {
        for kv_type in KvType::ALL {
            let error = certify(&float, kv_type, fault).expect_err(&format!("{fault:?}")).to_string();
            let names = error.contains("a faulty processor") && error.contains(kv_type.name());
            assert!(names && error.contains("attention"), "{fault:?}: {error}");
        }
    }
}

#[test]
fn a_loaded_model_says_what_was_certified() {
    let model = embedded();
    let llm = Llm::load(&model, &Options { threads: Some(1), ..Options::default() }, &mut |_| ()).unwrap();
    let lines = llm.report().certificate.lines();
    assert!(lines[0].starts_with("certified: Q8_0 "), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("KV bf16")), "{lines:?}");
    let options = Options { backend: BackendChoice::Reference, ..Options::default() };
    let llm = Llm::load(&model, &options, &mut |_| ()).unwrap();
    assert!(llm.report().certificate.probes.is_empty(), "the reference is the truth");
}
