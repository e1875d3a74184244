//! `pelton run`: one prompt, one streamed answer, one line of figures.

use std::sync::atomic::AtomicBool;

use pelton::route::{Decision, Pair, Rules, Side, Signals};
use pelton::{Chat, Finished, Llm, Model, Request, Special};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{EngineArgs, RunArgs};
use crate::commands::answer::{build_request, figures, hold, reason_word, stream, timing_json};
use crate::commands::route;
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
    if let Some((pair, rules)) = route::typed_without(args.model.model.as_deref(), &args.route, context)? {
        return routed(args, &pair, &rules, &prompt, context);
    }
    let speaker = Speaker::load(args, args.model.model.as_deref(), Context::load, context)?;
    let request = speaker.request(args, speaker.ids(args, &prompt)?, context)?;
    speaker.stream(args, request, None, context)?;
    // The process ends now: the system takes a vocabulary's hundred thousands of strings back at once.
    std::mem::forget(speaker.model);
    Ok(())
}

/// The small model answers what rules leave to it and it is sure of, the large one the rest.
fn routed(args: &RunArgs, pair: &Pair, rules: &Rules, prompt: &str, context: &Context) -> anyhow::Result<()> {
    let small = Speaker::load(args, Some(&pair.small), Context::load_small, context)?;
    let ids = small.ids(args, prompt);
    let mut decision = match &ids {
        Err(e) => Decision::unreadable(e),
        Ok(ids) => rules.decide(&Signals {
            question: prompt,
            turns: 1,
            prompt_tokens: ids.len(),
            max_tokens: args.sampling.max_tokens.unwrap_or(0),
            tools: false,
            small_context: small.llm.report().memory.context,
        }),
    };
    let mut waited = None;
    if decision.to == Side::Small {
        let request = small.request(args, ids?, context)?;
        if rules.confidence.is_none() {
            return small.stream(args, request, Some(&Routed { decision, waited: None }), context);
        }
        let said = hold(&small.llm.submit(request)?, &AtomicBool::new(false), context.quiet)?;
        let Some(said) = said else { anyhow::bail!("the answer was interrupted") };
        match rules.hand_over(&said.sure) {
            None => {
                if !args.json {
                    term::print_now(&said.text)?;
                }
                return small.end(args, &said.text, &said.finished, Some(&Routed { decision, waited: None }), context);
            }
            Some(handed_over) => (decision, waited) = (handed_over, Some(said.seconds())),
        }
    }
    // The large one has the memory to itself.
    drop(small);
    let large = Speaker::load(args, Some(&pair.large), Context::load, context)?;
    let request = large.request(args, large.ids(args, prompt)?, context)?;
    large.stream(args, request, Some(&Routed { decision, waited }), context)
}

/// Who answers and why, and what an answer took before that did not stand, in seconds.
struct Routed {
    decision: Decision,
    waited: Option<f64>,
}

/// A model that answers.
struct Speaker {
    model: Model,
    llm: Llm,
    /// The prompt is text to be continued, not a message.
    continues_text: bool,
}

/// How a model is loaded: alone, or as the small one of two.
type Load = fn(&Context, &Model, &EngineArgs, usize) -> anyhow::Result<Llm>;

impl Speaker {
    fn load(args: &RunArgs, name: Option<&str>, load: Load, context: &Context) -> anyhow::Result<Speaker> {
        let model = context.open(name)?;
        let text = model.text()?;
        if args.system.is_some() && text.templates.is_none() {
            return Err(Usage(format!("--system: {} has no chat template to put it in", model.name)).into());
        }
        let continues_text = args.raw || text.templates.is_none();
        let llm = load(context, &model, &args.model.engine, 1)?;
        Ok(Speaker { model, llm, continues_text })
    }

    /// The ids of the prompt.
    fn ids(&self, args: &RunArgs, prompt: &str) -> anyhow::Result<Vec<u32>> {
        let text = self.model.text()?;
        if self.continues_text {
            let tokenizer = &text.tokenizer;
            let mut ids = if tokenizer.add_bos() { tokenizer.bos().into_iter().collect() } else { Vec::new() };
            ids.extend(tokenizer.encode(prompt, Special::AsText));
            return Ok(ids);
        }
        let system = args.system.iter().map(|system| json!({ "role": "system", "content": system }));
        let messages: Value = system.chain([json!({ "role": "user", "content": prompt })]).collect();
        Ok(Chat::new(text)?.ids(&messages, None)?)
    }

    fn request(&self, args: &RunArgs, ids: Vec<u32>, context: &Context) -> anyhow::Result<Request> {
        if self.continues_text && !args.raw {
            context.note("the model has no chat template: the prompt is continued as plain text");
        }
        let mut request = build_request(ids, &args.sampling, &self.model, &self.llm, context)?;
        request.continues_text = self.continues_text;
        Ok(request)
    }

    /// Answers, word by word.
    fn stream(
        &self,
        args: &RunArgs,
        request: Request,
        route: Option<&Routed>,
        context: &Context,
    ) -> anyhow::Result<()> {
        let mut answer = String::new();
        let handle = self.llm.submit(request)?;
        let finished = stream(&handle, &AtomicBool::new(false), context.quiet, &mut |piece| {
            answer.push_str(piece);
            if args.json { Ok(()) } else { term::print_now(piece) }
        })?;
        let Some(finished) = finished else { anyhow::bail!("the answer was interrupted") };
        self.end(args, &answer, &finished, route, context)
    }

    /// What follows an answer: its figures, who gave it and why; as JSON all of it.
    fn end(
        &self,
        args: &RunArgs,
        answer: &str,
        finished: &Finished,
        route: Option<&Routed>,
        context: &Context,
    ) -> anyhow::Result<()> {
        let name = &self.model.name;
        if args.json {
            let mut object = json!({ "model": name, "text": answer, "finish_reason": reason_word(finished.reason),
                "timing": timing_json(finished) });
            if let Some(Routed { decision, waited }) = route {
                object["route"] = json!({ "to": decision.to.to_string(), "why": decision.why });
                if let Some(seconds) = waited {
                    object["route"]["handed_over_after_ms"] = json!(seconds * 1e3);
                }
            }
            return Ok(term::print_line(&object.to_string())?);
        }
        if !answer.ends_with('\n') {
            term::print_line("")?;
        }
        if let Some(Routed { decision, waited }) = route {
            let waited = waited.map(|s| format!(" (the small one had answered in {s:.2} s)")).unwrap_or_default();
            context.note(&format!("answered by {name}, the {} model: {}{waited}", decision.to, decision.why));
        }
        context.note(&figures(finished));
        Ok(())
    }
}
