//! `pelton route`: rules in words, the line of the cascade, and what routing brings on a file of questions.

mod both;
mod questions;

use std::path::Path;

use pelton::route::{Confidence, Learned, Pair, Rules, Sample, learn};
use serde_json::json;

use crate::Usage;
use crate::args::{RouteArgs, RouteCommand, RouteEvalArgs, RouteLearnArgs, RouteRulesArgs};
use crate::commands::answer::Said;
use crate::commands::bench::output::table;
use crate::input::read_file;
use crate::setup::Context;
use crate::term;
use both::{Asked, ask_both};

pub(crate) fn run(what: &RouteCommand, context: &Context) -> anyhow::Result<()> {
    match what {
        RouteCommand::Rules(args) => print_rules(args, context),
        RouteCommand::Learn(args) => learn_line(args, context),
        RouteCommand::Eval(args) => eval(args, context),
    }
}

/// The pair and the rules that were typed; says where the rules were learned for another model.
pub(crate) fn typed(args: &RouteArgs, context: &Context) -> anyhow::Result<Option<(Pair, Rules)>> {
    let Some(route) = &args.route else { return Ok(None) };
    let (pair, rules) = (Pair::parse(route)?, rules(args.route_rules.as_deref(), context)?);
    rules.note(&pair.small).iter().for_each(|note| context.note(note));
    Ok(Some((pair, rules)))
}

/// The same for a command that runs one model where no route is typed.
pub(crate) fn typed_without(
    model: Option<&str>,
    args: &RouteArgs,
    context: &Context,
) -> anyhow::Result<Option<(Pair, Rules)>> {
    if model.is_some() && args.route.is_some() {
        return Err(Usage("--model and --route exclude each other: the route names its models".into()).into());
    }
    typed(args, context)
}

/// The rules of a file, or the built-in ones.
fn rules(file: Option<&Path>, context: &Context) -> anyhow::Result<Rules> {
    let Some(file) = file else { return Ok(Rules::default()) };
    Ok(Rules::parse(&file.display().to_string(), &read_file(file, context)?)?)
}

fn print_rules(args: &RouteRulesArgs, context: &Context) -> anyhow::Result<()> {
    let rules = rules(args.file.as_deref(), context)?;
    if args.json {
        return Ok(term::print_line(&rules.to_json())?);
    }
    let numbered = rules.lines().into_iter().enumerate().map(|(i, line)| format!("{}. {line}\n", i + 1));
    Ok(term::print_now(&numbered.collect::<String>())?)
}

fn learn_line(args: &RouteLearnArgs, context: &Context) -> anyhow::Result<()> {
    let questions = &args.questions;
    let mut rules = rules(questions.route_rules.as_deref(), context)?;
    let pair = Pair::parse(&questions.route)?;
    let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Usage(format!("--out {}: there is no folder {}", args.out.display(), folder.display())).into());
    }
    let asked = ask_both(questions, &pair, &rules, context)?;
    let sample =
        |a: &Asked| Some(Sample { mean_logprob: a.small.as_ref()?.sure.mean_logprob(), agreement: a.agreement()? });
    let samples: Vec<Sample> = asked.iter().filter_map(sample).collect();
    let left_out = asked.len() - samples.len();
    if left_out > 0 {
        context.note(&format!("questions left out, since {} has no room for them: {left_out}", pair.small));
    }
    let Learned { least_mean_logprob, kept, agreement } = learn(&samples, f64::from(args.agreement));
    let Some(least) = least_mean_logprob else {
        let (wanted, of) = (args.agreement, &pair.large);
        return Err(Usage(format!(
            "no line gives an agreement of {wanted} with {of}: the best is {agreement:.3}; give a lower --agreement, or \
             another small model"
        ))
        .into());
    };
    let model = pair.small.clone();
    rules.confidence = Some(Confidence { least_mean_logprob: least, learned_from: samples.len(), model });
    let file = args.out.display();
    std::fs::write(&args.out, rules.to_json() + "\n").map_err(|e| Usage(format!("--out {file}: {e}")))?;
    if questions.json {
        let object = json!({ "questions": samples.len(), "least_mean_logprob": least, "kept": kept,
            "agreement": agreement, "file": args.out });
        return Ok(term::print_line(&object.to_string())?);
    }
    term::print_line(&format!(
        "answers of {} with a mean log-probability of at least {least} stand: {:.0} % of {} questions, with an agreement \
         of {agreement:.3}",
        pair.small,
        kept * 100.0,
        samples.len(),
    ))?;
    term::print_line(&format!("wrote {file}"))?;
    Ok(())
}

fn eval(args: &RouteEvalArgs, context: &Context) -> anyhow::Result<()> {
    let questions = &args.questions;
    let (pair, rules) = (Pair::parse(&questions.route)?, rules(questions.route_rules.as_deref(), context)?);
    rules.note(&pair.small).iter().for_each(|note| context.note(note));
    let asked = ask_both(questions, &pair, &rules, context)?;
    let n = asked.len();
    let count = |what: fn(&Asked) -> bool| asked.iter().filter(|a| what(a)).count();
    let (small, handed_over) = (count(Asked::stands), count(Asked::is_handed_over));
    let large = n - small - handed_over;
    let mean = |sum: f64, n: usize| if n == 0 { 0.0 } else { sum / n as f64 };
    let agreement_small = mean(asked.iter().filter(|a| a.stands()).filter_map(Asked::agreement).sum(), small);
    let agreement = mean(asked.iter().map(|a| a.agreement().filter(|_| a.stands()).unwrap_or(1.0)).sum(), n);
    let seconds_large: f64 = asked.iter().map(|a| a.large.seconds()).sum();
    let seconds_routed: f64 = asked.iter().map(Asked::routed_seconds).sum();
    let saved = 1.0 - seconds_routed / seconds_large.max(1e-9);
    if questions.json {
        let each = |a: &Asked| {
            let small = a.small.as_ref();
            json!({ "question": a.question, "to": a.decision.to.to_string(), "why": a.decision.why,
                "handed_over": a.is_handed_over(), "mean_logprob": small.map(|s| s.sure.mean_logprob()),
                "agreement": a.agreement(), "seconds_small": small.map(Said::seconds),
                "seconds_large": a.large.seconds(), "small": small.map(|s| &s.text), "large": a.large.text })
        };
        let object = json!({ "small": pair.small, "large": pair.large, "questions": n, "to_small": small,
            "to_large": large, "handed_over": handed_over, "share_small": mean(small as f64, n),
            "agreement": agreement, "agreement_small": agreement_small, "seconds_large": seconds_large,
            "seconds_routed": seconds_routed, "time_saved": saved, "each": asked.iter().map(each).collect::<Vec<_>>() });
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    let percent = |k: usize| format!("{:.0} %", 100.0 * mean(k as f64, n));
    let row = |name: &str, k: usize, agreement: String| vec![name.to_string(), k.to_string(), percent(k), agreement];
    let rows = [
        row("small", small, format!("{agreement_small:.3}")),
        row("small, handed over", handed_over, "1".into()),
        row("large", large, "1".into()),
        row("all", n, format!("{agreement:.3}")),
    ];
    term::print_now(&table(&["answered by", "questions", "share", "agreement"], rows.into_iter()))?;
    term::print_line(&format!(
        "all by {}: {seconds_large:.2} s; routed: {seconds_routed:.2} s, {:.0} % {}",
        pair.large,
        saved.abs() * 100.0,
        if saved >= 0.0 { "saved" } else { "more" },
    ))?;
    Ok(())
}
