//! The figures as tables for people and as JSON for programs. Latencies are milliseconds in both.

use serde_json::{Value, json};

use super::stats::{Disturbance, Level, Pace, Record, Spread};
use crate::args::{BenchServeArgs, EndpointArg};
use crate::commands::bench::output::table;
use crate::term;

const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// One line: what was asked for, and of whom.
pub(super) fn headline(args: &BenchServeArgs, model: &str) -> String {
    let (prompt, shared, answer) = (args.prompt_tokens, args.shared_tokens, args.max_tokens);
    let long = args.long_prompt.map_or(String::new(), |n| format!(" · one prompt of {n} tokens in their midst"));
    let most = if args.ignore_eos { "" } else { "at most " };
    format!("{model} at {}: prompts of {prompt} tokens, {shared} shared; {most}{answer} new tokens{long}", args.url)
}

/// All tables.
pub(super) fn tables(levels: &[Level]) -> String {
    let mut out = throughput(levels);
    out.push('\n');
    out += &latencies(levels);
    if levels.iter().any(|l| l.long.is_some()) {
        out.push('\n');
        out += &disturbances(levels);
    }
    let faults = faults(levels);
    if !faults.is_empty() {
        out.push('\n');
        out += &faults;
    }
    out
}

fn throughput(levels: &[Level]) -> String {
    let header = ["load", "requests", "failed", "seconds", "requests/s", "tokens", "tokens/s", "prompt", "cached"];
    let row = |l: &Level| {
        let counts = l.prompt_tokens();
        let mean = |tokens: Option<f64>| tokens.map_or("–".into(), |n| format!("{n:.0}"));
        vec![
            l.pace.to_string(),
            l.records.len().to_string(),
            l.n_failed().to_string(),
            format!("{:.2}", l.seconds()),
            format!("{:.2}", l.requests_per_second()),
            term::thousands(l.answer_tokens() as usize),
            format!("{:.1}", l.tokens_per_second()),
            mean(counts.map(|c| c.0)),
            mean(counts.and_then(|c| c.1)),
        ]
    };
    table(&header, levels.iter().map(row))
}

fn latencies(levels: &[Level]) -> String {
    let header = ["latency, ms", "mean", "p50", "p90", "p99", "most"];
    let rows = levels.iter().flat_map(|l| {
        named(l).into_iter().map(move |(name, spread)| {
            let first = format!("{name}, {}", l.pace);
            let Some(s) = spread else { return [vec![first], vec!["–".to_string(); 5]].concat() };
            let cells = [s.mean(), s.quantile(0.5), s.quantile(0.9), s.quantile(0.99), s.quantile(1.0)];
            [vec![first], cells.map(ms).to_vec()].concat()
        })
    });
    table(&header, rows)
}

/// The four latencies of a level.
pub(super) fn named(l: &Level) -> [(&'static str, Option<Spread>); 4] {
    [("first token", l.ttft()), ("per token", l.tpot()), ("between tokens", l.itl()), ("whole answer", l.e2e())]
}

fn disturbances(levels: &[Level]) -> String {
    let header = ["between tokens, ms", "tokens", "mean", "p50", "p99", "most"];
    let rows = levels.iter().flat_map(|l| {
        let d = l.disturbance().unwrap_or(Disturbance { before: None, during: None });
        let line = |name: &str, spread: Option<Spread>| {
            let first = format!("{name}, {}", l.pace);
            let Some(s) = spread else { return [vec![first], vec!["–".to_string(); 5]].concat() };
            let cells = [s.mean(), s.quantile(0.5), s.quantile(0.99), s.quantile(1.0)].map(ms);
            [vec![first, s.len().to_string()], cells.to_vec()].concat()
        };
        let first = l.long.as_ref().filter(|r| r.fault.is_none()).and_then(Record::ttft);
        let first = first.map_or("–".into(), |s| format!("{} ms", ms(s)));
        let took = format!("during it (first token after {first})");
        [line("before the long prompt", d.before), line(&took, d.during)]
    });
    table(&header, rows)
}

fn faults(levels: &[Level]) -> String {
    let mut out = String::new();
    for l in levels {
        for (kind, (n, said)) in l.faults() {
            out += &format!("failed, {}: {n} × {kind}, first: {said}\n", l.pace);
        }
        if let Some(fault) = l.long.as_ref().and_then(|r| r.fault.as_ref()) {
            out += &format!("failed, {}: the long prompt: {}: {}\n", l.pace, fault.kind, fault.detail);
        }
    }
    out
}

/// Seconds as milliseconds with three digits or so.
pub(super) fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    let digits = if ms < 10.0 { 2 } else { usize::from(ms < 100.0) };
    format!("{ms:.digits$}")
}

