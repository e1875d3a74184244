//! The ledger of a step, as a table and as JSON.

use pelton::{Ceilings, Kind, Ledger, Work, Workload};
use serde_json::{Value, json};

use super::output;
use super::test_name;

/// A heading, and one line for each op.
pub(super) fn table(w: &Workload, ledger: &Ledger, ceilings: &Ceilings) -> String {
    let step = if w.kind == Kind::Prefill { "all its steps" } else { "a step" };
    let row = |op: &str, calls: usize, seconds: f64, work: &Work| {
        vec![
            op.to_string(),
            calls.to_string(),
            format!("{:.3}", seconds * 1e3),
            format!("{:.1} %", seconds / ledger.seconds * 100.0),
            or_dash(work.bytes() > 0.0, || format!("{:.1}", work.bytes() / 1e6)),
            or_dash(work.bytes() > 0.0, || format!("{:.1}", work.bytes() / seconds.max(1e-12) / 1e9)),
            or_dash(work.operations() > 0.0, || format!("{:.2}", work.operations() / 1e9)),
            or_dash(work.operations() > 0.0, || format!("{:.3}", work.operations() / seconds.max(1e-12) / 1e12)),
            or_dash(has_ceiling(work), || format!("{:.0} %", share(work, seconds, ceilings) * 100.0)),
        ]
    };
    let rows = ledger.entries.iter().map(|e| row(&e.op, e.calls, e.seconds, &e.work));
    let all: usize = ledger.entries.iter().map(|e| e.calls).sum();
    let total = row("total", all, ledger.seconds, &ledger.work());
    let header = ["op", "calls", "ms", "share", "MB", "GB/s", "Gop", "Top/s", "of ceiling"];
    let body = output::table(&header, rows.chain([total]));
    format!("\n{}, {step}: {:.3} ms\n{body}", test_name(w), ledger.seconds * 1e3)
}

/// Ops that touch activations alone have no ceiling here: caches hold those.
fn has_ceiling(work: &Work) -> bool {
    work.memory_bytes > 0.0
}

fn share(work: &Work, seconds: f64, ceilings: &Ceilings) -> f64 {
    work.least_seconds(ceilings) / seconds.max(1e-12)
}

fn or_dash(there: bool, text: impl FnOnce() -> String) -> String {
    if there { text() } else { "–".into() }
}

/// The same for programs.
pub(super) fn json(w: &Workload, ledger: &Ledger, ceilings: &Ceilings) -> Value {
    let ops = ledger.entries.iter().map(|e| {
        let share_of_ceiling = has_ceiling(&e.work).then(|| share(&e.work, e.seconds, ceilings));
        json!({ "op": e.op, "calls": e.calls, "seconds": e.seconds, "share": e.seconds / ledger.seconds,
            "bytes": e.work.bytes(), "memory_bytes": e.work.memory_bytes, "operations": e.work.operations(),
            "share_of_ceiling": share_of_ceiling })
    });
    json!({ "kind": w.kind.name(), "tokens": w.tokens, "depth": w.depth, "batch": w.batch,
        "seconds": ledger.seconds, "ops": ops.collect::<Vec<_>>() })
}
