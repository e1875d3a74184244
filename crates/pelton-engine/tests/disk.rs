//! Prefix pages on disk: found after a restart, with the same bits; and never a reason to fail.

mod support;

use std::fs;
use std::path::Path;

use pelton_engine::{DiskOptions, Engine, EngineHandle, EngineLimits, Event, Request};
use support::{Answer, LIMITS, engine, greedy, prompt, run};

fn options(folder: &Path) -> DiskOptions {
    DiskOptions { folder: folder.to_path_buf(), max_bytes: 64 << 20, identity: "the fixture".into() }
}

fn with_disk(folder: &Path, limits: EngineLimits) -> Engine<pelton_backend::Reference> {
    let mut engine = engine(limits);
    engine.keep_pages(&options(folder)).unwrap();
    engine
}

/// A prompt of full pages and a few tokens more.
fn long() -> Request {
    greedy(&prompt(150), 8)
}

fn cached(answer: &Answer) -> usize {
    answer.end().timing.cached_tokens
}

/// Runs a request on an engine that ends in good order.
fn store(folder: &Path, request: Request) -> Answer {
    let mut engine = with_disk(folder, LIMITS);
    let answer = run(&mut engine, vec![request.clone()]).remove(0);
    // The handle's end waits for the writer.
    let handle = EngineHandle::spawn(engine).unwrap();
    assert!(matches!(handle.submit(request).unwrap().last(), Some(Event::Finished(_))));
    drop(handle);
    answer
}

#[test]
fn a_restart_finds_the_pages_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path(), long());
    assert_eq!(cached(&first), 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "150 tokens and 8 are four pages and a part");
    let mut engine = with_disk(folder.path(), LIMITS);
    let again = run(&mut engine, vec![long()]).remove(0);
    assert_eq!((cached(&again), again.bits()), (128, first.bits()));
    let disk = engine.disk_stats().unwrap();
    assert_eq!((disk.read, disk.rejected, disk.pages), (4, 0, 4));
    // Not twice: now they are in memory.
    run(&mut engine, vec![long()]);
    assert_eq!(engine.disk_stats().unwrap().read, 4);
    // A prompt that begins alike takes what is alike.
    let mut engine = with_disk(folder.path(), LIMITS);
    let mut other = long();
    other.prompt[70] = 5;
    assert_eq!(cached(&run(&mut engine, vec![other])[0]), 64);
}

#[test]
fn company_and_a_small_pool_change_no_bit_of_what_comes_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let alone = store(folder.path(), long());
    let tight = EngineLimits { n_pages: 9, max_batch_rows: 16, max_seqs: 4, ..LIMITS };
    let mut engine = with_disk(folder.path(), tight);
    let mut requests = vec![long(); 3];
    requests.insert(1, greedy(&prompt(90), 40));
    requests.push(greedy(&prompt(140), 30));
    let together = run(&mut engine, requests);
    for i in [0, 2, 3] {
        assert_eq!(together[i].bits(), alone.bits());
    }
    assert!(engine.disk_stats().unwrap().read >= 4);
}

#[test]
fn other_models_types_and_salts_find_nothing() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path(), long());
    let mut salted = engine(LIMITS);
    salted.keep_pages(&options(folder.path())).unwrap();
    assert_eq!(cached(&run(&mut salted, vec![Request { cache_salt: 7, ..long() }])[0]), 0);
    let mut other = engine(LIMITS);
    other.keep_pages(&DiskOptions { identity: "another".into(), ..options(folder.path()) }).unwrap();
    assert_eq!(cached(&run(&mut other, vec![long()])[0]), 0);
    let mut half = engine(EngineLimits { kv_type: pelton_backend::KvType::F16, ..LIMITS });
    half.keep_pages(&options(folder.path())).unwrap();
    assert_eq!(cached(&run(&mut half, vec![long()])[0]), 0);
}

#[test]
fn damaged_files_are_computed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path(), long());
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let mut engine = with_disk(folder.path(), LIMITS);
    let again = run(&mut engine, vec![long()]).remove(0);
    assert_eq!((cached(&again), again.bits()), (0, first.bits()));
    assert_eq!(engine.disk_stats().unwrap().rejected, 1);
    // A folder that vanishes meanwhile fails nothing.
    let away = tempfile::tempdir().unwrap();
    let mut engine = with_disk(&away.path().join("pages"), LIMITS);
    fs::remove_dir_all(away.path().join("pages")).unwrap();
    assert_eq!(run(&mut engine, vec![long()])[0].bits(), first.bits());
}

#[test]
fn who_waits_for_the_disk_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path(), long());
    let mut engine = with_disk(folder.path(), LIMITS);
    let id = engine.submit(long()).unwrap();
    assert_eq!(engine.cancel(id).len(), 1);
    assert!(!engine.has_work());
    assert_eq!(cached(&run(&mut engine, vec![long()])[0]), 128);
}

#[test]
fn a_folder_that_is_a_file_is_an_error_that_names_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = engine(LIMITS).keep_pages(&options(file.path())).unwrap_err().to_string();
    assert!(error.contains(&file.path().display().to_string()), "{error}");
}
