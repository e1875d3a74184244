//! Who may ask: keys, and how much each may ask at once.
//!
//! Invariants: a key is kept as its hash alone; how long a comparison takes says nothing about how much of a key was
//! right; a name that a web page made up for this machine (DNS rebinding) is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::ApiError;
use crate::options::ServerOptions;

/// The shortest key.
const MIN_KEY: usize = 8;

/// Keys that open the server, hashed.
#[derive(Clone, Default)]
pub struct Keys {
    hashes: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.hashes.len())
    }
}

impl Keys {
    /// Hashes `keys`.
    ///
    /// # Errors
    /// Where a key is shorter than 8 bytes, or cannot stand in a header. The message does not quote it.
    pub fn new(keys: impl IntoIterator<Item = String>) -> Result<Keys, String> {
        let mut hashes = Vec::new();
        for (i, key) in keys.into_iter().enumerate() {
            if key.len() < MIN_KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!("key {} is no key: expected at least {MIN_KEY} letters, digits or signs", i + 1));
            }
            hashes.push(hash(&key));
        }
        Ok(Keys { hashes })
    }

    /// The keys of a file: one a line; empty lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// As [`Keys::new`], and where the text holds none.
    pub fn parse(text: &str) -> Result<Keys, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = Keys::new(lines.map(String::from))?;
        if keys.is_empty() { Err("the file holds no key".to_string()) } else { Ok(keys) }
    }

    /// These and `others`.
    pub fn and(mut self, others: Keys) -> Keys {
        self.hashes.extend(others.hashes);
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// What the prefixes of a key's prompts are kept under; says nothing of the key, and is never 0.
    fn salt(&self, key: usize) -> u64 {
        let digest: [u8; 32] =
            Sha256::new().chain_update(b"prefixes of ").chain_update(self.hashes[key]).finalize().into();
        u64::from_le_bytes(std::array::from_fn(|i| digest[i])).max(1)
    }

    /// Which of the keys this is. Looks at all of them, whichever it is.
    fn find(&self, key: &str) -> Option<usize> {
        let hash = hash(key);
        let mut found = None;
        for (i, known) in self.hashes.iter().enumerate() {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(i);
            }
        }
        found
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The key's number, from 1; 0 where there are no keys.
    pub(crate) tenant: u64,
    /// Computed prefixes are shared within one salt: how soon an answer comes, and its count of cached tokens, tell
    /// what was asked before, which is nobody's business but the key's own. The same at every start.
    pub(crate) salt: u64,
}

