//! `pelton run`: one prompt, one streamed answer, one line of figures.

use std::io::Read;

use anyhow::Context as _;
use pelton::{Chat, Event, Finished, Llm, Model, Request, Special};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{RunArgs, SamplingArgs};
use crate::setup::Context;
use crate::term;

/// The longest prompt that is read from stdin: no context is longer than this many bytes of text.
const MAX_PROMPT_BYTES: u64 = 256 << 20;

pub fn run(args: &RunArgs, context: &Context) -> anyhow::Result<()> {
    let prompt = match args.prompt.as_str() {
        "-" => read_stdin()?,
        text => text.to_string(),
    };
    if prompt.trim().is_empty() {
        return Err(Usage("the prompt is empty; type one, or pipe one in with `-`".into()).into());
    }
    let (model, llm) = context.load(&args.model, 1)?;
    let request = request(args, &model, &llm, &prompt)?;
    let mut text = String::new();
    let finished = answer(&llm, request, &mut |piece| {
        text.push_str(piece);
        if args.json { Ok(()) } else { term::print_now(piece) }
    })?;
    if args.json {
        let object = json!({ "model": model.name, "text": text, "finish_reason": finished.reason.to_string(),
            "timing": timing_json(&finished) });
        return Ok(term::print_line(&object.to_string())?);
    }
    if !text.ends_with('\n') {
        term::print_line("")?;
    }
    if !context.quiet {
        term::note(&figures(&finished));
    }
    Ok(())
}

/// Reads a text from stdin, which must be UTF-8.
pub fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes).context("cannot read stdin")?;
    if bytes.len() as u64 > MAX_PROMPT_BYTES {
        anyhow::bail!("stdin holds more than {} of text", term::bytes(MAX_PROMPT_BYTES));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("stdin is not UTF-8 text: byte {at} is invalid; convert it first, for example with iconv")
    })
}

fn request(args: &RunArgs, model: &Model, llm: &Llm, prompt: &str) -> anyhow::Result<Request> {
    let text = model.text()?;
    if args.raw || text.templates.is_none() {
        if !args.raw {
            term::note("the model has no chat template: the prompt is continued as plain text");
            if args.system.is_some() {
                return Err(Usage("--system needs a model with a chat template".into()).into());
            }
        }
        let tokenizer = &text.tokenizer;
        let mut ids = if tokenizer.add_bos() { tokenizer.bos().into_iter().collect() } else { Vec::new() };
        ids.extend(tokenizer.encode(prompt, Special::AsText));
        let mut request = build_request(ids, &args.sampling, model, llm)?;
        request.continues_text = true;
        return Ok(request);
    }
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": prompt }));
    let ids = Chat::new(text)?.ids(&Value::Array(messages), None)?;
    build_request(ids, &args.sampling, model, llm)
}

/// A request with the caller's sampling over the model's; says where the context cuts the answer short.
pub fn build_request(ids: Vec<u32>, args: &SamplingArgs, model: &Model, llm: &Llm) -> anyhow::Result<Request> {
    let context = llm.report().memory.context;
    if ids.len() >= context {
        let tokens = ids.len();
        let hint = match model.files.config.max_context > context {
            true => "shorten it or raise --context",
            false => "shorten it, or choose a model with a longer context",
        };
        return Err(Usage(format!("the prompt has {tokens} tokens, the context holds {context}; {hint}")).into());
    }
    let left = context - ids.len();
    if args.max_tokens == Some(0) {
        return Err(Usage("--max-tokens 0: ask for at least one token".into()).into());
    }
    if args.max_tokens.is_some_and(|n| n > left) {
        let n = args.max_tokens.unwrap_or(left);
        term::note(&format!("the context of {context} leaves room for {left} tokens, not {n}"));
    }
    let max_tokens = args.max_tokens.unwrap_or(left).min(left);
    let sampling = args.overrides().resolve(&model.files.generation);
    let mut request = Request::new(ids, sampling, max_tokens);
    request.stop = args.stop.clone();
    Ok(request)
}

/// Runs a request to its end, handing out text as it comes.
pub fn answer(
    llm: &Llm,
    request: Request,
    emit: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> anyhow::Result<Finished> {
    for event in llm.submit(request)? {
        match event {
            Event::Token { text, .. } => emit(&text)?,
            Event::Finished(finished) => {
                emit(&finished.text)?;
                return Ok(finished);
            }
            Event::Failed(message) => return Err(Usage(message).into()),
        }
    }
    anyhow::bail!("the engine stopped before the answer was complete")
}

/// The performance line, with the reason where the answer was cut off.
pub fn figures(finished: &Finished) -> String {
    use pelton::FinishReason::{Context, MaxTokens};
    match finished.reason {
        reason @ (Context | MaxTokens) => format!("{} ended by: {reason}", finished.timing),
        _ => finished.timing.to_string(),
    }
}

/// The ledger, for programs.
pub fn timing_json(finished: &Finished) -> Value {
    let t = &finished.timing;
    json!({
        "prompt_tokens": t.prompt_tokens,
        "cached_tokens": t.cached_tokens,
        "tokens": t.tokens,
        "first_token_ms": t.first_token.as_secs_f64() * 1e3,
        "total_ms": t.total.as_secs_f64() * 1e3,
        "tokens_per_s": t.tokens_per_s(),
        "preemptions": t.preemptions,
    })
}
