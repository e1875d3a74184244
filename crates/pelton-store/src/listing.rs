//! The hub's listing of a repository: `GET /api/models/REPO/revision/REV?blobs=true`.
//!
//! Invariant: the commit is forty hexadecimal digits, so that it is safe in a path; file names are as the hub gave
//! them, and whoever uses one checks it first.

use std::collections::HashSet;

use serde::Deserialize;

use crate::digest::ContentHash;
use crate::error::clip;

/// One file of a listing.
#[derive(Debug, Clone)]
pub(crate) struct HubFile {
    /// Path in the repository, as the hub gave it: unchecked.
    pub(crate) name: String,
    /// Bytes, where the listing says.
    pub(crate) size: Option<u64>,
    /// Content hash, where the listing says.
    pub(crate) hash: Option<ContentHash>,
}

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// 40 hexadecimal digits.
    pub(crate) commit: String,
    /// Its files, without doubles.
    pub(crate) files: Vec<HubFile>,
}

impl Listing {
    /// Reads the hub's JSON; the error says what is wrong with it.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let listing: ApiModel = serde_json::from_slice(body).map_err(|error| {
            let error = clip(&error.to_string(), 200);
            format!("it is not the listing of a model ({error}); is this the address of a hub?")
        })?;
        let commit = listing.sha.to_ascii_lowercase();
        if !crate::layout::is_commit(&commit) {
            return Err(format!("its `sha` is \"{}\" and not a commit", clip(&listing.sha, 80)));
        }
        let mut seen = HashSet::new();
        let siblings = listing.siblings.into_iter().filter(|sibling| seen.insert(sibling.rfilename.clone()));
        Ok(Self { commit, files: siblings.map(ApiSibling::into_file).collect() })
    }
}

#[derive(Deserialize)]
struct ApiModel {
    sha: String,
    #[serde(default)]
    siblings: Vec<ApiSibling>,
}

#[derive(Deserialize)]
struct ApiSibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<ApiLfs>,
}

#[derive(Deserialize)]
struct ApiLfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

impl ApiSibling {
    /// For a large file the hash is the SHA-256 of the content; its `blobId` would be that of the pointer.
    fn into_file(self) -> HubFile {
        let (hash, size) = match self.lfs {
            Some(lfs) => (lfs.sha256, lfs.size.or(self.size)),
            None => (self.blob_id, self.size),
        };
        HubFile { name: self.rfilename, size, hash: hash.as_deref().and_then(ContentHash::parse) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_go_by_sha256_and_small_ones_by_git() {
        let (sha256, git) = ("5".repeat(64), "9".repeat(40));
        let text = format!(
            r#"{{"sha": "{git}", "private": false, "siblings": [
                {{"rfilename": "b", "size": 7, "blobId": "{git}", "lfs": {{"sha256": "{sha256}", "size": 8, "pointerSize": 1}}}},
                {{"rfilename": "a", "size": 7, "blobId": "{git}", "lfs": null}},
                {{"rfilename": "a", "size": 9}},
                {{"rfilename": "c", "size": null, "blobId": "../../x"}}]}}"#
        );
        let listing = Listing::parse(text.as_bytes()).unwrap();
        let files: Vec<_> = listing.files.iter().map(|f| (f.name.as_str(), f.size, f.hash.as_ref())).collect();
        let (sha256, git) = (ContentHash::parse(&sha256), ContentHash::parse(&git));
        assert_eq!(files, [("b", Some(8), sha256.as_ref()), ("a", Some(7), git.as_ref()), ("c", None, None)]);
    }
}
