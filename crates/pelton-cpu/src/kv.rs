//! The paged KV pool, laid out as the attention kernels read it.
//!
//! ```text
//! [layer][page][kv head] block: K of 32 tokens, V of 32 tokens, their scales where codes are stored
//! ```
//!
//! What a block looks like is the [`Format`]'s: [`wide`] for f32 and f16, [`paired`] for bf16, int8 and fp8. A page of one
//! KV head is one run of memory, read once, from front to back, for all query heads that share it, and no kernel
//! ever adds across the lanes of a vector.
//!
//! Invariant: padding stays zero. The memory is zeroed by the system when first touched: a pool costs what its
//! pages in use cost.

pub(crate) mod paired;
pub(crate) mod wide;

use std::alloc::Layout;
use std::ptr::NonNull;

use half::{bf16, f16};
use pelton_backend::{BackendError, KvLayout, KvType, PAGE_LEN};

use crate::simd::Simd;
use crate::tensor::Shared;
use paired::{Coded, Fp8, Int8, Pairs};
use wide::Wide;

/// Columns of a panel of V.
pub(crate) const PANEL: usize = 16;

/// Bytes to which a pool is aligned: a huge page of the common systems.
const ALIGN: usize = 2 << 20;

/// How the tokens of a page lie in a block.
pub(crate) trait Format: Copy + Send + Sync {
    /// What a pool is made of; all-zero bytes are a valid one, and a block of them is all zeros.
    type Element: Copy + Send + Sync + 'static;
    /// Elements of K and V of one head in one page.
    fn block_len(head_dim: usize) -> usize;
    /// Rounds and stores the key and the value of one token, `(head_dim,)` each.
    fn store<S: Simd>(s: S, key: &[f32], value: &[f32], slot: usize, block: &mut [Self::Element]);
}

/// Zeroed memory that the system commits page by page.
struct Zeroed<T> {
    raw: NonNull<u8>,
    layout: Layout,
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory, as a boxed slice does.
unsafe impl<T: Send> Send for Zeroed<T> {}
// SAFETY: shared access reads only, as with a boxed slice.
unsafe impl<T: Sync> Sync for Zeroed<T> {}

impl<T: Copy> Zeroed<T> {
    /// `len` zeros; `None` where the system has not that much.
    fn new(len: usize) -> Option<Zeroed<T>> {
        let bytes = len.checked_mul(size_of::<T>())?;
        // Room to move the start: asked for a large alignment, the allocator would touch (and so commit) all of it.
        let layout = Layout::from_size_align(bytes.checked_add(ALIGN)?, 16).ok()?;
        // SAFETY: the size is not zero.
        let raw = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        let offset = raw.as_ptr().align_offset(ALIGN);
        // SAFETY: the offset is below ALIGN, so `bytes` bytes follow it within the allocation.
        let start = unsafe { raw.add(offset) };
        advise_huge_pages(start, bytes);
        Some(Zeroed { raw, layout, start: start.cast(), len })
    }

    fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements of zeroed or written memory, aligned; zero bytes are a valid element of a `Format`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Zeroed<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.raw.as_ptr(), self.layout) }
    }
}

/// Huge pages spare the TLB, as KV pages lie anywhere in the pool. Only a hint.
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    if bytes >= ALIGN {
        // SAFETY: whole huge pages inside an allocation of ours; the advice does not change contents.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes & !(ALIGN - 1), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// What is there once for each type of a pool.
pub(crate) enum Typed<A, B, C, D, E> {
    F32(A),
    F16(B),
    Bf16(C),
    Int8(D),
    Fp8(E),
}

/// A pool's memory, by element type.
type Store = Typed<Zeroed<f32>, Zeroed<f16>, Zeroed<bf16>, Zeroed<u8>, Zeroed<u8>>;

/// The elements of one layer.
pub(crate) type Layer<'a> = Typed<&'a [f32], &'a [f16], &'a [bf16], &'a [u8], &'a [u8]>;

/// The elements of one layer, for writing.
pub(crate) type LayerMut<'a> =
    Typed<Shared<'a, f32>, Shared<'a, f16>, Shared<'a, bf16>, Shared<'a, u8>, Shared<'a, u8>>;

/// The same expression for a pool of any type.
macro_rules! each_type {
    ($value:expr, $it:ident => $then:expr) => {
        match $value {
            Typed::F32($it) => Typed::F32($then),
            Typed::F16($it) => Typed::F16($then),
            Typed::Bf16($it) => Typed::Bf16($then),
            Typed::Int8($it) => Typed::Int8($then),
            Typed::Fp8($it) => Typed::Fp8($then),
        }
    };
}

/// Where things lie in a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub n_pages: usize,
    pub n_kv_heads: usize,
    /// Elements of K and V of one head in one page.
    pub block_len: usize,
}

