//! `pelton bench speculation`: the same prompts with drafts and without, category by category.
//!
//! Invariant: a ratio below 1 is shown like any other.

mod jobs;

use pelton::{Llm, Options, SpeculationFigure};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::BenchSpeculationArgs;
use crate::progress::Progress;
use crate::setup::Context;
use crate::term;

pub(super) fn run(args: &BenchSpeculationArgs, context: &Context) -> anyhow::Result<()> {
    let model = super::open(args.shape.as_deref(), args.model.as_deref(), context)?;
    let jobs = jobs::jobs(args, &model, context)?;
    let longest = jobs.iter().flat_map(|job| &job.requests).map(|r| r.prompt.len() + r.max_tokens).max();
    let longest = longest.ok_or_else(|| Usage("there is no prompt that fits the model's context".into()))?;
    let options = Options {
        context: Some(longest),
        max_seqs: args.batch.iter().copied().max().unwrap_or(1),
        speculation: context.speculation(&args.drafts)?,
        ..context.compute_options(&args.compute)
    };
    let bar = Progress::bytes(context.quiet);
    bar.message("packing weights");
    let loaded = Llm::load(&model, &options, &mut |p| bar.set(p.done as u64, p.total as u64));
    drop(bar);
    let llm = loaded.map_err(|e| context.blame(e))?;
    context.note(&llm.report().line());
    let bar = Progress::steps(context.quiet);
    let prompts: usize = jobs.iter().map(|job| job.requests.len()).sum();
    bar.set(0, (prompts * args.batch.len() * args.rounds) as u64);
    let mut figures: Vec<SpeculationFigure> = Vec::new();
    for round in 0..args.rounds {
        let cases = args.batch.iter().flat_map(|&batch| jobs.iter().map(move |job| (batch, job)));
        for (index, (batch, job)) in cases.enumerate() {
            bar.message(format!("{} · {batch} at a time", job.name));
            let figure = llm.measure_speculation(job, batch, &mut || bar.step())?;
            match round {
                0 => figures.push(figure),
                _ => figures[index].add(&figure),
            }
        }
    }
    drop(bar);
    if args.json {
        let report = llm.report();
        let object = json!({ "model": report.name, "backend": report.backend, "drafters": report.drafters,
            "results": figures.iter().map(object).collect::<Vec<_>>() });
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    term::print_now(&table(&figures))?;
    if figures.iter().any(|figure| !figure.same_answers) {
        anyhow::bail!("answers with drafts differ from those without: this is a bug in Pelton");
    }
    Ok(())
}

fn table(figures: &[SpeculationFigure]) -> String {
    let share = |f: &SpeculationFigure| match f.drafted {
        0 => "–".to_string(),
        drafted => format!("{:.0} %", 100.0 * f.accepted as f64 / drafted as f64),
    };
    let row = |f: &SpeculationFigure| {
        vec![
            f.name.clone(),
            f.batch.to_string(),
            f.prompts.to_string(),
            f.tokens.to_string(),
            format!("{:.1}", f.plain_tokens_per_s()),
            format!("{:.1}", f.tokens_per_s()),
            format!("{:.2}×", f.speedup()),
            f.drafted.to_string(),
            share(f),
            format!("{:.2}", f.mean_accepted()),
        ]
    };
    let header =
        ["prompts", "at once", "n", "tokens", "plain/s", "tokens/s", "speedup", "drafted", "accepted", "a step"];
    super::table(&header, figures.iter().map(row))
}

fn object(f: &SpeculationFigure) -> Value {
    json!({ "category": f.name, "batch": f.batch, "prompts": f.prompts, "tokens": f.tokens,
        "plain_tokens_per_second": f.plain_tokens_per_s(), "tokens_per_second": f.tokens_per_s(),
        "speedup": f.speedup(), "drafted": f.drafted, "accepted": f.accepted, "steps_with_drafts": f.steps,
        "mean_accepted": f.mean_accepted(), "same_answers": f.same_answers })
}
