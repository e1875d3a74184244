//! Where the cache lies, which hub fills it, and with whose token.
//!
//! Invariant: printing options (`Debug`) never shows the token.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::StoreError;

/// The hub that is used when no other is named.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The settings of a [`crate::Store`].
#[derive(Clone)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The cache folder that holds `models--ORG--NAME` folders.
    pub root: PathBuf,
    /// The hub: scheme, host and, for mirrors, a port or a path.
    pub endpoint: String,
    /// The access token for private and gated models; sent to the endpoint only.
    pub token: Option<String>,
    /// Make no connection: a pull succeeds only for what is in the cache.
    pub offline: bool,
    /// A proxy such as `http://host:3128`.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, comma-separated.
    pub no_proxy: Option<String>,
    /// Failed attempts in a row, without progress between them, after which a download gives up.
    pub max_attempts: u32,
    /// The wait before the second attempt; it doubles up to sixteen times this.
    pub backoff: Duration,
    /// How long a connection may stay silent before it counts as cut.
    pub timeout: Duration,
}

impl StoreOptions {
    /// The defaults over a given cache folder: the public hub, no token, no proxy.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            offline: false,
            proxy: None,
            no_proxy: None,
            max_attempts: 6,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(60),
        }
    }

    /// The options that a user's variables ask for, under the names that `huggingface_hub` documents: `HF_HUB_CACHE`,
    /// `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` (else the `token` file in `HF_HOME`),
    /// `HF_HUB_OFFLINE`, and the usual proxy variables. `var` looks a variable up; an empty value counts as unset.
    ///
    /// # Errors
    /// [`StoreError::BadOption`] when no variable leads to a cache folder, not even `HOME`.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let get = |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let home = get("HOME").or_else(|| get("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| get(name).map(|value| expand_home(&value, home.as_deref()));
        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| home.as_ref().map(|home| home.join(".cache").join("huggingface")));
        let root = path("HF_HUB_CACHE").or_else(|| hf_home.as_ref().map(|hf_home| hf_home.join("hub")));
        let root = root.ok_or_else(|| StoreError::BadOption {
            option: "the model cache",
            reason: "neither HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME nor HOME is set".to_owned(),
        })?;
        let mut options = Self::new(root);
        if let Some(endpoint) = get("HF_ENDPOINT") {
            options.endpoint = endpoint;
        }
        let token_path = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|hf_home| hf_home.join("token")));
        options.token = get("HF_TOKEN").or_else(|| token_path.and_then(|path| read_token(&path)));
        options.offline = get("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        let names: [&str; 4] = if options.endpoint.starts_with("http://") {
            ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
        } else {
            ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        };
        options.proxy = names.iter().find_map(|name| get(name));
        options.no_proxy = get("no_proxy").or_else(|| get("NO_PROXY"));
        Ok(options)
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The proxy may carry a password, so only its presence is shown.
        f.debug_struct("StoreOptions")
            .field("root", &self.root)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("proxy", &self.proxy.as_ref().map(|_| "(hidden)"))
            .field("max_attempts", &self.max_attempts)
            .field("backoff", &self.backoff)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// `~` and `~/…` under the home folder, anything else as it is.
fn expand_home(value: &str, home: Option<&Path>) -> PathBuf {
    match (value.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_path_buf(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(value),
    }
}

/// The token file's content; `None` when it is absent, empty or no token (longer than 4 KiB or not text).
fn read_token(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    let token = text.trim();
    (!token.is_empty() && token.len() < 4096).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)]) -> StoreOptions {
        let find = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        StoreOptions::from_vars(find).unwrap()
    }

    #[test]
    fn the_cache_folder_follows_the_hubs_order_of_variables() {
        let home = ("HOME", "/home/u");
        assert_eq!(with(&[home]).root, Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/x")]).root, Path::new("/x/huggingface/hub"));
        let hf = ("HF_HOME", "~/hf");
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/x"), hf]).root, Path::new("/home/u/hf/hub"));
        assert_eq!(with(&[home, hf, ("HF_HUB_CACHE", "/c")]).root, Path::new("/c"));
        assert_eq!(with(&[home, ("HF_HUB_CACHE", " ")]).root, Path::new("/home/u/.cache/huggingface/hub"));
        assert!(StoreOptions::from_vars(|_| None).unwrap_err().to_string().contains("HF_HUB_CACHE"));
    }

    #[test]
    fn endpoint_offline_and_proxy_are_read() {
        let options =
            with(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "YES"), ("HTTPS_PROXY", "http://p:1"), ("no_proxy", "a")]);
        assert_eq!(options.endpoint, DEFAULT_ENDPOINT);
        assert!(options.offline);
        assert_eq!((options.proxy.as_deref(), options.no_proxy.as_deref()), (Some("http://p:1"), Some("a")));
        let plain = with(&[("HOME", "/h"), ("HF_ENDPOINT", "http://m"), ("HTTPS_PROXY", "http://p:1")]);
        assert_eq!((plain.endpoint.as_str(), plain.proxy, plain.offline), ("http://m", None, false));
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file_and_is_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_from_file\n").unwrap();
        let hf_home = folder.path().to_str().unwrap();
        assert_eq!(with(&[("HF_HOME", hf_home)]).token.as_deref(), Some("hf_from_file"));
        let options = with(&[("HF_HOME", hf_home), ("HF_TOKEN", "hf_secret")]);
        assert_eq!(options.token.as_deref(), Some("hf_secret"));
        assert!(!format!("{options:?}").contains("hf_secret"));
    }
}
