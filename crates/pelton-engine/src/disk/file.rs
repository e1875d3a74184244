//! One page in one file.
//!
//! ```text
//! magic "PELTONKV" · u32 tokens · u32 zero · u64 payload bytes · key (32) · SHA-256 of what follows (32)
//! tokens, u32 each · payload
//! ```
//!
//! Numbers are little-endian. Invariant: nothing is taken from a file whose length, key, tokens or hash is not what
//! was expected; its length is known before it is read.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::{EXTENSION, NewPage, PageKey, path_of};

const MAGIC: &[u8; 8] = b"PELTONKV";
const HEADER: usize = 8 + 4 + 4 + 8 + 32 + 32;

/// Length of the file of a page.
pub(super) fn len(n_tokens: usize, payload: usize) -> u64 {
    (HEADER + 4 * n_tokens) as u64 + payload as u64
}

fn token_bytes(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

fn header(key: &PageKey, n_tokens: usize, payload: usize, hash: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&(n_tokens as u32).to_le_bytes());
    header.extend_from_slice(&0u32.to_le_bytes());
    header.extend_from_slice(&(payload as u64).to_le_bytes());
    header.extend_from_slice(&key.0);
    header.extend_from_slice(hash);
    header
}

/// Writes a page aside and renames it.
///
/// # Errors
/// What the system says; nothing is left behind.
pub(super) fn write(folder: &Path, page: &NewPage) -> std::io::Result<()> {
    let path = path_of(folder, &page.key);
    // Another process may write the same page.
    let aside = path.with_extension(format!("{EXTENSION}-{}", std::process::id()));
    let written = write_to(&aside, page).and_then(|()| fs::rename(&aside, &path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

fn write_to(path: &Path, page: &NewPage) -> std::io::Result<()> {
    let tokens = token_bytes(&page.tokens);
    let hash = Sha256::new().chain_update(&tokens).chain_update(&page.bytes).finalize();
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // Pages are made of what people wrote.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(&header(&page.key, page.tokens.len(), page.bytes.len(), &hash))?;
    file.write_all(&tokens)?;
    file.write_all(&page.bytes)
}

/// The bytes of a page, if its file is there, whole, and this page's.
pub(super) fn read(folder: &Path, key: &PageKey, tokens: &[u32], payload: usize) -> Option<Vec<u8>> {
    let mut file = File::open(path_of(folder, key)).ok()?;
    if file.metadata().ok()?.len() != len(tokens.len(), payload) {
        return None;
    }
    let mut head = vec![0; HEADER + 4 * tokens.len()];
    file.read_exact(&mut head).ok()?;
    let (head, told) = head.split_at(HEADER);
    let hash = &head[HEADER - 32..];
    if head != header(key, tokens.len(), payload, hash) || told != token_bytes(tokens) {
        return None;
    }
    let mut bytes = vec![0; payload];
    file.read_exact(&mut bytes).ok()?;
    let found = Sha256::new().chain_update(told).chain_update(&bytes).finalize();
    if found.as_slice() != hash {
        return None;
    }
    // The time of use decides who is removed first, in the next process too. A hint only.
    let _ = file.set_modified(SystemTime::now());
    Some(bytes)
}

/// Removes a page, if it is there.
pub(super) fn remove(folder: &Path, key: &PageKey) {
    let _ = fs::remove_file(path_of(folder, key));
}
