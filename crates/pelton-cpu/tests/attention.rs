//! Attention over contexts of several chunks: the same bits however it is cut, and close to exact attention.

use pelton_backend::{Attention, Backend, BatchBuilder, Heads, KvLayout, KvType, PAGE_LEN, Reference, Rope, Weight};
use pelton_cpu::{Cpu, CpuOptions, Isa};

const NO_ROPE: Rope = Rope { inv_freq: Vec::new(), scale: 1.0 };

fn cpu(isa: Isa, threads: usize) -> Cpu {
    let options = CpuOptions { threads: Some(threads), isa: Some(isa.name().to_string()), ..CpuOptions::default() };
    Cpu::new(options).expect("an instruction set of this machine")
}

/// Instruction sets that promise the same bits.
fn fused() -> Vec<Isa> {
    Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar).collect()
}

/// Seeded numbers, roughly normal.
fn normals(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| (next() + next() + next() + next() - 2.0) * 1.732).collect()
}

#[derive(Clone)]
struct Case {
    heads: Heads,
    dtype: KvType,
    softcap: Option<f32>,
    window: Option<usize>,
    /// `(rows, qkv_dim)` of one sequence.
    qkv: Vec<f32>,
}

impl Case {
    fn new((group, n_kv_heads, head_dim): (usize, usize, usize), dtype: KvType, rows: usize) -> Case {
        let heads = Heads { n_heads: group * n_kv_heads, n_kv_heads, head_dim };
        let qkv = normals(rows * heads.qkv_dim(), (head_dim * 31 + group) as u64);
        Case { heads, dtype, softcap: None, window: None, qkv }
    }

    fn rows(&self) -> usize {
        self.qkv.len() / self.heads.qkv_dim()
    }

    fn pool<B: Backend>(&self, b: &mut B) -> B::Kv {
        let Heads { n_kv_heads, head_dim, .. } = self.heads;
        let n_pages = self.rows().div_ceil(PAGE_LEN);
        b.kv_pool(&KvLayout { n_layers: 1, n_kv_heads, head_dim, n_pages, dtype: self.dtype }).expect("a small pool")
    }

    /// All rows in chunks of the given sizes, the last as often as needed; the answers to the rows from `from` on.
    fn run<B: Backend>(&self, b: &mut B, kv: &mut B::Kv, sizes: &[usize], from: usize) -> Vec<f32> {
        let (heads, width) = (self.heads, self.heads.qkv_dim());
        let n_pages = self.rows().div_ceil(PAGE_LEN);
        let pages: Vec<u32> = (0..n_pages as u32).rev().collect();
        let scale = 1.5 / (heads.head_dim as f32).sqrt();
        let attention = Attention { heads, scale, softcap: self.softcap, window: self.window };
        let (mut done, mut all, mut part) = (0, Vec::new(), Vec::new());
        let mut sizes = sizes.iter().copied();
        let mut size = 0;
        while done < self.rows() {
            size = sizes.next().unwrap_or(size);
            let n = size.min(self.rows() - done);
            let values = &self.qkv[done * width..(done + n) * width];
            let table = Weight::from_f32("values", n, width, values).expect("rows of values");
            let table = b.load_embedding(&table).expect("an f32 table");
            let mut builder = BatchBuilder::new(n_pages);
            builder.push(&(0..n as u32).collect::<Vec<_>>(), done, &pages, 1).expect("pages for all rows");
            let prepared = b.prepare(&builder.finish(), &NO_ROPE);
            let (mut qkv, mut out) = (b.alloc(n, width), b.alloc(n, heads.q_dim()));
            b.embed(&prepared, &table, 1.0, &mut qkv);
            b.rope_store_kv(&mut qkv, &prepared, heads, None, 0, kv);
            b.paged_attention(&qkv, &prepared, &attention, 0, kv, &mut out);
            b.read(&out, &mut part);
            all.extend_from_slice(&part);
            done += n;
        }
        all.split_off(from * heads.q_dim())
    }

    fn fresh<B: Backend>(&self, b: &mut B, sizes: &[usize], from: usize) -> Vec<f32> {
        let mut kv = self.pool(b);
        self.run(b, &mut kv, sizes, from)
    }
}

#[track_caller]
fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len());
    let differs = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()));
    assert!(
        differs.is_none(),
        "{what}: element {:?} of {}: {} and {}",
        differs,
        a.len(),
        a[differs.unwrap()],
        b[differs.unwrap()]
    );
}

fn cases() -> Vec<Case> {
    let shapes = [(7, 1, 64), (1, 2, 80), (3, 1, 96), (8, 1, 128), (2, 1, 256), (5, 1, 20), (6, 1, 64), (4, 1, 32)];
    let windows = [None, Some(300), None, Some(33), None, Some(500), Some(1)];
    let mut cases = Vec::new();
    for (i, shape) in shapes.into_iter().enumerate() {
        for (j, dtype) in KvType::ALL.into_iter().enumerate().skip(i % 2).step_by(2) {
            let case = Case::new(shape, dtype, 560 + 7 * i);
            let softcap = (j % 3 == 1).then_some(15.0);
            cases.push(Case { softcap, window: windows[(i + j) % windows.len()], ..case });
        }
    }
    cases
}