impl Geometry {
    /// Elements of one page in one layer.
    pub(crate) fn page_len(&self) -> usize {
        self.n_kv_heads * self.block_len
    }

    /// Elements of a layer.
    fn layer_len(&self) -> usize {
        self.n_pages * self.page_len()
    }

    /// Start of the block of one head in one page, within its layer.
    #[inline(always)]
    pub(crate) fn block(&self, page: u32, kv_head: usize) -> usize {
        (page as usize * self.n_kv_heads + kv_head) * self.block_len
    }
}

/// A KV pool.
pub struct Kv {
    layout: KvLayout,
    geometry: Geometry,
    store: Store,
}

impl std::fmt::Debug for Kv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.layout.fmt(f)
    }
}

impl Kv {
    /// Allocates a pool.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    pub(crate) fn new(layout: &KvLayout) -> Result<Kv, BackendError> {
        let l = layout;
        let what = || {
            let (n, pages, dtype) = (l.n_layers, l.n_pages, l.dtype.name());
            format!("the KV pool ({n} layers, {pages} pages of {PAGE_LEN} tokens, {dtype})")
        };
        let too_large = |bytes| BackendError::OutOfMemory { what: what(), bytes };
        // Far more than any format's padding: no overflow below.
        let sizes = [l.head_dim.saturating_add(64), l.n_kv_heads, l.n_pages, l.n_layers];
        let most = sizes.into_iter().try_fold(16 * PAGE_LEN, usize::checked_mul);
        if most.is_none() {
            return Err(too_large(usize::MAX));
        }
        let block_len = match l.dtype {
            KvType::F32 => Wide::<f32>::block_len(l.head_dim),
            KvType::F16 => Wide::<f16>::block_len(l.head_dim),
            KvType::Bf16 => Pairs::block_len(l.head_dim),
            KvType::Int8 => Coded::<Int8>::block_len(l.head_dim),
            KvType::Fp8 => Coded::<Fp8>::block_len(l.head_dim),
        };
        let Some(bytes) = l.bytes() else { return Err(too_large(usize::MAX)) };
        assert_eq!(
            block_len * element_bytes(l.dtype),
            PAGE_LEN * l.dtype.bytes_per_head(l.head_dim),
            "the memory plan"
        );
        let geometry = Geometry { n_pages: l.n_pages, n_kv_heads: l.n_kv_heads, block_len };
        let len = geometry.layer_len() * l.n_layers;
        let none = || too_large(bytes);
        let store = match l.dtype {
            KvType::F32 => Typed::F32(Zeroed::new(len).ok_or_else(none)?),
            KvType::F16 => Typed::F16(Zeroed::new(len).ok_or_else(none)?),
            KvType::Bf16 => Typed::Bf16(Zeroed::new(len).ok_or_else(none)?),
            KvType::Int8 => Typed::Int8(Zeroed::new(len).ok_or_else(none)?),
            KvType::Fp8 => Typed::Fp8(Zeroed::new(len).ok_or_else(none)?),
        };
        Ok(Kv { layout: *layout, geometry, store })
    }

    pub(crate) fn layout(&self) -> &KvLayout {
        &self.layout
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn layer_range(&self, layer: usize) -> std::ops::Range<usize> {
        assert!(layer < self.layout.n_layers, "layer {layer} of {}", self.layout.n_layers);
        layer * self.geometry.layer_len()..(layer + 1) * self.geometry.layer_len()
    }

    /// The elements of a layer.
    pub(crate) fn layer(&self, layer: usize) -> Layer<'_> {
        let range = self.layer_range(layer);
        each_type!(&self.store, s => &s.as_slice()[range])
    }

    /// The elements of a layer, for writing.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> LayerMut<'_> {
        let range = self.layer_range(layer);
        each_type!(&mut self.store, s => Shared::new(&mut s.as_mut_slice()[range]))
    }

    /// Copies one page of every layer onto another.
    pub(crate) fn copy_page(&mut self, from: u32, to: u32) {
        let n = self.geometry.n_pages;
        assert!((from as usize) < n && (to as usize) < n, "pages {from} and {to} of a pool of {n}");
        let (len, layer_len) = (self.geometry.page_len(), self.geometry.layer_len());
        for layer in 0..self.layout.n_layers {
            let src = layer * layer_len + from as usize * len;
            let dst = layer * layer_len + to as usize * len;
            match &mut self.store {
                Typed::F32(s) => s.as_mut_slice().copy_within(src..src + len, dst),
                Typed::F16(s) => s.as_mut_slice().copy_within(src..src + len, dst),
                Typed::Bf16(s) => s.as_mut_slice().copy_within(src..src + len, dst),
                Typed::Int8(s) | Typed::Fp8(s) => s.as_mut_slice().copy_within(src..src + len, dst),
            }
        }
    }
}

