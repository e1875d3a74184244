//! The kernels: their sources, how they are compiled, and how the compiled ones are found.
//!
//! In order of preference: machine code for the card that was compiled ahead and put into the binary ([`bundle`]), the
//! intermediate form (PTX) from there, which the driver translates, and the compiler library of the CUDA toolkit
//! ([`Compiler`]), where it is installed.

mod bundle;
mod compiler;
mod load;

pub use bundle::{Bundle, BundleError};
pub use compiler::{Compiler, Output};
pub(crate) use load::Kernels;

/// A file of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its name without the ending.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Source {
    /// Whether its kernels wait for the kernel before them before they touch memory, so that they may be launched early.
    pub fn waits(&self) -> bool {
        self.text.contains("wait_for_predecessor();")
    }
}

macro_rules! sources {
    ($($name:literal)*) => {
        &[$(Source { name: $name, text: include_str!(concat!("../../kernels/", $name, ".cu")) }),*]
    };
}

/// All files of kernels.
pub const SOURCES: &[Source] = sources! {
    "norm" "elementwise" "rope" "quantize" "matvec" "matmul_few" "matmul_many" "terms" "terms_many" "floats" "moe" "attention_wide" "attention" "choose"
};

macro_rules! headers {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../../kernels/", $name)))),*] };
}

/// What the files include: name and text.
pub const HEADERS: &[(&str, &str)] = headers! {
    "prelude.cuh" "activation.cuh" "packed.cuh" "ring.cuh" "terms.cuh" "attention.cuh"
};

/// The architectures that a release carries machine code for: A100; RTX 30; RTX 40; H100; RTX 50.
pub const ARCHITECTURES: &[&str] = &["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120"];

/// The intermediate form that a release carries for all others.
pub const PTX: &str = "compute_80";

#[cfg(test)]
mod tests {
    use super::*;

    /// In a file that waits, each kernel does so first.
    #[test]
    fn kernels_wait_before_anything_else_or_not_at_all() {
        for source in SOURCES.iter().filter(|source| source.waits()) {
            for kernel in source.text.split("__global__").skip(1) {
                let (head, body) = kernel.split_once(") {").expect("a kernel has a body");
                let first = body.trim_start_matches([' ', '\\', '\n']);
                assert!(first.starts_with("wait_for_predecessor();"), "{}.cu: {head}", source.name);
            }
        }
        assert!(SOURCES.iter().any(Source::waits));
    }
}
