//! What a file name tells: the quantization it carries and its place among shards.
//!
//! The conventions are those of llama.cpp's and the hub's GGUF files: `NAME-Q4_K_M.gguf`, `NAME.Q4_K_M.gguf`,
//! `name_q4_0.gguf`, `Q4_K_M/NAME-Q4_K_M-00001-of-00003.gguf`, and the prefix `UD-` for dynamic mixes.
//!
//! Invariant: a label is found only as a whole token, so `IQ4_XS` never reads as `Q4_XS`, nor `Q4_K_M` as `Q4_K`.

/// Which quantization is taken when none was asked for, best first: small and good before large and exact. Types that
/// Pelton does not decode are absent.
pub(crate) const PREFERRED: &[&str] = &[
    "Q4_K_M",
    "Q8_0",
    "Q5_K_M",
    "Q6_K",
    "Q4_K_S",
    "Q5_K_S",
    "Q4_K",
    "Q5_K",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "IQ4_XS",
    "IQ4_NL",
    "UD-Q4_K_XL",
    "UD-Q5_K_XL",
    "UD-Q6_K_XL",
    "UD-Q8_K_XL",
    "Q4_K_L",
    "Q5_K_L",
    "Q6_K_L",
    "MXFP4",
    "MXFP4_MOE",
    "Q3_K_M",
    "Q3_K_L",
    "Q3_K_S",
    "Q2_K",
    "BF16",
    "F16",
    "FP16",
    "F32",
    "FP32",
];

/// The label in a path, upper case: the last one in the file's name, else the last one in its folders' names.
pub(crate) fn label_of(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".gguf").unwrap_or(part).to_ascii_uppercase();
        let mut found: Option<String> = None;
        let mut dynamic = false;
        // Runs between delimiters other than `_`, which labels hold themselves.
        for run in part.split(|c: char| !c.is_alphanumeric() && c != '_') {
            if let Some(label) = label_in_run(run) {
                found = Some(if dynamic { format!("UD-{label}") } else { label });
            }
            dynamic = run == "UD";
        }
        found
    })
}

/// The last label in a run of letters, digits and `_`.
fn label_in_run(run: &str) -> Option<String> {
    let segments: Vec<&str> = run.split('_').collect();
    (0..segments.len()).rev().find_map(|start| {
        let head = segments[start];
        let suffixes: &[&str] = match head.as_bytes() {
            [b'Q', b'1'..=b'8'] | [b'I' | b'T', b'Q', b'1'..=b'8'] => {
                &["K", "0", "1", "4", "8", "XXS", "XS", "S", "M", "L", "XL", "XXL", "NL"]
            }
            b"MXFP4" => &["MOE"],
            b"BF16" | b"F16" | b"FP16" | b"F32" | b"FP32" | b"NVFP4" => &[],
            _ => return None,
        };
        let n_suffixes = segments[start + 1..].iter().take_while(|segment| suffixes.contains(segment)).count();
        Some(segments[start..=start + n_suffixes].join("_"))
    })
}

/// Whether `wanted` stands in `path` as a whole token, for labels that [`label_of`] does not know.
pub(crate) fn carries_token(path: &str, wanted: &str) -> bool {
    let (path, wanted) = (path.to_lowercase(), wanted.to_lowercase());
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    !wanted.is_empty()
        && path.match_indices(&wanted).any(|(at, _)| {
            let before = path[..at].chars().next_back();
            let after = path[at + wanted.len()..].chars().next();
            !before.is_some_and(joins) && !after.is_some_and(joins)
        })
}

/// A file's name taken apart: `base` + `-00002-of-00003` + `extension`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardName<'a> {
    /// The path up to the shard number.
    pub(crate) base: &'a str,
    /// From 1.
    pub(crate) index: u32,
    /// How many shards there are.
    pub(crate) n_shards: u32,
}

/// Reads the shard number before `extension` (with its dot); `None` for a file that is whole.
pub(crate) fn shard_of<'a>(path: &'a str, extension: &str) -> Option<ShardName<'a>> {
    let stem = path.strip_suffix(extension)?;
    let (rest, n_shards) = stem.rsplit_once("-of-")?;
    let (base, index) = rest.rsplit_once('-')?;
    let number = |text: &str| {
        let plain = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (index, n_shards) = (number(index)?, number(n_shards)?);
    (1..=n_shards).contains(&index).then_some(ShardName { base, index, n_shards })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_as_whole_tokens() {
        for (path, label) in [
            ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", Some("Q4_K_M")),
            ("tinyllama-1.1b-chat-v1.0.Q5_0.gguf", Some("Q5_0")),
            ("qwen2.5-0.5b-instruct-q8_0.gguf", Some("Q8_0")),
            ("llama_7b_q4_0.gguf", Some("Q4_0")),
            ("Qwen3-8B-UD-Q4_K_XL.gguf", Some("UD-Q4_K_XL")),
            ("Qwen3-8B-IQ4_XS.gguf", Some("IQ4_XS")),
            ("gpt-oss-20b-MXFP4_MOE.gguf", Some("MXFP4_MOE")),
            ("gemma-2-2b-it-f16.gguf", Some("F16")),
            ("phi-3-mini-4k-instruct-fp16.gguf", Some("FP16")),
            ("BF16/Qwen3-30B-00001-of-00002.gguf", Some("BF16")),
            ("Q6_K/model-Q4_0_4_8.gguf", Some("Q4_0_4_8")),
            ("Qwen3-4B-TQ2_0.gguf", Some("TQ2_0")),
            ("Q4ever-7B.gguf", None),
            ("model.gguf", None),
            ("modèle-Q4_K_M-é.gguf", Some("Q4_K_M")),
        ] {
            assert_eq!(label_of(path).as_deref(), label, "{path}");
        }
    }

    #[test]
    fn unknown_labels_match_between_delimiters_only() {
        assert!(carries_token("m-Q5_K_P.gguf", "q5_k_p"));
        assert!(!carries_token("m-Q5_K_P.gguf", "Q5_K"));
        assert!(!carries_token("m-IQ4_XS.gguf", "Q4_XS"));
        assert!(carries_token("m.imat.gguf", "imat"));
        assert!(!carries_token("m.gguf", ""));
    }

    #[test]
    fn shard_names_are_read_strictly() {
        let shard = shard_of("a/b-Q8_0-00002-of-00003.gguf", ".gguf").unwrap();
        assert_eq!(shard, ShardName { base: "a/b-Q8_0", index: 2, n_shards: 3 });
        for path in ["b-0002-of-00003.gguf", "b-00004-of-00003.gguf", "b-00000-of-00003.gguf", "b-+0001-of-00003.gguf"]
        {
            assert_eq!(shard_of(path, ".gguf"), None, "{path}");
        }
        assert_eq!(shard_of("b-00001-of-00001.safetensors", ".gguf"), None);
    }
}
