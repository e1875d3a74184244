//! The ladder as a table and as JSON.

use pelton::ladder::Rung;
use serde_json::{Value, json};

use super::Ladder;
use crate::commands::bench::output::table;
use crate::commands::bench::{ceilings_json, ceilings_line};
use crate::term;

/// How much faster a rung is than another.
pub(super) fn factor(rung: &Rung, than: &Rung) -> f64 {
    rung.items_per_second() / than.items_per_second()
}

/// Each rung with the kept one below it; the first with itself.
pub(super) fn pairs(rungs: &[Rung]) -> impl Iterator<Item = (&Rung, &Rung)> {
    let mut below = &rungs[0];
    rungs.iter().map(move |rung| {
        let pair = (rung, below);
        if rung.left_off.is_none() {
            below = rung;
        }
        pair
    })
}

/// One line about the job.
pub(super) fn headline(l: &Ladder) -> String {
    let first = &l.rungs[0];
    let mean = first.prompt_tokens / first.items;
    let (items, shared, most) = (first.items, l.shared_tokens, l.max_tokens);
    let rounds = if l.rounds == 1 { "one round".to_string() } else { format!("median of {} rounds", l.rounds) };
    format!(
        "{} · {items} items of {} · prompts of {mean} tokens on average, {shared} of them shared · answers of at most \
         {most} · {rounds}",
        l.model, l.source
    )
}

/// What became of the rungs that were left off, and the whole.
pub(super) fn remarks(l: &Ladder) -> Vec<String> {
    let off = |rung: &Rung| {
        let why = rung.left_off.as_ref()?;
        Some(format!("left off: {}, {why}", rung.step.name().trim_start_matches("+ ")))
    };
    let mut lines: Vec<String> = l.rungs.iter().filter_map(off).collect();
    let last = l.rungs.iter().rfind(|r| r.left_off.is_none()).unwrap_or(&l.rungs[0]);
    let whole = factor(last, &l.rungs[0]);
    let drafted = l.rungs.iter().filter(|r| r.drafted_tokens > 0).map(|r| {
        let share = r.accepted_tokens as f64 / r.drafted_tokens as f64 * 100.0;
        format!(
            "speculation: {} tokens drafted, {share:.0} % of them right",
            term::thousands(r.drafted_tokens as usize)
        )
    });
    lines.extend(drafted);
    lines.push(format!("all together: {whole:.1} times the first rung"));
    if l.rungs.iter().any(|r| r.roofline(&l.ceilings) > 1.0) {
        lines.push("above 100 %: weights are read from the processor's caches, which are faster than memory".into());
    }
    lines
}

/// The cells of a rung's row.
fn cells(rung: &Rung, below: &Rung, l: &Ladder) -> Vec<String> {
    let same = rung.same_answers.map_or("–".to_string(), |n| format!("{n}/{}", rung.items));
    let mark = if rung.left_off.is_some() { " (left off)" } else { "" };
    vec![
        rung.step.name() + mark,
        format!("{:.2}", rung.items_per_second()),
        format!("{:.3}", 1.0 / rung.items_per_second()),
        format!("{:.0}", rung.tokens_per_second()),
        format!("{:.2}×", factor(rung, &l.rungs[0])),
        format!("{:.2}×", factor(rung, below)),
        term::bytes(rung.memory_bytes as u64),
        format!("{:.0} %", rung.roofline(&l.ceilings) * 100.0),
        same,
    ]
}

/// The names of the columns.
const HEADER: [&str; 9] =
    ["rung", "items/s", "s/item", "tokens/s", "of first", "of previous", "memory", "of limits", "same answers"];

pub(super) fn rows(l: &Ladder) -> (Vec<String>, Vec<Vec<String>>) {
    let header = HEADER.map(String::from).to_vec();
    (header, pairs(&l.rungs).map(|(rung, below)| cells(rung, below, l)).collect())
}

pub(super) fn text(l: &Ladder) -> String {
    let (_, rows) = rows(l);
    let table = table(&HEADER, rows.into_iter());
    format!("{}\n{}\n{table}{}\n", headline(l), ceilings_line(&l.ceilings), remarks(l).join("\n"))
}

pub(super) fn object(l: &Ladder) -> Value {
    let first = &l.rungs[0];
    let rung = |(r, below): (&Rung, &Rung)| {
        json!({
            "name": r.step.name(),
            "items_per_second": r.items_per_second(),
            "seconds_per_item": 1.0 / r.items_per_second(),
            "tokens_per_second": r.tokens_per_second(),
            "speedup": factor(r, first),
            "speedup_over_previous": factor(r, below),
            "memory_bytes": r.memory_bytes,
            "roofline": r.roofline(&l.ceilings),
            "same_answers": r.same_answers,
            "left_off": r.left_off,
            "seconds": r.seconds,
            "items": r.items,
            "tokens": r.tokens,
            "prompt_tokens": r.prompt_tokens,
            "cached_tokens": r.cached_tokens,
            "steps": r.steps,
            "drafted_tokens": r.drafted_tokens,
            "accepted_tokens": r.accepted_tokens,
        })
    };
    json!({
        "model": l.model,
        "source": l.source,
        "items": first.items,
        "prompt_tokens": first.prompt_tokens,
        "shared_tokens": l.shared_tokens,
        "max_tokens": l.max_tokens,
        "rounds": l.rounds,
        "ceilings": ceilings_json(&l.ceilings),
        "rungs": pairs(&l.rungs).map(rung).collect::<Vec<_>>(),
    })
}
