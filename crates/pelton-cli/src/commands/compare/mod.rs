//! `pelton compare`: what each quantization, or each KV type, of a model costs and buys.

mod table;

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context as _;
use pelton::{Error, Model, Options, Quantization};
use pelton_eval::{Candidate, DEFAULT_TEXT, Plan, default_prompts};
use serde_json::Value;

use crate::Usage;
use crate::args::{CompareArgs, KvTypeArg};
use crate::input::read_file;
use crate::progress::Progress;
use crate::setup::{Context, kv_type};
use crate::term;

/// Tokens of the prompt and of the answer whose speed is measured.
const SPEED_TOKENS: (usize, usize) = (512, 64);

pub(crate) fn run(args: &CompareArgs, context: &Context) -> anyhow::Result<()> {
    if args.compute.reference && !args.kv.is_empty() {
        return Err(Usage("--kv: with --reference keys and values are f32".into()).into());
    }
    if let Some(folder) = args.html.as_ref().and_then(|f| f.parent()).filter(|p| !p.as_os_str().is_empty())
        && !folder.is_dir()
    {
        return Err(Usage(format!("--html: the folder {} does not exist", folder.display())).into());
    }
    let candidates = candidates(args, context)?;
    let plan = plan(args, context)?;
    let bar = Progress::steps(context.quiet);
    let compared = pelton_eval::compare(&candidates, &plan, &mut |step| {
        bar.message(format!("{}: {}", step.label, step.what));
        bar.set(step.done as u64, step.total as u64);
    });
    drop(bar);
    let comparison = compared.map_err(|e| context.blame(e))?;
    if comparison.prompts_left_out > 0 {
        let n = comparison.prompts_left_out;
        context.note(&format!("{n} prompts are left out: with their answers they are longer than the model's context"));
    }
    if let Some(path) = &args.html {
        let page = pelton_eval::page(&comparison);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        context.note(&format!("report: {}", path.display()));
    }
    if args.json {
        return Ok(term::print_line(&serde_json::to_string_pretty(&comparison)?)?);
    }
    Ok(term::print_now(&table::text(&comparison))?)
}

/// The models that were named, or the KV types or quantizations of one.
fn candidates<'a>(args: &'a CompareArgs, context: &'a Context) -> anyhow::Result<Vec<Candidate<'a>>> {
    let options = context.compute_options(&args.compute);
    if args.kv.is_empty() && args.quantizations.is_empty() {
        if args.models.len() < 2 {
            return Err(Usage(
                "name a base and the models to compare with it, such as `pelton compare model-q8_0.gguf \
                 model-q4_0.gguf`, or KV types, such as `pelton compare model.gguf --kv bf16,int8,fp8`"
                    .into(),
            )
            .into());
        }
        let names: Vec<String> = args.models.iter().map(|name| short(name)).collect();
        let labels = if are_distinct(&names) { names } else { args.models.clone() };
        let candidate = |(name, label): (&'a String, String)| {
            let open = open(Some(name), None, context);
            Candidate { label, open, options: options.clone() }
        };
        return Ok(args.models.iter().zip(labels).map(candidate).collect());
    }
    let (option, example) =
        if args.kv.is_empty() { ("--quantizations", "none,8bit,4bit") } else { ("--kv", "bf16,int8,fp8") };
    let kv_names = args.kv.iter().map(|&t| kv_type(t).name().to_string());
    let labels: Vec<String> = kv_names.chain(args.quantizations.iter().cloned()).collect();
    if labels.len() < 2 || !are_distinct(&labels) {
        return Err(Usage(format!("{option}: expected two types or more, each once, such as {example}")).into());
    }
    if args.models.len() > 1 {
        return Err(
            Usage(format!("{option} compares types of one model: name one, or none for the built-in one")).into()
        );
    }
    let name = args.models.first().map(String::as_str);
    if args.kv.is_empty() {
        let candidate = |label: String| -> anyhow::Result<Candidate<'a>> {
            let quantization = if label == "none" { None } else { Some(label.parse::<Quantization>()?) };
            let options = Options { quantization: None, ..options.clone() };
            Ok(Candidate { label, open: open(name, quantization, context), options })
        };
        return labels.into_iter().map(candidate).collect();
    }
    let candidate = |(label, &t): (String, &KvTypeArg)| {
        let options = Options { kv_type: kv_type(t), ..options.clone() };
        Candidate { label, open: open(name, None, context), options }
    };
    Ok(labels.into_iter().zip(&args.kv).map(candidate).collect())
}

