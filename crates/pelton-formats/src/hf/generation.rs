//! `generation_config.json` and the ids in `config.json`, as [`GenerationDefaults`].

use super::fields::Fields;
use crate::{FormatError, GenerationDefaults};

/// Fields of `generation_config.json` win; ids that it does not give come from `config.json`.
pub(super) fn read(config: &Fields<'_>, generation: Option<&Fields<'_>>) -> Result<GenerationDefaults, FormatError> {
    let ids = |key: &str| -> Result<Vec<u32>, FormatError> {
        if let Some(own) = generation.map(|g| g.ids(key)).transpose()?.flatten() {
            return Ok(own);
        }
        Ok(config.ids(key)?.unwrap_or_default())
    };
    let mut out = GenerationDefaults {
        bos: ids("bos_token_id")?.first().copied(),
        eos: ids("eos_token_id")?,
        pad: ids("pad_token_id")?.first().copied(),
        ..GenerationDefaults::default()
    };
    if let Some(g) = generation {
        out.temperature = g.float("temperature")?;
        out.top_k = g.count("top_k")?;
        out.top_p = g.float("top_p")?;
        out.min_p = g.float("min_p")?;
        out.repetition_penalty = g.float("repetition_penalty")?;
        out.do_sample = g.bool("do_sample")?;
    }
    Ok(out)
}
