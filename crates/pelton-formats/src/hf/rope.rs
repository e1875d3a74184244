//! Rotary positions in `config.json`: `rope_theta` and `rope_scaling` of older files, `rope_parameters` of newer ones.
//!
//! The rules are those of transformers' `modeling_rope_utils.py` (5.x). Invariant: what cannot be computed exactly
//! as there (dynamic scaling, YaRN without truncation, several bases) is refused by name.

use serde_json::Value;

use super::fields::Fields;
use crate::rope::yarn_attention_factor;
use crate::{Arch, FormatError, RopeConfig, RopeScaling};

pub(super) fn read(
    config: &Fields<'_>,
    arch: Arch,
    head_dim: usize,
    max_context: usize,
) -> Result<RopeConfig, FormatError> {
    // As in transformers, `rope_scaling` wins over `rope_parameters` where a file has both.
    let params = match config.object("rope_scaling")? {
        Some(p) => Some(p),
        None => config.object("rope_parameters")?,
    };
    let params = params.as_ref();
    if let Some(p) = params {
        for nested in ["full_attention", "sliding_attention"] {
            if let Some(value) = p.get(nested) {
                return Err(p.wrong(
                    nested,
                    value,
                    "one set of parameters for all layers; one a layer type is not supported",
                ));
            }
        }
    }
    let either = |key: &str| -> Result<Option<f32>, FormatError> {
        match params.map(|p| p.float(key)).transpose()?.flatten() {
            Some(v) => Ok(Some(v)),
            None => config.float(key),
        }
    };
    let theta = either("rope_theta")?.unwrap_or(10_000.0);
    let partial = either("partial_rotary_factor")?.unwrap_or(1.0);
    if !(partial > 0.0 && partial <= 1.0) {
        let got = partial.to_string();
        return Err(FormatError::key(config.file, "partial_rotary_factor", got, "a number above 0 and at most 1"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and head_dim")]
    let dim = (head_dim as f64 * f64::from(partial)) as usize;
    let scaling = match params {
        None => RopeScaling::None,
        Some(p) => scaling(config, p, arch, max_context)?,
    };
    Ok(RopeConfig { theta, dim, scaling })
}

fn scaling(config: &Fields<'_>, p: &Fields<'_>, arch: Arch, max_context: usize) -> Result<RopeScaling, FormatError> {
    let kind = match p.str("rope_type")? {
        Some(kind) => kind,
        None => p.str("type")?.unwrap_or("default"),
    };
    let number = |key: &str| p.float(key)?.ok_or_else(|| p.missing(key, "a number"));
    // A value beside the parameters wins over one among them (Phi-3).
    let original_context = match config.count("original_max_position_embeddings")? {
        Some(n) => n,
        None => p.count("original_max_position_embeddings")?.unwrap_or(max_context),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context,
        }),
        // Early Phi-3 files call LongRoPE by these names.
        "longrope" | "su" => longrope(p, max_context, original_context),
        "yarn" if arch == Arch::Phi3 => longrope(p, max_context, original_context),
        "yarn" => yarn(p, max_context, original_context),
        other => {
            let want = "default, linear, llama3, yarn or longrope";
            Err(p.wrong("rope_type", &Value::String(other.into()), want))
        }
    }
}

fn ratio(max_context: usize, original_context: usize) -> f32 {
    max_context as f32 / original_context.max(1) as f32
}

fn yarn(p: &Fields<'_>, max_context: usize, original_context: usize) -> Result<RopeScaling, FormatError> {
    if let Some(Value::Bool(false)) = p.get("truncate") {
        return Err(p.wrong("truncate", &Value::Bool(false), "true; YaRN without truncation is not supported"));
    }
    let factor = p.float("factor")?.unwrap_or_else(|| ratio(max_context, original_context));
    let scaled = |m: f32| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let nonzero = |key: &str| Ok::<_, FormatError>(p.float(key)?.filter(|&v| v != 0.0));
    let attention_factor = match (p.float("attention_factor")?, nonzero("mscale")?, nonzero("mscale_all_dim")?) {
        (Some(given), _, _) => given,
        (None, Some(m), Some(all)) => scaled(m) / scaled(all),
        _ => yarn_attention_factor(factor),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
        beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
        attention_factor,
    })
}

fn longrope(p: &Fields<'_>, max_context: usize, original_context: usize) -> Result<RopeScaling, FormatError> {
    let list = |key: &str| p.floats(key)?.ok_or_else(|| p.missing(key, "a list of numbers, one a frequency"));
    let factor = p.float("factor")?.unwrap_or_else(|| ratio(max_context, original_context));
    let attention_factor = match p.float("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original_context as f32).ln()).sqrt(),
    };
    Ok(RopeScaling::Factors {
        short: list("short_factor")?,
        long: list("long_factor")?,
        original_context,
        attention_factor,
    })
}
