//! Which type each tensor of a quantized file has.
//!
//! A name like `Q4_K_M` is a mixture: most matrices are Q4_K, those that lose most by it are Q6_K, and a matrix whose
//! width is no multiple of a block takes a type of smaller blocks. The rules are those by which `llama-quantize` makes
//! the files that people download (llama.cpp of 2026-10, `src/llama-quant.cpp`, without an importance matrix), so that
//! a random model reads the same bytes as the real one.

use pelton_formats::{Arch, ModelConfig};
use pelton_quant::DType;

/// A mixture of types by its name in file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mixture {
    pub(super) name: &'static str,
    /// The type of most matrices.
    base: DType,
}

/// Every mixture that Pelton can run.
pub(super) const MIXTURES: &[Mixture] = &[
    Mixture { name: "Q2_K", base: DType::Q2_K },
    Mixture { name: "Q3_K_S", base: DType::Q3_K },
    Mixture { name: "Q3_K_M", base: DType::Q3_K },
    Mixture { name: "Q3_K_L", base: DType::Q3_K },
    Mixture { name: "Q4_0", base: DType::Q4_0 },
    Mixture { name: "Q4_1", base: DType::Q4_1 },
    Mixture { name: "Q4_K_S", base: DType::Q4_K },
    Mixture { name: "Q4_K_M", base: DType::Q4_K },
    Mixture { name: "Q5_0", base: DType::Q5_0 },
    Mixture { name: "Q5_1", base: DType::Q5_1 },
    Mixture { name: "Q5_K_S", base: DType::Q5_K },
    Mixture { name: "Q5_K_M", base: DType::Q5_K },
    Mixture { name: "Q6_K", base: DType::Q6_K },
    Mixture { name: "Q8_0", base: DType::Q8_0 },
    Mixture { name: "IQ4_NL", base: DType::IQ4_NL },
    Mixture { name: "IQ4_XS", base: DType::IQ4_XS },
    Mixture { name: "MXFP4", base: DType::MXFP4 },
    Mixture { name: "BF16", base: DType::BF16 },
    Mixture { name: "F16", base: DType::F16 },
    Mixture { name: "F32", base: DType::F32 },
];

/// What a matrix is for, as far as its type depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    Output,
    /// Q, K and V in one matrix.
    FusedQkv,
    Value,
    AttentionOutput,
    Down,
    /// The gate or up projection of an expert.
    Expert,
    /// Any other one.
    Plain,
}

impl Mixture {
    /// The mixture of that name, in any case.
    pub(super) fn from_name(name: &str) -> Option<Mixture> {
        MIXTURES.iter().copied().find(|m| m.name.eq_ignore_ascii_case(name))
    }

    /// The type of a matrix of `role` in `layer` whose rows are `cols` wide.
    pub(super) fn dtype(self, config: &ModelConfig, role: Role, layer: usize, cols: usize) -> DType {
        let wanted = match self.base {
            DType::F32 | DType::F16 | DType::BF16 => self.base,
            _ => match role {
                Role::Output => self.of_output(cols),
                Role::Embedding if config.tied_embeddings => self.of_output(cols),
                _ => self.of_block(config, role, layer),
            },
        };
        fitting(wanted, cols)
    }

    /// The head, and the embedding where it is the head.
    fn of_output(self, cols: usize) -> DType {
        match self.base {
            DType::MXFP4 => DType::Q8_0,
            base if !cols.is_multiple_of(base.block_len()) || base == DType::Q8_0 => DType::Q8_0,
            _ => DType::Q6_K,
        }
    }

    fn of_block(self, config: &ModelConfig, role: Role, layer: usize) -> DType {
        let n = config.n_layers;
        let many_groups = config.n_heads / config.n_kv_heads >= 4;
        // The first and the last eighth of the layers, and every third between them.
        let more_bits = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
        let early = layer < n / 8;
        let dtype = match (role, self.name) {
            (Role::Value, "Q2_K") if many_groups => DType::Q4_K,
            (Role::Value, "Q2_K") => DType::Q3_K,
            (Role::Value, "Q3_K_M") => {
                if layer < 2 {
                    DType::Q5_K
                } else {
                    DType::Q4_K
                }
            }
            (Role::Value, "Q3_K_L") => DType::Q5_K,
            (Role::Value, "Q4_K_S") if layer < 4 => DType::Q5_K,
            (Role::Value | Role::Down, "Q4_K_M" | "Q5_K_M") if more_bits => DType::Q6_K,
            (Role::Value, "IQ4_NL" | "IQ4_XS") if many_groups => DType::Q5_K,
            (Role::Down, "Q2_K") => DType::Q3_K,
            (Role::Down, "Q3_K_M") => {
                if layer < n / 16 {
                    DType::Q5_K
                } else {
                    DType::Q4_K
                }
            }
            (Role::Down, "Q3_K_L") => DType::Q5_K,
            (Role::Down, "Q4_K_S" | "IQ4_NL" | "IQ4_XS") if early => DType::Q5_K,
            (Role::AttentionOutput, "Q2_K") => DType::Q3_K,
            (Role::AttentionOutput, "Q3_K_M") => DType::Q4_K,
            (Role::AttentionOutput, "Q3_K_L") => DType::Q5_K,
            (Role::FusedQkv, "Q3_K_M" | "Q3_K_L") => DType::Q4_K,
            (Role::FusedQkv, "Q4_K_M") => DType::Q5_K,
            (Role::FusedQkv, "Q5_K_M") => DType::Q6_K,
            // Experts alone are MXFP4 in such files; for a dense model it is what was asked for.
            (Role::Expert | Role::Down, "MXFP4") => DType::MXFP4,
            (_, "MXFP4") if config.moe.is_some() => DType::Q8_0,
            _ => self.base,
        };
        // Models of 80 layers and 8 query heads a key head: V is small, so better bits cost little.
        let large = config.arch != Arch::Qwen3Moe && n == 80 && config.n_heads / config.n_kv_heads == 8;
        match dtype {
            DType::Q3_K | DType::Q4_K if role == Role::Value && large => DType::Q5_K,
            dtype => dtype,
        }
    }
}

/// The type itself, or the one that stands in where its blocks do not divide the rows.
fn fitting(wanted: DType, cols: usize) -> DType {
    if cols.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let smaller = match wanted {
        DType::IQ4_XS => DType::IQ4_NL,
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        other => other,
    };
    if cols.is_multiple_of(smaller.block_len()) { smaller } else { DType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_that_no_superblock_divides_take_smaller_blocks() {
        assert_eq!(fitting(DType::Q4_K, 896), DType::Q5_0);
        assert_eq!(fitting(DType::Q6_K, 896), DType::Q8_0);
        assert_eq!(fitting(DType::Q5_K, 896), DType::Q5_1);
        assert_eq!(fitting(DType::IQ4_XS, 96), DType::IQ4_NL);
        assert_eq!(fitting(DType::Q4_K, 4864), DType::Q4_K);
        assert_eq!(fitting(DType::Q8_0, 100), DType::F16);
    }

    #[test]
    fn names_lead_back_to_their_mixture() {
        for m in MIXTURES {
            assert_eq!(Mixture::from_name(&m.name.to_lowercase()), Some(*m));
        }
        assert_eq!(Mixture::from_name("Q4_K"), None);
    }
}