/// The bytes of a pool's memory.
impl Kv {
    /// Bytes of one page over all layers.
    pub(crate) fn page_bytes(&self) -> usize {
        self.layout.n_layers * self.page_layer_bytes()
    }

    fn page_layer_bytes(&self) -> usize {
        self.geometry.page_len() * element_bytes(self.layout.dtype)
    }

    /// Where one page lies in the bytes of the pool, layer by layer.
    fn page_ranges(&self, page: u32) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        assert!((page as usize) < self.geometry.n_pages, "page {page} of a pool of {}", self.geometry.n_pages);
        let (len, n_pages) = (self.page_layer_bytes(), self.geometry.n_pages);
        (0..self.layout.n_layers).map(move |layer| {
            let start = (layer * n_pages + page as usize) * len;
            start..start + len
        })
    }

    /// Copies one page of every layer into `out`, layer after layer.
    pub(crate) fn read_page(&self, page: u32, out: &mut Vec<u8>) {
        let bytes: &[u8] = match &self.store {
            Typed::F32(s) => bytemuck::cast_slice(s.as_slice()),
            Typed::F16(s) => bytemuck::cast_slice(s.as_slice()),
            Typed::Bf16(s) => bytemuck::cast_slice(s.as_slice()),
            Typed::Int8(s) | Typed::Fp8(s) => s.as_slice(),
        };
        out.clear();
        self.page_ranges(page).for_each(|range| out.extend_from_slice(&bytes[range]));
    }

    /// Puts back what [`Kv::read_page`] gave.
    pub(crate) fn write_page(&mut self, page: u32, from: &[u8]) {
        assert_eq!(from.len(), self.page_bytes(), "bytes of a page");
        let (ranges, len) = (self.page_ranges(page), self.page_layer_bytes());
        let bytes: &mut [u8] = match &mut self.store {
            Typed::F32(s) => bytemuck::cast_slice_mut(s.as_mut_slice()),
            Typed::F16(s) => bytemuck::cast_slice_mut(s.as_mut_slice()),
            Typed::Bf16(s) => bytemuck::cast_slice_mut(s.as_mut_slice()),
            Typed::Int8(s) | Typed::Fp8(s) => s.as_mut_slice(),
        };
        ranges.zip(from.chunks_exact(len)).for_each(|(range, from)| bytes[range].copy_from_slice(from));
    }
}

/// Bytes of a pool's element.
fn element_bytes(dtype: KvType) -> usize {
    match dtype {
        KvType::F32 => 4,
        KvType::F16 | KvType::Bf16 => 2,
        KvType::Int8 | KvType::Fp8 => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(n_pages: usize) -> KvLayout {
        KvLayout { n_layers: 28, n_kv_heads: 2, head_dim: 128, n_pages, dtype: KvType::F16 }
    }

    #[test]
    fn a_pool_that_cannot_be_is_an_error_with_numbers() {
        for n_pages in [usize::MAX, usize::MAX / 4096, 1 << 44] {
            let error = Kv::new(&layout(n_pages)).unwrap_err();
            assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
            assert!(error.to_string().contains(&format!("{n_pages} pages")), "{error}");
        }
    }

    #[test]
    fn memory_in_use_grows_with_pages_touched_only() {
        // 29 GB of address space: untouched it costs nothing.
        let Ok(kv) = Kv::new(&layout(1 << 15)) else {
            println!("skipped: this system does not overcommit memory");
            return;
        };
        let Typed::F16(last) = kv.layer(27) else { panic!("an f16 pool") };
        assert_eq!(last[last.len() - 1], f16::ZERO);
    }
}
