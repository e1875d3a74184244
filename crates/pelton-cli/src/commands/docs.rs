//! `pelton docs`: the main job. Discovery, prompts and output are `pelton-docs`'; here the engine becomes its writer.

mod routed;
mod writer;

use std::collections::HashMap;

use pelton_docs::{DocsOptions, Format, Progress, Skip, Summary, Writer};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{DocsArgs, DocsFormat};
use crate::commands::route;
use crate::commands::speaker::Speaker;
use crate::progress::Progress as Bar;
use crate::setup::Context;
use crate::term;
use routed::{RoutedWriter, Tally};
pub(crate) use writer::EMBEDDED_FREQUENCY_PENALTY;
use writer::EngineWriter;

pub(crate) fn run(args: &DocsArgs, context: &Context) -> anyhow::Result<()> {
    if !args.path.exists() {
        return Err(Usage(format!("{}: no such file or folder", args.path.display())).into());
    }
    let (name, engine) = (args.model.model.as_deref(), &args.model.engine);
    let Some((pair, rules)) = route::typed_without(name, &args.route, context)? else {
        let speaker = Speaker::load(name, engine, args.parallel, context)?;
        let options = options(args, speaker.name());
        let summary = write(&options, &mut EngineWriter::new(name, &speaker, args.parallel)?, context)?;
        return report(args, &options, &summary, None, context);
    };
    let (small, large) = Speaker::load_both(&pair, engine, args.parallel, context)?;
    let options = options(args, &format!("{} and {}", small.name(), large.name()));
    let small = EngineWriter::new(Some(&pair.small), &small, args.parallel)?;
    let large = EngineWriter::new(Some(&pair.large), &large, args.parallel)?;
    let mut writer = RoutedWriter::new(small, large, &rules);
    let summary = write(&options, &mut writer, context)?;
    report(args, &options, &summary, Some(&writer.tally), context)
}

/// Has the writer document everything, with a bar.
fn write(options: &DocsOptions, writer: &mut dyn Writer, context: &Context) -> anyhow::Result<Summary> {
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
    Ok(pelton_docs::run(options, writer, &mut show)?)
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
fn report(
    args: &DocsArgs,
    options: &DocsOptions,
    summary: &Summary,
    tally: Option<&Tally>,
    context: &Context,
) -> anyhow::Result<()> {
    if args.json {
        let mut object = summary_json(summary, args.show_skipped);
        if let Some(tally) = tally {
            object["route"] = tally.json(summary);
        }
        let text = object.to_string();
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
    if let Some(tally) = tally {
        term::say(&tally.to_string());
    }
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
