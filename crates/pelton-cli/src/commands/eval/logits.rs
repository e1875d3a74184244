//! `pelton eval logits`: the logits at every position, for people who port or check models.

use pelton::{Logits, write_logits};

use crate::Usage;
use crate::args::EvalLogitsArgs;
use crate::input::read_file;
use crate::progress::Progress;
use crate::setup::Context;

pub(super) fn run(args: &EvalLogitsArgs, context: &Context) -> anyhow::Result<()> {
    super::check_kv(&args.compute)?;
    let out = args.out.display();
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    if args.out.is_dir() || folder.is_some_and(|p| !p.is_dir()) {
        return Err(Usage(format!("--out {out}: expected a file in a folder that exists")).into());
    }
    let file = args.ids.display();
    let ids: Vec<u32> = serde_json::from_str(&read_file(&args.ids, context)?)
        .map_err(|e| Usage(format!("{file}: expected a JSON array of token ids: {e}")))?;
    let model = context.open(args.model.as_deref())?;
    let start = std::time::Instant::now();
    let working = Progress::spinner("computing logits", context.quiet);
    let options = context.compute_options(&args.compute);
    let logits = Logits::compute(&model, &ids, &options, args.rope_bf16).map_err(|e| context.blame(e))?;
    drop(working);
    write_logits(&args.out, &ids, &logits)?;
    let seconds = start.elapsed().as_secs_f64();
    let (rows, vocab) = (logits.rows, logits.vocab);
    context.note(&format!("{rows} positions × {vocab} logits in {seconds:.2} s: {out}"));
    Ok(())
}