/// Everything that was measured, request by request.
pub(super) fn json(args: &BenchServeArgs, model: &str, levels: &[Level]) -> Value {
    let endpoint = match args.endpoint {
        EndpointArg::Chat => "chat",
        EndpointArg::Completions => "completions",
    };
    json!({ "url": args.url, "model": model, "endpoint": endpoint, "seed": args.seed, "warmup": args.warmup,
        "prompt_tokens": args.prompt_tokens, "shared_tokens": args.shared_tokens, "max_tokens": args.max_tokens,
        "ignore_eos": args.ignore_eos, "long_prompt_tokens": args.long_prompt,
        "levels": levels.iter().map(level_json).collect::<Vec<_>>() })
}

fn level_json(l: &Level) -> Value {
    let (clients, rate) = match l.pace {
        Pace::Clients(n) => (Some(n), None),
        Pace::Rate(rate) => (None, Some(rate)),
    };
    let errors = l.faults().into_iter();
    let errors: Vec<Value> =
        errors.map(|(kind, (n, said))| json!({ "kind": kind.to_string(), "count": n, "first": said })).collect();
    let counts = l.prompt_tokens();
    let mut object = json!({ "clients": clients, "rate": rate, "requests": l.records.len(), "failed": l.n_failed(),
        "errors": errors, "seconds": l.seconds(), "answer_tokens": l.answer_tokens(),
        "tokens_per_second": l.tokens_per_second(), "requests_per_second": l.requests_per_second(),
        "mean_prompt_tokens": counts.map(|c| c.0), "mean_cached_tokens": counts.and_then(|c| c.1),
        "ttft_ms": spread_json(l.ttft()), "tpot_ms": spread_json(l.tpot()), "itl_ms": spread_json(l.itl()),
        "e2e_ms": spread_json(l.e2e()), "each": l.records.iter().map(record_json).collect::<Vec<_>>() });
    if let Some(long) = &l.long {
        let d = l.disturbance().unwrap_or(Disturbance { before: None, during: None });
        object["long_prompt"] = json!({ "request": record_json(long), "itl_before_ms": spread_json(d.before),
            "itl_during_ms": spread_json(d.during) });
    }
    object
}

fn spread_json(spread: Option<Spread>) -> Value {
    let Some(s) = spread else { return Value::Null };
    let mut object = json!({ "count": s.len(), "mean": s.mean() * 1e3, "least": s.quantile(0.0) * 1e3 });
    for (name, q) in QUANTILES {
        object[name] = json!(s.quantile(q) * 1e3);
    }
    object["most"] = json!(s.quantile(1.0) * 1e3);
    object
}

fn record_json(r: &Record) -> Value {
    json!({ "due_ms": r.due * 1e3, "ttft_ms": r.ttft().map(|s| s * 1e3), "e2e_ms": r.e2e() * 1e3,
        "prompt_tokens": r.prompt_tokens, "cached_tokens": r.cached_tokens, "answer_tokens": r.answer_tokens,
        "error": r.fault.as_ref().map(|f| f.kind.to_string()) })
}
