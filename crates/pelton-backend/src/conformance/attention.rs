//! Cases of `rope_store_kv`, `paged_attention` and `copy_page`: several sequences over several steps.

use std::fmt;

use super::{Output, Random, download, upload};
use crate::{Attention, Backend, Batch, BatchBuilder, HeadNorms, Heads, KvLayout, KvType, PAGE_LEN, Rope};

/// Layers of the pool; the last is used, the first holds other numbers.
const N_LAYERS: usize = 2;

/// Sequences that grow together, step by step.
#[derive(Clone)]
pub(super) struct AttentionCase {
    pub heads: Heads,
    pub dtype: KvType,
    /// Rotated elements of a head.
    pub rope_dim: usize,
    pub norms: bool,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
    /// For each step the rows of each sequence in it; 0 where a sequence is not in the step.
    pub steps: Vec<Vec<usize>>,
    /// Move every sequence to other pages before the last step.
    pub copy: bool,
    pub seed: u64,
}

impl fmt::Display for AttentionCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        write!(f, "heads {n_heads}/{n_kv_heads} x {head_dim}, rope {}, kv {}", self.rope_dim, self.dtype.name())?;
        let AttentionCase { norms, softcap, window, copy, steps, .. } = self;
        write!(f, ", norms {norms}, softcap {softcap:?}, window {window:?}, copy {copy}, steps {steps:?}")
    }
}

pub(super) fn cases() -> Vec<AttentionCase> {
    let head_dims = [8, 16, 20, 32, 64, 80, 96, 128, 256];
    let groups = [(1, 2), (2, 2), (3, 1), (7, 2), (6, 1), (9, 1)];
    let contexts = [1, 31, 32, 33, 64, 65, 130];
    let windows = [None, Some(1), None, Some(5), Some(32), None, Some(48)];
    let dtypes = [KvType::Bf16, KvType::F16, KvType::Int8, KvType::Bf16, KvType::F32, KvType::Fp8, KvType::Bf16];
    let mut cases = Vec::new();
    // The lists' lengths share no factor with each other or their period is longer than the loop: every pair of
    // neighbours in two lists meets somewhere.
    for i in 0..36 {
        let (group, n_kv_heads) = groups[i % groups.len()];
        let head_dim = head_dims[(i / 2) % head_dims.len()];
        let context = contexts[i % contexts.len()];
        // One sequence whole and then one row more; another that starts later, in two pieces.
        let steps = vec![vec![context, 0], vec![1, 3], vec![2, 40], vec![1, 1]];
        cases.push(AttentionCase {
            heads: Heads { n_heads: group * n_kv_heads, n_kv_heads, head_dim },
            dtype: dtypes[(i / 3) % dtypes.len()],
            rope_dim: if i % 4 == 3 { head_dim / 2 } else { head_dim },
            norms: i % 3 == 1,
            softcap: (i % 5 == 2).then_some(20.0),
            window: windows[(i / 2) % windows.len()],
            steps,
            copy: i % 2 == 0,
            seed: 2000 + i as u64,
        });
    }
    // Long contexts, and more query heads on one KV head than any tile has rows.
    let long = AttentionCase { steps: vec![vec![299, 7], vec![1, 1], vec![5, 1]], window: None, ..cases[1].clone() };
    let heads = Heads { n_heads: 70, n_kv_heads: 1, head_dim: 16 };
    let many = AttentionCase { heads, rope_dim: 16, steps: vec![vec![33], vec![2]], ..cases[0].clone() };
    cases.extend([long, many]);
    cases
}

/// A pool, and the sequences' pages and lengths, over the steps of a case.
pub(super) struct Sequences<'a, B: Backend> {
    case: &'a AttentionCase,
    kv: B::Kv,
    /// Page table of each sequence, in no order.
    tables: Vec<Vec<u32>>,
    /// Other pages to move to.
    spare: Vec<Vec<u32>>,
    cached: Vec<usize>,
    n_pages: usize,
    rope: Rope,
    norms: Option<(B::Vector, B::Vector)>,
}