fn are_distinct(names: &[String]) -> bool {
    names.iter().collect::<HashSet<_>>().len() == names.len()
}

fn open<'a>(
    name: Option<&'a str>,
    quantization: Option<Quantization>,
    context: &'a Context,
) -> Box<dyn Fn() -> Result<Model, Error> + 'a> {
    Box::new(move || {
        let opened = context.open(name).map_err(|e| match e.downcast::<Error>() {
            Ok(error) => error,
            Err(other) if other.is::<Usage>() => Error::Usage(other.to_string()),
            Err(other) => Error::Failure(format!("{other:#}")),
        });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        match quantization {
            Some(quantization) => opened?.quantized(quantization, threads),
            None => opened,
        }
    })
}

/// A model's name without folder and ending.
fn short(name: &str) -> String {
    let path = Path::new(name);
    let stem = if path.extension().is_some_and(|e| e == "gguf") { path.file_stem() } else { None };
    match path.exists() {
        true => stem.or(path.file_name()).unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        false => name.to_string(),
    }
}

fn plan(args: &CompareArgs, context: &Context) -> anyhow::Result<Plan> {
    let (text, text_name) = match &args.text {
        Some(path) => (read_file(path, context)?, path.display().to_string()),
        None => (DEFAULT_TEXT.to_string(), "the built-in text".to_string()),
    };
    let prompts = match &args.prompts {
        _ if args.max_tokens == 0 => Vec::new(),
        Some(path) => read_prompts(&path.display().to_string(), &read_file(path, context)?)?,
        None => default_prompts(),
    };
    Ok(Plan {
        text,
        text_name,
        windows: args.windows.options(),
        prompts,
        answer_tokens: args.max_tokens,
        raw: args.raw,
        repeat: args.repeat,
        speed_tokens: SPEED_TOKENS,
        context: args.context,
        scratch: context.environment.scratch.clone(),
    })
}

/// One prompt a line, or of each line's JSON object the member `prompt`.
fn read_prompts(name: &str, text: &str) -> anyhow::Result<Vec<String>> {
    let lines: Vec<(usize, &str)> = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return Err(Usage(format!("{name}: no prompts; expected one a line")).into());
    }
    if !lines[0].1.trim_start().starts_with('{') {
        return Ok(lines.into_iter().map(|(_, line)| line.trim().to_string()).collect());
    }
    let prompt = |(at, line): (usize, &str)| -> anyhow::Result<String> {
        let wrong = |what: String| Usage(format!("{name}: line {}: {what}", at + 1));
        let object: Value = serde_json::from_str(line).map_err(|e| {
            wrong(format!("expected a JSON object: {}", e.to_string().replace(" at line 1 column ", " at column ")))
        })?;
        let prompt = object["prompt"].as_str().filter(|p| !p.trim().is_empty());
        Ok(prompt.ok_or_else(|| wrong("`prompt`: expected a text".into()))?.to_string())
    };
    lines.into_iter().map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_lines_or_objects() {
        assert_eq!(read_prompts("p", "\n one \n\ntwo\n").unwrap(), ["one", "two"]);
        assert_eq!(read_prompts("p", "{\"prompt\": \"a\\nb\"}\n").unwrap(), ["a\nb"]);
        let refused = |text: &str| read_prompts("p.txt", text).unwrap_err().to_string();
        assert!(refused(" \n").contains("p.txt: no prompts"));
        assert!(refused("{\"prompt\": \"a\"}\n\nb").contains("line 3"));
        assert!(refused("{\"prompt\": 1}").contains("`prompt`"));
    }
}
