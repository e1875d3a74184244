//! `pelton eval`: what a model is worth, and figures for people who port or check models.

mod logits;
mod questions;
mod text;

use pelton::{Model, Options, Scorer, ScorerSize};
use pelton_eval::{Estimate, WindowOptions};

use crate::Usage;
use crate::args::{ComputeArgs, EvalArgs, EvalCommand, KvTypeArg, WindowArgs};
use crate::progress::Progress;
use crate::setup::Context;

pub(crate) fn run(args: &EvalArgs, context: &Context) -> anyhow::Result<()> {
    match &args.what {
        EvalCommand::Perplexity(args) => text::perplexity(args, context),
        EvalCommand::Kl(args) => text::kl(args, context),
        EvalCommand::MultipleChoice(args) => questions::multiple_choice(args, context),
        EvalCommand::Qa(args) => questions::qa(args, context),
        EvalCommand::Logits(args) => logits::run(args, context),
    }
}

impl WindowArgs {
    pub(super) fn options(&self) -> WindowOptions {
        WindowOptions { window: self.window, stride: self.stride, most: self.windows }
    }

    /// Windows that are computed together.
    pub(super) fn together(&self, batch_rows: usize) -> usize {
        (batch_rows / self.window).max(1)
    }
}

/// The reference keeps keys and values in f32.
fn check_kv(args: &ComputeArgs) -> anyhow::Result<()> {
    if args.reference && args.kv_type.is_some_and(|t| t != KvTypeArg::F32) {
        return Err(Usage("--kv-type: with --reference keys and values are f32".into()).into());
    }
    Ok(())
}

/// Loads a model that gives logits, with a bar while it takes long.
fn scorer(model: &Model, options: &Options, size: ScorerSize, context: &Context) -> anyhow::Result<Scorer> {
    let bar = Progress::bytes(context.quiet);
    bar.message("packing weights");
    let loaded = Scorer::load(model, options, size, &mut |p| bar.set(p.done as u64, p.total as u64));
    drop(bar);
    let scorer = loaded.map_err(|e| context.blame(e))?;
    if let Some(line) = scorer.gpu().line().filter(|_| !scorer.gpu().cards.is_empty()) {
        context.note(&line);
    }
    Ok(scorer)
}

/// A figure with its error bar.
pub(super) fn with_error(e: Estimate, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", e.value, e.error)
}

/// A share with its error bar, in per cent.
pub(super) fn percent(e: Estimate) -> String {
    format!("{:.2} ± {:.2} %", e.value * 100.0, e.error * 100.0)
}