impl<'a, B: Backend> Sequences<'a, B> {
    pub(super) fn new(b: &mut B, case: &'a AttentionCase) -> Sequences<'a, B> {
        let mut random = Random(case.seed);
        let n_seqs = case.steps[0].len();
        let longest = |s: usize| case.steps.iter().map(|step| step[s]).sum::<usize>();
        let lengths: Vec<usize> = (0..n_seqs).map(|s| longest(s).div_ceil(PAGE_LEN)).collect();
        let n_pages = 2 * lengths.iter().sum::<usize>() + 1;
        let mut pages: Vec<u32> = (0..n_pages as u32).collect();
        (1..n_pages).rev().for_each(|i| pages.swap(i, random.below(i + 1)));
        let mut take = |n: usize| pages.split_off(pages.len() - n);
        let tables = lengths.iter().map(|&n| take(n)).collect();
        let spare = lengths.iter().map(|&n| take(n)).collect();
        let Heads { n_kv_heads, head_dim, .. } = case.heads;
        let layout = KvLayout { n_layers: N_LAYERS, n_kv_heads, head_dim, n_pages, dtype: case.dtype };
        let kv = b.kv_pool(&layout).expect("a small pool");
        let half = case.rope_dim / 2;
        let inv_freq = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let rope = Rope { inv_freq, scale: if case.norms { 1.1 } else { 1.0 } };
        let (q, k) = (random.normals(head_dim), random.normals(head_dim));
        let norms = case.norms.then(|| (b.load_vector(&q), b.load_vector(&k)));
        Sequences { case, kv, tables, spare, cached: vec![0; n_seqs], n_pages, rope, norms }
    }

    /// A batch of the next `rows` rows of each sequence; advances them.
    pub(super) fn batch(&mut self, rows: &[usize]) -> Batch {
        let mut builder = BatchBuilder::new(self.n_pages);
        for (s, &n) in rows.iter().enumerate().filter(|(_, n)| **n > 0) {
            builder.push(&vec![0; n], self.cached[s], &self.tables[s], 1).expect("pages for all steps");
            self.cached[s] += n;
        }
        builder.finish()
    }

    /// Stores and attends: the rotated queries and the answers.
    pub(super) fn step(&mut self, b: &mut B, batch: &Batch, values: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let heads = self.case.heads;
        let rows = batch.rows();
        let prepared = b.prepare(batch, &self.rope);
        let mut qkv = upload(b, rows, heads.qkv_dim(), values);
        let norms = || self.norms.as_ref().map(|(q, k)| HeadNorms { q, k, eps: 1e-6 });
        let other: Vec<f32> = values.iter().map(|v| 1.0 - v).collect();
        let mut other = upload(b, rows, heads.qkv_dim(), &other);
        b.rope_store_kv(&mut qkv, &prepared, heads, norms(), N_LAYERS - 1, &mut self.kv);
        b.rope_store_kv(&mut other, &prepared, heads, norms(), 0, &mut self.kv);
        let AttentionCase { softcap, window, .. } = *self.case;
        // Larger than 1 / sqrt(head_dim), so that weights are uneven.
        let attention = Attention { heads, scale: 1.5 / (heads.head_dim as f32).sqrt(), softcap, window };
        let mut out = b.alloc(rows, heads.q_dim());
        b.paged_attention(&qkv, &prepared, &attention, N_LAYERS - 1, &self.kv, &mut out);
        let rotated = download(b, &qkv);
        let queries = rotated.chunks_exact(heads.qkv_dim()).flat_map(|row| &row[..heads.q_dim()]);
        (queries.copied().collect(), download(b, &out))
    }

    /// Moves every sequence to its spare pages.
    fn relocate(&mut self, b: &mut B) {
        for (table, spare) in self.tables.iter_mut().zip(&mut self.spare) {
            let mut bytes = Vec::new();
            for (index, (&from, &to)) in table.iter().zip(&*spare).enumerate() {
                // Both ways that a page's content can go: within the pool, and by way of the host.
                if index % 2 == 0 {
                    b.copy_page(&mut self.kv, from, to);
                } else {
                    b.read_page(&self.kv, from, &mut bytes);
                    assert_eq!(bytes.len(), b.page_bytes(&self.kv));
                    b.write_page(&mut self.kv, to, &bytes);
                }
            }
            std::mem::swap(table, spare);
        }
    }
}

impl AttentionCase {
    pub(super) fn run<B: Backend>(&self, b: &mut B) -> Vec<Output> {
        let mut sequences = Sequences::new(b, self);
        let mut random = Random(self.seed ^ 0xabcd);
        let mut outputs = Vec::new();
        for (i, rows) in self.steps.iter().enumerate() {
            let last = i + 1 == self.steps.len();
            if last && self.copy {
                sequences.relocate(b);
            }
            let batch = sequences.batch(rows);
            let values = random.normals(batch.rows() * self.heads.qkv_dim());
            let (queries, answers) = sequences.step(b, &batch, &values);
            let op = if last && self.copy { "copy_page, paged_attention" } else { "paged_attention" };
            outputs.extend([Output { op: "rope_store_kv", values: queries }, Output { op, values: answers }]);
        }
        outputs
    }
}