/// Finds out who asks.
pub(crate) fn identify(options: &ServerOptions, headers: &HeaderMap) -> Result<Caller, ApiError> {
    if options.keys.is_empty() {
        return Ok(Caller::default());
    }
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = text("authorization").and_then(|v| {
        let (scheme, key) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let Some(key) = bearer.or_else(|| text("x-api-key")) else {
        return Err(ApiError::unauthorized("no API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`"));
    };
    match options.keys.find(key) {
        Some(i) => {
            let salt = if options.share_prefixes { 0 } else { options.keys.salt(i) };
            Ok(Caller { tenant: i as u64 + 1, salt })
        }
        None => Err(ApiError::unauthorized("the API key is not one of this server's")),
    }
}

/// Refuses web pages that are not of this server and were not let in.
pub(crate) fn check_origin(options: &ServerOptions, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    if options.guards_host() && host.is_some_and(|h| !is_local_name(h)) {
        return Err(ApiError::forbidden("the Host header names another machine; ask by address, or as localhost"));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("?");
    let own = origin.split_once("://").is_some_and(|(_, named)| Some(named) == host);
    if own || allowed_origin(options, origin) {
        return Ok(());
    }
    Err(ApiError::forbidden("web pages of this origin are not let in; --cors-origin would"))
}

/// Whether pages of this origin may use the server.
pub(crate) fn allowed_origin(options: &ServerOptions, origin: &str) -> bool {
    options.cors_origins.iter().any(|o| o == "*" || o.eq_ignore_ascii_case(origin))
}

/// An address, or a name that always means this machine.
fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => return rest.split_once(']').is_some_and(|(ip, _)| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<std::net::Ipv4Addr>().is_ok()
}

/// Counts the requests of each key.
#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    inside: Arc<Mutex<HashMap<u64, usize>>>,
}

/// A request that is inside; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    inside: Arc<Mutex<HashMap<u64, usize>>>,
    tenant: u64,
}

impl Turnstile {
    /// Lets a request in, unless `limit` of its key are inside.
    pub(crate) fn enter(&self, caller: Caller, limit: Option<usize>) -> Result<Turn, ApiError> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let count = inside.entry(caller.tenant).or_default();
        if let Some(limit) = limit.filter(|&limit| *count >= limit) {
            return Err(ApiError::too_many(
                format!("{limit} requests of this key are running; wait for one to end"),
                1,
            ));
        }
        *count += 1;
        Ok(Turn { inside: self.inside.clone(), tenant: caller.tenant })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = inside.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn keys_open_and_are_not_shown() {
        let keys = Keys::parse("# ours\nfirst-key-1\n\n second-key-2 \n").unwrap();
        assert_eq!(format!("{keys:?}"), "2 keys");
        let options = ServerOptions { keys, ..ServerOptions::default() };
        let who = |pairs: &[(&'static str, &str)]| identify(&options, &headers(pairs)).map(|c| c.tenant);
        assert_eq!(who(&[("authorization", "Bearer first-key-1")]).unwrap(), 1);
        assert_eq!(who(&[("authorization", "bearer second-key-2")]).unwrap(), 2);
        assert_eq!(who(&[("x-api-key", "second-key-2")]).unwrap(), 2);
        for wrong in ["Bearer first-key-", "Bearer", "Basic first-key-1", "first-key-1", ""] {
            assert!(who(&[("authorization", wrong)]).is_err(), "{wrong}");
        }
        assert!(who(&[]).is_err());
        let salt = |options: &ServerOptions, key| identify(options, &headers(&[("x-api-key", key)])).unwrap().salt;
        let (first, second) = (salt(&options, "first-key-1"), salt(&options, "second-key-2"));
        assert!(first != second && first != 0 && second != 0);
        let other_order = Keys::parse("second-key-2\nfirst-key-1").unwrap();
        let other_order = ServerOptions { keys: other_order, ..ServerOptions::default() };
        assert_eq!(salt(&other_order, "first-key-1"), first, "the same at every start");
        let shared = ServerOptions { share_prefixes: true, ..options.clone() };
        assert_eq!(salt(&shared, "first-key-1"), salt(&shared, "second-key-2"));
        assert!(Keys::new(["short".to_string()]).is_err() && Keys::new(["has a space in".to_string()]).is_err());
        assert!(Keys::parse("# none\n").is_err());
    }

    #[test]
    fn foreign_names_and_pages_stay_out() {
        let options = ServerOptions::default();
        let lets = |o: &ServerOptions, pairs: &[(&'static str, &str)]| check_origin(o, &headers(pairs)).is_ok();
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "10.0.0.1"] {
            assert!(lets(&options, &[("host", host)]), "{host}");
        }
        for host in ["evil.example:8080", "localhost.evil.example", "[evil]:1", ""] {
            assert!(!lets(&options, &[("host", host)]), "{host}");
        }
        assert!(lets(&options, &[("host", "localhost:1"), ("origin", "http://localhost:1")]));
        assert!(!lets(&options, &[("host", "localhost:1"), ("origin", "http://localhost:2")]));
        assert!(!lets(&options, &[("host", "localhost:1"), ("origin", "null")]));
        let open = ServerOptions { cors_origins: vec!["https://app.example".into()], ..ServerOptions::default() };
        assert!(lets(&open, &[("host", "localhost:1"), ("origin", "https://app.example")]));
        assert!(!lets(&open, &[("host", "localhost:1"), ("origin", "https://other.example")]));
    }

    #[test]
    fn each_key_has_its_own_limit() {
        let stile = Turnstile::default();
        let (a, b) = (Caller { tenant: 1, salt: 0 }, Caller { tenant: 2, salt: 0 });
        let first = stile.enter(a, Some(1)).unwrap();
        assert!(stile.enter(a, Some(1)).is_err());
        let _other = stile.enter(b, Some(1)).unwrap();
        drop(first);
        assert!(stile.enter(a, Some(1)).is_ok());
    }
}
