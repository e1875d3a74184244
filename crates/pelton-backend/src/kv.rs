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
}

impl KvType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 | KvType::Bf16 => 2,
        }
    }

    /// The name that options and reports use.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
        }
    }

    /// Reads an option's value.
    pub fn from_name(name: &str) -> Option<KvType> {
        [KvType::F32, KvType::F16, KvType::Bf16].into_iter().find(|t| t.name() == name)
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
    /// Bytes that one token takes: keys and values of all layers.
    pub fn bytes_per_token(&self) -> usize {
        2 * self.n_layers * self.n_kv_heads * self.head_dim * self.dtype.bytes()
    }

    /// Bytes of the whole pool, `None` where that overflows.
    pub fn bytes(&self) -> Option<usize> {
        self.bytes_per_token().checked_mul(PAGE_LEN)?.checked_mul(self.n_pages)
    }
}
