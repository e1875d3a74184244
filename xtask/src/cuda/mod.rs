//! The GPU's kernels on a machine without one: the toolkit's compilers from PyPI, compiled kernels for a release, and a gate
//! on what the compiler made of them.
//!
//! Invariant: everything lands in `target/cuda`; nothing of NVIDIA's is in the repository, and versions are pinned here.

mod gate;
mod install;
mod resources;
mod sanitize;

use std::path::{Path, PathBuf};

use pelton_cuda::kernels::{ARCHITECTURES, Bundle, Compiler, PTX, SOURCES};
use resources::Resources;

const USAGE: &str = "usage: cargo xtask cuda-install | cuda-kernels | sass-gate | cuda-sanitize [options]

  cuda-install [--python PYTHON]       NVRTC 12.8 and the tools of CUDA 13 into target/cuda, by pip
  cuda-kernels [--compiler LIBRARY]    every kernel for every architecture into target/cuda/kernels.bundle;
                                       build with PELTON_CUDA_KERNELS=that file to put them into the binary
  sass-gate [--record FILE]            registers, spills and instructions of those kernels; fails where a hot one
                                       spills or lost its tensor-core, dot-product, wide or asynchronous instructions
  cuda-sanitize                        the conformance tests under AddressSanitizer, in the simulator";

/// Where everything lands.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cuda")
}

fn bundle_path() -> PathBuf {
    folder().join("kernels.bundle")
}

/// Runs one of the chores.
pub(crate) fn run(task: &str, args: impl Iterator<Item = String>) -> Result<(), String> {
    let args: Vec<String> = args.collect();
    let option = |name: &str| -> Result<Option<String>, String> {
        match args.as_slice() {
            [] => Ok(None),
            [key, value] if key == name => Ok(Some(value.clone())),
            _ => Err(USAGE.to_string()),
        }
    };
    match task {
        "cuda-install" => install::run(option("--python")?.as_deref().unwrap_or("python3")),
        "cuda-kernels" => compile(option("--compiler")?.map(PathBuf::from)),
        "sass-gate" => gate::run(option("--record")?.map(PathBuf::from)),
        "cuda-sanitize" if args.is_empty() => sanitize::run(),
        _ => Err(USAGE.to_string()),
    }
}

/// Compiles all files for all architectures.
fn compile(compiler: Option<PathBuf>) -> Result<(), String> {
    let compiler = compiler.unwrap_or_else(install::compiler);
    let compiler = Compiler::load(Some(&compiler)).map_err(|e| format!("{e}; run `cargo xtask cuda-install` first"))?;
    let (mut bundle, mut resources, mut raw) = (Bundle::default(), Resources::default(), 0);
    for arch in ARCHITECTURES.iter().chain([&PTX]) {
        for source in SOURCES {
            let options: &[&str] = if arch.starts_with("sm_") { &["--ptxas-options=-v"] } else { &[] };
            let output = compiler.compile(source, arch, options)?;
            resources.read(&output.log, arch);
            raw += output.code.len();
            bundle.add(source.name, arch, output.code);
        }
        println!("{arch}: {} files", SOURCES.len());
    }
    let bytes = bundle.to_bytes();
    let path = bundle_path();
    std::fs::create_dir_all(folder()).map_err(|e| format!("{}: {e}", folder().display()))?;
    std::fs::write(&path, &bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    let text = resources.to_lines();
    std::fs::write(folder().join("resources.txt"), text).map_err(|e| format!("target/cuda/resources.txt: {e}"))?;
    let (major, minor) = compiler.version();
    println!(
        "{} kernels by NVRTC {major}.{minor}: {:.1} MiB, compressed {:.1} MiB: {}",
        resources.kernels().len(),
        raw as f64 / 1048576.0,
        bytes.len() as f64 / 1048576.0,
        path.display()
    );
    Ok(())
}
