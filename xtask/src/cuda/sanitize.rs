//! Conformance under AddressSanitizer: the simulator's kernels, compiled with it, read and write inside their matrices. That
//! it would be noticed is checked too: a library with a planted overrun must be reported.

use std::process::{Command, Output};

/// Builds the tests and says where their binary is.
fn test_binary() -> Result<String, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let args = ["test", "-p", "pelton-cuda", "--lib", "--no-run", "--message-format=json"];
    let output = Command::new(cargo).args(args).output().map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = lines.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let mut binaries = messages.filter_map(|m| m["executable"].as_str().map(str::to_string));
    binaries.next_back().ok_or("cargo built no test binary".to_string())
}

/// Runs the conformance tests with the simulator built as `kind`.
fn conformance(binary: &str, kind: &str, library: &str) -> Result<Output, String> {
    Command::new(binary)
        .arg("tests::conformance")
        .env("LD_PRELOAD", library)
        .env("PELTON_SIMULATOR", kind)
        // Fibers have stacks of their own, and what a test process does not free is no matter.
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
        .output()
        .map_err(|e| format!("{binary}: {e}"))
}

pub(super) fn run() -> Result<(), String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let found =
        Command::new(&compiler).arg("-print-file-name=libasan.so").output().map_err(|e| format!("{compiler}: {e}"))?;
    let library = String::from_utf8_lossy(&found.stdout).trim().to_string();
    let binary = test_binary()?;
    let planted = conformance(&binary, "overrun", &library)?;
    let said = String::from_utf8_lossy(&planted.stderr).into_owned();
    if planted.status.success() || !said.contains("AddressSanitizer: heap-buffer-overflow") {
        return Err(format!("a planted overrun was not reported; is {library} there?\n{said}"));
    }
    let clean = conformance(&binary, "sanitized", &library)?;
    if !clean.status.success() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return Err(format!("{}\n{}", text(&clean.stdout), text(&clean.stderr)));
    }
    println!("cuda-sanitize: conformance is clean, and a planted overrun is reported");
    Ok(())
}
