//! Chores of the project that a machine can do. `cargo xtask layers` holds the crates against the floors of
//! ARCHITECTURE.md; `cargo xtask rivals` measures Pelton beside other engines; `cuda-install`,
//! `cuda-kernels`, `sass-gate` and `cuda-sanitize` compile the GPU's kernels and check what became of them; `arm-check`,
//! `arm-test` and `arm-run` do so for 64-bit Arm.
//!
//! Invariant: a crate depends only on crates of lower floors that its row names; a crate without a row fails.

#![forbid(unsafe_code)]

mod arm;
mod cuda;
mod rivals;

use std::process::{Command, ExitCode};

use serde_json::Value;

/// Crate, floor, and the crates of ours that it may use (dependencies for tests included).
const FLOORS: &[(&str, u32, &[&str])] = &[
    ("pelton-quant", 0, &[]),
    ("pelton-text", 0, &[]),
    ("pelton-sched", 0, &[]),
    ("pelton-store", 0, &[]),
    ("pelton-formats", 1, &["pelton-quant"]),
    ("pelton-backend", 1, &["pelton-quant"]),
    ("pelton-cpu", 2, &["pelton-backend", "pelton-quant"]),
    ("pelton-cuda", 2, &["pelton-backend", "pelton-quant"]),
    ("pelton-sample", 2, &[]),
    ("pelton-model", 3, &["pelton-backend", "pelton-cuda", "pelton-formats", "pelton-quant"]),
    (
        "pelton-engine",
        4,
        &["pelton-backend", "pelton-formats", "pelton-model", "pelton-sched", "pelton-sample", "pelton-text"],
    ),
    (
        "pelton",
        5,
        &[
            "pelton-backend",
            "pelton-cpu",
            "pelton-cuda",
            "pelton-engine",
            "pelton-formats",
            "pelton-model",
            "pelton-quant",
            "pelton-sample",
            "pelton-store",
            "pelton-text",
        ],
    ),
    ("pelton-docs", 6, &["pelton"]),
    ("pelton-eval", 6, &["pelton", "pelton-store"]),
    (
        "pelton-quantize",
        6,
        &["pelton", "pelton-backend", "pelton-cpu", "pelton-formats", "pelton-model", "pelton-quant"],
    ),
    ("pelton-server", 6, &["pelton"]),
    ("pelton-cli", 7, &["pelton", "pelton-cuda", "pelton-docs", "pelton-eval", "pelton-quantize", "pelton-server"]),
    ("xtask", 7, &["pelton-cuda"]),
];

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    match task.as_deref() {
        Some("layers") => match check_layers() {
            Ok(n) => {
                println!("layers: {n} dependencies between crates point down, as ARCHITECTURE.md says");
                ExitCode::SUCCESS
            }
            Err(problems) => {
                problems.iter().for_each(|p| eprintln!("layers: {p}"));
                ExitCode::FAILURE
            }
        },
        Some("rivals") => match rivals::run(std::env::args().skip(2)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("rivals: {problem}");
                ExitCode::FAILURE
            }
        },
        Some(task @ ("cuda-install" | "cuda-kernels" | "sass-gate" | "cuda-sanitize")) => {
            match cuda::run(task, std::env::args().skip(2)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(problem) => {
                    eprintln!("{task}: {problem}");
                    ExitCode::FAILURE
                }
            }
        }
        Some(task @ ("arm-check" | "arm-test" | "arm-run")) => match arm::run(task, std::env::args().skip(2)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("{task}: {problem}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: cargo xtask layers | rivals | cuda-install | cuda-kernels | sass-gate | cuda-sanitize");
            eprintln!("                   | arm-check | arm-test | arm-run");
            ExitCode::from(2)
        }
    }
}

/// Compares `cargo metadata` with [`FLOORS`]; returns how many dependencies were checked.
fn check_layers() -> Result<usize, Vec<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .map_err(|e| vec![format!("cannot run cargo metadata: {e}")])?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| vec![format!("cargo metadata printed no JSON: {e}")])?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let edges: Vec<(String, String)> = packages.iter().flat_map(edges_of).collect();
    let mut problems = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        if row(name).is_none() {
            problems.push(format!("{name} has no row in xtask's table of floors"));
        }
    }
    problems.extend(edges.iter().filter_map(|(from, to)| problem(from, to)));
    if problems.is_empty() { Ok(edges.len()) } else { Err(problems) }
}

/// The dependencies of one package on packages of this workspace.
fn edges_of(package: &Value) -> Vec<(String, String)> {
    let from = package["name"].as_str().unwrap_or_default();
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = dependencies.iter().filter(|d| !d["path"].is_null());
    ours.filter_map(|d| Some((from.to_string(), d["name"].as_str()?.to_string()))).collect()
}

fn row(name: &str) -> Option<&'static (&'static str, u32, &'static [&'static str])> {
    FLOORS.iter().find(|(n, _, _)| *n == name)
}

/// What is wrong with a dependency of `from` on `to`, if anything is.
fn problem(from: &str, to: &str) -> Option<String> {
    let (_, floor, allowed) = row(from)?;
    let (_, below, _) = row(to)?;
    if below >= floor {
        return Some(format!("{from} (floor {floor}) must not use {to} (floor {below}): dependencies point down"));
    }
    (!allowed.contains(&to)).then(|| format!("{from} may use {}, not {to}", allowed.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_point_down() {
        assert!(problem("pelton-quant", "pelton-engine").unwrap().contains("point down"));
        assert!(problem("pelton-engine", "pelton-quant").unwrap().contains("may use"));
        assert_eq!(problem("pelton-engine", "pelton-sched"), None);
    }

    #[test]
    fn the_tree_obeys() {
        assert_eq!(check_layers().err(), None);
    }
}
