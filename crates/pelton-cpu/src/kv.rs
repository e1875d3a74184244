//! The paged KV pool, laid out as the attention kernels read it.
//!
//! ```text
//! [layer][page][kv head] block of K, then block of V
//! K  [head_dim][32 slots]               transposed: 32 scores at once, each a plain sum over head_dim
//! V  [head_dim / 16][32 slots][16]      panels of 16 columns, head_dim padded up to whole panels
//! ```
//!
//! So a page of one KV head is one run of memory, read once, from front to back, for all query heads that share it,
//! and no kernel ever adds across the lanes of a vector.
//!
//! Invariant: the padding of V stays zero. The memory is zeroed by the system when first touched: a pool costs
//! what its pages in use cost.

use std::alloc::Layout;
use std::ptr::NonNull;

use half::{bf16, f16};
use pelton_backend::{BackendError, KvLayout, KvType, PAGE_LEN};

use crate::simd::Simd;
use crate::tensor::Shared;

/// Columns of a panel of V.
pub(crate) const PANEL: usize = 16;

/// Bytes to which a pool is aligned: a huge page of the common systems.
const ALIGN: usize = 2 << 20;

/// An element of a KV pool. All-zero bytes are the number 0.
pub(crate) trait Element: Copy + Send + Sync {
    /// Loads a vector.
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F;
    /// Rounds and stores a vector.
    fn store<S: Simd>(s: S, v: S::F, to: &mut [Self]);
    /// Zero.
    const ZERO: Self;
}

impl Element for f32 {
    const ZERO: f32 = 0.0;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32]) -> S::F {
        s.load(from)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::F, to: &mut [f32]) {
        s.store(v, to);
    }
}

impl Element for f16 {
    const ZERO: f16 = f16::ZERO;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f16]) -> S::F {
        s.load_f16(from)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::F, to: &mut [f16]) {
        s.store_f16(v, to);
    }
}

impl Element for bf16 {
    const ZERO: bf16 = bf16::ZERO;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[bf16]) -> S::F {
        s.load_bf16(from)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::F, to: &mut [bf16]) {
        let mut wide = [0.0; 16];
        s.store(v, &mut wide);
        to.iter_mut().zip(&wide[..S::LANES]).for_each(|(to, &v)| *to = bf16::from_f32(v));
    }
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

impl<T: Element> Zeroed<T> {
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
        // SAFETY: `len` elements of zeroed or written memory, aligned; zero bytes are a valid `Element`.
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

/// A pool's memory, by element type.
enum Store {
    F32(Zeroed<f32>),
    F16(Zeroed<f16>),
    Bf16(Zeroed<bf16>),
}

/// Where things lie in a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub n_pages: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// `head_dim` rounded up to whole panels.
    pub padded_dim: usize,
}

impl Geometry {
    /// Elements of K of one head in one page; V follows.
    pub(crate) fn k_len(&self) -> usize {
        self.head_dim * PAGE_LEN
    }

    /// Elements of K and V of one head in one page.
    pub(crate) fn block_len(&self) -> usize {
        (self.head_dim + self.padded_dim) * PAGE_LEN
    }

    /// Elements of one page in one layer.
    fn page_len(&self) -> usize {
        self.n_kv_heads * self.block_len()
    }

    /// Elements of a layer.
    pub(crate) fn layer_len(&self) -> usize {
        self.n_pages * self.page_len()
    }

    /// Start of the block of one head in one page, within its layer.
    #[inline(always)]
    pub(crate) fn block(&self, page: u32, kv_head: usize) -> usize {
        (page as usize * self.n_kv_heads + kv_head) * self.block_len()
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

/// The elements of one layer, of whichever type.
pub(crate) enum Layer<A, B, C> {
    F32(A),
    F16(B),
    Bf16(C),
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
        let padded_dim = l.head_dim.checked_next_multiple_of(PANEL).ok_or_else(|| too_large(usize::MAX))?;
        let geometry = Geometry { n_pages: l.n_pages, n_kv_heads: l.n_kv_heads, head_dim: l.head_dim, padded_dim };
        let sizes = [padded_dim, l.n_kv_heads, l.n_pages, l.n_layers];
        let len = sizes.into_iter().try_fold(2 * PAGE_LEN, usize::checked_mul).ok_or_else(|| too_large(usize::MAX))?;
        // No overflow from here: the real size is at most `len`.
        let len = (geometry.layer_len() * l.n_layers).min(len);
        let bytes = || too_large(len.saturating_mul(l.dtype.bytes()));
        let store = match l.dtype {
            KvType::F32 => Store::F32(Zeroed::new(len).ok_or_else(bytes)?),
            KvType::F16 => Store::F16(Zeroed::new(len).ok_or_else(bytes)?),
            KvType::Bf16 => Store::Bf16(Zeroed::new(len).ok_or_else(bytes)?),
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
    pub(crate) fn layer(&self, layer: usize) -> Layer<&[f32], &[f16], &[bf16]> {
        let range = self.layer_range(layer);
        match &self.store {
            Store::F32(s) => Layer::F32(&s.as_slice()[range]),
            Store::F16(s) => Layer::F16(&s.as_slice()[range]),
            Store::Bf16(s) => Layer::Bf16(&s.as_slice()[range]),
        }
    }

    /// The elements of a layer, for writing.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> Layer<Shared<'_, f32>, Shared<'_, f16>, Shared<'_, bf16>> {
        let range = self.layer_range(layer);
        match &mut self.store {
            Store::F32(s) => Layer::F32(Shared::new(&mut s.as_mut_slice()[range])),
            Store::F16(s) => Layer::F16(Shared::new(&mut s.as_mut_slice()[range])),
            Store::Bf16(s) => Layer::Bf16(Shared::new(&mut s.as_mut_slice()[range])),
        }
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
                Store::F32(s) => s.as_mut_slice().copy_within(src..src + len, dst),
                Store::F16(s) => s.as_mut_slice().copy_within(src..src + len, dst),
                Store::Bf16(s) => s.as_mut_slice().copy_within(src..src + len, dst),
            }
        }
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
        let Layer::F16(last) = kv.layer(27) else { panic!("an f16 pool") };
        assert_eq!(last[last.len() - 1], f16::ZERO);
    }
}
