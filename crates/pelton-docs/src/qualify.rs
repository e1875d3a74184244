//! The module part of qualified names, from paths: Rust's crate and modules, Python's packages.
//!
//! Invariant: the answer depends only on the file's path and on the marker files (`Cargo.toml`,
//! `__init__.py`) in its folders; the other languages name their packages in the source or not at all.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::language::Language;

/// Folders deeper than this above a file are not searched for a marker.
const MAX_UP: usize = 32;

/// Looks modules up, remembering what each folder's `Cargo.toml` says.
#[derive(Default)]
pub(crate) struct Modules {
    crates: HashMap<PathBuf, Option<String>>,
}

impl Modules {
    /// The module of a file: `till::receipt` or `shop.cart`; empty for the other languages.
    pub(crate) fn of(&mut self, root: &Path, file: &Path, language: Language) -> String {
        match language {
            Language::Rust => self.rust(root, file),
            Language::Python => python(file),
            _ => String::new(),
        }
    }

    fn rust(&mut self, root: &Path, file: &Path) -> String {
        let mut parts: Vec<String> = Vec::new();
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !matches!(stem.as_str(), "lib" | "main" | "mod") {
            parts.push(stem);
        }
        // Without a crate, only the folders below the root count.
        let mut n_below_root = parts.len();
        let mut in_crate = false;
        for folder in file.ancestors().skip(1).take(MAX_UP) {
            if let Some(name) = self.crate_name(folder) {
                parts.push(name);
                in_crate = true;
                break;
            }
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            if name != "src" {
                parts.push(name.into_owned());
            }
            if folder.starts_with(root) && folder != root {
                n_below_root = parts.len();
            }
        }
        if !in_crate {
            parts.truncate(n_below_root);
        }
        parts.reverse();
        parts.join("::")
    }

    /// The package that a folder's `Cargo.toml` names, as Rust spells it.
    fn crate_name(&mut self, folder: &Path) -> Option<String> {
        if let Some(known) = self.crates.get(folder) {
            return known.clone();
        }
        let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        let package = text.lines().skip_while(|line| line.trim() != "[package]").skip(1);
        let name = package
            .take_while(|line| !line.trim_start().starts_with('['))
            .find_map(|line| line.trim().strip_prefix("name")?.trim_start().strip_prefix('='))
            .map(|value| value.trim().trim_matches(['"', '\'']).replace('-', "_"));
        self.crates.insert(folder.to_owned(), name.clone());
        name
    }
}

/// The dotted module of a Python file, from the outermost folder that is a package.
fn python(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut parts = if stem == "__init__" { Vec::new() } else { vec![stem] };
    let mut n_in_package = parts.len();
    for folder in file.ancestors().skip(1).take(MAX_UP) {
        parts.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
        if folder.join("__init__.py").is_file() {
            n_in_package = parts.len();
        } else if parts.len() > n_in_package + 1 {
            // One folder without `__init__.py` may lie inside of a package; two do not.
            break;
        }
    }
    parts.truncate(n_in_package);
    parts.reverse();
    parts.join(".")
}
