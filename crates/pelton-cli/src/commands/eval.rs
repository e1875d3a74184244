//! `pelton eval`: figures for people who port or check models.

use anyhow::Context as _;
use pelton::{Logits, write_logits};

use crate::Usage;
use crate::args::EvalLogitsArgs;
use crate::setup::Context;
use crate::term;

pub fn logits(args: &EvalLogitsArgs, context: &Context) -> anyhow::Result<()> {
    let file = args.ids.display();
    let text = std::fs::read_to_string(&args.ids).with_context(|| format!("{file}: cannot read"))?;
    let ids: Vec<u32> =
        serde_json::from_str(&text).map_err(|e| Usage(format!("{file}: expected a JSON array of token ids: {e}")))?;
    let model = context.open(args.model.as_deref())?;
    let options = context.options(&args.engine, 1)?;
    let start = std::time::Instant::now();
    let logits = Logits::compute(&model, &ids, &options, args.rope_bf16)?;
    write_logits(&args.out, &ids, &logits)?;
    if !context.quiet {
        let seconds = start.elapsed().as_secs_f64();
        let (rows, vocab) = (logits.rows, logits.vocab);
        term::note(&format!("{rows} positions × {vocab} logits in {seconds:.2} s: {}", args.out.display()));
    }
    Ok(())
}
