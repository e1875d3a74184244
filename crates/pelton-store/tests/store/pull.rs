//! Pulls from a hub that works.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pelton_store::{Store, StoreError};

use crate::hub::{Answer, Hub, Repo, git_hash, noise, serve_range, sha256};
use crate::{Cache, pull, spec, watched_pull};

fn folder_repo() -> Repo {
    Repo::new("org/base", 'a')
        .small(".gitattributes", "x")
        .small("README.md", "# hello")
        .small("config.json", "{\"model_type\":\"qwen3\"}")
        .small("tokenizer.json", "{}")
        .large("model.safetensors", noise(1, 300_000))
        .large("pytorch_model.bin", noise(2, 1000))
}

#[test]
fn a_folder_arrives_in_the_hubs_own_layout() {
    let (cache, hub) = (Cache::new(), Hub::of(folder_repo()));
    let store = cache.store(&hub);
    let (pulled, reports) = watched_pull(&store, "org/base");
    let pulled = pulled.unwrap();

    let commit = "a".repeat(40);
    assert_eq!(pulled.path, cache.root().join("models--org--base/snapshots").join(&commit));
    assert_eq!(pulled.files, ["config.json", "tokenizer.json", "model.safetensors"]);
    assert_eq!((pulled.bytes, pulled.downloaded_bytes), (300_024, 300_024));
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), noise(1, 300_000));
    assert_eq!(fs::read_to_string(cache.root().join("models--org--base/refs/main")).unwrap(), commit);
    let mut blobs = vec![git_hash(b"{\"model_type\":\"qwen3\"}"), git_hash(b"{}"), sha256(&noise(1, 300_000))];
    blobs.sort();
    assert_eq!(cache.tree("org/base", "blobs"), blobs);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(pulled.path.join("config.json")).unwrap(),
        Path::new("../../blobs").join(git_hash(b"{\"model_type\":\"qwen3\"}"))
    );

    let weights: Vec<_> = reports.iter().filter(|report| report.file == "model.safetensors").collect();
    assert!(weights.len() > 2 && weights.is_sorted_by_key(|report| report.done));
    assert!(weights.iter().all(|report| report.total == 300_000 && report.resumed_from == 0));
    assert_eq!(weights.last().unwrap().kind, "done");
    assert_eq!(store.locate(&spec("org/base")), Some(pulled.path));
}

