//! Several quantizations, or KV types, of one model side by side: what each byte buys.
//!
//! The base runs first: its predictions of the text are kept, and its greedy answers to the prompts. Each candidate then
//! predicts the same text and the base's answers, token by token. An answer of its own would be the base's up to the first
//! token that it finds less likely than another: so one pass tells where the two part. Invariant: no more than one model
//! is loaded at a time; all that could be refused is, before anything is measured.

mod advice;
mod chart;
mod page;

use std::path::PathBuf;

use pelton::{
    Bench, Chat, Error, Inspection, Kind, KvType, Model, Options, Scorer, ScorerSize, Special, Workload,
    available_memory,
};
use serde::Serialize;

use crate::base::Base;
use crate::divergence::{Divergence, Parted, parted, summary};
use crate::perplexity::surprises;
use crate::statistics::{Estimate, quantile};
use crate::stretches::{Stretch, Stretches, WindowOptions};
use crate::vocabulary::same_vocabulary;

pub use advice::{advice, percent};
pub use page::page;

/// A text to predict where the user gives none: prose, dialogue, lists and code, written for this purpose.
pub const DEFAULT_TEXT: &str = include_str!("text.txt");

/// Prompts to answer where the user gives none.
pub fn default_prompts() -> Vec<String> {
    include_str!("prompts.txt").lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect()
}

/// A model and how it is run.
pub struct Candidate<'a> {
    /// What tables call it.
    pub label: String,
    /// Opens its files.
    pub open: Box<dyn Fn() -> Result<Model, Error> + 'a>,
    /// How it is run.
    pub options: Options,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The text to predict.
    pub text: String,
    /// What it is called.
    pub text_name: String,
    /// How it is cut.
    pub windows: WindowOptions,
    /// Prompts to answer.
    pub prompts: Vec<String>,
    /// Longest answer.
    pub answer_tokens: usize,
    /// Continue prompts as plain text, not in the chat template.
    pub raw: bool,
    /// Repetitions of each measurement of speed; 0 measures none.
    pub repeat: usize,
    /// Tokens of a prompt and of an answer whose speed is measured.
    pub speed_tokens: (usize, usize),
    /// The context whose keys and values are part of the memory figure.
    pub context: usize,
    /// Where the base's predictions go that do not fit memory.
    pub scratch: PathBuf,
}

/// Where greedy answers part from the base's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parting {
    /// Prompts.
    pub prompts: usize,
    /// Answers that are the base's to the end.
    pub same: usize,
    /// Tokens before the first other one, the median; an answer that is the same counts whole.
    pub median_tokens: f64,
    /// The same, the mean.
    pub mean_tokens: f64,
    /// Mean length of the base's answers.
    pub answer_tokens: f64,
}

/// Tokens a second: medians, with half of what lies between the slowest and the fastest repetition.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Of a prompt.
    pub prefill: Estimate,
    /// Of an answer.
    pub decode: Estimate,
}

/// Everything about one candidate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// What tables call it.
    pub label: String,
    /// What ran it.
    pub backend: String,
    /// How keys and values are stored.
    pub kv_type: String,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Bits a weight, of the files.
    pub bits_per_weight: f64,
    /// Bytes of the packed weights.
    pub weight_bytes: u64,
    /// Bytes of keys and values of a token.
    pub kv_bytes_per_token: u64,
    /// Packed weights, and keys and values of one sequence of [`Comparison::context`] tokens.
    pub memory_bytes: u64,
    /// How far it is from the base on the text.
    pub text: Divergence,
    /// The same on the base's answers to the prompts.
    pub answers: Option<Divergence>,
    /// Where its own answers part from the base's.
    pub parting: Option<Parting>,
    /// How fast it is.
    pub speed: Option<Speed>,
}

/// What was compared; the base comes first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The text's name.
    pub text: String,
    /// How it was cut.
    pub windows: WindowOptions,
    /// Predictions of the text that counted.
    pub tokens: usize,
    /// Prompts.
    pub prompts: usize,
    /// Prompts too long for the model, which were left out.
    pub prompts_left_out: usize,
    /// Tokens of context in the memory figure.
    pub context: usize,
    /// The candidates.
    pub candidates: Vec<Figures>,
    /// What they come to.
    pub advice: String,
}

/// How far a comparison has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step<'a> {
    /// The candidate.
    pub label: &'a str,
    /// What is done.
    pub what: &'static str,
    /// How much of it.
    pub done: usize,
    /// Of how much.
    pub total: usize,
}

/// What is kept of the base.
struct BaseSide {
    stretches: Stretches,
    together: usize,
    text: Base,
    /// The base's answers after their prompts, and their predictions.
    answers: Option<(Stretches, Base)>,
    size: ScorerSize,
}

