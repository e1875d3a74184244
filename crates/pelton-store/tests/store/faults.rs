//! Networks that cut, servers that err: what is resumed, what is fetched anew, what is given up.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use pelton_store::{Progress, Store, StoreError};

use crate::hub::{Answer, Hub, Repo, Request, noise, sha256};
use crate::{Cache, pull, spec, watched_pull};

const SIZE: usize = 700_000;

fn content() -> Vec<u8> {
    noise(5, SIZE)
}

/// A hub whose n-th download of the one GGUF file (from 0) is answered by `fault`, given the faultless answer.
fn faulty(fault: impl Fn(usize, &Request, Answer) -> Answer + Send + Sync + 'static) -> Hub {
    let repo = Repo::new("org/m-GGUF", 'f').large("m-Q8_0.gguf", content());
    let n_downloads = AtomicUsize::new(0);
    Hub::start(move |request| {
        let answer = repo.answer(request);
        if !request.target.contains("/resolve/") {
            return answer;
        }
        fault(n_downloads.fetch_add(1, Ordering::SeqCst), request, answer)
    })
}

fn blob() -> String {
    sha256(&content())
}

#[test]
fn a_cut_connection_is_resumed_where_it_stopped() {
    let hub = faulty(|n, _, answer| if n == 0 { answer.cut(300_000) } else { answer });
    let cache = Cache::new();
    let (pulled, reports) = watched_pull(&cache.store(&hub), "org/m-GGUF");
    let pulled = pulled.unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content());
    let downloads = hub.downloads();
    assert_eq!(downloads.len(), 2);
    assert_eq!(downloads[0].header("range"), None);
    assert_eq!(downloads[1].header("range"), Some("bytes=300000-"));
    assert_eq!(pulled.downloaded_bytes, SIZE as u64, "no byte came twice");
    assert!(reports.iter().any(|report| report.kind == "retrying" && report.done == 300_000));
    assert!(reports.iter().any(|report| report.kind == "downloading" && report.resumed_from == 300_000));
    assert_eq!(cache.tree("org/m-GGUF", "blobs"), [blob()]);
}

#[test]
fn many_cuts_are_survived_and_endless_ones_end() {
    let hub = faulty(|_, _, answer| answer.cut(120_000));
    let cache = Cache::new();
    let mut options = cache.options(&hub.url());
    options.max_attempts = 7;
    let pulled = pull(&Store::new(options).unwrap(), "org/m-GGUF").unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content());
    assert_eq!(hub.downloads().last().unwrap().header("range"), Some("bytes=600000-"));

    let hub = faulty(|_, _, answer| answer.cut(0));
    let cache = Cache::new();
    let error = pull(&cache.store(&hub), "org/m-GGUF").unwrap_err();
    assert!(matches!(error, StoreError::Interrupted { done: 0, attempts: 6, .. }), "{error}");
    assert_eq!(hub.downloads().len(), 6);
    assert_eq!(cache.tree("org/m-GGUF", "snapshots"), [""; 0]);
}

#[test]
fn an_interrupted_pull_is_resumed_by_the_next() {
    let hub = faulty(|_, _, answer| answer);
    let cache = Cache::new();
    // The callback unwinds out of the pull in the middle of a file, as suddenly as a process can end in a test.
    let mut stop = |progress: Progress<'_>| assert!(progress.done_bytes < 100_000, "stopped on purpose");
    let stopped = catch_unwind(AssertUnwindSafe(|| cache.store(&hub).pull(&spec("org/m-GGUF"), &mut stop)));
    stopped.unwrap_err();
    let incomplete = format!("{}.incomplete", blob());
    assert_eq!(cache.tree("org/m-GGUF", "blobs"), [incomplete.as_str()]);
    assert_eq!(cache.tree("org/m-GGUF", "snapshots"), [""; 0]);
    assert_eq!(cache.store(&hub).locate(&spec("org/m-GGUF")), None);
    let len = fs::metadata(cache.root().join("models--org--m-GGUF/blobs").join(incomplete)).unwrap().len();
    assert!((100_000..SIZE as u64).contains(&len), "{len}");

    let (pulled, reports) = watched_pull(&cache.store(&hub), "org/m-GGUF");
    let pulled = pulled.unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content());
    assert_eq!(hub.downloads().last().unwrap().header("range"), Some(format!("bytes={len}-").as_str()));
    assert_eq!(pulled.downloaded_bytes, SIZE as u64 - len);
    assert_eq!(reports[0].kind, "checking");
    let last = reports.last().unwrap();
    assert_eq!((last.kind, last.resumed_from), ("done", len));
}

#[test]
fn a_server_that_ignores_the_range_makes_the_file_start_over() {
    let hub = faulty(|n, _, answer| match n {
        0 => answer.cut(300_000),
        _ => Answer::ok(content()),
    });
    let cache = Cache::new();
    let pulled = pull(&cache.store(&hub), "org/m-GGUF").unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content());
    assert_eq!(hub.downloads()[1].header("range"), Some("bytes=300000-"));
    assert_eq!(pulled.downloaded_bytes, (SIZE + 300_000) as u64);
}

