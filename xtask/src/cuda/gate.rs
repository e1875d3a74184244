//! The gate: hot kernels keep their registers, and the instructions that they are written for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use pelton_cuda::kernels::{ARCHITECTURES, Bundle, SOURCES};

use super::resources::Resources;
use super::{bundle_path, folder, install};

/// What a kernel's machine code must have, and whether it may use local memory.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    instructions: &'static [&'static str],
    may_spill: bool,
}

const fn rule(instructions: &'static [&'static str]) -> Rule {
    Rule { instructions, may_spill: false }
}

/// Formats whose scales are of 16 columns multiply 16 at a time.
const SHORT_SCALES: [&str; 3] = ["q2_k", "q3_k", "q6_k"];
/// Formats whose codes are read 4 or 8 bytes a lane.
const SHORT_CODES: [&str; 4] = ["q2_k", "q3_k", "int2z", "int3z"];

fn rule_of(kernel: &str) -> Rule {
    let parts: Vec<&str> = kernel.split('_').collect();
    let is_float = parts.get(1) == Some(&"f32");
    match parts[0] {
        "matvec" if is_float => rule(&["FFMA", "LDG.E"]),
        "matmul" if is_float => rule(&["FFMA"]),
        "matvec" | "gated" if SHORT_CODES.iter().any(|s| kernel.contains(s)) => rule(&["IDP.4A"]),
        "matvec" | "gated" => rule(&["IDP.4A", "LDG.E.128"]),
        "terms" if kernel.ends_with("_many") => rule(&["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128", "LDS.128"]),
        "terms" => rule(&["HMMA.16816.F32.BF16", "LDG.E.128"]),
        "matmul" if kernel.ends_with("_many") => rule(&["IMMA.168", "LDGSTS.E.BYPASS.128", "LDS.128"]),
        "matmul" if SHORT_SCALES.iter().any(|s| kernel.contains(s)) => rule(&["IMMA.16816"]),
        "matmul" => rule(&["IMMA.16832", "LDG.E.128"]),
        // Heads of 256 columns hold 128 sums a lane: the widest models (Gemma) pay some local memory.
        "attend" if parts.contains(&"256") => {
            Rule { instructions: &["HMMA.16816.F32.BF16", "LDSM", "LDGSTS"], may_spill: true }
        }
        "attend" if parts.len() > 2 => rule(&["HMMA.16816.F32.BF16", "LDSM", "LDGSTS"]),
        // Sines of large angles take a slow path with a table; once a step.
        "rope" if kernel == "rope_angles" => Rule { instructions: &[], may_spill: true },
        _ => rule(&[]),
    }
}

/// Whether a kernel that may be launched early touches memory before it has waited for the one before it: the compiler may
/// move what it takes for constant.
fn problem_of_waiting(code: &str) -> Option<String> {
    let Some((before, _)) = code.split_once("ACQBULK") else { return Some("does not wait (ACQBULK)".into()) };
    let touches = ["LDG", "STG", "LD.E", "ST.E", "ATOM", "RED.", "LDGSTS", "UBLKCP"];
    let found = touches.iter().find(|t| before.contains(&format!(" {t}")));
    found.map(|instruction| format!("has {instruction} before it waits (ACQBULK)"))
}

/// Checks one kernel's machine code.
fn problems(kernel: &str, code: &str) -> Vec<String> {
    let rule = rule_of(kernel);
    let mut found: Vec<String> =
        rule.instructions.iter().filter(|i| !code.contains(**i)).map(|i| format!("has no {i}")).collect();
    let uses_local = code.lines().any(|l| l.contains(" LDL") || l.contains(" STL"));
    if uses_local && !rule.may_spill {
        found.push("uses local memory (LDL, STL)".into());
    }
    found
}

/// Architectures from 9.0 on.
fn launches_early(arch: &str) -> bool {
    let digits: String = arch.chars().filter(char::is_ascii_digit).collect();
    digits.parse::<u32>().is_ok_and(|n| n >= 90)
}

/// Cuts the disassembler's text at its functions.
fn functions(text: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for part in text.split("Function : ").skip(1) {
        let (name, code) = part.split_once('\n').unwrap_or((part, ""));
        all.insert(name.trim().to_string(), code.to_string());
    }
    all
}

