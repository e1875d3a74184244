//! Puts compiled kernels into the crate where `PELTON_CUDA_KERNELS` names a bundle (`cargo xtask cuda-kernels` makes
//! one); without it the kernels are compiled at run time, where the CUDA toolkit's compiler library is installed.
//! Never needs CUDA.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=PELTON_CUDA_KERNELS");
    println!("cargo::rerun-if-changed=build.rs");
    let to = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.bundle");
    match std::env::var_os("PELTON_CUDA_KERNELS").filter(|p| !p.is_empty()) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", PathBuf::from(&path).display());
            if let Err(e) = std::fs::copy(&path, &to) {
                panic!("PELTON_CUDA_KERNELS={}: {e}", path.display());
            }
        }
        None => std::fs::write(&to, b"").expect("OUT_DIR can be written"),
    }
}