#[test]
fn tiles_and_vectors_of_any_width_and_any_number_of_threads_give_the_same_bits() {
    for case in cases() {
        let what = |isa: Isa| format!("{:?} {:?} window {:?} on {isa}", case.heads, case.dtype, case.window);
        let mut all = fused().into_iter();
        let Some(first) = all.next() else { return };
        let expected = case.fresh(&mut cpu(first, 1), &[1000], 0);
        assert!(expected.iter().all(|v| v.is_finite()));
        for isa in fused() {
            // Split over the sequence where one row has threads to itself; 16 threads make more parts.
            let sizes: &[usize] = &[500, 31, 1];
            for threads in [1, 2, 16] {
                let got = case.fresh(&mut cpu(isa, threads), sizes, 0);
                assert_same_bits(&expected, &got, &what(isa));
            }
        }
    }
}

#[test]
fn rows_alone_and_in_chunks_give_the_same_bits() {
    for isa in Isa::available() {
        for dtype in KvType::ALL {
            let case = Case { window: Some(290), ..Case::new((7, 1, 64), dtype, 540) };
            let mut cpu = cpu(isa, 2);
            let whole = case.fresh(&mut cpu, &[540], 0);
            for sizes in [&[510, 1][..], &[3, 40, 250, 33, 5]] {
                assert_same_bits(&whole, &case.fresh(&mut cpu, sizes, 0), &format!("{dtype:?} on {isa}, {sizes:?}"));
            }
        }
    }
}

#[test]
fn what_a_row_does_not_see_may_be_anything() {
    for isa in Isa::available() {
        for dtype in KvType::ALL {
            let case = Case::new((3, 1, 64), dtype, 100);
            let mut cpu = cpu(isa, 2);
            let clean = case.fresh(&mut cpu, &[100], 0);
            // The pages held another sequence, in which all was NaN.
            let mut kv = case.pool(&mut cpu);
            let poison = Case { qkv: vec![f32::NAN; case.qkv.len()], ..case.clone() };
            assert!(poison.run(&mut cpu, &mut kv, &[100], 0).iter().all(|v| v.is_nan()));
            for sizes in [&[33, 1][..], &[100]] {
                assert_same_bits(&clean, &case.run(&mut cpu, &mut kv, sizes, 0), &format!("{dtype:?} on {isa}"));
            }
            // Row 70 goes wrong, and all that see it; no row before it.
            let mut broken = case.clone();
            let width = case.heads.qkv_dim();
            broken.qkv[70 * width..71 * width].fill(f32::INFINITY);
            let got = broken.fresh(&mut cpu, &[100], 0);
            let (before, after) = got.split_at(70 * case.heads.q_dim());
            assert_same_bits(&clean[..before.len()], before, &format!("before, {dtype:?} on {isa}"));
            assert!(after.iter().all(|v| v.is_nan()), "{dtype:?} on {isa}");
        }
    }
}

/// The largest error over the largest magnitude, against exact attention over what was never rounded.
#[test]
fn each_type_keeps_its_stated_accuracy() {
    let bounds = [1e-6, 1e-3, 6e-3, 2e-2, 4e-2];
    for (dtype, bound) in KvType::ALL.into_iter().zip(bounds) {
        for shape in [(7, 1, 64), (2, 1, 128)] {
            let case = Case::new(shape, dtype, 300);
            let exact = case.fresh(&mut Reference, &[300], 299);
            let size = exact.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for isa in Isa::available() {
                let got = case.fresh(&mut cpu(isa, 1), &[300], 299);
                let error = exact.iter().zip(&got).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / size;
                println!("{dtype:?} {shape:?} {isa}: {error:.1e}");
                assert!(error <= bound, "{dtype:?} {shape:?} on {isa}: {error:e}, at most {bound:e}");
            }
        }
    }
}

/// Tiny and huge numbers: none that the tiles would take as zero and the vectors would not.
#[test]
fn numbers_of_all_sizes_give_the_same_bits() {
    let mut case = Case::new((7, 1, 64), KvType::Bf16, 300);
    for (i, v) in case.qkv.iter_mut().enumerate() {
        *v *= 2f32.powi([0, -40, 3, -60, -20, -126, -140][i % 7]);
    }
    let all: Vec<_> = fused().into_iter().map(|isa| case.fresh(&mut cpu(isa, 1), &[300], 0)).collect();
    all.windows(2).for_each(|pair| assert_same_bits(&pair[0], &pair[1], "all sizes"));
}
