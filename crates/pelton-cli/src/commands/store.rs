//! `pelton pull`, `list` and `rm`: the model store, in the hub's own cache layout.

use std::str::FromStr;

use indicatif::ProgressBar;
use pelton::{ModelSpec, Progress, ProgressState, StoreError, StoredModel};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{ListArgs, PullArgs, RmArgs};
use crate::setup::Context;
use crate::term::{self, bytes, print_line};

fn spec(text: &str) -> anyhow::Result<ModelSpec> {
    ModelSpec::from_str(text).map_err(|e| Usage(e.to_string()).into())
}

pub fn pull(args: &PullArgs, context: &Context) -> anyhow::Result<()> {
    let spec = spec(&args.model)?;
    let store = context.store()?;
    let bar = term::byte_bar(0, context.quiet);
    let pulled = store.pull(&spec, &mut |p| show(&bar, &p, context.quiet));
    bar.finish_and_clear();
    let pulled = pulled.map_err(usage_or_failure)?;
    if args.json {
        let object = json!({ "model": spec.to_string(), "revision": pulled.commit, "quant": pulled.quant,
            "path": pulled.path, "files": pulled.files, "bytes": pulled.bytes,
            "downloaded_bytes": pulled.downloaded_bytes });
        return Ok(print_line(&object.to_string())?);
    }
    let n = pulled.files.len();
    let files = if n == 1 { "file" } else { "files" };
    let news = match pulled.downloaded_bytes {
        0 => "was here already".to_string(),
        new => format!("{} downloaded", bytes(new)),
    };
    print_line(&format!("{spec} ({}): {n} {files}, {}, {news}", pulled.choice, bytes(pulled.bytes)))?;
    print_line(&pulled.path.display().to_string())?;
    if !context.quiet {
        term::note(&format!("run it: pelton run -m {spec} \"Hello\""));
    }
    Ok(())
}

/// Names that cannot be right are the caller's mistake; everything else is the world's.
fn usage_or_failure(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::BadSpec { .. } | StoreError::NoQuant { .. } | StoreError::Ambiguous { .. } => {
            Usage(error.to_string()).into()
        }
        other => other.into(),
    }
}

fn show(bar: &ProgressBar, progress: &Progress<'_>, quiet: bool) {
    bar.set_length(progress.pull_total_bytes);
    bar.set_position(progress.pull_done_bytes);
    let file = progress.file;
    match progress.state {
        ProgressState::Waiting => bar.set_message(format!("{file}: another pelton has it")),
        ProgressState::Checking => bar.set_message(format!("{file}: checking")),
        ProgressState::Retrying { attempt, wait, reason } if !quiet => {
            let seconds = wait.as_secs_f64();
            bar.suspend(|| term::note(&format!("{file}: {reason}; retry {attempt} in {seconds:.1} s")));
        }
        ProgressState::Corrupted if !quiet => {
            bar.suspend(|| term::note(&format!("{file}: arrived damaged, downloading it again")));
        }
        _ => bar.set_message(file.to_string()),
    }
}

pub fn list(args: &ListArgs, context: &Context) -> anyhow::Result<()> {
    let store = context.store()?;
    let models = store.list()?;
    if args.json {
        let rows: Vec<Value> = models.iter().map(model_json).collect();
        return Ok(print_line(&serde_json::to_string_pretty(&rows)?)?);
    }
    if models.is_empty() {
        term::note(&format!("no models in {}; `pelton pull ORG/NAME` brings one", store.options().root.display()));
        return Ok(());
    }
    let names: Vec<String> = models.iter().map(name).collect();
    let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
    for (name, model) in names.iter().zip(&models) {
        let revision = model.revision.get(..8).unwrap_or(&model.revision);
        print_line(&format!("{name:<width$}  {:>10}  {revision}", bytes(model.bytes)))?;
    }
    Ok(())
}

/// The name that `run -m` takes.
fn name(model: &StoredModel) -> String {
    match &model.quant {
        Some(quant) => format!("{}:{quant}", model.repo),
        None => model.repo.clone(),
    }
}

fn model_json(model: &StoredModel) -> Value {
    let modified = model.last_modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    json!({ "model": name(model), "repo": model.repo, "quant": model.quant, "revision": model.revision,
        "path": model.path, "files": model.files, "bytes": model.bytes,
        "modified_unix_s": modified.map(|d| d.as_secs()) })
}

pub fn rm(args: &RmArgs, context: &Context) -> anyhow::Result<()> {
    let spec = spec(&args.model)?;
    let removed = context.store()?.remove(&spec)?;
    if args.json {
        let object = json!({ "model": spec.to_string(), "bytes": removed.bytes, "files": removed.n_files });
        return Ok(print_line(&object.to_string())?);
    }
    Ok(print_line(&format!("{spec}: {} files removed, {} freed", removed.n_files, bytes(removed.bytes)))?)
}
