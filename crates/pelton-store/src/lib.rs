//! The model store: Hugging Face cache layout, resumable verified downloads.
//!
//! [`Store::pull`] brings a model from a hub into the cache that Python's `huggingface_hub` also uses, so a file is on
//! the disk once whoever fetched it; [`Store::locate`] turns a hub name into the path that a reader opens;
//! [`Store::list`] and [`Store::remove`] look after what is there.
//!
//! ```text
//! root/
//!   models--ORG--NAME/
//!     blobs/<hash>               the bytes; the name is the hash of the content
//!     blobs/<hash>.incomplete    a download that was cut, resumed by the next pull
//!     refs/main                  the commit that a branch or tag stood at
//!     snapshots/<commit>/FILE -> ../../blobs/<hash>
//!   .locks/models--ORG--NAME/<hash>.lock
//! ```
//!
//! Invariants:
//! - A blob gets its final name only after its size and its hash were checked (SHA-256 for large files, git's SHA-1
//!   for small ones), and a snapshot and its ref appear only after all the files that were asked for are whole.
//! - The hub is not trusted: names from it never leave the snapshot folder, answers are read up to a bound, and a file
//!   never grows past the size that the listing gave.
//! - The token is sent to the endpoint's own scheme, host and port, and nowhere else.
//! - No environment variable is read here: the binary calls [`StoreOptions::from_vars`] with its reader.

#![forbid(unsafe_code)]

mod address;
mod choose;
mod digest;
mod disk;
mod error;
mod fetch;
mod hub;
mod layout;
mod listing;
mod local;
mod options;
mod progress;
mod pull;
mod quant;
mod remove;
mod spec;

pub use disk::check_room;
pub use error::StoreError;
pub use local::StoredModel;
pub use options::StoreOptions;
pub use progress::{Progress, ProgressState};
pub use pull::Pulled;
pub use remove::Removed;
pub use spec::ModelSpec;

/// A cache of models on disk and the hub that fills it.
///
/// Cheap to make; holds no lock between calls. Several stores, threads and processes (Python's included) may work on
/// one root at a time.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    hub: hub::Hub,
}

impl Store {
    /// A store over `options.root`, which need not exist yet.
    ///
    /// # Errors
    /// [`StoreError::BadOption`] when the endpoint or the proxy is not a usable address.
    pub fn new(options: StoreOptions) -> Result<Self, StoreError> {
        let hub = hub::Hub::new(&options)?;
        Ok(Self { options, hub })
    }

    /// What the store was made with.
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }
}