#[test]
fn a_wrong_range_makes_the_file_start_over() {
    for wrong in ["bytes 299999-699999/700000", "bytes 300000-699999/700001", "bytes 300000-800000/*", "nonsense", ""] {
        let hub = faulty(move |n, _, answer| match n {
            0 => answer.cut(300_000),
            1 => Answer { status: 206, ..Answer::ok(&content()[300_000..]) }.with("content-range", wrong),
            _ => answer,
        });
        let cache = Cache::new();
        let pulled = pull(&cache.store(&hub), "org/m-GGUF").unwrap();
        assert_eq!(fs::read(&pulled.path).unwrap(), content(), "{wrong}");
        assert_eq!(hub.downloads()[2].header("range"), None, "{wrong}");
    }
    let hub = faulty(|n, _, answer| match n {
        0 => answer.cut(300_000),
        1 => Answer::status(416),
        _ => answer,
    });
    let cache = Cache::new();
    assert_eq!(fs::read(pull(&cache.store(&hub), "org/m-GGUF").unwrap().path).unwrap(), content());
}

fn corrupted() -> Vec<u8> {
    let mut bytes = content();
    bytes[123_456] ^= 1;
    bytes
}

#[test]
fn a_corrupted_file_is_fetched_once_more() {
    let hub = faulty(|n, _, answer| if n == 0 { Answer::ok(corrupted()) } else { answer });
    let cache = Cache::new();
    let (pulled, reports) = watched_pull(&cache.store(&hub), "org/m-GGUF");
    assert_eq!(fs::read(&pulled.unwrap().path).unwrap(), content());
    let downloads = hub.downloads();
    assert_eq!(downloads.len(), 2);
    assert_eq!(downloads[1].header("range"), None, "nothing of the corrupted file is kept");
    assert_eq!(reports.iter().filter(|report| report.kind == "corrupted").count(), 1);
}

#[test]
fn a_file_that_stays_corrupted_is_an_error_and_leaves_nothing() {
    let hub = faulty(|_, _, _| Answer::ok(corrupted()));
    let cache = Cache::new();
    let error = pull(&cache.store(&hub), "org/m-GGUF").unwrap_err();
    let StoreError::HashMismatch { file, expected, found } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), expected, found), ("m-Q8_0.gguf", &blob(), &sha256(&corrupted())));
    assert_eq!(hub.downloads().len(), 2);
    for folder in ["snapshots", "blobs", "refs"] {
        assert_eq!(cache.tree("org/m-GGUF", folder), [""; 0], "{folder}");
    }
}

#[test]
fn corruption_in_what_an_earlier_pull_left_is_found_and_repaired() {
    let hub = faulty(|_, _, answer| answer);
    let cache = Cache::new();
    let blobs = cache.root().join("models--org--m-GGUF/blobs");
    fs::create_dir_all(&blobs).unwrap();
    for (left, ranges) in [
        (corrupted()[..200_000].to_vec(), vec![Some("bytes=200000-"), None]),
        (corrupted(), vec![None]),
        (noise(1, SIZE + 1), vec![None]),
        (content(), vec![]),
    ] {
        let before = hub.downloads().len();
        fs::write(blobs.join(format!("{}.incomplete", blob())), left).unwrap();
        let pulled = pull(&cache.store(&hub), "org/m-GGUF").unwrap();
        assert_eq!(fs::read(&pulled.path).unwrap(), content());
        let downloads = hub.downloads();
        let asked: Vec<_> = downloads[before..].iter().map(|request| request.header("range")).collect();
        assert_eq!(asked, ranges);
        fs::remove_file(blobs.join(blob())).unwrap();
    }
    fs::write(blobs.join(blob()), "cut off later").unwrap();
    assert_eq!(fs::read(pull(&cache.store(&hub), "org/m-GGUF").unwrap().path).unwrap(), content());
}

#[test]
fn passing_errors_of_the_server_are_waited_out() {
    let hub = faulty(|n, _, answer| match n {
        0 => Answer::status(503).with("retry-after", "0"),
        1 => Answer::status(429),
        _ => answer,
    });
    let cache = Cache::new();
    let pulled = pull(&cache.store(&hub), "org/m-GGUF").unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content());
    assert_eq!(hub.downloads().len(), 3);
}

#[test]
fn a_signed_address_that_ran_out_is_asked_for_again() {
    let n = AtomicUsize::new(0);
    let cdn = Hub::start(move |request| match n.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::status(403),
        _ => crate::hub::serve_range(request, &content()),
    });
    let target = format!("{}/object", cdn.url());
    let hub = faulty(move |_, _, _| Answer::redirect(target.clone()));
    let cache = Cache::new();
    pull(&cache.store(&hub), "org/m-GGUF").unwrap();
    assert_eq!((hub.downloads().len(), cdn.requests().len()), (2, 2));
}

#[test]
fn a_hub_that_is_not_there_is_named_with_what_to_do() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", unused.local_addr().unwrap());
    drop(unused);
    let cache = Cache::new();
    let error = pull(&Store::new(cache.options(&endpoint)).unwrap(), "org/m").unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&endpoint) && text.contains("HF_ENDPOINT") && text.contains("path"), "{text}");
}