/// Compares candidates, the first of which is the base.
///
/// # Errors
/// [`Error::Usage`] where there are fewer than two, their vocabularies differ, or the text is too short; [`Error`] where
/// one cannot be loaded.
pub fn compare(
    candidates: &[Candidate<'_>],
    plan: &Plan,
    progress: &mut dyn FnMut(&Step<'_>),
) -> Result<Comparison, Error> {
    let [first, others @ ..] = candidates else { return Err(too_few()) };
    if others.is_empty() {
        return Err(too_few());
    }
    let base = (first.open)()?;
    others.iter().try_for_each(|c| same_vocabulary(&base, &(c.open)()?))?;
    let context = plan.context.min(base.files.config.max_context);
    let (figures, side, left_out) = measure_base(first, &base, plan, progress)?;
    let mut all = vec![figures];
    drop(base);
    for candidate in others {
        all.push(measure(candidate, plan, &side, progress)?);
    }
    let mut comparison = Comparison {
        text: plan.text_name.clone(),
        windows: plan.windows,
        tokens: side.stretches.counted(),
        prompts: side.answers.as_ref().map_or(0, |(stretches, _)| stretches.len()),
        prompts_left_out: left_out,
        context,
        candidates: all,
        advice: String::new(),
    };
    comparison.advice = advice(&comparison);
    Ok(comparison)
}

fn too_few() -> Error {
    Error::Usage("expected a base and at least one model, or KV types, to compare with it".into())
}

/// Runs the base and keeps what others are held against.
fn measure_base(
    candidate: &Candidate<'_>,
    model: &Model,
    plan: &Plan,
    progress: &mut dyn FnMut(&Step<'_>),
) -> Result<(Figures, BaseSide, usize), Error> {
    let text = model.text()?;
    let stretches = Stretches::of_text(&plan.text, &text.tokenizer, plan.windows)?;
    let (prompts, left_out) = encode_prompts(model, plan)?;
    let together = (candidate.options.batch_rows / plan.windows.window.max(1)).max(1);
    let longest = prompts.iter().map(|p| p.len() + plan.answer_tokens).max().unwrap_or(0);
    let size = ScorerSize { context: longest.max(plan.windows.window), sequences: together.max(prompts.len().min(8)) };
    let mut scorer = load(candidate, model, size, progress)?;
    let mut text_base = Base::new(stretches.counted(), scorer.vocab(), spare_memory(), &plan.scratch)?;
    let mut step = stepper(&candidate.label, "predicting the text");
    let own = surprises(&mut scorer, &stretches, together, &mut text_base, &mut |d, t| step(d, t, progress))?;
    let own: Vec<Parted> = own.into_iter().map(Parted::none).collect();
    let mut figures = describe(candidate, model, plan, &scorer, summary(&own, stretches.len()))?;
    let mut answers = None;
    if !prompts.is_empty() {
        let mut step = stepper(&candidate.label, "answering the prompts");
        step(0, 1, progress);
        let said = scorer.greedy(&prompts, plan.answer_tokens, &text.eos_ids())?;
        let stretch = |(prompt, answer): (&Vec<u32>, Vec<u32>)| Stretch {
            from: prompt.len() - 1,
            ids: [&prompt[..], &answer].concat(),
        };
        let said = Stretches::list(prompts.iter().zip(said).map(stretch).collect());
        let mut kept = Base::new(said.counted(), scorer.vocab(), spare_memory(), &plan.scratch)?;
        let own = surprises(&mut scorer, &said, size.sequences, &mut kept, &mut |d, t| step(d, t, progress))?;
        let own: Vec<Parted> = own.into_iter().map(Parted::none).collect();
        (figures.answers, figures.parting) = (Some(summary(&own, said.len())), Some(part(&own, &said)));
        answers = Some((said, kept));
    }
    drop(scorer);
    figures.speed = speed(candidate, plan, progress)?;
    Ok((figures, BaseSide { stretches, together, text: text_base, answers, size }, left_out))
}

/// Bytes of memory that predictions may take.
fn spare_memory() -> u64 {
    available_memory().map_or(1 << 30, |free| free / 4)
}

/// Runs a candidate beside what was kept of the base.
fn measure(
    candidate: &Candidate<'_>,
    plan: &Plan,
    base: &BaseSide,
    progress: &mut dyn FnMut(&Step<'_>),
) -> Result<Figures, Error> {
    let model = (candidate.open)()?;
    let mut scorer = load(candidate, &model, base.size, progress)?;
    let mut step = stepper(&candidate.label, "predicting the text");
    let text = parted(&mut scorer, &base.stretches, base.together, &base.text, &mut |d, t| step(d, t, progress))?;
    let mut figures = describe(candidate, &model, plan, &scorer, summary(&text, base.stretches.len()))?;
    if let Some((stretches, kept)) = &base.answers {
        let mut step = stepper(&candidate.label, "predicting the base's answers");
        let own = parted(&mut scorer, stretches, base.size.sequences, kept, &mut |d, t| step(d, t, progress))?;
        figures.parting = Some(part(&own, stretches));
        figures.answers = Some(summary(&own, stretches.len()));
    }
    drop((scorer, model));
    figures.speed = speed(candidate, plan, progress)?;
    Ok(figures)
}

/// The prompts' tokens, and how many prompts were too long.
fn encode_prompts(model: &Model, plan: &Plan) -> Result<(Vec<Vec<u32>>, usize), Error> {
    let text = model.text()?;
    let tokenizer = text.tokenizer.clone();
    let chat = if plan.raw || text.templates.is_none() { None } else { Some(Chat::new(text)?) };
    let encode = |prompt: &String| -> Result<Vec<u32>, Error> {
        match &chat {
            Some(chat) => chat.user_ids(prompt),
            None => {
                let bos = if tokenizer.add_bos() { tokenizer.bos() } else { None };
                Ok(bos.into_iter().chain(tokenizer.encode(prompt, Special::AsText)).collect())
            }
        }
    };
    let mut all = plan.prompts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let most = model.files.config.max_context;
    all.retain(|ids| !ids.is_empty() && ids.len() + plan.answer_tokens <= most);
    let left_out = plan.prompts.len() - all.len();
    Ok((all, left_out))
}

/// What is told how far a comparison has come.
type Told<'a> = dyn FnMut(&Step<'_>) + 'a;

/// Tells how far one part is.
fn stepper<'a>(label: &'a str, what: &'static str) -> impl FnMut(usize, usize, &mut Told<'_>) + 'a {
    move |done, total, progress| progress(&Step { label, what, done, total })
}

fn load(
    candidate: &Candidate<'_>,
    model: &Model,
    size: ScorerSize,
    progress: &mut dyn FnMut(&Step<'_>),
) -> Result<Scorer, Error> {
    let mut step = stepper(&candidate.label, "packing weights");
    Scorer::load(model, &candidate.options, size, &mut |p| step(p.done, p.total, progress))
}

fn describe(
    candidate: &Candidate<'_>,
    model: &Model,
    plan: &Plan,
    scorer: &Scorer,
    text: Divergence,
) -> Result<Figures, Error> {
    let kv_type = candidate.options.kv_type;
    let context = plan.context.min(model.files.config.max_context);
    let inspection = Inspection::new(model, Some(context), 1, kv_type)?;
    let weight_bytes = scorer.weight_bytes() as u64;
    Ok(Figures {
        label: candidate.label.clone(),
        backend: scorer.backend().to_string(),
        kv_type: kv_name(kv_type),
        file_bytes: inspection.file_bytes,
        bits_per_weight: inspection.bits_per_weight,
        weight_bytes,
        kv_bytes_per_token: inspection.kv_bytes_per_token as u64,
        memory_bytes: weight_bytes.saturating_add(inspection.kv_bytes as u64),
        text,
        answers: None,
        parting: None,
        speed: None,
    })
}

fn kv_name(kv_type: KvType) -> String {
    kv_type.name().to_string()
}

/// Where answers part from the base's, of all predictions of them.
fn part(all: &[Parted], stretches: &Stretches) -> Parting {
    let (mut points, mut lengths, mut same, mut rest) = (Vec::new(), Vec::new(), 0, all);
    for i in 0..stretches.len() {
        let (answer, others) = rest.split_at(stretches.get(i).counted());
        let point = answer.iter().position(|p| p.top.1 != p.target);
        same += usize::from(point.is_none());
        points.push(point.unwrap_or(answer.len()) as f64);
        lengths.push(answer.len() as f64);
        rest = others;
    }
    points.sort_by(f64::total_cmp);
    Parting {
        prompts: points.len(),
        same,
        median_tokens: quantile(&points, 0.5),
        mean_tokens: Estimate::mean(points.iter().copied()).value,
        answer_tokens: Estimate::mean(lengths.into_iter()).value,
    }
}

/// How fast a candidate reads a prompt and writes an answer.
fn speed(candidate: &Candidate<'_>, plan: &Plan, progress: &mut dyn FnMut(&Step<'_>)) -> Result<Option<Speed>, Error> {
    if plan.repeat == 0 {
        return Ok(None);
    }
    let model = (candidate.open)()?;
    let most = model.files.config.max_context;
    let (prompt, answer) = (plan.speed_tokens.0.clamp(1, most), plan.speed_tokens.1.clamp(1, most));
    let workload = |kind, tokens| Workload { kind, tokens, depth: 0, batch: 1 };
    let workloads = [workload(Kind::Prefill, prompt), workload(Kind::Decode, answer)];
    let mut step = stepper(&candidate.label, "measuring speed");
    let total = 2 * (plan.repeat + 1);
    step(0, total, progress);
    let mut bench = Bench::load(model, &candidate.options, &workloads, &mut |_| ())?;
    let mut done = 0;
    let mut figure = |workload: &Workload| -> Result<Estimate, Error> {
        let measured = bench.measure(workload, plan.repeat, &mut || {
            done += 1;
            step(done.min(total), total, progress);
        })?;
        Ok(Estimate { value: measured.median(), error: (measured.most() - measured.least()) / 2.0 })
    };
    Ok(Some(Speed { prefill: figure(&workloads[0])?, decode: figure(&workloads[1])? }))
}
