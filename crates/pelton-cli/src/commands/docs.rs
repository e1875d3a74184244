//! `pelton docs`: the main job. Discovery, prompts and output are `pelton-docs`'; here the engine becomes its writer.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};

use pelton::{CancelGuard, Chat, Event, FinishReason, Llm, ModelRef, SamplingParams, Special, Tokenizer};
use pelton_docs::{DocsOptions, Format, Progress, Reply, Request, Skip, Summary, Writer};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{DocsArgs, DocsFormat};
use crate::progress::Progress as Bar;
use crate::setup::Context;
use crate::term;

/// Small models fall into loops. On the 100 held-out functions of `models/README.md` this ends every answer (91 without
/// it) and raises the answers' word F1 from 0.276 to 0.290.
pub(crate) const EMBEDDED_FREQUENCY_PENALTY: f32 = 0.5;

/// What models other than the built-in one are told; that one brings its own system message.
const SYSTEM: &str = "You are a documentation assistant. Answer with the documentation only.";

pub(crate) fn run(args: &DocsArgs, context: &Context) -> anyhow::Result<()> {
    if !args.path.exists() {
        return Err(Usage(format!("{}: no such file or folder", args.path.display())).into());
    }
    let model = context.open(args.model.model.as_deref())?;
    let chat = Chat::new(model.text()?)?;
    let embedded = ModelRef::parse(args.model.model.as_deref())? == ModelRef::Embedded;
    let llm = context.load(&model, &args.model.engine, args.parallel)?;
    let frequency_penalty = if embedded { EMBEDDED_FREQUENCY_PENALTY } else { 0.0 };
    let mut writer = EngineWriter {
        chat,
        llm: &llm,
        system: (!embedded).then_some(SYSTEM),
        sampling: SamplingParams { temperature: 0.0, frequency_penalty, ..SamplingParams::default() },
        window: args.parallel * 2,
    };
    let options = options(args, &model.name);
    let bar = Bar::items(context.quiet);
    let mut show = |progress: Progress| match progress {
        Progress::Scanned { files, total } => {
            bar.set(0, total as u64);
            if !context.quiet {
                bar.note(&format!("{} to document in {}", counted(total, "item"), counted(files, "file")));
            }
        }
        Progress::Item { done, total, name, .. } => {
            bar.set(done as u64, total as u64);
            bar.message(name);
        }
    };
    let summary = pelton_docs::run(&options, &mut writer, &mut show);
    drop(bar);
    report(args, &options, &summary?, context)
}

/// `1 item`, `2 items`.
fn counted(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {what}{plural}", term::thousands(n))
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
        let text = summary_json(summary, args.show_skipped).to_string();
        // Records and patches own stdout unless they go to a file.
        if args.format == DocsFormat::Markdown || args.out.is_some() {
            term::print_line(&text)?;
        } else {
            term::say(&text);
        }
        return Ok(());
    }
    if args.show_skipped {
        summary.skips.iter().for_each(|skip| term::note(&left_out(skip)));
    }
    if context.quiet {
        return Ok(());
    }
    if summary.files == 0 {
        let languages = "Rust, Python, JavaScript, TypeScript, Go, Java, C or C++";
        term::note(&format!("{}: no functions or types in {languages} found", args.path.display()));
    }
    term::say(&summary.to_string());
    if args.format == DocsFormat::Markdown {
        let folder = options.out.as_deref().unwrap_or(pelton_docs::DEFAULT_PAGES.as_ref());
        term::say(&format!("read {}", folder.join("index.md").display()));
    }
    Ok(())
}

fn left_out(skip: &Skip) -> String {
    let at = skip.line.map(|line| format!(":{line}")).unwrap_or_default();
    let name = skip.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("left out: {}{at}{name}: {}", skip.path, skip.reason.words())
}

fn summary_json(s: &Summary, with_skips: bool) -> Value {
    let skips: HashMap<&str, usize> =
        pelton_docs::count_by_reason(&s.skips).into_iter().map(|(reason, n)| (reason.words(), n)).collect();
    let mut object = json!({
        "files": s.files, "items": s.items, "written": s.written, "existing": s.existing, "failed": s.failed,
        "no_answer": s.no_answer, "truncated_code": s.truncated_code, "truncated_replies": s.truncated_replies,
        "repetitions_cut": s.repetitions_cut, "prompt_tokens": s.prompt_tokens, "cached_tokens": s.cached_tokens,
        "tokens": s.tokens, "seconds": s.seconds, "scan_seconds": s.scan_seconds, "left_out": skips,
    });
    if with_skips {
        let one = |skip: &Skip| json!({ "path": skip.path, "line": skip.line, "name": skip.name, "reason": skip.reason.words() });
        object["skipped"] = s.skips.iter().map(one).collect();
    }
    object
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
                Event::Refused(refused) => {
                    running.remove(&index);
                    done(index, Err(refused.to_string()));
                }
                Event::Failed(message) => {
                    running.remove(&index);
                    done(index, Err(message));
                }
                Event::Embedded(_) => {
                    running.remove(&index);
                    done(index, Err("a vector came where an answer was expected".into()));
                }
            }
        }
    }
}
