//! Hubs that refuse, and hubs that lie.

use pelton_store::{Store, StoreError};

use crate::hub::{Answer, Hub, Repo, noise, sha256};
use crate::{Cache, pull};

/// A hub whose listing is `text`, and which serves ten bytes for any file.
fn listing(text: impl Into<String>) -> Hub {
    let text = text.into();
    Hub::start(
        move |request| {
            if request.target.starts_with("/api/") { Answer::ok(text.clone()) } else { Answer::ok(noise(1, 10)) }
        },
    )
}

fn one_file(name: &str, size: u64) -> String {
    let lfs = serde_json::json!({ "sha256": sha256(&noise(1, 10)), "size": size });
    let sibling = serde_json::json!({ "rfilename": name, "size": size, "lfs": lfs });
    serde_json::json!({ "sha": "a".repeat(40), "siblings": [sibling] }).to_string()
}

#[test]
fn refusals_say_what_to_do() {
    let cache = Cache::new();
    for status in [401, 403] {
        let hub = Hub::start(move |_| Answer::status(status).with("x-error-message", "Access to model is restricted"));
        let error = pull(&cache.store(&hub), "org/m").unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("HF_TOKEN") && text.contains("\"Access to model is restricted\""), "{text}");
        assert!(text.contains(&format!("{}/org/m", hub.url())), "{text}");
        assert_eq!(hub.requests().len(), 1, "a refusal is not tried again");

        let mut options = cache.options(&hub.url());
        options.token = Some("hf_secret".into());
        let text = pull(&Store::new(options).unwrap(), "org/m").unwrap_err().to_string();
        assert!(text.contains("the token that is set has no access") && !text.contains("hf_secret"), "{text}");
    }
    let hub = Hub::of(Repo::new("org/other", 'a'));
    let error = pull(&cache.store(&hub), "org/m:Q8_0@dev").unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    assert!(error.to_string().starts_with("org/m:Q8_0@dev is not on http://127.0.0.1"), "{error}");
    assert_eq!(cache.tree("org/m", ""), [""; 0]);
}

#[test]
fn names_that_would_leave_the_snapshot_are_refused() {
    for name in [
        "../../../../evil-Q8_0.gguf",
        "/tmp/evil-Q8_0.gguf",
        "a/../../evil.gguf",
        "..\\evil.gguf",
        "C:\\evil.gguf",
        "nul\0.gguf",
        "a//b.gguf",
        "./b.gguf",
        "\u{1b}[2J.gguf",
    ] {
        let cache = Cache::new();
        let hub = listing(one_file(name, 10));
        let error = pull(&cache.store(&hub), "org/m").unwrap_err();
        assert!(matches!(error, StoreError::BadName { .. }), "{name:?}: {error}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
        assert_eq!(hub.downloads().len(), 0);
        assert!(!cache.root().exists(), "{name:?}: nothing is written at all");
    }
}

#[test]
fn a_server_that_sends_more_or_less_than_announced_is_refused() {
    for (size, sent) in [(9, "10 bytes and m.gguf has 9"), (11, "10 bytes and m.gguf has 11")] {
        let cache = Cache::new();
        let hub = listing(one_file("m.gguf", size));
        let error = pull(&cache.store(&hub), "org/m").unwrap_err().to_string();
        assert!(error.contains(sent), "{error}");
        assert_eq!(cache.tree("org/m", "snapshots"), [""; 0]);
    }
    // In chunks no length is announced; what is too much is noticed while it arrives.
    let text = one_file("m.gguf", 9);
    let hub = Hub::start(move |request| {
        if request.target.starts_with("/api/") {
            return Answer::ok(text.clone());
        }
        Answer::ok("5\r\nabcde\r\n5\r\nfghij\r\n0\r\n\r\n").with("transfer-encoding", "chunked")
    });
    let cache = Cache::new();
    let error = pull(&cache.store(&hub), "org/m").unwrap_err().to_string();
    assert!(error.contains("more than the 9 bytes"), "{error}");
    let left = cache.tree("org/m", "blobs");
    let len = std::fs::metadata(cache.root().join("models--org--m/blobs").join(&left[0])).unwrap().len();
    assert!(left.len() == 1 && len <= 9, "the file never grows past its size: {len}");
}

#[test]
fn listings_that_make_no_sense_are_refused() {
    let huge = u64::MAX / 2 + 1;
    let lfs = serde_json::json!({ "sha256": "a".repeat(64), "size": huge });
    let shard = |n: u32| serde_json::json!({ "rfilename": format!("m-0000{n}-of-00002.gguf"), "lfs": lfs });
    let overflow = serde_json::json!({ "sha": "a".repeat(40), "siblings": [shard(1), shard(2)] }).to_string();
    for (text, expected) in [
        ("<html>hello</html>".to_owned(), "is this the address of a hub?"),
        ("{}".to_owned(), "missing field `sha`"),
        ("{\"sha\":\"../..\",\"siblings\":[]}".to_owned(), "not a commit"),
        (format!("{{\"sha\":\"{}\",\"siblings\":[]}}", "a".repeat(40)), "holds no model"),
        (one_file("m.gguf", 10).replace("sha256", "sha"), "neither the listing nor the headers"),
        (overflow, "more than a disk can hold"),
        ("[".repeat(100_000), "is this the address of a hub?"),
    ] {
        let cache = Cache::new();
        let hub = listing(text);
        let error = pull(&cache.store(&hub), "org/m").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!cache.root().exists());
    }
}

#[test]
#[cfg(unix)]
fn a_model_larger_than_the_disk_is_refused_before_the_first_byte() {
    let cache = Cache::new();
    let hub = listing(one_file("m.gguf", 1 << 60));
    let error = pull(&cache.store(&hub), "org/m").unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { needed, .. } if needed == 1 << 60), "{error}");
    assert_eq!(hub.downloads().len(), 0);
}

#[test]
fn redirects_that_go_nowhere_end() {
    for location in ["/again", "ftp://127.0.0.1/x", ""] {
        let cache = Cache::new();
        let hub = Hub::start(move |_| Answer::redirect(location));
        let error = pull(&cache.store(&hub), "org/m").unwrap_err();
        assert!(matches!(error, StoreError::BadResponse { .. }), "{location}: {error}");
        assert!(hub.requests().len() <= 8);
    }
}
