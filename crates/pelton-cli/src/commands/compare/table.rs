//! A comparison on the terminal.

use pelton_eval::{Comparison, Figures};

use crate::commands::bench::table;
use crate::term;

/// Tables of quality and of cost, and the advice.
pub(super) fn text(c: &Comparison) -> String {
    let stride = c.windows.stride.map_or(String::new(), |s| format!(" at a stride of {s}"));
    let prompts = if c.prompts > 0 { format!(", {} prompts", c.prompts) } else { String::new() };
    let backend = c.candidates.first().map_or("", |b| &b.backend);
    let tokens = term::thousands(c.tokens);
    let mut out = format!(
        "{tokens} predictions of {} in windows of {}{stride}{prompts}, on {backend}\n\n",
        c.text, c.windows.window
    );
    let header = ["quality", "perplexity", "change", "KL mean", "KL p99", "same top", "answers part after"];
    out += &table(&header, c.candidates.iter().enumerate().map(|(i, f)| quality(f, i == 0)));
    let memory = format!("memory at {}", c.context);
    let header = ["cost", "KV", "file", "bits/weight", &memory, "prefill t/s", "decode t/s"];
    out.push('\n');
    out += &table(&header, c.candidates.iter().map(cost));
    out + "\n" + &c.advice + "\n"
}

fn quality(f: &Figures, is_base: bool) -> Vec<String> {
    let p = f.text.perplexity.perplexity;
    let beside = |text: String| if is_base { "–".to_string() } else { text };
    let parting = f.parting.map_or("–".to_string(), |p| {
        format!("{:.0} of {:.0} tokens ({} of {} same)", p.median_tokens, p.answer_tokens, p.same, p.prompts)
    });
    vec![
        f.label.clone(),
        format!("{:.4} ± {:.4}", p.value, p.error),
        beside(pelton_eval::percent(f)),
        beside(format!("{:.5} ± {:.5}", f.text.mean.value, f.text.mean.error)),
        beside(format!("{:.4}", f.text.p99)),
        beside(format!("{:.2} %", f.text.same_top.value * 100.0)),
        beside(parting),
    ]
}

fn cost(f: &Figures) -> Vec<String> {
    let speed =
        |pick: fn(&pelton_eval::Speed) -> f64| f.speed.as_ref().map_or("–".into(), |s| format!("{:.1}", pick(s)));
    vec![
        f.label.clone(),
        f.kv_type.clone(),
        term::bytes(f.file_bytes),
        format!("{:.2}", f.bits_per_weight),
        term::bytes(f.memory_bytes),
        speed(|s| s.prefill.value),
        speed(|s| s.decode.value),
    ]
}
