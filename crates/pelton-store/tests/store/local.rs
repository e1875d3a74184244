//! What is in the cache: listed, found, removed.

use std::fs;

use pelton_store::{ProgressState, Store, StoreError};

use crate::hub::{Hub, Repo, noise, sha256};
use crate::{Cache, pull, spec};

fn gguf(commit: char, q8_seed: u32) -> Repo {
    Repo::new("org/m-GGUF", commit)
        .large("m-Q4_K_M.gguf", noise(4, 4000))
        .large("m-Q8_0.gguf", noise(q8_seed, 8000))
        .large("m-BF16-00001-of-00002.gguf", noise(16, 1600))
        .large("m-BF16-00002-of-00002.gguf", noise(17, 1700))
}

fn handles(store: &Store) -> Vec<(String, Option<String>, u64)> {
    store.list().unwrap().into_iter().map(|model| (model.repo, model.quant, model.bytes)).collect()
}

#[test]
fn the_list_names_whole_models_only() {
    let cache = Cache::new();
    let hub = Hub::of(gguf('a', 8));
    let store = cache.store(&hub);
    assert_eq!(handles(&store), [], "an absent cache is empty");
    for name in ["org/m-GGUF:Q8_0", "org/m-GGUF:BF16"] {
        pull(&store, name).unwrap();
    }
    let base = Hub::of(Repo::new("org/base", 'b').small("config.json", "{}").large("model.safetensors", noise(1, 100)));
    pull(&cache.store(&base), "org/base").unwrap();
    // What others leave in the cache: data sets, stray files, a repository without weights.
    fs::create_dir_all(cache.root().join("datasets--org--d/snapshots").join("c".repeat(40))).unwrap();
    fs::write(cache.root().join("version.txt"), "1").unwrap();
    let cards = cache.root().join("models--org--card/snapshots").join("c".repeat(40));
    fs::create_dir_all(&cards).unwrap();
    fs::write(cards.join("README.md"), "x").unwrap();

    let (m, base) = ("org/m-GGUF".to_owned(), "org/base".to_owned());
    let expected = [(base, None, 102), (m.clone(), Some("BF16".into()), 3300), (m, Some("Q8_0".into()), 8000)];
    assert_eq!(handles(&store), expected);
    let models = store.list().unwrap();
    assert!(models.iter().all(|model| model.path.exists() && model.last_modified.is_some()));
    assert_eq!(models[1].files, ["m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf"]);
    assert_eq!(models[1].revision, "a".repeat(40));

    fs::remove_file(models[1].path.with_file_name("m-BF16-00002-of-00002.gguf")).unwrap();
    assert_eq!(handles(&store).len(), 2, "a model with a shard missing is not listed");
    assert_eq!(store.locate(&spec("org/m-GGUF:BF16")), None);
}

#[test]
fn removing_one_quantization_leaves_the_others() {
    let (cache, hub) = (Cache::new(), Hub::of(gguf('a', 8)));
    let store = cache.store(&hub);
    for name in ["org/m-GGUF:Q8_0", "org/m-GGUF:BF16"] {
        pull(&store, name).unwrap();
    }
    let removed = store.remove(&spec("org/m-GGUF:bf16")).unwrap();
    assert_eq!((removed.bytes, removed.n_files), (3300, 2));
    assert_eq!(cache.tree("org/m-GGUF", "blobs"), [sha256(&noise(8, 8000))]);
    assert!(store.locate(&spec("org/m-GGUF:Q8_0")).is_some());

    let error = store.remove(&spec("org/m-GGUF:bf16")).unwrap_err().to_string();
    assert!(error.contains("the repository has: m-Q8_0.gguf"), "{error}");
    let removed = store.remove(&spec("org/m-GGUF:Q8_0")).unwrap();
    assert_eq!(removed.bytes, 8000);
    assert!(!cache.root().join("models--org--m-GGUF").exists(), "with the last model its folder goes too");
}

#[test]
fn blobs_that_another_revision_shares_stay() {
    let cache = Cache::new();
    let (old, new) = (Hub::of(gguf('a', 8)), Hub::of(gguf('b', 9)));
    for hub in [&old, &new] {
        for name in ["org/m-GGUF:Q4_K_M", "org/m-GGUF:Q8_0"] {
            pull(&cache.store(hub), name).unwrap();
        }
    }
    assert_eq!(new.downloads().len(), 1, "the file that did not change was not downloaded again");
    assert_eq!(cache.tree("org/m-GGUF", "blobs").len(), 3);

    let store = cache.store(&new);
    let removed = store.remove(&spec(&format!("org/m-GGUF@{}", "a".repeat(40)))).unwrap();
    assert_eq!((removed.bytes, removed.n_files), (8000, 2), "the shared file stays and does not count");
    assert_eq!(cache.tree("org/m-GGUF", "snapshots").len(), 2);
    let kept = store.locate(&spec("org/m-GGUF:Q4_K_M")).unwrap();
    assert_eq!(fs::read(kept).unwrap(), noise(4, 4000));
    assert_eq!(cache.tree("org/m-GGUF", "refs"), ["main"]);
    let gone = format!("org/m-GGUF@{}", "a".repeat(40));
    assert!(matches!(store.remove(&spec(&gone)), Err(StoreError::NotStored { .. })));
}

#[test]
fn an_older_snapshot_answers_when_the_newest_lacks_the_file() {
    let cache = Cache::new();
    let (old, new) = (Hub::of(gguf('a', 8)), Hub::of(gguf('b', 9)));
    pull(&cache.store(&old), "org/m-GGUF:Q4_K_M").unwrap();
    pull(&cache.store(&new), "org/m-GGUF:Q8_0").unwrap();
    let store = cache.store(&new);
    let found = store.locate(&spec("org/m-GGUF:Q4_K_M")).unwrap();
    assert!(found.to_str().unwrap().contains(&"a".repeat(40)), "{found:?}");
    assert_eq!(store.locate(&spec("org/m-GGUF:Q4_K_M@main")), None, "a named revision is meant");
}

#[test]
fn removing_everything_spares_other_repositories_and_files_outside() {
    let (cache, hub) = (Cache::new(), Hub::of(gguf('a', 8)));
    let store = cache.store(&hub);
    let pulled = pull(&store, "org/m-GGUF:Q8_0").unwrap();
    let outside = cache.root().join("precious");
    fs::write(&outside, "keep").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, pulled.path.with_file_name("link")).unwrap();
    let removed = store.remove(&spec("org/m-GGUF")).unwrap();
    assert!(removed.bytes >= 8000);
    assert!(!cache.root().join("models--org--m-GGUF").exists());
    assert_eq!(fs::read(&outside).unwrap(), b"keep");
    let error = store.remove(&spec("org/m-GGUF")).unwrap_err().to_string();
    assert!(error.contains("is not in") && error.contains("pelton list"), "{error}");
}

#[test]
fn what_is_being_downloaded_is_not_removed() {
    let (cache, hub) = (Cache::new(), Hub::of(gguf('a', 8)));
    let store = cache.store(&hub);
    let mut tried = None;
    store
        .pull(&spec("org/m-GGUF:Q8_0"), &mut |progress| {
            if progress.state == ProgressState::Downloading && tried.is_none() {
                tried = Some(store.remove(&spec("org/m-GGUF")));
            }
        })
        .unwrap();
    assert!(matches!(tried, Some(Err(StoreError::Busy { .. }))), "{tried:?}");
    assert!(store.locate(&spec("org/m-GGUF:Q8_0")).is_some());
}
