//! `--gpu-layers`, `--require gpu` and `pelton doctor`, without a GPU and on the simulator's driver.

use std::path::Path;

use crate::models::fixture;
use crate::pelton::{Outcome, Sandbox, arg, assert_keys};

const CODE: &str = "def add(a, b):\n    return a + b";

/// With a driver's library in the environment.
fn with_driver(args: &[&str], driver: &Path) -> Outcome {
    Sandbox::new().run_with(args, &[("PELTON_CUDA_DRIVER", driver.to_str().unwrap())], "")
}

fn without_driver(args: &[&str]) -> Outcome {
    with_driver(args, Path::new("no-such-driver.so"))
}

#[test]
fn without_a_gpu_auto_says_so_in_one_line_and_the_others_refuse() {
    let outcome = without_driver(&["run", CODE, "-n", "4"]).ok();
    let lines: Vec<&str> = outcome.stderr.lines().filter(|l| l.contains("GPU")).collect();
    let [line] = lines[..] else { panic!("one line: {}", outcome.stderr) };
    assert!(
        line.starts_with("pelton-tiny · ") && line.contains("no GPU: no NVIDIA driver (no-such-driver.so"),
        "{line}"
    );
    assert!(!without_driver(&["run", CODE, "-n", "4", "--gpu-layers", "0"]).ok().stderr.contains("GPU"));
    assert_eq!(without_driver(&["-q", "run", CODE, "-n", "4"]).ok().stderr, "");
    without_driver(&["run", CODE, "--gpu-layers", "all"]).usage(&[
        "--gpu-layers all",
        "NVIDIA driver",
        "install the driver",
    ]);
    without_driver(&["run", CODE, "--gpu-layers", "2"]).usage(&["--gpu-layers 2", "NVIDIA driver"]);
    without_driver(&["run", CODE, "--require", "gpu"]).usage(&["--require gpu", "NVIDIA driver"]);
    without_driver(&["serve", "--require", "gpu", "--port", "0"]).usage(&["--require gpu", "NVIDIA driver"]);
    without_driver(&["run", CODE, "--gpu-layers", "some"]).usage(&["--gpu-layers", "auto"]);
    without_driver(&["run", CODE, "--require", "tpu"]).usage(&["--require tpu", "gpu"]);
    without_driver(&["run", CODE, "--reference", "--gpu-layers", "1"]).usage(&["--reference", "leave one"]);
    without_driver(&["bench", "--gpu-layers", "1"]).usage(&["--gpu-layers 1", "NVIDIA driver"]);
    without_driver(&["bench", "kernels", "--gpu-layers", "1"]).usage(&["--gpu-layers 1", "CPU's kernels"]);
}

#[test]
fn layers_go_to_the_card_and_the_start_report_says_which() {
    let driver = pelton_cuda::sim::library();
    let run = |more: &[&str]| {
        let args = [&["run", "--raw", "-n", "3", CODE], more].concat();
        with_driver(&args, &driver).ok()
    };
    let cpu = run(&["--gpu-layers", "0"]);
    let split = run(&["--gpu-layers", "2", "-v"]);
    assert!(split.stderr.contains("layers 0–1 on Simulator, 2–5 and the head on the CPU"), "{}", split.stderr);
    assert!(split.stderr.contains("on cuda "), "{}", split.stderr);
    assert_eq!(split.stdout, cpu.stdout);
    let auto = run(&["--require", "gpu"]);
    assert!(auto.stderr.contains("all layers and the head: 0–5 on Simulator"), "{}", auto.stderr);
}

#[test]
fn the_doctor_describes_a_machine_without_a_gpu() {
    let found = without_driver(&["doctor", "--json", "-t", "1"]).ok().json();
    assert_keys(&found, &["version", "os", "arch", "cpu", "memory", "gpu", "decode"]);
    assert_keys(&found["cpu"], &["cores", "hardware_threads", "threads", "kernels", "ceilings"]);
    assert_eq!((found["cpu"]["threads"].as_u64(), found["gpu"]["cards"].as_array().unwrap().len()), (Some(1), 0));
    assert!(found["cpu"]["ceilings"]["read_gb_per_s"].as_f64().unwrap() > 0.1, "{found}");
    assert!(found["gpu"]["reason"].as_str().unwrap().contains("no NVIDIA driver"), "{found}");
    let decode = &found["decode"];
    assert!(decode["tokens_per_second"].as_f64().unwrap() > 0.0 && decode["model"] == "pelton-tiny", "{decode}");
    let reached = decode["share_of_ceiling"].as_f64().unwrap() >= 0.6;
    assert_eq!(decode["reasons"].as_array().unwrap().is_empty(), reached, "{decode}");
    let text = without_driver(&["doctor"]).ok().stdout;
    for row in ["version ", "processor ", "memory ", "limits ", "GPU ", "decoding "] {
        assert!(text.lines().any(|line| line.starts_with(row)), "`{row}` is missing: {text}");
    }
    without_driver(&["doctor", "-m", "nosuch"]).usage(&["nosuch"]);
}

#[test]
fn the_doctor_measures_a_card() {
    let driver = pelton_cuda::sim::library();
    let model = fixture("qwen2-tied");
    let found = with_driver(&["doctor", "--json", "-m", arg(&model)], &driver).ok().json();
    let card = &found["gpu"]["cards"][0];
    assert_eq!((card["name"].as_str(), card["arch"].as_str()), (Some("Simulator"), Some("sm_80")));
    assert!(card["gb_per_s"].as_f64().unwrap() > 0.0 && card["kernels"] == "simulated", "{card}");
    let decode = &found["decode"];
    assert_eq!(decode["placement"], "all layers and the head: 0–2 on Simulator");
    let text = with_driver(&["doctor", "-m", arg(&model), "--gpu-layers", "1"], &driver).ok().stdout;
    assert!(text.contains("layers 0 on Simulator, 1–2 and the head on the CPU"), "{text}");
    // What cannot be measured is a finding.
    let text = without_driver(&["doctor", "--gpu-layers", "all"]).ok().stdout;
    assert!(text.contains("not measured: --gpu-layers all: no NVIDIA driver"), "{text}");
}
