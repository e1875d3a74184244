//! `pelton eval perplexity` and `pelton eval kl`: predicting a text.

use std::path::Path;

use pelton::{Model, Options, Scorer, ScorerSize, available_memory};
use pelton_eval::{Base, BaseFile, Divergence, Perplexity, Stretches, same_vocabulary};
use serde_json::{Value, json};

use super::{check_kv, percent, scorer, with_error};
use crate::Usage;
use crate::args::{EvalKlArgs, EvalPerplexityArgs, WindowArgs};
use crate::input::read_file;
use crate::progress::Progress;
use crate::setup::Context;
use crate::term;

/// Of the free memory, what a base's predictions may take.
const SHARE_OF_MEMORY: u64 = 4;

pub(super) fn perplexity(args: &EvalPerplexityArgs, context: &Context) -> anyhow::Result<()> {
    check_kv(&args.compute)?;
    let text = read_file(&args.file, context)?;
    let model = context.open(args.model.as_deref())?;
    let stretches = windows(&text, &args.file, &model, &args.windows)?;
    let options = context.compute_options(&args.compute);
    let mut run = Run::new(&args.windows, &options, context);
    let mut scorer = run.load(&model)?;
    let found = run.watched(&model, "predicting", |together, progress| {
        pelton_eval::perplexity(&mut scorer, &stretches, together, progress)
    })?;
    if args.json {
        let mut object = json!({ "model": model.name, "backend": scorer.backend() });
        merge(&mut object, windows_json(&args.windows));
        merge(&mut object, perplexity_json(&found));
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    term::print_line(&format!("{} on {}", model.name, scorer.backend()))?;
    term::print_line(&perplexity_line(&found, &args.windows))?;
    Ok(())
}

pub(super) fn kl(args: &EvalKlArgs, context: &Context) -> anyhow::Result<()> {
    check_kv(&args.compute)?;
    let model = context.open(args.model.as_deref())?;
    let options = context.compute_options(&args.compute);
    if let Some(path) = &args.base_file {
        let file = BaseFile::open(path)?;
        let tokenizer = model.text()?.tokenizer;
        let bos = if tokenizer.add_bos() { tokenizer.bos() } else { None };
        let windows = WindowArgs { window: file.window, stride: None, windows: None };
        let name = path.display().to_string();
        return compare(args, &model, &name, &windows, &options, &file.stretches(bos)?, &file.base, context);
    }
    let Some(file) = &args.file else { return Err(Usage("expected a text".into()).into()) };
    let text = read_file(file, context)?;
    if let Some(path) = &args.write_base {
        return write_base(args, &model, &text, path, &options, context);
    }
    let base = context.open(args.base.as_deref())?;
    same_vocabulary(&base, &model)?;
    let stretches = windows(&text, file, &base, &args.windows)?;
    let mut run = Run::new(&args.windows, &options, context);
    let mut scorer = run.load(&base)?;
    let most = available_memory().map_or(1 << 30, |free| free / SHARE_OF_MEMORY);
    let mut kept = Base::new(stretches.counted(), scorer.vocab(), most, &context.environment.scratch)?;
    run.watched(&base, "predicting", |together, progress| {
        pelton_eval::keep_base(&mut scorer, &stretches, together, &mut kept, progress)
    })?;
    drop(scorer);
    compare(args, &model, &base.name, &args.windows, &options, &stretches, &kept, context)
}

/// Runs the base alone and keeps its predictions in a file.
fn write_base(
    args: &EvalKlArgs,
    model: &Model,
    text: &str,
    path: &Path,
    options: &Options,
    context: &Context,
) -> anyhow::Result<()> {
    let stretches = windows(text, args.file.as_deref().unwrap_or(Path::new("-")), model, &args.windows)?;
    let mut base = BaseFile::create(path, &stretches, model.files.config.vocab_size)?;
    let mut run = Run::new(&args.windows, options, context);
    let mut scorer = run.load(model)?;
    let found = run.watched(model, "predicting", |together, progress| {
        pelton_eval::keep_base(&mut scorer, &stretches, together, &mut base, progress)
    })?;
    let bytes = base.finish()?;
    if args.json {
        let mut object = json!({ "model": model.name, "backend": scorer.backend(), "file": path, "bytes": bytes });
        merge(&mut object, windows_json(&args.windows));
        merge(&mut object, perplexity_json(&found));
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    term::print_line(&format!("{} on {}", model.name, scorer.backend()))?;
    term::print_line(&perplexity_line(&found, &args.windows))?;
    context.note(&format!("predictions: {} ({})", path.display(), term::bytes(bytes)));
    Ok(())
}

/// Runs a model beside the base's predictions.
#[allow(clippy::too_many_arguments, reason = "each is another thing, and both callers have them at hand")]
fn compare(
    args: &EvalKlArgs,
    model: &Model,
    base_name: &str,
    windows: &WindowArgs,
    options: &Options,
    stretches: &Stretches,
    base: &Base,
    context: &Context,
) -> anyhow::Result<()> {
    let mut run = Run::new(windows, options, context);
    let mut scorer = run.load(model)?;
    let found = run.watched(model, "comparing", |together, progress| {
        pelton_eval::divergence(&mut scorer, stretches, together, base, progress)
    })?;
    if args.json {
        let mut object = json!({ "model": model.name, "base": base_name, "backend": scorer.backend() });
        merge(&mut object, windows_json(windows));
        merge(&mut object, serde_json::to_value(found)?);
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    term::print_line(&format!("{} beside {base_name} on {}", model.name, scorer.backend()))?;
    term::print_now(&lines(&found, windows))?;
    Ok(())
}

/// The windows of a text, for a model.
fn windows(text: &str, file: &Path, model: &Model, args: &WindowArgs) -> anyhow::Result<Stretches> {
    let tokenizer = model.text()?.tokenizer;
    Stretches::of_text(text, &tokenizer, args.options()).map_err(|e| Usage(format!("{}: {e}", file.display())).into())
}

/// What loading and running have in common.
struct Run<'a> {
    size: ScorerSize,
    options: &'a Options,
    context: &'a Context,
}

impl<'a> Run<'a> {
    fn new(windows: &WindowArgs, options: &'a Options, context: &'a Context) -> Run<'a> {
        let size = ScorerSize { context: windows.window, sequences: windows.together(options.batch_rows) };
        Run { size, options, context }
    }

    fn load(&self, model: &Model) -> anyhow::Result<Scorer> {
        scorer(model, self.options, self.size, self.context)
    }

    /// Runs something over windows, with a bar.
    fn watched<T>(
        &mut self,
        model: &Model,
        what: &str,
        work: impl FnOnce(usize, &mut dyn FnMut(usize, usize)) -> Result<T, pelton::Error>,
    ) -> anyhow::Result<T> {
        let bar = Progress::items(self.context.quiet);
        bar.message(format!("{what}: {}", model.name));
        let done = work(self.size.sequences, &mut |done, total| bar.set(done as u64, total as u64));
        drop(bar);
        Ok(done?)
    }
}

fn merge(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

fn windows_json(w: &WindowArgs) -> Value {
    json!({ "window": w.window, "stride": w.stride })
}

fn perplexity_json(p: &Perplexity) -> Value {
    json!({ "perplexity": p.perplexity.value, "error": p.perplexity.error, "surprise": p.surprise,
        "tokens": p.tokens, "windows": p.windows })
}

fn perplexity_line(p: &Perplexity, w: &WindowArgs) -> String {
    let stride = w.stride.map_or(String::new(), |s| format!(" at a stride of {s}"));
    format!(
        "perplexity {} · {} predictions in {} windows of {}{stride}",
        with_error(p.perplexity, 4),
        term::thousands(p.tokens),
        p.windows,
        w.window
    )
}

fn lines(d: &Divergence, windows: &WindowArgs) -> String {
    let ratio = format!("{} (ratio {:.5})", with_error(d.ln_ratio, 6), d.ln_ratio.value.exp());
    let rows = [
        ("perplexity", with_error(d.perplexity.perplexity, 4)),
        ("base's", with_error(d.base_perplexity.perplexity, 4)),
        ("ln(ratio)", ratio),
        ("KL mean", with_error(d.mean, 6)),
        ("KL median", format!("{:.6}", d.median)),
        ("KL 90 %", format!("{:.6}", d.p90)),
        ("KL 99 %", format!("{:.6}", d.p99)),
        ("KL 99.9 %", format!("{:.6}", d.p999)),
        ("KL most", format!("{:.6}", d.most)),
        ("same top", percent(d.same_top)),
        ("mean Δp", format!("{:.3} ± {:.3} %", d.mean_dp.value * 100.0, d.mean_dp.error * 100.0)),
        ("RMS Δp", format!("{:.3} ± {:.3} %", d.rms_dp.value * 100.0, d.rms_dp.error * 100.0)),
    ];
    let mut out: String = rows.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    let (tokens, n) = (term::thousands(d.perplexity.tokens), d.perplexity.windows);
    out.push_str(&format!("{:<11} {tokens} predictions in {n} windows of {}\n", "over", windows.window));
    out
}
