//! The wheels: which, and into which folder. NVRTC 12.8 makes code that drivers from 525 on take.

use std::path::PathBuf;
use std::process::Command;

use super::folder;

const COMPILER: [&str; 1] = ["nvidia-cuda-nvrtc-cu12==12.8.93"];
const TOOLS: [&str; 2] = ["nvidia-cuda-cuobjdump==13.2.51", "nvidia-cuda-nvdisasm==13.2.51"];

/// The compiler's library.
pub(super) fn compiler() -> PathBuf {
    folder().join("compiler/nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
}

/// The disassembler.
pub(super) fn cuobjdump() -> PathBuf {
    folder().join("tools/nvidia/cu13/bin/cuobjdump")
}

pub(super) fn run(python: &str) -> Result<(), String> {
    for (name, wheels) in [("compiler", &COMPILER[..]), ("tools", &TOOLS[..])] {
        let to = folder().join(name);
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--upgrade", "--target"])
            .arg(&to)
            .args(wheels);
        let status = pip.status().map_err(|e| format!("{python}: {e}; name another with --python"))?;
        if !status.success() {
            return Err(format!("pip could not install {}", wheels.join(", ")));
        }
        println!("{}: {}", to.display(), wheels.join(", "));
    }
    Ok(())
}
