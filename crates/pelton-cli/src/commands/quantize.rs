//! `pelton quantize`: a GGUF file with the types that were asked for.

use std::collections::BTreeMap;
use std::path::Path;

use pelton::{DType, Model, Options};
use pelton_quantize::fit::{self, Choice, Goal};
use pelton_quantize::{Calibration, Imatrix, Mix, Plan, QuantizeError, Sensitivities, Types, write_compensated};
use serde_json::json;

use crate::Usage;
use crate::args::QuantizeArgs;
use crate::progress::Progress;
use crate::setup::Context;
use crate::term::{bytes, print_line, print_now, thousands};

/// Tokens of a window on which --fit compares predictions, and of a chunk that a calibration runs.
const WINDOW: usize = 512;
/// Tokens of the text that --fit uses where no number is given.
const FIT_TOKENS: usize = 4096;
/// … and that --gptq and --awq use: with fewer, products of inputs are as much chance as the model's.
const CALIBRATION_TOKENS: usize = 65_536;

pub(crate) fn run(args: &QuantizeArgs, context: &Context) -> anyhow::Result<()> {
    let named = args.to.as_deref().map(types).transpose()?;
    let model = context.open(Some(&args.input))?;
    refuse_own_source(args, context)?;
    let imatrix = args.imatrix.as_deref().map(Imatrix::read).transpose().map_err(usage)?;
    let threads = args.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let ids = calibration_text(args, &model)?;
    let (mut plan, choices) = match named {
        Some(types) => (Plan::new(&model.files, &types, imatrix.as_ref()).map_err(usage)?, Vec::new()),
        None => fitted(args, context, &model, imatrix.as_ref(), threads)?,
    };
    warn_of_second_rounding(&plan, context);
    let mut calibration = match args.gptq || args.awq {
        true => {
            let chunk = WINDOW.min(model.files.config.max_context);
            Some(Calibration::new(&model, &ids, chunk, args.threads).map_err(usage)?)
        }
        false => None,
    };
    if let Some(calibration) = calibration.as_mut().filter(|_| args.awq && !args.dry_run) {
        scale_columns(&mut plan, &model, calibration, context)?;
    }
    let mut calibration = calibration.filter(|_| args.gptq);
    if !args.json {
        print_now(&table(&plan, &choices))?;
    }
    let written = match args.dry_run {
        true => None,
        false => {
            let bar = Progress::items(context.quiet);
            let result =
                write_compensated(&model.files, &mut plan, calibration.as_mut(), &args.output, threads, &mut |p| {
                    bar.set(p.done / 1_000_000, p.total / 1_000_000);
                    bar.message(format!("{} (millions of weights)", p.tensor));
                });
            drop(bar);
            Some(result.map_err(usage)?)
        }
    };
    plan.notes.iter().for_each(|note| context.note(note));
    let bits = 8.0 * plan.bytes() as f64 / plan.elements().max(1) as f64;
    if args.json {
        let tensors: Vec<_> = plan.tensors.iter().map(|t| json!({
            "name": t.source.name(), "type": t.to.name(), "bytes": t.bytes(), "importance": t.importance.is_some(),
        })).collect();
        let harm: f64 = choices.iter().map(|c| c.chosen.harm).sum();
        let object = json!({
            "out": args.output, "tensor_bytes": plan.bytes(), "file_bytes": written.map(|w| w.bytes),
            "bits_per_weight": bits, "resumed_tensors": written.map(|w| w.resumed), "notes": plan.notes,
            "predicted_kl": (args.to.is_none() && args.text.is_some()).then_some(harm), "tensors": tensors,
        });
        return Ok(print_line(&object.to_string())?);
    }
    let Some(written) = written else { return Ok(()) };
    if written.resumed > 0 {
        context.note(&format!("went on after {} tensors that an interrupted run had written", written.resumed));
    }
    let out = args.output.display();
    Ok(print_line(&format!("{out}: {}, {bits:.2} bits a weight", bytes(written.bytes)))?)
}

/// `Q4_K_M`, or `Q4_K:pure`.
fn types(name: &str) -> anyhow::Result<Types> {
    let unknown = || {
        let mixes: Vec<&str> = Mix::ALL.iter().map(|mix| mix.name()).collect();
        Usage(format!(
            "--to {name}: no such mix; there are {}, and TYPE:pure for one type in all matrices",
            mixes.join(", ")
        ))
    };
    if let Some(dtype) = name.strip_suffix(":pure") {
        let dtype = DType::from_name(dtype).filter(|dtype| dtype.can_encode()).ok_or_else(unknown)?;
        return Ok(Types::All(dtype));
    }
    Ok(Types::Mix(Mix::from_name(name).ok_or_else(unknown)?))
}

/// The ids that --gptq and --awq run; none without them.
fn calibration_text(args: &QuantizeArgs, model: &Model) -> anyhow::Result<Vec<u32>> {
    let Some(text) = args.text.as_ref() else { return Ok(Vec::new()) };
    if !args.gptq && !args.awq {
        if args.to.is_some() {
            return Err(Usage("--text: nothing uses it; it is for --fit, --gptq and --awq".into()).into());
        }
        return Ok(Vec::new());
    }
    let mut ids = read_text(model, text)?;
    ids.truncate(args.tokens.unwrap_or(CALIBRATION_TOKENS));
    Ok(ids)
}

