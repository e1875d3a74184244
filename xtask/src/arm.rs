//! 64-bit Arm on a machine that is none: `arm-check` compiles for it, `arm-test` runs the tests of the CPU's kernels on an
//! emulated processor, `arm-run` compares an emulated `pelton run` with this machine's.
//!
//! Invariant: nothing is left out without a line that says so, and a tool that is missing is an error that names it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// Where Debian's cross compiler has the libraries of the target.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";
/// A processor with all that the kernels know; `cortex-a72` has no `sdot`, `neoverse-n1` no `usmmla`.
const PROCESSOR: &str = "max";
/// What is compiled without a C compiler for the target.
const WITHOUT_C: [&str; 3] = ["pelton-cpu", "pelton-model", "pelton-engine"];
/// What `arm-run` asks: short, since an emulated token takes seconds.
const PROMPT: &str = "Write one sentence about rivers.";

/// Runs one of the tasks; `arguments` go to the tests (`arm-test`) or to `pelton run` (`arm-run`).
pub(crate) fn run(task: &str, arguments: impl Iterator<Item = String>) -> Result<(), String> {
    needs_target()?;
    match task {
        "arm-check" => check(),
        "arm-test" => test(arguments),
        _ => compare(arguments.collect()),
    }
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether `tool` is in the search path.
fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

fn needs(tool: &str, package: &str) -> Result<(), String> {
    if has(tool) { Ok(()) } else { Err(format!("there is no {tool} (Debian and Ubuntu: apt-get install {package})")) }
}

fn needs_target() -> Result<(), String> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let output = output.map_err(|e| format!("cannot run rustc: {e}"))?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_string();
    if output.status.success() && Path::new(&folder).is_dir() {
        return Ok(());
    }
    Err(format!("this toolchain has no standard library for {TARGET}: rustup target add {TARGET}"))
}

fn succeeds(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(e) => Err(format!("cannot run {command:?}: {e}")),
    }
}

/// Lints for the target: all crates with a C compiler for it, else those that need none.
fn check() -> Result<(), String> {
    let mut kernels = cargo();
    kernels.args(["clippy", "--locked", "--target", TARGET, "--all-targets"]);
    succeeds(kernels.args(WITHOUT_C.map(|name| format!("-p{name}"))).args(["--", "-D", "warnings"]))?;
    if !has(COMPILER) {
        println!("!! THE COMMAND IS NOT CHECKED FOR {TARGET}: there is no {COMPILER}");
        return Ok(());
    }
    let mut all = cargo();
    all.args(["clippy", "--locked", "--target", TARGET, "-p", "pelton-cli", "--", "-D", "warnings"]);
    succeeds(with_tools(&mut all))
}

/// Tells cargo what links and what runs programs of the target.
fn with_tools(command: &mut Command) -> &mut Command {
    let prefix = format!("CARGO_TARGET_{}", TARGET.replace('-', "_").to_uppercase());
    command
        .env(format!("{prefix}_LINKER"), COMPILER)
        .env(format!("{prefix}_RUNNER"), format!("{EMULATOR} -cpu {PROCESSOR} -L {LIBRARIES}"))
}

fn needs_tools() -> Result<(), String> {
    needs(COMPILER, "gcc-aarch64-linux-gnu")?;
    needs(EMULATOR, "qemu-user")
}

/// The tests of the CPU's kernels: all instruction sets, bit for bit.
fn test(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    needs_tools()?;
    let mut tests = cargo();
    tests.args(["test", "--locked", "--target", TARGET, "-p", "pelton-cpu", "--lib", "--tests", "--"]).args(arguments);
    succeeds(with_tools(&mut tests))
}

/// What `pelton run` says here and there, for each instruction set of the target.
fn compare(more: Vec<String>) -> Result<(), String> {
    needs_tools()?;
    succeeds(cargo().args(["build", "--locked", "--release", "-p", "pelton-cli"]))?;
    let mut build = cargo();
    build.args(["build", "--locked", "--release", "--target", TARGET, "-p", "pelton-cli"]);
    succeeds(with_tools(&mut build))?;
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or(PathBuf::from("target"), PathBuf::from);
    let asked: Vec<OsString> =
        ["run", "--quiet", "--temperature", "0", "--max-tokens", "16", PROMPT].map(Into::into).to_vec();
    let answer = |mut command: Command, isa: &str| {
        command.args(&asked).args(&more).env("PELTON_ISA", isa);
        let output = command.output().map_err(|e| format!("cannot run {command:?}: {e}"))?;
        if !output.status.success() {
            return Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
        }
        Ok(output.stdout)
    };
    // Of all instruction sets of other machines, AVX2 has the vectors of NEON: the same bits.
    let here = if cfg!(target_arch = "x86_64") { "avx2" } else { "scalar" };
    let want = answer(Command::new(folder.join("release/pelton")), here)?;
    println!("{here}: {}", String::from_utf8_lossy(&want).trim());
    for isa in ["i8mm", "dotprod", "neon"] {
        let mut emulated = Command::new(EMULATOR);
        emulated.args(["-cpu", PROCESSOR, "-L", LIBRARIES]).arg(folder.join(TARGET).join("release/pelton"));
        let got = answer(emulated, isa)?;
        println!("{isa}: {}", String::from_utf8_lossy(&got).trim());
        if got != want {
            return Err(format!("{isa} says something else than {here}"));
        }
    }
    Ok(())
}
