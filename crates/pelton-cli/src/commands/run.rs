//! `pelton run`: one prompt, one streamed answer, one line of figures.

use std::sync::atomic::AtomicBool;

use pelton::{Chat, Llm, Model, ModelText, Request, Special};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::RunArgs;
use crate::commands::answer::{build_request, figures, reason_word, stream, timing_json};
use crate::input::read_stdin;
use crate::setup::Context;
use crate::term;

pub(crate) fn run(args: &RunArgs, context: &Context) -> anyhow::Result<()> {
    let prompt = match args.prompt.as_str() {
        "-" => read_stdin(context)?,
        text => text.to_string(),
    };
    if prompt.trim().is_empty() {
        return Err(Usage("the prompt is empty; type one, or pipe one in with `-`".into()).into());
    }
    let model = context.open(args.model.model.as_deref())?;
    let text = model.text()?;
    if args.system.is_some() && text.templates.is_none() {
        return Err(Usage(format!("--system: {} has no chat template to put it in", model.name)).into());
    }
    let llm = context.load(&model, &args.model.engine, 1)?;
    let request = request(args, &model, text, &llm, &prompt, context)?;
    let mut answer = String::new();
    let handle = llm.submit(request)?;
    let finished = stream(&handle, &AtomicBool::new(false), context.quiet, &mut |piece| {
        answer.push_str(piece);
        if args.json { Ok(()) } else { term::print_now(piece) }
    })?;
    let Some(finished) = finished else { anyhow::bail!("the answer was interrupted") };
    if args.json {
        let object = json!({ "model": model.name, "text": answer, "finish_reason": reason_word(finished.reason),
            "timing": timing_json(&finished) });
        return Ok(term::print_line(&object.to_string())?);
    }
    if !answer.ends_with('\n') {
        term::print_line("")?;
    }
    context.note(&figures(&finished));
    // The process ends now: the system takes a vocabulary's hundred thousands of strings back at once.
    std::mem::forget(model);
    Ok(())
}

fn request(
    args: &RunArgs,
    model: &Model,
    text: ModelText,
    llm: &Llm,
    prompt: &str,
    context: &Context,
) -> anyhow::Result<Request> {
    if args.raw || text.templates.is_none() {
        if !args.raw {
            context.note("the model has no chat template: the prompt is continued as plain text");
        }
        let tokenizer = &text.tokenizer;
        let mut ids = if tokenizer.add_bos() { tokenizer.bos().into_iter().collect() } else { Vec::new() };
        ids.extend(tokenizer.encode(prompt, Special::AsText));
        let mut request = build_request(ids, &args.sampling, model, llm, context)?;
        request.continues_text = true;
        return Ok(request);
    }
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": prompt }));
    let ids = Chat::new(text)?.ids(&Value::Array(messages), None)?;
    build_request(ids, &args.sampling, model, llm, context)
}
