//! `pelton bench`: prompt and generation speed, beside what the machine could do.
//!
//! The ceiling of a workload is what a machine would take that does nothing but read the weights, keys and values that
//! each step needs, or nothing but multiply them, whichever takes longer; both limits are measured first. Invariant: a
//! call that cannot be measured is refused before anything is.

mod kernels;
mod ladder;
mod ledgers;
pub(super) mod output;
mod serve;
mod speculation;

use pelton::{Bench, Ceilings, Kind, Measurement, Model, Shape, Workload, available_memory};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{BenchArgs, BenchCommand};
use crate::progress::Progress;
use crate::setup::{Context, kernel_lines};
use crate::term;
use output::csv_line;
pub(super) use output::table;

pub(crate) fn run(args: &BenchArgs, context: &Context) -> anyhow::Result<()> {
    match &args.what {
        Some(BenchCommand::Kernels(args)) => return kernels::run(args, context),
        Some(BenchCommand::Serve(args)) => return serve::run(args, context),
        Some(BenchCommand::Ladder(args)) => return ladder::run(args, context),
        Some(BenchCommand::Speculation(args)) => return speculation::run(args, context),
        None => {}
    }
    let workloads = workloads(args)?;
    let options = context.compute_options(&args.compute);
    let model = open(args.shape.as_deref(), args.model.as_deref(), context)?;
    let name = model.name.clone();
    Bench::check(&model, &options, &workloads)?;
    let bar = Progress::steps(context.quiet);
    bar.message("the machine's limits");
    let ceilings = pelton::ceilings(&options).map_err(|e| context.blame(e))?;
    drop(bar);
    let bar = Progress::bytes(context.quiet);
    bar.message("packing weights");
    let loaded = Bench::load(model, &options, &workloads, &mut |p| bar.set(p.done as u64, p.total as u64));
    drop(bar);
    let mut bench = loaded.map_err(|e| context.blame(e))?;
    if let Some(line) = bench.gpu().line().filter(|_| args.verbose || !bench.gpu().cards.is_empty()) {
        context.note(&line);
    }
    if args.verbose {
        kernel_lines(bench.placements()).iter().for_each(|line| context.note(line));
    }
    let bar = Progress::steps(context.quiet);
    bar.set(0, (workloads.len() * (args.repeat + 1)) as u64);
    let mut figures = Vec::with_capacity(workloads.len());
    for w in &workloads {
        bar.message(test_name(w));
        figures.push(bench.measure(w, args.repeat, &mut || bar.step())?);
    }
    let mut ledgers = Vec::new();
    for w in workloads.iter().filter(|_| args.profile) {
        bar.message(format!("ledger of {}", test_name(w)));
        ledgers.push((*w, bench.ledger(w)?));
    }
    drop(bar);
    if args.json {
        let mut object = json!({ "model": name, "backend": bench.backend(), "weight_bytes": bench.weight_bytes(),
            "ceilings": ceilings_json(&ceilings),
            "results": figures.iter().map(|m| figure_json(m, &ceilings)).collect::<Vec<_>>() });
        if args.profile {
            object["ledgers"] = ledgers.iter().map(|(w, l)| ledgers::json(w, l, &ceilings)).collect();
        }
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    if args.csv {
        return Ok(term::print_now(&csv(&name, &bench.backend(), &figures, &ceilings))?);
    }
    term::print_line(&format!("{name} on {}", bench.backend()))?;
    term::print_line(&ceilings_line(&ceilings))?;
    term::print_now(&figures_table(&figures, &ceilings))?;
    for (w, ledger) in &ledgers {
        term::print_now(&ledgers::table(w, ledger, &ceilings))?;
    }
    if figures.iter().any(|m| m.share(&ceilings) > 1.0) {
        context
            .note("above 100 %: weights and keys are read from the processor's caches, which are faster than memory");
    }
    Ok(())
}

/// Every combination that was asked for.
fn workloads(args: &BenchArgs) -> anyhow::Result<Vec<Workload>> {
    let mut all = Vec::new();
    for &depth in &args.depth {
        for &tokens in args.prompt.iter().filter(|&&n| n > 0) {
            all.push(Workload { kind: Kind::Prefill, tokens, depth, batch: 1 });
        }
        for &tokens in args.generate.iter().filter(|&&n| n > 0) {
            all.extend(args.batch.iter().map(|&batch| Workload { kind: Kind::Decode, tokens, depth, batch }));
        }
    }
    if all.is_empty() {
        return Err(Usage("--prompt 0 --generate 0: nothing to measure".into()).into());
    }
    Ok(all)
}

/// The model that was named, or one of random weights.
fn open(shape: Option<&str>, model: Option<&str>, context: &Context) -> anyhow::Result<Model> {
    let Some(text) = shape else { return context.open(model) };
    let shape = Shape::parse(text)?;
    let types = shape.types().into_iter();
    let types: Vec<String> = types.map(|(name, (count, _))| format!("{count} of {name}")).collect();
    let (parameters, bytes) = (shape.parameters() as f64 / 1e6, term::bytes(shape.weight_bytes() as u64));
    context.note(&format!("random weights: {parameters:.0}M parameters, {bytes}; matrices: {}", types.join(", ")));
    Ok(shape.model(available_memory())?)
}

/// What people call a workload.
pub(super) fn test_name(w: &Workload) -> String {
    let depth = if w.depth > 0 { format!(" at depth {}", w.depth) } else { String::new() };
    let together = if w.batch > 1 { format!(" × {} sequences", w.batch) } else { String::new() };
    format!("{} {}{together}{depth}", w.kind.name(), w.tokens)
}

/// One line for people.
pub(crate) fn ceilings_line(c: &Ceilings) -> String {
    let bf16 = c.bf16_tera_ops.map_or(String::new(), |t| format!(" · {t:.2} Top/s bf16"));
    format!(
        "limits: memory reads {:.1} GB/s · {:.2} Top/s int8 ({}){bf16} · {:.2} Top/s f32 ({})",
        c.read_gb_per_s, c.int8_tera_ops, c.int8_unit, c.f32_tera_ops, c.f32_unit
    )
}

fn figures_table(figures: &[Measurement], ceilings: &Ceilings) -> String {
    let row = |m: &Measurement| {
        vec![
            test_name(&m.workload),
            format!("{:.1}", m.median()),
            format!("{:.1}–{:.1}", m.least(), m.most()),
            format!("{:.0}", m.ceiling(ceilings)),
            format!("{:.0} %", m.share(ceilings) * 100.0),
            m.work.bound(ceilings).name().to_string(),
        ]
    };
    let header = ["test", "tokens/s", "least–most", "ceiling", "share", "bound by"];
    table(&header, figures.iter().map(row))
}

fn csv(name: &str, backend: &str, figures: &[Measurement], ceilings: &Ceilings) -> String {
    let columns = ["model", "backend", "kind", "tokens", "depth", "batch", "tokens_per_second", "least", "most"];
    let more = ["share_of_ceiling", "ceiling_tokens_per_second", "bound"];
    let mut out = csv_line(columns.iter().chain(&more).map(ToString::to_string));
    for m in figures {
        let w = &m.workload;
        let counts = [w.tokens, w.depth, w.batch].map(|n| n.to_string());
        let speeds = [m.median(), m.least(), m.most()].map(|v| format!("{v:.3}"));
        let share = [format!("{:.4}", m.share(ceilings)), format!("{:.1}", m.ceiling(ceilings))];
        let cells = [name.to_string(), backend.to_string(), w.kind.name().to_string()].into_iter();
        let bound = m.work.bound(ceilings).name().to_string();
        out += &csv_line(cells.chain(counts).chain(speeds).chain(share).chain([bound]));
    }
    out
}

pub(crate) fn ceilings_json(c: &Ceilings) -> Value {
    json!({ "read_gb_per_s": c.read_gb_per_s, "int8_tera_ops": c.int8_tera_ops, "int8_unit": c.int8_unit,
        "bf16_tera_ops": c.bf16_tera_ops, "f32_tera_ops": c.f32_tera_ops, "f32_unit": c.f32_unit })
}

fn figure_json(m: &Measurement, ceilings: &Ceilings) -> Value {
    let w = &m.workload;
    json!({ "kind": w.kind.name(), "tokens": w.tokens, "depth": w.depth, "batch": w.batch,
        "tokens_per_second": m.median(), "least": m.least(), "most": m.most(),
        "samples": m.tokens_per_second, "share_of_ceiling": m.share(ceilings),
        "ceiling_tokens_per_second": m.ceiling(ceilings), "bound": m.work.bound(ceilings).name(),
        "memory_bytes": m.work.memory_bytes, "operations": m.work.operations() })
}
