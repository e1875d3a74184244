//! The shape of the paged KV pool.
//!
//! A page holds [`PAGE_LEN`] tokens of every layer. Backends lay the bytes of a page out as their kernels want;
//! page numbers and the position within a page mean the same everywhere.

/// Tokens in a page.
pub const PAGE_LEN: usize = 32;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats: for the reference.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit whole numbers with an f32 scale for each token and KV head, of keys and of values.
    Int8,
    /// 8-bit floats (e4m3) with the same scales.
    Fp8,
}

impl KvType {
    /// All types, the most exact first.
    pub const ALL: [KvType; 5] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8, KvType::Fp8];

    /// Bytes that one token of one KV head takes in one layer: its key and its value, their scales, and the padding
    /// that kernels ask for (values to whole multiples of 16; in the types of 16 and 8 bits other than f16, keys to
    /// multiples of 32).
    pub fn bytes_per_head(self, head_dim: usize) -> usize {
        let by = |multiple: usize| head_dim.div_ceil(multiple).saturating_mul(multiple);
        match self {
            KvType::F32 => head_dim.saturating_add(by(16)).saturating_mul(4),
            KvType::F16 => head_dim.saturating_add(by(16)).saturating_mul(2),
            KvType::Bf16 => by(32).saturating_add(by(16)).saturating_mul(2),
            KvType::Int8 | KvType::Fp8 => by(32).saturating_add(by(16)).saturating_add(2 * size_of::<f32>()),
        }
    }

    /// The name that options and reports use.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Int8 => "int8",
            KvType::Fp8 => "fp8",
        }
    }

    /// Reads an option's value.
    pub fn from_name(name: &str) -> Option<KvType> {
        KvType::ALL.into_iter().find(|t| t.name() == name)
    }
}

/// Shape of a KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers.
    pub n_layers: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Pages in the pool.
    pub n_pages: usize,
    /// Element type.
    pub dtype: KvType,
}

impl KvLayout {
    /// Bytes that one token takes: keys and values of all layers, with scales and padding.
    pub fn bytes_per_token(&self) -> usize {
        let heads = self.n_layers.saturating_mul(self.n_kv_heads);
        heads.saturating_mul(self.dtype.bytes_per_head(self.head_dim))
    }

    /// Bytes of the whole pool, `None` where that overflows.
    pub fn bytes(&self) -> Option<usize> {
        self.bytes_per_token().checked_mul(PAGE_LEN)?.checked_mul(self.n_pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_takes_its_elements_its_scales_and_the_padding() {
        let bytes = |head_dim| KvType::ALL.map(|t| t.bytes_per_head(head_dim));
        assert_eq!(bytes(64), [512, 256, 256, 136, 136]);
        assert_eq!(bytes(80), [640, 320, 352, 184, 184]);
        assert_eq!(bytes(20), [208, 104, 128, 72, 72]);
        let layout = KvLayout { n_layers: 28, n_kv_heads: 2, head_dim: 128, n_pages: 3, dtype: KvType::Bf16 };
        assert_eq!((layout.bytes_per_token(), layout.bytes()), (28_672, Some(28_672 * 96)));
        let endless = KvLayout { n_layers: usize::MAX, ..layout };
        assert_eq!(endless.bytes(), None);
        KvType::ALL.into_iter().for_each(|t| assert_eq!(KvType::from_name(t.name()), Some(t)));
    }
}
