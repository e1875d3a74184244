//! `pelton eval multiple-choice` and `pelton eval qa`: files of questions.

use std::path::Path;

use pelton::ScorerSize;
use pelton_eval::{Answers, Choices, Fields, QaOptions, Record, Template, read_records};
use serde_json::{Value, json};

use super::{check_kv, percent, scorer};
use crate::args::{EvalChoiceArgs, EvalQaArgs, EvalQuestionArgs};
use crate::input::read_file;
use crate::progress::Progress;
use crate::setup::Context;
use crate::term;

/// The longest question where nothing else is asked for.
const DEFAULT_CONTEXT: usize = 4096;

pub(super) fn multiple_choice(args: &EvalChoiceArgs, context: &Context) -> anyhow::Result<()> {
    check_kv(&args.compute)?;
    let fields = Fields {
        choices: args.choices_field.clone(),
        fixed_choices: args.choices.iter().map(|c| c.trim().to_string()).collect(),
        ..fields(&args.questions)
    };
    let template = template(&args.questions, Template::PLAIN)?;
    let records = records(&args.file, &fields, &args.questions, true, context)?;
    let model = context.open(args.model.as_deref())?;
    let tokenizer = model.text()?.tokenizer;
    let most = model.files.config.max_context;
    let longest = args.context.unwrap_or(most.min(DEFAULT_CONTEXT));
    let options = context.compute_options(&args.compute);
    let mut scorer = scorer(&model, &options, ScorerSize { context: longest, sequences: 2 }, context)?;
    let bar = Progress::items(context.quiet);
    bar.message("questions");
    let found = pelton_eval::multiple_choice(&mut scorer, &tokenizer, &records, &template, longest, &mut |d, t| {
        bar.set(d as u64, t as u64);
    });
    drop(bar);
    let found = found?;
    left_out(found.left_out, longest, context);
    if args.json {
        return print_json(&model.name, scorer.backend(), &found);
    }
    term::print_line(&format!("{} on {}", model.name, scorer.backend()))?;
    term::print_now(&choice_lines(&found))?;
    Ok(())
}

pub(super) fn qa(args: &EvalQaArgs, context: &Context) -> anyhow::Result<()> {
    check_kv(&args.model.engine.compute)?;
    let model = context.open(args.model.model.as_deref())?;
    let text = model.text()?;
    let raw = args.raw || text.templates.is_none();
    if raw && !args.raw {
        context.note("the model has no chat template: prompts are continued as plain text");
    }
    let template = template(&args.questions, if raw { Template::PLAIN } else { Template::CHAT })?;
    let records = records(&args.file, &fields(&args.questions), &args.questions, false, context)?;
    let llm = context.load(&model, &args.model.engine, args.parallel.min(records.len()))?;
    let longest = llm.report().memory.context;
    let options = QaOptions { template, max_tokens: args.max_tokens, raw, context: longest };
    let bar = Progress::items(context.quiet);
    bar.message("answers");
    let found = pelton_eval::questions(&llm, text, &records, &options, &mut |d, t| bar.set(d as u64, t as u64));
    drop(bar);
    let found = found?;
    left_out(found.left_out, longest, context);
    if args.json {
        return print_json(&model.name, &llm.report().backend, &found);
    }
    term::print_line(&format!("{} on {}", model.name, llm.report().backend))?;
    term::print_now(&answer_lines(&found))?;
    Ok(())
}

fn fields(args: &EvalQuestionArgs) -> Fields {
    Fields {
        question: args.question.clone(),
        context: args.context_field.clone(),
        answer: args.answer.clone(),
        ..Fields::default()
    }
}

fn template(args: &EvalQuestionArgs, default: &str) -> anyhow::Result<Template> {
    Ok(Template::parse(args.prompt.as_deref().unwrap_or(default))?)
}

fn records(
    file: &Path,
    fields: &Fields,
    args: &EvalQuestionArgs,
    with_choices: bool,
    context: &Context,
) -> anyhow::Result<Vec<Record>> {
    let text = read_file(file, context)?;
    Ok(read_records(&file.display().to_string(), &text, fields, with_choices, args.limit)?)
}

fn left_out(n: usize, longest: usize, context: &Context) {
    if n > 0 {
        context.note(&format!("{n} questions are left out: they are longer than {longest} tokens (--context)"));
    }
}

fn print_json(model: &str, backend: &str, found: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut object = json!({ "model": model, "backend": backend });
    if let (Value::Object(object), Value::Object(more)) = (&mut object, serde_json::to_value(found)?) {
        object.extend(more);
    }
    Ok(term::print_line(&serde_json::to_string_pretty(&object)?)?)
}

fn choice_lines(c: &Choices) -> String {
    let rows = [
        ("accuracy", percent(c.accuracy)),
        ("per character", percent(c.accuracy_per_character)),
        ("per token", percent(c.accuracy_per_token)),
        ("by chance", format!("{:.2} %", c.chance * 100.0)),
        ("said by itself", percent(c.said)),
        ("probability", percent(c.probability)),
        ("over", format!("{} questions", c.questions)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<15} {value}\n")).collect()
}

fn answer_lines(a: &Answers) -> String {
    let rows = [
        ("exact match", percent(a.exact_match)),
        ("F1", percent(a.f1)),
        ("most common", format!("{:.2} %", a.most_common * 100.0)),
        ("over", format!("{} questions", a.questions)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<15} {value}\n")).collect()
}
