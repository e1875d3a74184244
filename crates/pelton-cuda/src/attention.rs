//! Rotation, the KV pool's writing, and attention: which kernel, and how its work is cut into blocks.
//!
//! Invariant: the cut changes no bit (`kernels/attention.cuh`): chunks are joined in order of position, by one block or by
//! another launch.

use pelton_backend::{Attention, HeadNorms, Heads, KvType};

use crate::CudaError;
use crate::batch::{CHUNK, Prepared, TileShape, Tiles};
use crate::context::Context;
use crate::kernels::Kernels;
use crate::kv::Kv;
use crate::pool::Buffer;
use crate::queue::{Function, Shape, args};
use crate::tensor::Tensor;

/// Head widths that the tensor-core kernels are compiled for.
const WIDTHS: [usize; 5] = [32, 64, 96, 128, 256];
/// Memory for the chunks of one launch.
const PARTS_BYTES: usize = 128 << 20;

/// The kernels of one element type of the pool.
#[derive(Clone, Copy, Debug)]
enum Attend {
    /// On tensor cores: by width, one warp and several.
    Tiles([[Function; 2]; WIDTHS.len()]),
    /// In f32.
    Wide(Function),
}

/// The kernels of all types.
#[derive(Clone, Debug)]
pub(crate) struct AttentionKernels {
    kinds: Vec<(KvType, Function, Attend)>,
}

/// Warps of a block of several; wide heads need the shared memory.
fn warps(width: usize) -> usize {
    if width > 128 { 2 } else { 4 }
}

/// Shared memory of a block, as `kernels/attention.cu` lays it out.
fn shared_bytes(dtype: KvType, width: usize, warps: usize) -> usize {
    let row = 2 * (width + 8);
    let queries = 16 * warps * row;
    match dtype {
        KvType::Bf16 => queries + 2 * 64 * row,
        _ => queries + 64 * row + 2 * 64 * width + 2 * 64 * 4,
    }
}

fn width_index(head_dim: usize) -> usize {
    WIDTHS.iter().position(|&w| w >= head_dim).expect("Kv::new refuses wider heads")
}

/// What tiles depend on.
pub(crate) fn tile_shape(heads: &Heads) -> TileShape {
    TileShape { group: heads.n_heads / heads.n_kv_heads, many: 16 * warps(WIDTHS[width_index(heads.head_dim)]) }
}

impl AttentionKernels {
    pub(crate) fn load(kernels: &mut Kernels) -> Result<AttentionKernels, CudaError> {
        let mut kinds = Vec::new();
        for dtype in KvType::ALL {
            let name = dtype.name();
            let store = kernels.get("rope", &format!("rope_store_{name}"))?;
            let attend = match dtype {
                KvType::F32 | KvType::F16 => Attend::Wide(kernels.get("attention_wide", &format!("attend_{name}"))?),
                _ => {
                    let mut all = Vec::new();
                    for width in WIDTHS {
                        let mut get = |n: &str, warps| {
                            let shared = shared_bytes(dtype, width, warps);
                            kernels.get_with_shared("attention", &format!("attend_{name}_{width}_{n}"), shared)
                        };
                        all.push([get("1", 1)?, get("many", warps(width))?]);
                    }
                    Attend::Tiles(all.try_into().expect("one for each width"))
                }
            };
            kinds.push((dtype, store, attend));
        }
        Ok(AttentionKernels { kinds })
    }

    fn of(&self, dtype: KvType) -> (Function, Attend) {
        let kind = self.kinds.iter().find(|k| k.0 == dtype).expect("all types are loaded");
        (kind.1, kind.2)
    }

    /// See [`pelton_backend::Backend::rope_store_kv`].
    pub(crate) fn store(
        &self,
        context: &mut Context,
        qkv: &Tensor,
        batch: &Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Buffer>>,
        (layer, kv): (usize, &Kv),
    ) {
        assert_eq!((qkv.rows(), qkv.cols()), (batch.batch.rows(), heads.qkv_dim()));
        assert_eq!((kv.layout.n_kv_heads, kv.layout.head_dim), (heads.n_kv_heads, heads.head_dim));
        assert!(2 * batch.half <= heads.head_dim, "rotation of {} in {}", 2 * batch.half, heads.head_dim);
        assert!(batch.batch.pages.iter().all(|&p| (p as usize) < kv.layout.n_pages), "a page outside of the pool");
        let (norm_q, norm_k, eps) = norms.map_or((0, 0, 0.0), |n| (n.q.pointer(), n.k.pointer(), n.eps));
        let (n, n_kv, dim) = (heads.n_heads, heads.n_kv_heads, heads.head_dim);
        let shape = Shape::new(qkv.rows(), (n + 2 * n_kv).div_ceil(4), 1, 128);
        let (store, _) = self.of(kv.layout.dtype);
        let (angles, at) = (batch.angles.as_ref(), kv.layer(layer));
        let args = args![
            qkv.buffer(),
            angles,
            batch.page_of,
            batch.positions,
            norm_q,
            norm_k,
            eps,
            at,
            n,
            n_kv,
            dim,
            batch.half,
            kv.stride
        ];
        context.queue.launch(store, shape, args);
    }

