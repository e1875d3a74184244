#!/usr/bin/env bash
# Everything that waits for a GPU, in one run: conformance of every op first, then NVIDIA's own checkers on it, then times.
# Needs this checkout and either a Rust toolchain or a carried binary:
#
#   cargo xtask cuda-install && cargo xtask cuda-kernels                      # on any machine
#   PELTON_CUDA_KERNELS=$PWD/target/cuda/kernels.bundle cargo build --release -p pelton-cuda --example device
#   strip -o gpu-device target/release/examples/device                        # a few MiB, with all kernels
#   benches/gpu_run.sh --binary ./gpu-device --out results                    # on the machine with the GPU
#
# Results: OUT/*.json, OUT/*.log. Ends with an error at the first step that fails; what ran before stays in OUT.
set -euo pipefail
cd "$(dirname "$0")/.."

binary= out=target/gpu
while [ $# -gt 0 ]; do
    case "$1" in
        --binary) binary=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) echo "usage: benches/gpu_run.sh [--binary FILE] [--out FOLDER]" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
step() { printf '\n== %s\n' "$*"; }

if [ -z "$binary" ]; then
    step "build"
    cargo build --release --locked -p pelton-cuda --example device
    binary=${CARGO_TARGET_DIR:-target}/release/examples/device
fi

step "device"
"$binary" info | tee "$out/info.json"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv >"$out/smi.csv"

step "conformance: every op against the reference, rows together and apart"
"$binary" conform | tee "$out/conform.json"
"$binary" conform --no-graphs | tee "$out/conform-no-graphs.json"
# Launches before those before them have ended; without a difference below compute capability 9.0.
"$binary" conform --early | tee "$out/conform-early.json"

checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ -x "$checker" ]; then
    for tool in memcheck racecheck synccheck initcheck; do
        step "compute-sanitizer $tool"
        # initcheck also reports padding that is read and multiplied by zero: its log is for reading, not a failure.
        fails=1; [ $tool = initcheck ] && fails=0
        timeout 900 "$checker" --tool $tool --error-exitcode $fails "$binary" conform >"$out/$tool.log" 2>&1 \
            || { tail -n 40 "$out/$tool.log"; exit 1; }
        tail -n 2 "$out/$tool.log"
    done
else
    echo "!! SANITIZER NOT RUN: there is no compute-sanitizer" | tee "$out/sanitizer-missing.log"
fi

step "times"
"$binary" bench | tee "$out/bench.json"
"$binary" bench --early | tee "$out/bench-early.json"
