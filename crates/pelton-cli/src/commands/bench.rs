//! `pelton bench`: prompt and generation speed, beside what the machine could do.
//!
//! Decoding reads all weights and the KV of the sequence for every token, so its ceiling is the memory's read
//! bandwidth: the share of it that was reached is printed beside each figure.

use pelton::{Event, Llm, Request, SamplingParams, read_bandwidth};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::BenchArgs;
use crate::progress::Progress;
use crate::setup::Context;
use crate::term;

/// One line of the table.
struct Row {
    test: String,
    tokens_per_s: f64,
    least: f64,
    most: f64,
    /// Bytes that one step reads, where the memory is the ceiling.
    step_bytes: Option<usize>,
    /// Steps a second.
    steps_per_s: f64,
}

pub(crate) fn run(args: &BenchArgs, context: &Context) -> anyhow::Result<()> {
    let nonzero = |lengths: &[usize]| lengths.iter().copied().filter(|&n| n > 0).collect::<Vec<_>>();
    let (prompts, generations) = (nonzero(&args.prompt), nonzero(&args.generate));
    if prompts.is_empty() && generations.is_empty() {
        return Err(Usage("--prompt 0 --generate 0: nothing to measure".into()).into());
    }
    let model = context.open(args.model.model.as_deref())?;
    let llm = context.load(&model, &args.model.engine, args.batch)?;
    prompts.iter().try_for_each(|&n| check_fit(&llm, "--prompt", n, 1, 1))?;
    generations
        .iter()
        .try_for_each(|&n| check_fit(&llm, "--generate", n, args.depth.max(1).saturating_add(1), args.batch))?;
    let bar = Progress::steps(context.quiet);
    bar.set(0, 1 + ((args.repeat + 1) * (prompts.len() + generations.len())) as u64);
    bar.message("memory bandwidth");
    let gb_per_s = read_bandwidth(&context.compute_options(&args.model.engine.compute))?;
    bar.step();
    let mut rows = Vec::new();
    for tokens in prompts {
        rows.push(prompt_row(&llm, tokens, args, &bar)?);
    }
    for tokens in generations {
        rows.push(generate_row(&llm, tokens, args, &bar)?);
    }
    drop(bar);
    if args.json {
        let rows: Vec<Value> = rows.iter().map(|r| row_json(r, gb_per_s)).collect();
        let object = json!({ "model": model.name, "backend": llm.report().backend, "read_gb_per_s": gb_per_s,
            "weight_bytes": llm.report().memory.weight_bytes, "tests": rows });
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    term::print_line(&format!("{} on {} · memory reads {gb_per_s:.1} GB/s", model.name, llm.report().backend))?;
    term::print_now(&table(&rows, gb_per_s))?;
    if rows.iter().any(|r| r.share(gb_per_s).is_some_and(|s| s > 1.0)) {
        context.note(
            "above 100 %: weights and keys are read from the processor's caches, which are faster than the memory",
        );
    }
    Ok(())
}

/// Refuses what the pool of pages cannot hold at once, before anything is measured.
fn check_fit(llm: &Llm, option: &str, tokens: usize, depth: usize, batch: usize) -> anyhow::Result<()> {
    let memory = &llm.report().memory;
    let (context, most) = (memory.context, llm.config().max_context);
    let needed = tokens.saturating_add(depth);
    if needed > context {
        let advice = if most > context { "raise --context" } else { "the model takes no more" };
        let message = format!("{option} {tokens}: {needed} tokens do not fit the context of {context}; {advice}");
        return Err(Usage(message).into());
    }
    let pages = needed.div_ceil(pelton::PAGE_LEN).saturating_mul(batch);
    if pages > memory.n_pages {
        let room = memory.n_pages * pelton::PAGE_LEN;
        let message =
            format!("--batch {batch}: the memory holds keys and values of {room} tokens in all; measure fewer");
        return Err(Usage(message).into());
    }
    Ok(())
}

fn table(rows: &[Row], gb_per_s: f64) -> String {
    let width = rows.iter().map(|r| r.test.chars().count()).max().unwrap_or(0).max(4);
    let header = ("test", "tokens/s", "least–most", "share of bandwidth");
    let mut out = format!("{:<width$}  {:>10}  {:>19}  {:>18}\n", header.0, header.1, header.2, header.3);
    for row in rows {
        let range = format!("{:.1}–{:.1}", row.least, row.most);
        let share = row.share(gb_per_s).map_or("–".into(), |s| format!("{:.0} %", s * 100.0));
        out.push_str(&format!("{:<width$}  {:>10.1}  {range:>19}  {share:>18}\n", row.test, row.tokens_per_s));
    }
    out
}

impl Row {
    fn share(&self, gb_per_s: f64) -> Option<f64> {
        Some(self.step_bytes? as f64 * self.steps_per_s / 1e9 / gb_per_s)
    }
}

fn row_json(row: &Row, gb_per_s: f64) -> Value {
    json!({ "test": row.test, "tokens_per_s": row.tokens_per_s, "least": row.least, "most": row.most,
        "step_bytes": row.step_bytes, "bandwidth_share": row.share(gb_per_s) })
}

/// Ids that differ between repetitions, so that no prefix is cached: a fixed linear congruential sequence.
fn ids(vocab: usize, len: usize, salt: usize) -> Vec<u32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(salt as u64 + 1);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab as u64) as u32
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn request(llm: &Llm, prompt: usize, tokens: usize, salt: usize) -> Request {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let mut request = Request::new(ids(llm.config().vocab_size, prompt, salt), sampling, tokens);
    request.ignore_eos = true;
    request
}

