//! `pelton doctor`: what this machine has, what Pelton makes of it, and whether decoding is as fast as that allows.
//!
//! Invariant: a machine without a GPU, or with one that cannot be used, is a finding and no failure: the exit code is 0
//! wherever the examination itself could be made.

use pelton::{CardState, DecodeState, Doctor, GpuState};
use serde_json::{Value, json};

use super::bench::{ceilings_json, ceilings_line};
use crate::args::DoctorArgs;
use crate::progress::Progress;
use crate::setup::Context;
use crate::term::{self, bytes};

pub(crate) fn run(args: &DoctorArgs, context: &Context) -> anyhow::Result<()> {
    let options = context.compute_options(&args.compute);
    let model = context.open(args.model.as_deref())?;
    let bar = Progress::steps(context.quiet);
    let found = Doctor::examine(model, &options, &mut |what| bar.message(what.to_string()));
    drop(bar);
    let found = found.map_err(|e| context.blame(e))?;
    match args.json {
        true => term::print_line(&serde_json::to_string_pretty(&doctor_json(&found))?)?,
        false => term::print_now(&describe(&found))?,
    }
    Ok(())
}

fn version() -> String {
    format!("pelton {} · {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH)
}

fn describe(found: &Doctor) -> String {
    let cpu = &found.cpu;
    let memory = found
        .memory
        .map_or("the system does not say".into(), |(free, all)| format!("{} free of {}", bytes(free), bytes(all)));
    let mut rows = vec![
        ("version".to_string(), version()),
        ("processor".into(), format!("{} cores, {} hardware threads; {}", cpu.cores, cpu.processors, cpu.kernels)),
        ("memory".into(), memory),
        ("limits".into(), ceilings_line(&cpu.ceilings).trim_start_matches("limits: ").to_string()),
    ];
    match &found.gpu {
        GpuState::None(reason) => rows.push(("GPU".into(), format!("none: {reason}"))),
        GpuState::Cards(cards) => rows.extend(cards.iter().map(card_row)),
    }
    match &found.decode {
        Err(reason) => rows.push(("decoding".into(), format!("not measured: {reason}"))),
        Ok(decode) => rows.extend(decode_rows(decode)),
    }
    rows.iter().map(|(key, value)| format!("{key:<10} {value}\n")).collect()
}

fn card_row(card: &CardState) -> (String, String) {
    let info = &card.info;
    let (major, minor) = info.driver;
    let runs = match &card.runs {
        Ok((free, kernels, bandwidth)) => {
            format!("{} free, kernels {kernels}, memory moves {:.1} GB/s", bytes(*free as u64), bandwidth / 1e9)
        }
        Err(reason) => format!("cannot be used: {reason}"),
    };
    let text = format!(
        "{}, {}, {} multiprocessors, {}, driver for CUDA {major}.{minor}; {runs}",
        info.name,
        info.arch(),
        info.multiprocessors,
        bytes(info.memory as u64)
    );
    (format!("GPU {}", info.index), text)
}

fn decode_rows(decode: &DecodeState) -> Vec<(String, String)> {
    let speed = format!(
        "{} on {}: {:.1} tokens/s, {:.0} % of the {:.0} that reading the weights allows",
        decode.model,
        decode.backend,
        decode.tokens_per_second,
        decode.share() * 100.0,
        decode.ceiling
    );
    let mut rows = vec![("decoding".to_string(), speed)];
    rows.extend(decode.gpu.line().map(|line| ("placement".to_string(), line)));
    rows.extend(decode.reasons.iter().map(|reason| ("because".to_string(), reason.clone())));
    if decode.share() > 1.0 {
        let text = "above 100 %: the weights are read from the processor's caches, which are faster than memory";
        rows.push(("note".into(), text.into()));
    }
    rows
}

fn doctor_json(found: &Doctor) -> Value {
    let cpu = &found.cpu;
    let gpu = match &found.gpu {
        GpuState::None(reason) => json!({ "cards": [], "reason": reason }),
        GpuState::Cards(cards) => json!({ "cards": cards.iter().map(card_json).collect::<Vec<_>>(), "reason": null }),
    };
    let decode = match &found.decode {
        Err(reason) => json!({ "error": reason }),
        Ok(d) => json!({ "model": d.model, "backend": d.backend, "tokens_per_second": d.tokens_per_second,
            "ceiling_tokens_per_second": d.ceiling, "share_of_ceiling": d.share(), "placement": d.gpu.line(),
            "reasons": d.reasons }),
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"), "os": std::env::consts::OS, "arch": std::env::consts::ARCH,
        "cpu": { "cores": cpu.cores, "hardware_threads": cpu.processors, "threads": cpu.threads,
            "kernels": cpu.kernels, "ceilings": ceilings_json(&cpu.ceilings) },
        "memory": found.memory.map(|(free, all)| json!({ "free_bytes": free, "bytes": all })),
        "gpu": gpu,
        "decode": decode,
    })
}

fn card_json(card: &CardState) -> Value {
    let info = &card.info;
    let (major, minor) = info.driver;
    let mut object = json!({ "index": info.index, "name": info.name, "arch": info.arch(), "memory_bytes": info.memory,
        "multiprocessors": info.multiprocessors, "driver_cuda": format!("{major}.{minor}") });
    match &card.runs {
        Ok((free, kernels, bandwidth)) => {
            object["free_bytes"] = json!(free);
            object["kernels"] = json!(kernels);
            object["gb_per_s"] = json!(bandwidth / 1e9);
        }
        Err(reason) => object["error"] = json!(reason),
    }
    object
}
