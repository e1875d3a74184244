//! `pelton bench ladder`: what each optimization buys, on the main job.

mod output;
mod page;
pub(super) mod source;

use pelton::ladder::{LadderJob, LadderOptions, LadderProgress, Rung, climb, in_bf16};
use pelton::{Ceilings, Chat, KvType, Model, Options, SamplingParams, Special};
use serde_json::json;

use crate::Usage;
use crate::args::{LadderArgs, SpeculationArg};
use crate::commands::docs::EMBEDDED_FREQUENCY_PENALTY;
use crate::input::read_file;
use crate::progress::Progress;
use crate::setup::{Context, kv_type};
use crate::term;

/// What all functions share where `--system` names nothing else.
const SYSTEM: &str = include_str!("system.txt");

/// Tokens of the system prompt that a model's context has to have room for beside code and answer.
const LEAST_CODE: usize = 64;

/// A measured ladder, and what it was measured with.
struct Ladder {
    model: String,
    source: String,
    rungs: Vec<Rung>,
    ceilings: Ceilings,
    /// Tokens that all prompts begin with.
    shared_tokens: usize,
    rounds: usize,
    max_tokens: usize,
}

pub(super) fn run(args: &LadderArgs, context: &Context) -> anyhow::Result<()> {
    let options = context.compute_options(&args.compute);
    let model = context.open(args.model.as_deref())?;
    let (job, source) = job(args, &model, context)?;
    let baseline = baseline(args, &model, context)?;
    let mut batches = args.batch.clone();
    batches.sort_unstable();
    batches.dedup();
    let kv = kv_type(args.quantized_kv);
    let ladder = LadderOptions {
        options: options.clone(),
        batches,
        kv_type: (kv != KvType::Bf16).then_some(kv),
        speculation: args.speculation == SpeculationArg::Auto,
        rounds: args.rounds,
    };
    let ceilings = limits(&options, context)?;
    let bar = Progress::steps(context.quiet);
    let mut show = |p: LadderProgress| {
        bar.set(p.done as u64, p.items as u64);
        bar.message(format!("round {} · {}", p.round, p.rung));
    };
    let rungs = climb(baseline.as_ref(), &model, &job, &ladder, &mut show).map_err(|e| context.blame(e));
    drop(bar);
    let ladder = Ladder {
        model: model.name.clone(),
        source,
        rungs: rungs?,
        ceilings,
        shared_tokens: shared_tokens(&job.prompts),
        rounds: args.rounds,
        max_tokens: args.max_tokens,
    };
    if let Some(path) = &args.html {
        std::fs::write(path, page::page(&ladder)).map_err(|e| Usage(format!("--html {}: {e}", path.display())))?;
        context.note(&format!("wrote {}", path.display()));
    }
    if args.json {
        return Ok(term::print_line(&serde_json::to_string_pretty(&output::object(&ladder))?)?);
    }
    Ok(term::print_now(&output::text(&ladder))?)
}

/// The prompts, in the model's template.
fn job(args: &LadderArgs, model: &Model, context: &Context) -> anyhow::Result<(LadderJob, String)> {
    let (pieces, source) = source::pieces(args.source.as_deref(), args.chunks, context)?;
    let system = match &args.system {
        Some(path) => read_file(path, context)?,
        None => SYSTEM.to_string(),
    };
    let system = system.trim();
    let chat = Chat::new(model.text()?)?;
    let tokenizer = chat.text().tokenizer.clone();
    let count = |text: &str| tokenizer.encode(text, Special::AsText).len();
    let most = model.files.config.max_context.min(Options::DEFAULT_CONTEXT);
    let left = most.checked_sub(count(system)).filter(|&left| left >= args.max_tokens + LEAST_CODE).ok_or_else(|| {
        let (tokens, answer) = (count(system), args.max_tokens);
        let name = &model.name;
        Usage(format!(
            "the system prompt has {tokens} tokens, an answer {answer}: {name} holds {most} and has no room for code; \
             give a shorter --system, or fewer --max-tokens"
        ))
    })?;
    let texts = pelton_docs::prompts(pieces.iter().map(source::Piece::snippet), &count, left, args.max_tokens)?;
    let ids = |text: String| {
        let system = (!system.is_empty()).then(|| json!({ "role": "system", "content": system }));
        let messages = system.into_iter().chain([json!({ "role": "user", "content": text })]).collect();
        chat.ids(&messages, None)
    };
    let prompts = texts.into_iter().map(ids).collect::<Result<Vec<_>, _>>()?;
    // As `pelton docs` has it.
    let frequency_penalty = if args.model.is_none() { EMBEDDED_FREQUENCY_PENALTY } else { 0.0 };
    let sampling = SamplingParams { temperature: 0.0, frequency_penalty, ..SamplingParams::default() };
    Ok((LadderJob { prompts, max_tokens: args.max_tokens, sampling }, source))
}

/// The model of the first rung.
fn baseline(args: &LadderArgs, model: &Model, context: &Context) -> anyhow::Result<Option<Model>> {
    if args.skip_baseline {
        return Ok(None);
    }
    if let Some(name) = &args.base_model {
        let base = context.open(Some(name))?;
        if base.files.config.vocab_size != model.files.config.vocab_size {
            let (a, b) = (base.files.config.vocab_size, model.files.config.vocab_size);
            return Err(Usage(format!("--base-model {name}: its vocabulary has {a} tokens, the model's {b}")).into());
        }
        return Ok(Some(base));
    }
    let base = in_bf16(model)?;
    if base.is_none() {
        context.note(&format!("{}: the weights are not quantized, so no rung is about that", model.name));
    }
    Ok(base)
}

fn limits(options: &Options, context: &Context) -> anyhow::Result<Ceilings> {
    let bar = Progress::steps(context.quiet);
    bar.message("the machine's limits");
    let ceilings = pelton::ceilings(options).map_err(|e| context.blame(e));
    drop(bar);
    ceilings
}

/// How many tokens all prompts begin with.
fn shared_tokens(prompts: &[Vec<u32>]) -> usize {
    let Some((first, rest)) = prompts.split_first() else { return 0 };
    let common = |p: &Vec<u32>| p.iter().zip(first).take_while(|(a, b)| a == b).count();
    rest.iter().map(common).min().unwrap_or(first.len())
}