/// Runs requests together; returns the slowest first token, and tokens a second of all after the first ones.
fn measure(llm: &Llm, requests: Vec<Request>) -> anyhow::Result<(f64, f64)> {
    let handles: Vec<_> = requests.into_iter().map(|r| llm.submit(r)).collect::<Result<_, _>>()?;
    let (mut first, mut total, mut tokens) = (0.0f64, 0.0f64, 0);
    for handle in handles {
        for event in handle {
            match event {
                Event::Token { .. } => {}
                Event::Finished(f) => {
                    first = first.max(f.timing.first_token.as_secs_f64());
                    total = total.max(f.timing.total.as_secs_f64());
                    tokens += f.timing.tokens - 1;
                }
                Event::Failed(message) => anyhow::bail!("{message}"),
            }
        }
    }
    Ok((first, tokens as f64 / (total - first).max(1e-9)))
}

fn summarize(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    let n = samples.len();
    (samples[n / 2], samples[0], samples[n - 1])
}

fn prompt_row(llm: &Llm, tokens: usize, args: &BenchArgs, bar: &Progress) -> anyhow::Result<Row> {
    let test = format!("prompt {tokens}");
    bar.message(test.clone());
    let mut samples = Vec::new();
    for i in 0..=args.repeat {
        let (first, _) = measure(llm, vec![request(llm, tokens, 1, i + tokens)])?;
        bar.step();
        // The first run warms the caches and is not counted.
        if i > 0 {
            samples.push(tokens as f64 / first);
        }
    }
    let (tokens_per_s, least, most) = summarize(samples);
    Ok(Row { test, tokens_per_s, least, most, step_bytes: None, steps_per_s: 0.0 })
}

fn generate_row(llm: &Llm, tokens: usize, args: &BenchArgs, bar: &Progress) -> anyhow::Result<Row> {
    let depth = args.depth.max(1);
    let at_depth = if args.depth > 0 { format!(" at depth {depth}") } else { String::new() };
    let together = if args.batch > 1 { format!(" × {} sequences", args.batch) } else { String::new() };
    let test = format!("generate {tokens}{at_depth}{together}");
    bar.message(test.clone());
    let mut samples = Vec::new();
    for i in 0..=args.repeat {
        let one = |s| request(llm, depth, tokens + 1, i * args.batch + s + depth);
        let (_, per_s) = measure(llm, (0..args.batch).map(one).collect())?;
        bar.step();
        if i > 0 {
            samples.push(per_s);
        }
    }
    let (tokens_per_s, least, most) = summarize(samples);
    let config = llm.config();
    let memory = &llm.report().memory;
    let kv_per_token = memory.kv_bytes / (memory.n_pages * pelton::PAGE_LEN);
    let kv = kv_per_token * (depth + tokens / 2) * args.batch;
    let step_bytes = Some(llm.report().decode_weight_bytes(config) + kv);
    Ok(Row { test, tokens_per_s, least, most, step_bytes, steps_per_s: tokens_per_s / args.batch as f64 })
}