#[test]
fn a_second_pull_downloads_nothing_and_offline_needs_no_hub() {
    let (cache, hub) = (Cache::new(), Hub::of(folder_repo()));
    let store = cache.store(&hub);
    let first = pull(&store, "org/base").unwrap();
    let before = hub.downloads().len();
    let (second, reports) = watched_pull(&store, "org/base");
    assert_eq!(second.unwrap().downloaded_bytes, 0);
    assert_eq!(hub.downloads().len(), before);
    assert!(reports.iter().all(|report| report.kind == "cached"), "{reports:?}");

    let mut options = cache.options("http://127.0.0.1:9");
    options.offline = true;
    let offline = Store::new(options).unwrap();
    let found = pull(&offline, "org/base").unwrap();
    assert_eq!((found.path, found.bytes), (first.path, first.bytes));
    assert!(matches!(pull(&offline, "org/other"), Err(StoreError::Offline { .. })));
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let content = noise(3, 50_000);
    let (repo, stored) = (Repo::new("org/m-GGUF", 'b').large("m-Q8_0.gguf", content.clone()), content);
    let cdn = Hub::start(move |request| serve_range(request, &stored));
    let target = format!("{}/signed/object?signature=secret", cdn.url());
    let hub = Hub::start(move |request| {
        if request.target.contains("/resolve/") {
            Answer::redirect("/moved/here")
        } else if request.target == "/moved/here" {
            Answer::redirect(target.clone())
        } else {
            repo.answer(request)
        }
    });
    let cache = Cache::new();
    let mut options = cache.options(&hub.url());
    options.token = Some("hf_secret".into());
    pull(&Store::new(options).unwrap(), "org/m-GGUF").unwrap();

    let at_hub = hub.requests();
    assert_eq!(at_hub.len(), 3);
    assert!(at_hub.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    let at_cdn = cdn.requests();
    assert_eq!(at_cdn.len(), 1);
    assert_eq!(at_cdn[0].target, "/signed/object?signature=secret");
    assert_eq!(at_cdn[0].header("authorization"), None);
}

#[test]
fn quantizations_are_chosen_by_name_and_shards_come_together() {
    let repo = Repo::new("org/m-GGUF", 'c')
        .large("m-Q4_K_M.gguf", noise(1, 100))
        .large("m-Q8_0.gguf", noise(2, 200))
        .large("BF16/m-BF16-00001-of-00002.gguf", noise(3, 300))
        .large("BF16/m-BF16-00002-of-00002.gguf", noise(4, 400));
    let (cache, hub) = (Cache::new(), Hub::of(repo));
    let store = cache.store(&hub);

    let default = pull(&store, "org/m-GGUF").unwrap();
    assert_eq!((default.quant.as_deref(), default.bytes), (Some("Q4_K_M"), 100));
    assert!(default.choice.contains("Q4_K_M, the default among"), "{}", default.choice);
    let shards = pull(&store, "org/m-GGUF:bf16").unwrap();
    assert_eq!(shards.bytes, 700);
    assert!(shards.path.ends_with("BF16/m-BF16-00001-of-00002.gguf"));
    assert_eq!(fs::read(shards.path.with_file_name("m-BF16-00002-of-00002.gguf")).unwrap(), noise(4, 400));

    assert_eq!(store.locate(&spec("org/m-GGUF:BF16")), Some(shards.path));
    assert_eq!(store.locate(&spec("org/m-GGUF")), Some(default.path));
    assert_eq!(store.locate(&spec("org/m-GGUF:Q8_0")), None);
    let error = pull(&store, "org/m-GGUF:Q6_K").unwrap_err().to_string();
    assert!(error.contains("has no Q6_K") && error.contains("BF16, Q4_K_M, Q8_0"), "{error}");
}

#[test]
fn odd_names_and_empty_files_arrive() {
    let name = "ünï 模型 (v1.0)#?%41&+Q8_0.gguf";
    let repo = Repo::new("0rg_x/m.1", 'd').large(name, noise(7, 1234));
    let (cache, hub) = (Cache::new(), Hub::of(repo));
    let pulled = pull(&cache.store(&hub), "0rg_x/m.1").unwrap();
    assert_eq!(pulled.path.file_name().unwrap(), name);
    assert_eq!(fs::read(&pulled.path).unwrap(), noise(7, 1234));

    let empty = Repo::new("org/e", 'd')
        .small("config.json", "{}")
        .small("tokenizer_config.json", "")
        .large("model.safetensors", noise(1, 10));
    let hub = Hub::of(empty);
    let pulled = pull(&cache.store(&hub), "org/e").unwrap();
    assert_eq!(fs::read(pulled.path.join("tokenizer_config.json")).unwrap(), b"");
}

#[test]
fn a_branch_is_asked_for_and_remembered_under_its_name() {
    let (cache, hub) = (Cache::new(), Hub::of(folder_repo()));
    let store = cache.store(&hub);
    let pulled = pull(&store, "org/base@refs/pr/3").unwrap();
    assert_eq!(hub.requests()[0].target, "/api/models/org/base/revision/refs%2Fpr%2F3?blobs=true");
    assert_eq!(cache.tree("org/base", "refs"), ["refs/pr/3"]);
    assert_eq!(store.locate(&spec("org/base@refs/pr/3")), Some(pulled.path.clone()));
    assert_eq!(store.locate(&spec(&format!("org/base@{}", "a".repeat(40)))), Some(pulled.path));
    assert_eq!(store.locate(&spec("org/base@main")), None);
}

#[test]
fn a_mirror_that_lists_no_hashes_is_asked_for_headers() {
    let repo = folder_repo();
    let hub = Hub::start(move |request| {
        if request.target.starts_with("/api/") { Answer::ok(repo.listing(false)) } else { repo.answer(request) }
    });
    let cache = Cache::new();
    let pulled = pull(&cache.store(&hub), "org/base").unwrap();
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), noise(1, 300_000));
    assert_eq!(hub.downloads().iter().filter(|request| request.method == "HEAD").count(), 3);
    assert!(cache.tree("org/base", "blobs").contains(&sha256(&noise(1, 300_000))));
}

#[test]
fn two_pulls_at_once_download_a_file_once() {
    let repo = Repo::new("org/m-GGUF", 'e').large("m-Q8_0.gguf", noise(9, 400_000));
    let hub = Hub::start(move |request| {
        let pause = Duration::from_millis(if request.target.contains("/resolve/") { 150 } else { 0 });
        Answer { pause, ..repo.answer(request) }
    });
    let cache = Cache::new();
    let results: Vec<_> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| watched_pull(&cache.store(&hub), "org/m-GGUF"))).collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    assert_eq!(hub.downloads().len(), 1);
    for (pulled, _) in &results {
        assert_eq!(fs::read(&pulled.as_ref().unwrap().path).unwrap(), noise(9, 400_000));
    }
    let received: u64 = results.iter().map(|(pulled, _)| pulled.as_ref().unwrap().downloaded_bytes).sum();
    assert_eq!(received, 400_000, "one of them downloads and the others find the file whole");
    assert_eq!(cache.tree("org/m-GGUF", "blobs").len(), 1);
}
