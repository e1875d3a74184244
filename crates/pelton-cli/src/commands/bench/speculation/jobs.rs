//! What is asked: prompts of a file by their category, or functions to document and to repeat.
//!
//! Invariant: the same arguments give the same prompts in the same order.

use std::path::Path;

use pelton::{Chat, Model, Options, Request, SamplingParams, Special, SpeculationJob};
use serde::Deserialize;
use serde_json::json;

use super::super::ladder::source;
use crate::Usage;
use crate::args::BenchSpeculationArgs;
use crate::commands::docs::EMBEDDED_FREQUENCY_PENALTY;
use crate::input::read_file;
use crate::setup::Context;

/// A line of a file of prompts.
#[derive(Deserialize)]
struct Record {
    category: Option<String>,
    #[serde(default)]
    turns: Vec<String>,
    prompt: Option<String>,
}

/// Prompts as text, by category.
type Texts = Vec<(String, Vec<String>)>;

/// All prompts, as requests.
pub(super) fn jobs(
    args: &BenchSpeculationArgs,
    model: &Model,
    context: &Context,
) -> anyhow::Result<Vec<SpeculationJob>> {
    let texts = match &args.prompts {
        Some(path) => of_file(path, args, context)?,
        None => functions(args, model, context)?,
    };
    let longest = model.files.config.max_context.min(Options::DEFAULT_CONTEXT);
    let chat = model.text().ok().filter(|text| text.templates.is_some()).map(Chat::new).transpose()?;
    let (mut jobs, mut too_long, mut n_cut) = (Vec::new(), 0, 0);
    for (name, texts) in texts {
        let mut requests = Vec::new();
        for text in &texts {
            let mut ids = match (&chat, &model.tokenizer) {
                (Some(chat), _) => chat.ids(&json!([{ "role": "user", "content": text }]), None)?,
                (None, Some(tokenizer)) => tokenizer.encode(text, Special::AsText),
                (None, None) => words(text, model.files.config.vocab_size),
            };
            let surplus = args.prompt_tokens.map_or(0, |most| ids.len().saturating_sub(most));
            ids.drain(..surplus);
            n_cut += usize::from(surplus > 0);
            if ids.is_empty() || ids.len() + args.max_tokens > longest {
                too_long += 1;
                continue;
            }
            requests.push(request(ids, args, model));
        }
        if !requests.is_empty() {
            jobs.push(SpeculationJob { name, requests });
        }
    }
    if let Some(most) = args.prompt_tokens.filter(|_| n_cut > 0) {
        context.note(&format!("{n_cut} prompts are longer than {most} tokens: only their last {most} are used"));
    }
    if too_long > 0 {
        context.note(&format!("{too_long} prompts do not fit the context of {longest} and are left out"));
    }
    Ok(jobs)
}

fn request(ids: Vec<u32>, args: &BenchSpeculationArgs, model: &Model) -> Request {
    // As `pelton docs` has it.
    let is_embedded = args.model.is_none() && args.shape.is_none();
    let frequency_penalty = if is_embedded { EMBEDDED_FREQUENCY_PENALTY } else { 0.0 };
    let params =
        SamplingParams { temperature: args.temperature, frequency_penalty, seed: Some(0), ..SamplingParams::default() };
    // Random weights never end an answer on purpose.
    Request { ignore_eos: model.tokenizer.is_none(), ..Request::new(ids, params, args.max_tokens) }
}

fn of_file(path: &Path, args: &BenchSpeculationArgs, context: &Context) -> anyhow::Result<Texts> {
    let (name, text) = (path.display(), read_file(path, context)?);
    let mut texts: Texts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let record: Record =
            serde_json::from_str(line).map_err(|e| Usage(format!("--prompts {name}: line {}: {e}", index + 1)))?;
        let prompt =
            record.turns.into_iter().next().or(record.prompt).ok_or_else(|| {
                Usage(format!("--prompts {name}: line {}: expected \"turns\" or \"prompt\"", index + 1))
            })?;
        let category = record.category.unwrap_or_else(|| "all".to_string());
        let slot = match texts.iter().position(|(known, _)| *known == category) {
            Some(slot) => slot,
            None => {
                texts.push((category, Vec::new()));
                texts.len() - 1
            }
        };
        if texts[slot].1.len() < args.limit {
            texts[slot].1.push(prompt);
        }
    }
    if texts.is_empty() {
        return Err(Usage(format!("--prompts {name}: there is nothing in it")).into());
    }
    if let Some(unknown) = args.category.iter().find(|&name| texts.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = texts.iter().map(|(known, _)| known.as_str()).collect();
        return Err(Usage(format!("--category {unknown}: {name} has {}", known.join(", "))).into());
    }
    texts.retain(|(known, _)| args.category.is_empty() || args.category.contains(known));
    Ok(texts)
}

/// The main job's prompts, and the kind that repeats what it was given.
fn functions(args: &BenchSpeculationArgs, model: &Model, context: &Context) -> anyhow::Result<Texts> {
    let (pieces, _) = source::pieces(args.source.as_deref(), args.limit, context)?;
    let count = |text: &str| match &model.tokenizer {
        Some(tokenizer) => tokenizer.encode(text, Special::AsText).len(),
        None => text.split_whitespace().count(),
    };
    let longest = model.files.config.max_context.min(Options::DEFAULT_CONTEXT);
    let documented = pelton_docs::prompts(pieces.iter().map(source::Piece::snippet), &count, longest, args.max_tokens)?;
    let repeat = |piece: &source::Piece| {
        let code = &piece.code;
        format!("Repeat this function, and rename its first parameter to `input`:\n```\n{code}\n```")
    };
    Ok(vec![("documentation".into(), documented), ("edits".into(), pieces.iter().map(repeat).collect())])
}

/// Ids for a model without a tokenizer: a word is one id, the same one each time.
fn words(text: &str, vocab: usize) -> Vec<u32> {
    let id = |word: &str| {
        let hash =
            word.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        ((hash >> 7) % vocab as u64) as u32
    };
    text.split_whitespace().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_repeat_where_the_text_does() {
        let ids = words("a rose is a rose", 100);
        assert_eq!((ids[0], ids[1]), (ids[3], ids[4]));
        assert!(ids.iter().all(|&id| id < 100) && words(" ", 9).is_empty());
    }
}