pub(super) fn run(record: Option<PathBuf>) -> Result<(), String> {
    let read = |path: PathBuf| {
        std::fs::read(&path).map_err(|e| format!("{}: {e}; run `cargo xtask cuda-kernels` first", path.display()))
    };
    let bundle = Bundle::from_bytes(&read(bundle_path())?).map_err(|e| e.to_string())?;
    let resources = Resources::from_lines(&String::from_utf8_lossy(&read(folder().join("resources.txt"))?));
    let mut wrong = Vec::new();
    let mut n = 0;
    for arch in ARCHITECTURES {
        for source in SOURCES {
            let code =
                bundle.get(source.name, arch).ok_or(format!("{} for {arch} is not in the bundle", source.name))?;
            let path = folder().join("gate.cubin");
            std::fs::write(&path, code).map_err(|e| format!("{}: {e}", path.display()))?;
            let output = Command::new(install::cuobjdump()).arg("--dump-sass").arg(&path).output();
            let output = output.map_err(|e| format!("cuobjdump: {e}; run `cargo xtask cuda-install` first"))?;
            for (kernel, code) in functions(&String::from_utf8_lossy(&output.stdout)) {
                n += 1;
                let mut found = problems(&kernel, &code);
                if source.waits() && launches_early(arch) {
                    found.extend(problem_of_waiting(&code));
                }
                wrong.extend(found.iter().map(|p| format!("{kernel} ({arch}) {p}")));
            }
        }
    }
    let table = table(&resources);
    print!("{table}");
    if let Some(path) = record {
        std::fs::write(&path, &table).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if n == 0 {
        return Err("the disassembler showed no kernel".into());
    }
    if wrong.is_empty() {
        println!("\nsass-gate: {n} kernels keep their instructions, and no hot one spills");
        return Ok(());
    }
    Err(wrong.join("\n"))
}

/// Registers, and spilled bytes where there are any.
fn table(resources: &Resources) -> String {
    let mut text =
        format!("| kernel | {} |\n| --- |{}\n", ARCHITECTURES.join(" | "), " ---: |".repeat(ARCHITECTURES.len()));
    for kernel in resources.kernels() {
        let cell = |arch: &&str| match resources.get(&kernel, arch) {
            None => "–".to_string(),
            Some(u) if u.spills > 0 => format!("{} ({} B spilled)", u.registers, u.spills),
            Some(u) => u.registers.to_string(),
        };
        let cells: Vec<String> = ARCHITECTURES.iter().map(cell).collect();
        text += &format!("| {kernel} | {} |\n", cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_instructions_and_spills_are_problems() {
        let good = "  LDG.E.128.CONSTANT R4 ;\n IDP.4A.S8.S8 R1 ;";
        assert!(problems("matvec_q4_k_1", good).is_empty());
        assert_eq!(problems("matvec_q4_k_1", "IDP.4A R1"), ["has no LDG.E.128"]);
        assert_eq!(problems("matvec_q4_k_1", &format!("{good}\n STL [R1], R2 ;")), ["uses local memory (LDL, STL)"]);
        assert!(problems("rope_angles", " STL [R1]").is_empty());
        assert_eq!(problems("attend_bf16_128_1", "LDSM LDGSTS"), ["has no HMMA.16816.F32.BF16"]);
    }

    #[test]
    fn memory_is_touched_behind_the_wait_alone() {
        assert_eq!(problem_of_waiting(" LDC R1 ;\n PREEXIT ;\n ACQBULK ;\n LDG.E R2 ;"), None);
        let early = problem_of_waiting(" LDG.E.CONSTANT R2 ;\n ACQBULK ;").unwrap();
        assert!(early.contains("LDG before it waits"), "{early}");
        assert!(problem_of_waiting(" LDG.E R2 ;").unwrap().contains("does not wait"));
        assert_eq!(["sm_80", "sm_89", "sm_90a", "sm_120"].map(launches_early), [false, false, true, true]);
    }

    #[test]
    fn the_disassemblers_text_is_cut_at_functions() {
        let text = "code for sm_86\n\t\tFunction : a\n one\n\t\tFunction : b\n two\n";
        let cut = functions(text);
        assert_eq!(cut.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(cut["b"].contains("two"));
    }
}
