//! The name of a model on a hub, as a person types it: `ORG/NAME[:QUANT][@REVISION]`.
//!
//! Invariant: a [`ModelSpec`] holds only parts that are safe in a path and in an address.

use std::fmt;
use std::str::FromStr;

use crate::StoreError;
use crate::layout::name_problem;

/// A parsed model name. Made by [`str::parse`] only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelSpec {
    org: String,
    name: String,
    quant: Option<String>,
    revision: Option<String>,
}

impl ModelSpec {
    /// `ORG/NAME`.
    pub fn repo(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// The folder of the repository in the cache: `models--ORG--NAME`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }

    /// What stood after `:`: a quantization such as `Q4_K_M`, a `.gguf` file name, or `safetensors`.
    pub fn quant(&self) -> Option<&str> {
        self.quant.as_deref()
    }

    /// What stood after `@`: a branch, tag or commit. `None` means `main`.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The revision to ask the hub for.
    pub(crate) fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl FromStr for ModelSpec {
    type Err = StoreError;

    fn from_str(spec: &str) -> Result<Self, StoreError> {
        let bad = |reason: &str| StoreError::BadSpec { spec: crate::error::clip(spec, 200), reason: reason.to_owned() };
        let (left, revision) = match spec.split_once('@') {
            Some((left, revision)) => (left, Some(revision)),
            None => (spec, None),
        };
        if revision.is_some_and(|revision| revision.contains(':')) {
            return Err(bad("the quantization stands before the `@`"));
        }
        let (repo, quant) = match left.split_once(':') {
            Some((repo, quant)) => (repo, Some(quant)),
            None => (left, None),
        };
        let (org, name) = repo.split_once('/').ok_or_else(|| bad("it has no `/`"))?;
        for (part, what) in [(org, "the organization"), (name, "the name")] {
            if let Some(problem) = id_problem(part) {
                return Err(bad(&format!("{what} {problem}")));
            }
        }
        for (part, what) in [(quant, "the quantization"), (revision, "the revision")] {
            if let Some(problem) = part.and_then(name_problem) {
                return Err(bad(&format!("{what} {problem}")));
            }
        }
        Ok(Self {
            org: org.to_owned(),
            name: name.to_owned(),
            quant: quant.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)?;
        if let Some(quant) = &self.quant {
            write!(f, ":{quant}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// The hub's rules for one half of a repository id; `--` is excluded so that the cache folder can be read back.
fn id_problem(part: &str) -> Option<&'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if part.is_empty() {
        Some("is empty")
    } else if part.len() > 96 {
        Some("is longer than 96 characters")
    } else if !part.chars().all(allowed) {
        Some("may hold only letters, digits, `-`, `_` and `.`")
    } else if part.contains("--") || part.contains("..") {
        Some("may not hold `--` or `..`")
    } else if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
        Some("may not begin or end with `-` or `.`")
    } else {
        None
    }
}

/// Splits a cache folder's name back into `ORG/NAME`; `None` for folders that no valid id makes.
pub(crate) fn repo_of_folder(folder: &str) -> Option<String> {
    let (org, name) = folder.strip_prefix("models--")?.split_once("--")?;
    let valid = id_problem(org).is_none() && id_problem(name).is_none();
    valid.then(|| format!("{org}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_parsed_and_printed_back() {
        let spec: ModelSpec = "Qwen/Qwen3-0.6B-GGUF:Q8_0@refs/pr/7".parse().unwrap();
        assert_eq!(spec.repo(), "Qwen/Qwen3-0.6B-GGUF");
        assert_eq!(spec.folder(), "models--Qwen--Qwen3-0.6B-GGUF");
        assert_eq!((spec.quant(), spec.revision()), (Some("Q8_0"), Some("refs/pr/7")));
        assert_eq!(spec.to_string(), "Qwen/Qwen3-0.6B-GGUF:Q8_0@refs/pr/7");
        assert_eq!(repo_of_folder(&spec.folder()).as_deref(), Some("Qwen/Qwen3-0.6B-GGUF"));
    }

    #[test]
    fn names_that_could_leave_the_cache_are_refused() {
        for spec in [
            "",
            "gpt2",
            "a/",
            "/b",
            "../b",
            "a/..",
            "a/b/c",
            "a--b/c",
            "a/b@../x",
            "a/b@",
            "a/b:",
            "a/b:../x",
            "a/b:x\\y",
            "a\0/b",
            "a/b@main:Q8_0",
            "-a/b",
            "a/b.",
            "ä/b",
            "a/b@/etc",
            "a/b:C:x\u{7}",
        ] {
            let error = spec.parse::<ModelSpec>().expect_err(spec).to_string();
            assert!(error.contains("not a model name"), "{spec:?}: {error}");
        }
        assert!(format!("a/{}", "b".repeat(97)).parse::<ModelSpec>().is_err());
        assert_eq!(repo_of_folder("models--a--b--c"), None);
        assert_eq!(repo_of_folder("datasets--a--b"), None);
    }
}
