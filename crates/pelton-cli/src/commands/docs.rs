//! `pelton docs`: the main job. Discovery, prompts and output are `pelton-docs`'; here the engine becomes its writer.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};

use pelton::{CancelGuard, Chat, Event, FinishReason, Llm, ModelRef, SamplingParams, Special, Tokenizer};
use pelton_docs::{DocsOptions, Format, Progress, Reply, Request, Skip, Summary, Writer};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{DocsArgs, DocsFormat};
use crate::setup::Context;
use crate::term;

/// What models other than the built-in one are told; that one brings its own system message.
const SYSTEM: &str = "You are a documentation assistant. Answer with the documentation only.";

pub fn run(args: &DocsArgs, context: &Context) -> anyhow::Result<()> {
    if args.parallel == 0 || args.max_tokens == 0 {
        return Err(Usage("--parallel and --max-tokens must be at least 1".into()).into());
    }
    if !args.path.exists() {
        return Err(Usage(format!("{}: no such file or folder", args.path.display())).into());
    }
    let (model, llm) = context.load(&args.model, args.parallel)?;
    let embedded = ModelRef::parse(args.model.model.as_deref())? == ModelRef::Embedded;
    let mut writer = EngineWriter {
        chat: Chat::new(model.text()?)?,
        llm: &llm,
        system: (!embedded).then_some(SYSTEM),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        window: args.parallel * 2,
    };
    let options = options(args, &model.name);
    let bar = term::item_bar(0, context.quiet);
    let mut show = |progress: Progress| match progress {
        Progress::Scanned { files, total } => {
            bar.set_length(total as u64);
            if !context.quiet {
                bar.suspend(|| term::note(&format!("{total} items to document in {files} files")));
            }
        }
        Progress::Item { done, name, .. } => {
            bar.set_position(done as u64);
            bar.set_message(name);
        }
    };
    let summary = pelton_docs::run(&options, &mut writer, &mut show);
    bar.finish_and_clear();
    report(args, &options, &summary?, context)
}

fn options(args: &DocsArgs, model: &str) -> DocsOptions {
    let format = match args.format {
        DocsFormat::Markdown => Format::Markdown,
        DocsFormat::Jsonl => Format::Jsonl,
        DocsFormat::Patch => Format::Patch,
    };
    DocsOptions {
        format,
        out: args.out.clone(),
        regenerate: args.regenerate,
        only_undocumented: args.only_undocumented,
        limit: args.limit,
        max_tokens: args.max_tokens,
        model: model.to_string(),
        ..DocsOptions::new(&args.path)
    }
}

/// The figures: on stderr, where pages and records do not mix with them; as JSON on request.
fn report(args: &DocsArgs, options: &DocsOptions, summary: &Summary, context: &Context) -> anyhow::Result<()> {
    if args.json {
        let text = summary_json(summary).to_string();
        // Records and patches own stdout unless they go to a file.
        if args.format == DocsFormat::Markdown || args.out.is_some() {
            term::print_line(&text)?;
        } else {
            eprintln!("{text}");
        }
        return Ok(());
    }
    if context.quiet {
        return Ok(());
    }
    eprintln!("{summary}");
    if args.show_skipped {
        summary.skips.iter().for_each(|skip| term::note(&left_out(skip)));
    }
    if args.format == DocsFormat::Markdown {
        let folder = options.out.as_deref().unwrap_or(pelton_docs::DEFAULT_PAGES.as_ref());
        eprintln!("read {}", folder.join("index.md").display());
    }
    Ok(())
}

fn left_out(skip: &Skip) -> String {
    let at = skip.line.map(|line| format!(":{line}")).unwrap_or_default();
    let name = skip.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("left out: {}{at}{name}: {}", skip.path, skip.reason.words())
}

fn summary_json(s: &Summary) -> Value {
    let skips: HashMap<&str, usize> =
        pelton_docs::count_by_reason(&s.skips).into_iter().map(|(reason, n)| (reason.words(), n)).collect();
    json!({
        "files": s.files, "items": s.items, "written": s.written, "existing": s.existing, "failed": s.failed,
        "no_answer": s.no_answer, "truncated_code": s.truncated_code, "truncated_replies": s.truncated_replies,
        "repetitions_cut": s.repetitions_cut, "prompt_tokens": s.prompt_tokens, "cached_tokens": s.cached_tokens,
        "tokens": s.tokens, "seconds": s.seconds, "scan_seconds": s.scan_seconds, "left_out": skips,
    })
}

/// The engine as the writer of entries: keeps a window of requests in flight, so that the batch stays full.
struct EngineWriter<'a> {
    chat: Chat,
    llm: &'a Llm,
    system: Option<&'static str>,
    sampling: SamplingParams,
    window: usize,
}

/// A request that runs.
struct Running {
    reply: Reply,
    _cancel: CancelGuard,
}

impl EngineWriter<'_> {
    fn tokenizer(&self) -> &Tokenizer {
        &self.chat.text().tokenizer
    }

    fn submit(&self, index: usize, request: &Request, events: &Sender<(usize, Event)>) -> Result<CancelGuard, String> {
        let system = self.system.iter().map(|s| json!({ "role": "system", "content": s }));
        let user = json!({ "role": "user", "content": request.prompt });
        let messages: Value = system.chain([user]).collect();
        let ids = self.chat.ids(&messages, None).map_err(|e| e.to_string())?;
        let request = pelton::Request::new(ids, self.sampling.clone(), request.max_tokens);
        let events = events.clone();
        let sink = Box::new(move |event| drop(events.send((index, event))));
        self.llm.submit_to(request, sink).map_err(|e| e.to_string())
    }
}

impl Writer for EngineWriter<'_> {
    fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer().encode(text, Special::AsText).len()
    }

    fn context_len(&self) -> usize {
        self.llm.report().memory.context
    }

    fn write_all(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Result<Reply, String>),
    ) -> Result<(), String> {
        let (sender, events) = channel();
        let mut waiting = requests.iter().enumerate();
        let mut running: HashMap<usize, Running> = HashMap::new();
        loop {
            while running.len() < self.window {
                let Some((index, request)) = waiting.next() else { break };
                match self.submit(index, request, &sender) {
                    Ok(guard) => {
                        running.insert(index, Running { reply: Reply::default(), _cancel: guard });
                    }
                    Err(e) => done(index, Err(e)),
                }
            }
            if running.is_empty() {
                return Ok(());
            }
            // The sender above is alive, so an engine that died shows as silence: its sinks report a failure first.
            let Ok((index, event)) = events.recv() else { return Err("the engine stopped".into()) };
            let Some(run) = running.get_mut(&index) else { continue };
            match event {
                Event::Token { text, .. } => run.reply.text.push_str(&text),
                Event::Finished(finished) => {
                    let mut reply = std::mem::take(&mut run.reply);
                    running.remove(&index);
                    reply.text.push_str(&finished.text);
                    reply.prompt_tokens = finished.timing.prompt_tokens;
                    reply.cached_tokens = finished.timing.cached_tokens;
                    reply.tokens = finished.timing.tokens;
                    reply.truncated = matches!(finished.reason, FinishReason::MaxTokens | FinishReason::Context);
                    done(index, Ok(reply));
                }
                Event::Failed(message) => {
                    running.remove(&index);
                    done(index, Err(message));
                }
            }
        }
    }
}