fn refuse_own_source(args: &QuantizeArgs, context: &Context) -> anyhow::Result<()> {
    let out = args.output.display();
    if args.output.is_dir() {
        return Err(Usage(format!("{out}: is a folder; name a .gguf file")).into());
    }
    let source = context.path_of(Some(&args.input))?.and_then(|path| path.canonicalize().ok());
    if source.is_some() && source == args.output.canonicalize().ok() {
        return Err(Usage(format!("{out}: is the model that is read; write to another file")).into());
    }
    Ok(())
}

/// Chooses types by measured error.
fn fitted(
    args: &QuantizeArgs,
    context: &Context,
    model: &Model,
    imatrix: Option<&Imatrix>,
    threads: usize,
) -> anyhow::Result<(Plan, Vec<Choice>)> {
    let plan = Plan::new(&model.files, &Types::All(DType::Q8_0), imatrix).map_err(usage)?;
    let bar = Progress::steps(context.quiet);
    let sensitivities = match &args.text {
        Some(text) => {
            let mut ids = read_text(model, text)?;
            ids.truncate(args.tokens.unwrap_or(FIT_TOKENS));
            bar.message("measuring what errors do");
            let options = Options { threads: args.threads, isa: context.environment.isa.clone(), ..Options::default() };
            let measured = Sensitivities::measure(model, &plan, &ids, WINDOW, &options, &mut |done, all| {
                bar.set(done as u64, all as u64);
            });
            measured.map_err(usage)?
        }
        None => {
            bar.note("without --text, an error counts alike in every matrix");
            Sensitivities::default()
        }
    };
    let goal = match (args.fit, args.fit_quality) {
        (Some(budget), _) => Goal::Bytes(budget.bytes(plan.elements())),
        (None, quality) => Goal::Harm(f64::from(quality.unwrap_or(0.0))),
    };
    bar.message("measuring errors");
    let measured = fit::measure(&plan, &sensitivities, threads, &mut |done, all| bar.set(done as u64, all as u64));
    drop(bar);
    let choices = fit::choose(&plan, measured.map_err(usage)?, goal).map_err(usage)?;
    let each: BTreeMap<String, DType> = choices.iter().map(|c| (c.name.clone(), c.chosen.dtype)).collect();
    let plan = Plan::new(&model.files, &Types::Each(each), imatrix).map_err(usage)?;
    Ok((plan, choices))
}

/// Chooses scales for --awq.
fn scale_columns(
    plan: &mut Plan,
    model: &Model,
    calibration: &mut Calibration<'_>,
    context: &Context,
) -> anyhow::Result<()> {
    let bar = Progress::steps(context.quiet);
    bar.message("looking for scales");
    let scaled = pelton_quantize::scale(plan, &model.files.config, calibration, &mut |done, all| {
        bar.set(done as u64, all as u64);
    });
    drop(bar);
    context.note(&format!("{} inputs of layers are scaled", scaled.map_err(usage)?));
    Ok(())
}

/// Quantizing what was quantized adds errors.
fn warn_of_second_rounding(plan: &Plan, context: &Context) {
    let coarse = |t: &&pelton_quantize::PlannedTensor| !t.source.stored_as().is_float() && t.source.is_matrix();
    let changed = plan.tensors.iter().filter(coarse).find(|t| t.source.stored_as().blocks() != Some(t.to));
    if let Some(tensor) = changed {
        let stored = tensor.source.stored_as();
        context.note(&format!(
            "the model is quantized already ({stored}): its errors stay, start from F16 or BF16 if you can"
        ));
    }
}

fn table(plan: &Plan, choices: &[Choice]) -> String {
    let mut out = String::new();
    let width = choices.iter().map(|c| c.name.len()).max().unwrap_or(0);
    for choice in choices {
        let (name, c) = (&choice.name, choice.chosen);
        let error = c.error.sqrt() * 100.0;
        out.push_str(&format!(
            "{name:<width$}  {:<8} {:>10}  error {error:>6.2}%  harm {:.2e}\n",
            c.dtype,
            bytes(c.bytes),
            c.harm
        ));
    }
    for (dtype, n, size) in plan.by_type() {
        out.push_str(&format!("{dtype:<8} × {n:<4} {:>10}\n", bytes(size)));
    }
    let bits = 8.0 * plan.bytes() as f64 / plan.elements().max(1) as f64;
    out.push_str(&format!(
        "{} weights, {}, {bits:.2} bits a weight\n",
        thousands(plan.elements() as usize),
        bytes(plan.bytes())
    ));
    out
}

/// The ids of a text file.
pub(crate) fn read_text(model: &Model, path: &Path) -> anyhow::Result<Vec<u32>> {
    let text = std::fs::read_to_string(path).map_err(|e| Usage(format!("{}: cannot read: {e}", path.display())))?;
    let Some(tokenizer) = &model.tokenizer else {
        return Err(Usage(format!("{} has no tokenizer, so no text can be given to it", model.name)).into());
    };
    Ok(tokenizer.encode(&text, pelton::Special::AsText))
}

/// A mistake in the call keeps its exit code.
pub(crate) fn usage(error: QuantizeError) -> anyhow::Error {
    match error {
        QuantizeError::Usage(text) => Usage(text).into(),
        other => other.into(),
    }
}
