//! `pelton pull`, `list` and `rm`: the model store, in the hub's own cache layout.

use std::str::FromStr;

use pelton::{ModelSpec, Progress as PullProgress, ProgressState, StoreError, StoredModel, StoredPack, packed_folder};
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
    let packs = StoredPack::list(&packed_folder(&store.options().root))?;
    if args.json {
        let rows: Vec<Value> = models.iter().map(|model| model_json(model, &packs)).collect();
        return Ok(print_line(&serde_json::to_string_pretty(&rows)?)?);
    }
    if models.is_empty() {
        context.note(&format!("no models in {}; `pelton pull ORG/NAME` brings one", store.options().root.display()));
        return list_packs(&packs);
    }
    let names: Vec<String> = models.iter().map(name).collect();
    let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
    for (name, model) in names.iter().zip(&models) {
        let revision = model.revision.get(..8).unwrap_or(&model.revision);
        print_line(&format!("{name:<width$}  {:>10}  {revision}", bytes(model.bytes)))?;
    }
    list_packs(&packs)
}

/// The packed weights that `--cache-packed` keeps.
fn list_packs(packs: &[StoredPack]) -> anyhow::Result<()> {
    for pack in packs {
        let of = match pack.model.as_deref() {
            Some([file, ..]) if pack.is_orphan() => format!("{}, which is gone", file.display()),
            Some([file, ..]) => file.display().to_string(),
            _ => format!("{}, unreadable", pack.path.display()),
        };
        print_line(&format!("packed weights  {:>10}  {of}", bytes(pack.bytes)))?;
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

fn model_json(model: &StoredModel, packs: &[StoredPack]) -> Value {
    let packed: u64 = packs.iter().filter(|pack| pack.belongs_to(&model.path)).map(|pack| pack.bytes).sum();
    let modified = model.last_modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    json!({ "model": name(model), "repo": model.repo, "quant": model.quant, "revision": model.revision,
        "path": model.path, "files": model.files, "bytes": model.bytes, "packed_bytes": packed,
        "modified_unix_s": modified.map(|d| d.as_secs()) })
}

pub(crate) fn rm(args: &RmArgs, context: &Context) -> anyhow::Result<()> {
    if args.packed {
        return rm_packed(args, context);
    }
    let Some(model) = &args.model else { return Err(Usage("name the model to remove".into()).into()) };
    let (spec, store) = (spec(model)?, context.store()?);
    let removed = store.remove(&spec).map_err(usage_or_failure)?;
    // Packed weights go with their model.
    let packs = StoredPack::list(&packed_folder(&store.options().root))?;
    let (n_packs, packed) = remove_packs(packs.iter().filter(|pack| pack.is_orphan()))?;
    let (n_files, freed) = (removed.n_files + n_packs, removed.bytes + packed);
    if args.json {
        let object = json!({ "model": spec.to_string(), "bytes": freed, "files": n_files, "packed_bytes": packed });
        return Ok(print_line(&object.to_string())?);
    }
    let files = if n_files == 1 { "file" } else { "files" };
    Ok(print_line(&format!("{spec}: {n_files} {files} removed, {} freed", bytes(freed)))?)
}

/// Removes the packed weights of one model, or all.
fn rm_packed(args: &RmArgs, context: &Context) -> anyhow::Result<()> {
    let packs = StoredPack::list(&context.packed_folder()?)?;
    let (n_files, freed) = match &args.model {
        None => remove_packs(packs.iter())?,
        Some(model) => match context.path_of(Some(model))? {
            Some(path) => remove_packs(packs.iter().filter(|pack| pack.belongs_to(&path)))?,
            None => return Err(Usage(format!("{model} is not in the model store and no path")).into()),
        },
    };
    if args.json {
        let object = json!({ "model": args.model, "bytes": freed, "files": n_files, "packed_bytes": freed });
        return Ok(print_line(&object.to_string())?);
    }
    let files = if n_files == 1 { "file" } else { "files" };
    Ok(print_line(&format!("{n_files} {files} of packed weights removed, {} freed", bytes(freed)))?)
}

/// How many were removed and how long they were.
fn remove_packs<'a>(packs: impl Iterator<Item = &'a StoredPack>) -> anyhow::Result<(usize, u64)> {
    let mut removed = (0, 0);
    for pack in packs {
        pack.remove()?;
        removed = (removed.0 + 1, removed.1 + pack.bytes);
    }
    Ok(removed)
}
