//! `pelton pull`, `list` and `rm`: the model store, in the hub's own cache layout.

use std::str::FromStr;

use pelton::{ModelSpec, Progress as PullProgress, ProgressState, StoreError, StoredModel};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::{ListArgs, PullArgs, RmArgs};
use crate::progress::Progress;
use crate::setup::Context;
use crate::term::{bytes, print_line};

fn spec(text: &str) -> anyhow::Result<ModelSpec> {
    ModelSpec::from_str(text).map_err(|e| Usage(e.to_string()).into())
}

pub(crate) fn pull(args: &PullArgs, context: &Context) -> anyhow::Result<()> {
    let spec = spec(&args.model)?;
    let store = context.store()?;
    let bar = Progress::bytes(context.quiet);
    let pulled = store.pull(&spec, &mut |p| show(&bar, &p, context.quiet));
    drop(bar);
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
    context.note(&format!("run it: pelton run -m {spec} \"Hello\""));
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

fn show(bar: &Progress, progress: &PullProgress<'_>, quiet: bool) {
    bar.set(progress.pull_done_bytes, progress.pull_total_bytes);
    let file = progress.file;
    match progress.state {
        ProgressState::Waiting => bar.message(format!("{file}: another pelton has it")),
        ProgressState::Checking => bar.message(format!("{file}: checking")),
        ProgressState::Retrying { attempt, wait, reason } if !quiet => {
            let seconds = wait.as_secs_f64();
            bar.note(&format!("{file}: {reason}; retry {attempt} in {seconds:.1} s"));
        }
        ProgressState::Corrupted if !quiet => {
            bar.note(&format!("{file}: arrived damaged, downloading it again"));
        }
        _ => bar.message(file.to_string()),
    }
}

pub(crate) fn list(args: &ListArgs, context: &Context) -> anyhow::Result<()> {
    let store = context.store()?;
    let models = store.list()?;
    if args.json {
        let rows: Vec<Value> = models.iter().map(model_json).collect();
        return Ok(print_line(&serde_json::to_string_pretty(&rows)?)?);
    }
    if models.is_empty() {
        context.note(&format!("no models in {}; `pelton pull ORG/NAME` brings one", store.options().root.display()));
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

pub(crate) fn rm(args: &RmArgs, context: &Context) -> anyhow::Result<()> {
    let spec = spec(&args.model)?;
    let removed = context.store()?.remove(&spec).map_err(usage_or_failure)?;
    if args.json {
        let object = json!({ "model": spec.to_string(), "bytes": removed.bytes, "files": removed.n_files });
        return Ok(print_line(&object.to_string())?);
    }
    let files = if removed.n_files == 1 { "file" } else { "files" };
    Ok(print_line(&format!("{spec}: {} {files} removed, {} freed", removed.n_files, bytes(removed.bytes)))?)
}
