//! `pelton run`: one prompt, one streamed answer, one line of figures.

use std::sync::atomic::AtomicBool;

use pelton::route::{Decision, Pair, Rules, Side, Signals};
use pelton::{Chat, Finished, Llm, Model, ModelText, Request, Special};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::RunArgs;
use crate::commands::answer::{build_request, figures, reason_word, stream, timing_json};
use crate::commands::route::{self, Said};
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
    if let Some((pair, rules)) = route::typed(&args.route, context)? {
        if args.model.model.is_some() {
            return Err(Usage("--model and --route exclude each other: the route names its models".into()).into());
        }
        return routed(args, &pair, &rules, &prompt, context);
    }
    let speaker = Speaker::load(args, args.model.model.as_deref(), context)?;
    let request = speaker.request(args, &prompt, context)?;
    speaker.stream(args, request, None, context)?;
    // The process ends now: the system takes a vocabulary's hundred thousands of strings back at once.
    std::mem::forget(speaker.model);
    Ok(())
}

/// The small model answers what rules leave to it and it is sure of, the large one the rest.
fn routed(args: &RunArgs, pair: &Pair, rules: &Rules, prompt: &str, context: &Context) -> anyhow::Result<()> {
    let small = Speaker::load(args, Some(&pair.small), context)?;
    let request = small.request(args, prompt, context)?;
    let mut decision = rules.decide(&Signals {
        question: prompt,
        turns: 1,
        prompt_tokens: request.prompt.len(),
        max_tokens: args.sampling.max_tokens.unwrap_or(0),
        tools: false,
        small_context: small.llm.report().memory.context,
    });
    if decision.to == Side::Small {
        if rules.confidence.is_none() {
            return small.stream(args, request, Some(&decision), context);
        }
        let said = Said::wait(&small.llm.submit(request)?)?;
        match rules.hand_over(said.mean_logprob) {
            None => {
                if !args.json {
                    term::print_now(&said.text)?;
                }
                return small.end(args, &said.text, &said.finished, Some(&decision), context);
            }
            Some(handed_over) => decision = handed_over,
        }
    }
    let large = Speaker::load(args, Some(&pair.large), context)?;
    let request = large.request(args, prompt, context)?;
    large.stream(args, request, Some(&decision), context)
}

/// A model that answers.
struct Speaker {
    model: Model,
    llm: Llm,
}

impl Speaker {
    fn load(args: &RunArgs, name: Option<&str>, context: &Context) -> anyhow::Result<Speaker> {
        let model = context.open(name)?;
        if args.system.is_some() && model.text()?.templates.is_none() {
            return Err(Usage(format!("--system: {} has no chat template to put it in", model.name)).into());
        }
        let llm = context.load(&model, &args.model.engine, 1)?;
        Ok(Speaker { model, llm })
    }

    fn request(&self, args: &RunArgs, prompt: &str, context: &Context) -> anyhow::Result<Request> {
        request(args, &self.model, self.model.text()?, &self.llm, prompt, context)
    }

    /// Answers, word by word.
    fn stream(
        &self,
        args: &RunArgs,
        request: Request,
        decision: Option<&Decision>,
        context: &Context,
    ) -> anyhow::Result<()> {
        let mut answer = String::new();
        let handle = self.llm.submit(request)?;
        let finished = stream(&handle, &AtomicBool::new(false), context.quiet, &mut |piece| {
            answer.push_str(piece);
            if args.json { Ok(()) } else { term::print_now(piece) }
        })?;
        let Some(finished) = finished else { anyhow::bail!("the answer was interrupted") };
        self.end(args, &answer, &finished, decision, context)
    }

    /// What follows an answer: its figures, who gave it and why; as JSON all of it.
    fn end(
        &self,
        args: &RunArgs,
        answer: &str,
        finished: &Finished,
        decision: Option<&Decision>,
        context: &Context,
    ) -> anyhow::Result<()> {
        let name = &self.model.name;
        if args.json {
            let mut object = json!({ "model": name, "text": answer, "finish_reason": reason_word(finished.reason),
                "timing": timing_json(finished) });
            if let Some(decision) = decision {
                object["route"] = json!({ "to": decision.to.to_string(), "why": decision.why });
            }
            return Ok(term::print_line(&object.to_string())?);
        }
        if !answer.ends_with('\n') {
            term::print_line("")?;
        }
        if let Some(decision) = decision {
            context.note(&format!("answered by {name}, the {} model: {}", decision.to, decision.why));
        }
        context.note(&figures(finished));
        Ok(())
    }
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
