//! Brings the tensors of a file into canonical form: fused and stacked ones become slices.
//!
//! Invariant: a slice is taken only after the fused tensor's shape was checked against the configuration.

use crate::names::Role;
use crate::{FormatError, ModelConfig, Tensor, Tensors};

/// Adds `tensor`, whose name is still the file's, under its canonical name or names.
pub(crate) fn add(
    tensors: &mut Tensors,
    config: &ModelConfig,
    role: Role,
    tensor: Tensor,
    file: &str,
) -> Result<(), FormatError> {
    match role {
        Role::Unused => Ok(()),
        Role::Plain(name) => tensors.insert(tensor.named(name)),
        Role::Qkv { layer, suffix } => {
            let (q, kv) = (config.q_dim(), config.kv_dim());
            first_dim(&tensor, q + 2 * kv, "rows of Q, K and V", file)?;
            let parts = [("attn_q", 0..q), ("attn_k", q..q + kv), ("attn_v", q + kv..q + 2 * kv)];
            for (what, rows) in parts {
                sliceable(&tensor, file)?;
                tensors.insert(tensor.rows(rows).named(format!("blk.{layer}.{what}.{suffix}")))?;
            }
            Ok(())
        }
        Role::GateUp { layer } => {
            let ffn = config.ffn;
            first_dim(&tensor, 2 * ffn, "rows of the gate and the up projection", file)?;
            sliceable(&tensor, file)?;
            for (what, rows) in [("gate", 0..ffn), ("up", ffn..2 * ffn)] {
                tensors.insert(tensor.rows(rows).named(format!("blk.{layer}.ffn_{what}.weight")))?;
            }
            Ok(())
        }
        Role::Experts { layer, part } => {
            let (n, [rows, cols]) = expert_shape(&tensor, config, file)?;
            for e in 0..n {
                let slice = tensor.rows(e..e + 1).reshaped(vec![rows, cols]);
                tensors.insert(slice.named(format!("blk.{layer}.ffn_{part}.{e}.weight")))?;
            }
            Ok(())
        }
        Role::ExpertsGateUp { layer } => {
            let (n, [rows, cols]) = expert_shape(&tensor, config, file)?;
            if !rows.is_multiple_of(2) {
                let want = "an even number of rows an expert: gate and up";
                return Err(FormatError::tensor(file, &tensor.name, format!("shape {:?}", tensor.shape), want));
            }
            for e in 0..n {
                let both = tensor.rows(e..e + 1).reshaped(vec![rows, cols]);
                for (part, range) in [("gate", 0..rows / 2), ("up", rows / 2..rows)] {
                    tensors.insert(both.rows(range).named(format!("blk.{layer}.ffn_{part}.{e}.weight")))?;
                }
            }
            Ok(())
        }
    }
}

fn first_dim(tensor: &Tensor, want: usize, what: &str, file: &str) -> Result<(), FormatError> {
    if tensor.shape[0] == want {
        return Ok(());
    }
    let got = format!("shape {:?}", tensor.shape);
    Err(FormatError::tensor(file, &tensor.name, got, format!("{want} {what}, as the configuration says")))
}

/// A vector of a blocked type cannot be cut between elements.
fn sliceable(tensor: &Tensor, file: &str) -> Result<(), FormatError> {
    if tensor.shape.len() > 1 || tensor.dtype.is_float() {
        return Ok(());
    }
    Err(FormatError::tensor(file, &tensor.name, format!("type {}", tensor.dtype.name()), "F32, F16 or BF16 for a bias"))
}

/// `(n_experts, [rows, cols])` of a stacked tensor.
fn expert_shape(tensor: &Tensor, config: &ModelConfig, file: &str) -> Result<(usize, [usize; 2]), FormatError> {
    let n = config.moe.as_ref().map_or(0, |moe| moe.n_experts);
    match tensor.shape[..] {
        [e, rows, cols] if e == n && n > 0 => Ok((n, [rows, cols])),
        _ => {
            let want = format!("[{n}, rows, columns]: one matrix for each of the configuration's {n} experts");
            Err(FormatError::tensor(file, &tensor.name, format!("shape {:?}", tensor.shape), want))
        }
    }
}

/// Checks what is cheap to check and fatal to miss: every norm's weights are finite.
pub(crate) fn check_norms(tensors: &Tensors) -> Result<(), FormatError> {
    for tensor in tensors.iter().filter(|t| t.name.ends_with("norm.weight")) {
        if tensor.shape.len() != 1 {
            let got = format!("shape {:?}", tensor.shape);
            return Err(FormatError::tensor(tensors.file(), &tensor.name, got, "a vector"));
        }
        tensor.check_finite(tensors.file())?;
    }
    Ok(())
}
