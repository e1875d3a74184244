//! The KV pool on the device: `[layer][page][kv head]`, each block keys, values and scales as `kernels/rope.cu` draws them.

use pelton_backend::{BackendError, KvLayout, KvType, PAGE_LEN};

use crate::context::{Context, out_of_memory};
use crate::pool::Buffer;
use crate::queue::{Shape, args};

/// The widest head that kernels take.
const MAX_HEAD_DIM: usize = 256;

/// A KV pool.
#[derive(Debug)]
pub struct Kv {
    pub(crate) layout: KvLayout,
    /// Elements of a stored vector: whole numbers of 16 bytes.
    pub(crate) stride: usize,
    buffer: Buffer,
}

fn element_bytes(dtype: KvType) -> usize {
    match dtype {
        KvType::F32 => 4,
        KvType::F16 | KvType::Bf16 => 2,
        KvType::Int8 | KvType::Fp8 => 1,
    }
}

fn stride_of(layout: &KvLayout) -> usize {
    layout.head_dim.next_multiple_of(16 / element_bytes(layout.dtype))
}

/// Bytes of one page of one layer.
fn page_of(layout: &KvLayout) -> usize {
    let vectors = 2 * PAGE_LEN * stride_of(layout) * element_bytes(layout.dtype);
    let scales = if element_bytes(layout.dtype) == 1 { 2 * PAGE_LEN * 4 } else { 0 };
    layout.n_kv_heads * (vectors + scales)
}

impl Kv {
    pub(crate) fn new(context: &mut Context, layout: &KvLayout) -> Result<Kv, BackendError> {
        if layout.head_dim > MAX_HEAD_DIM {
            let problem = format!("heads of {} columns; the GPU's kernels take up to {MAX_HEAD_DIM}", layout.head_dim);
            return Err(BackendError::Shape { tensor: "the KV pool".into(), problem });
        }
        let bytes = page_of(layout).checked_mul(layout.n_layers).and_then(|b| b.checked_mul(layout.n_pages));
        let too_large = || BackendError::OutOfMemory { what: "the KV pool on the GPU".into(), bytes: usize::MAX };
        let buffer = context.memory_exact("the KV pool", bytes.ok_or_else(too_large)?).map_err(out_of_memory)?;
        Ok(Kv { layout: *layout, stride: stride_of(layout), buffer })
    }

    /// Where a layer's pages begin.
    pub(crate) fn layer(&self, layer: usize) -> u64 {
        assert!(layer < self.layout.n_layers, "layer {layer} of {}", self.layout.n_layers);
        self.buffer.pointer() + (layer * self.layout.n_pages * page_of(&self.layout)) as u64
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.layout.n_layers * page_of(&self.layout)
    }

    fn check(&self, page: u32) {
        assert!((page as usize) < self.layout.n_pages, "page {page} of {}", self.layout.n_pages);
    }

    pub(crate) fn copy_page(&mut self, context: &mut Context, from: u32, to: u32) {
        self.check(from);
        self.check(to);
        // In pieces of 16 bytes.
        let page = page_of(&self.layout) / 16;
        let shape = Shape::new(page.div_ceil(128), self.layout.n_layers, 1, 128);
        let (layer_len, page_len) = ((self.layout.n_pages * page) as u64, page as u64);
        let args = args![&self.buffer, layer_len, page_len, from as usize, to as usize];
        context.queue.launch(context.ops.copy_page, shape, args);
    }

    pub(crate) fn read_page(&self, context: &mut Context, page: u32, out: &mut Vec<u8>) {
        self.check(page);
        let n = page_of(&self.layout);
        out.clear();
        out.resize(self.page_bytes(), 0);
        for (layer, out) in out.chunks_exact_mut(n).enumerate() {
            let from = self.layer(layer) + (page as usize * n) as u64;
            context.queue.finish(from, out).unwrap_or_else(|e| e.end_step());
        }
    }

    pub(crate) fn write_page(&mut self, context: &mut Context, page: u32, bytes: &[u8]) {
        self.check(page);
        assert_eq!(bytes.len(), self.page_bytes(), "bytes of a page");
        let n = page_of(&self.layout);
        for (layer, bytes) in bytes.chunks_exact(n).enumerate() {
            context.queue.upload(self.layer(layer) + (page as usize * n) as u64, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_takes_no_more_than_the_plan_says() {
        for dtype in KvType::ALL {
            for head_dim in [8, 16, 20, 48, 64, 80, 96, 128, 256] {
                let layout = KvLayout { n_layers: 3, n_kv_heads: 2, head_dim, n_pages: 5, dtype };
                assert!(page_of(&layout) * 15 <= layout.bytes().unwrap(), "{} {head_dim}", dtype.name());
                assert!(page_of(&layout).is_multiple_of(16));
            }
        }
    }
}