    /// See [`pelton_backend::Backend::paged_attention`].
    pub(crate) fn attend(
        &self,
        context: &mut Context,
        qkv: &Tensor,
        batch: &Prepared,
        attention: &Attention,
        (layer, kv): (usize, &Kv),
        out: &Tensor,
    ) {
        let heads = &attention.heads;
        assert_eq!((qkv.rows(), qkv.cols()), (batch.batch.rows(), heads.qkv_dim()));
        assert_eq!((out.rows(), out.cols()), (qkv.rows(), heads.q_dim()));
        assert_eq!((kv.layout.n_kv_heads, kv.layout.head_dim), (heads.n_kv_heads, heads.head_dim));
        assert!(attention.window != Some(0), "a window of 0 sees nothing");
        let call = Call { qkv, batch, attention, kv, layer: kv.layer(layer), out };
        match self.of(kv.layout.dtype).1 {
            Attend::Wide(function) => call.wide(context, function),
            Attend::Tiles(functions) => {
                let shape = tile_shape(heads);
                if batch.tiles.shape == shape {
                    call.tiles(context, &functions, &batch.tiles, batch.tile_list);
                } else {
                    let (tiles, list) = batch.other_tiles(context, shape);
                    call.tiles(context, &functions, &tiles, list.pointer());
                }
            }
        }
    }
}

/// Bytes that attention of `rows` rows of `q_dim` query columns takes at most besides its answers, over a context of so
/// many tokens.
pub fn scratch_bytes(rows: usize, q_dim: usize, context: usize) -> usize {
    let chunks = context.div_ceil(CHUNK).checked_next_power_of_two().unwrap_or(usize::MAX);
    let answers = rows.saturating_mul(q_dim).saturating_mul(chunks).saturating_mul(4);
    // And a maximum and a sum for each head, no head being narrower than 16.
    answers.min(PARTS_BYTES) / 8 * 9
}

/// One layer's attention.
struct Call<'a> {
    qkv: &'a Tensor,
    batch: &'a Prepared,
    attention: &'a Attention,
    kv: &'a Kv,
    layer: u64,
    out: &'a Tensor,
}

impl Call<'_> {
    fn window(&self) -> usize {
        self.attention.window.map_or(0, |w| w.min(i32::MAX as usize))
    }

    /// Memory for the chunks of `rows` rows, and the launch that joins them.
    fn parts(&self, context: &mut Context, rows: usize, max_chunks: usize) -> (Buffer, Buffer) {
        let Heads { n_heads, head_dim, .. } = self.attention.heads;
        let slots = rows * n_heads * max_chunks;
        (
            context.scratch("chunks of attention", slots * head_dim * 4),
            context.scratch("chunks of attention", slots * 8),
        )
    }

    fn join(&self, context: &mut Context, (o, ml): &(Buffer, Buffer), row0: usize, rows: usize, max_chunks: usize) {
        let Heads { n_heads, head_dim, .. } = self.attention.heads;
        let shape = Shape::new(n_heads, rows, 1, 128);
        let args = args![o, ml, self.batch.positions, self.out.buffer(), row0, head_dim, max_chunks, self.window()];
        context.queue.launch(context.ops.join_chunks, shape, args);
    }

    fn tiles(&self, context: &mut Context, functions: &[[Function; 2]; WIDTHS.len()], tiles: &Tiles, list: u64) {
        let heads = &self.attention.heads;
        let (rows, n_kv) = (self.qkv.rows(), heads.n_kv_heads);
        let index = width_index(heads.head_dim);
        let n_warps = if tiles.are_small { 1 } else { warps(WIDTHS[index]) };
        // Few blocks, long contexts: a block for each chunk, if there is memory for their answers.
        let part_bytes = rows * heads.q_dim() * tiles.max_chunks * 4;
        let is_split = tiles.are_small
            && tiles.max_chunks > 1
            && tiles.n * n_kv < 4 * context.device.info.multiprocessors
            && part_bytes <= PARTS_BYTES;
        let max_chunks = if is_split { tiles.max_chunks } else { 0 };
        let parts = is_split.then(|| self.parts(context, rows, max_chunks));
        let (o, ml) = parts.as_ref().map_or((None, None), |(o, ml)| (Some(o), Some(ml)));
        let mut shape = Shape::new(tiles.n, n_kv, max_chunks.max(1), 32 * n_warps as u32);
        shape.shared = shared_bytes(self.kv.layout.dtype, WIDTHS[index], n_warps) as u32;
        let args = args![
            self.qkv.buffer(),
            self.layer,
            list,
            self.batch.table_of,
            self.batch.pages,
            self.out.buffer(),
            o,
            ml,
            heads.n_heads,
            n_kv,
            heads.head_dim,
            self.kv.stride,
            max_chunks,
            self.window(),
            self.attention.scale,
            self.attention.softcap.unwrap_or(0.0),
        ];
        context.queue.launch(functions[index][usize::from(!tiles.are_small)], shape, args);
        if let Some(parts) = &parts {
            self.join(context, parts, 0, rows, max_chunks);
        }
    }

    fn wide(&self, context: &mut Context, function: Function) {
        let heads = &self.attention.heads;
        let max_chunks = self.batch.tiles.max_chunks;
        // As many rows at a time as there is memory for.
        let each = (PARTS_BYTES / (heads.q_dim() * max_chunks * 4)).clamp(1, 32_768);
        for row0 in (0..self.qkv.rows()).step_by(each) {
            let rows = each.min(self.qkv.rows() - row0);
            let parts = self.parts(context, rows, max_chunks);
            let shape = Shape::new(max_chunks, heads.n_heads, rows, CHUNK as u32);
            let args = args![
                self.qkv.buffer(),
                self.layer,
                self.batch.positions,
                self.batch.table_of,
                self.batch.pages,
                &parts.0,
                &parts.1,
                row0,
                heads.n_heads,
                heads.n_kv_heads,
                heads.head_dim,
                self.kv.stride,
                max_chunks,
                self.window(),
                self.attention.scale,
                self.attention.softcap.unwrap_or(0.0),
            ];
            context.queue.launch(function, shape, args);
            self.join(context, &parts, row0, rows, max_chunks);
        }
    }
}
