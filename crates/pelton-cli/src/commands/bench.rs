//! `pelton bench`: prompt and generation speed, beside what the machine could do.
//!
//! Decoding reads all weights and the KV of the sequence for every token, so its ceiling is the memory's read
//! bandwidth: the share of it that was reached is printed beside each figure.

use pelton::{Event, Llm, Request, SamplingParams, read_bandwidth};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::BenchArgs;
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

pub fn run(args: &BenchArgs, context: &Context) -> anyhow::Result<()> {
    if args.repeat == 0 || args.batch == 0 {
        return Err(Usage("--repeat and --batch must be at least 1".into()).into());
    }
    let (model, llm) = context.load(&args.model, args.batch)?;
    let options = context.options(&args.model.engine, args.batch)?;
    let gb_per_s = read_bandwidth(&options)?;
    let mut rows = Vec::new();
    for &tokens in args.prompt.iter().filter(|&&t| t > 0) {
        rows.push(prompt_row(&llm, tokens, args)?);
    }
    for &tokens in args.generate.iter().filter(|&&t| t > 0) {
        rows.push(generate_row(&llm, tokens, args)?);
    }
    if args.json {
        let rows: Vec<Value> = rows.iter().map(|r| row_json(r, gb_per_s)).collect();
        let object = json!({ "model": model.name, "backend": llm.report().backend, "read_gb_per_s": gb_per_s,
            "weight_bytes": llm.report().memory.weight_bytes, "tests": rows });
        return Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    term::print_line(&format!("{} on {} · memory reads {gb_per_s:.1} GB/s", model.name, llm.report().backend))?;
    term::print_line(&format!("{:<28} {:>10} {:>19} {:>20}", "test", "tokens/s", "least–most", "share of bandwidth"))?;
    for row in &rows {
        let range = format!("{:.1}–{:.1}", row.least, row.most);
        let share = row.share(gb_per_s).map_or("–".into(), |s| format!("{:.0} %", s * 100.0));
        term::print_line(&format!("{:<28} {:>10.1} {range:>19} {share:>20}", row.test, row.tokens_per_s))?;
    }
    Ok(())
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

fn request(llm: &Llm, prompt: usize, tokens: usize, salt: usize) -> anyhow::Result<Request> {
    let context = llm.report().memory.context;
    if prompt + tokens > context {
        let message = format!("{prompt} + {tokens} tokens do not fit the context of {context}; raise --context");
        return Err(Usage(message).into());
    }
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let mut request = Request::new(ids(llm.config().vocab_size, prompt, salt), sampling, tokens);
    request.ignore_eos = true;
    Ok(request)
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

fn prompt_row(llm: &Llm, tokens: usize, args: &BenchArgs) -> anyhow::Result<Row> {
    let mut samples = Vec::new();
    for i in 0..=args.repeat {
        let (first, _) = measure(llm, vec![request(llm, tokens, 1, i + tokens)?])?;
        // The first run warms the caches and is not counted.
        if i > 0 {
            samples.push(tokens as f64 / first);
        }
    }
    let (tokens_per_s, least, most) = summarize(samples);
    Ok(Row { test: format!("prompt {tokens}"), tokens_per_s, least, most, step_bytes: None, steps_per_s: 0.0 })
}

fn generate_row(llm: &Llm, tokens: usize, args: &BenchArgs) -> anyhow::Result<Row> {
    let depth = args.depth.max(1);
    let mut samples = Vec::new();
    for i in 0..=args.repeat {
        let one = |s| request(llm, depth, tokens + 1, i * args.batch + s + depth);
        let requests = (0..args.batch).map(one).collect::<anyhow::Result<_>>()?;
        let (_, per_s) = measure(llm, requests)?;
        if i > 0 {
            samples.push(per_s);
        }
    }
    let (tokens_per_s, least, most) = summarize(samples);
    let at_depth = if args.depth > 0 { format!(" at depth {depth}") } else { String::new() };
    let together = if args.batch > 1 { format!(" × {} sequences", args.batch) } else { String::new() };
    let config = llm.config();
    let memory = &llm.report().memory;
    let kv_per_token = memory.kv_bytes / (memory.n_pages * pelton::PAGE_LEN);
    let kv = kv_per_token * (depth + tokens / 2) * args.batch;
    let step_bytes = Some(llm.report().decode_weight_bytes(config) + kv);
    let test = format!("generate {tokens}{at_depth}{together}");
    Ok(Row { test, tokens_per_s, least, most, step_bytes, steps_per_s: tokens_per_s / args.batch as f64 })
}
