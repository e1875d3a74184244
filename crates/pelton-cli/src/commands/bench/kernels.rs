//! `pelton bench kernels`: single ops beside the machine's limits.

use pelton::{Ceilings, GpuLayers, KernelFigure, KernelPlan, Shape};
use serde_json::{Value, json};

use super::output::{csv_line, table};
use super::{ceilings_json, ceilings_line};
use crate::Usage;
use crate::args::BenchKernelsArgs;
use crate::progress::Progress;
use crate::setup::Context;
use crate::term;

pub(super) fn run(args: &BenchKernelsArgs, context: &Context) -> anyhow::Result<()> {
    if args.compute.reference {
        return Err(Usage("--reference: it has one kernel for each op, written to be right and not fast".into()).into());
    }
    if !matches!(args.compute.gpu_layers, GpuLayers::Auto | GpuLayers::Count(0)) {
        let layers = args.compute.gpu_layers;
        let text = format!("--gpu-layers {layers}: this command measures the CPU's kernels; see `pelton doctor`");
        return Err(Usage(text).into());
    }
    let shape = Shape::parse(&args.shape)?;
    let (types, rows, depths) = (args.types.clone(), args.rows.clone(), args.depth.clone());
    let plan = KernelPlan { shape: shape.config().clone(), types, rows, depths, repeat: args.repeat };
    let options = context.compute_options(&args.compute);
    let bar = Progress::steps(context.quiet);
    bar.set(0, plan.len() as u64);
    bar.message("the machine's limits");
    let ceilings = pelton::ceilings(&options).map_err(|e| context.blame(e))?;
    let mut figures = Vec::with_capacity(plan.len());
    let ran = plan.run(&options, &mut |f| {
        bar.message(format!("{} {} × {}", f.op, f.dtype, f.rows));
        bar.step();
        figures.push(f);
    });
    drop(bar);
    ran.map_err(|e| context.blame(e))?;
    if args.json {
        let results: Vec<Value> = figures.iter().map(|f| figure_json(f, &ceilings)).collect();
        let object = json!({ "shape": plan.shape.name, "ceilings": ceilings_json(&ceilings), "results": results });
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    if args.csv {
        return Ok(term::print_now(&csv(&figures, &ceilings))?);
    }
    term::print_line(&ceilings_line(&ceilings))?;
    let header = ["op", "type", "kernel", "shape", "rows", "µs", "GB/s", "Top/s", "share", "bound by"];
    Ok(term::print_now(&table(&header, figures.iter().map(|f| row(f, &ceilings))))?)
}

/// How much of the ceiling an op reached; none where it touches activations alone, which caches hold.
fn share(f: &KernelFigure, ceilings: &Ceilings) -> Option<f64> {
    (f.work.memory_bytes > 0.0).then(|| f.work.least_seconds(ceilings) / f.seconds)
}

fn row(f: &KernelFigure, ceilings: &Ceilings) -> Vec<String> {
    let share = share(f, ceilings);
    vec![
        f.op.clone(),
        f.dtype.to_string(),
        f.kernel.to_string(),
        f.shape.clone(),
        f.rows.to_string(),
        format!("{:.1}", f.seconds * 1e6),
        format!("{:.1}", f.work.bytes() / f.seconds / 1e9),
        format!("{:.3}", f.work.operations() / f.seconds / 1e12),
        share.map_or("–".into(), |s| format!("{:.0} %", s * 100.0)),
        share.map_or("", |_| f.work.bound(ceilings).name()).to_string(),
    ]
}

fn csv(figures: &[KernelFigure], ceilings: &Ceilings) -> String {
    let header = ["op", "type", "kernel", "shape", "rows", "seconds", "bytes", "operations", "share_of_ceiling"];
    let mut out = csv_line(header.iter().map(ToString::to_string));
    for f in figures {
        let names = [f.op.clone(), f.dtype.to_string(), f.kernel.to_string(), f.shape.clone(), f.rows.to_string()];
        let share = share(f, ceilings).map_or(String::new(), |s| format!("{s:.4}"));
        let figures = [format!("{:.9}", f.seconds), f.work.bytes().to_string(), f.work.operations().to_string(), share];
        out += &csv_line(names.into_iter().chain(figures));
    }
    out
}

fn figure_json(f: &KernelFigure, ceilings: &Ceilings) -> Value {
    json!({ "op": f.op, "type": f.dtype, "kernel": f.kernel, "shape": f.shape, "rows": f.rows, "seconds": f.seconds,
        "gb_per_s": f.work.bytes() / f.seconds / 1e9, "tera_ops": f.work.operations() / f.seconds / 1e12,
        "share_of_ceiling": share(f, ceilings) })
}
