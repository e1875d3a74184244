//! Paths of the cache, and the few operations that must be done just so: locks, links, refs.
//!
//! Lock files and their place are those of `huggingface_hub` (`flock` on Unix), so Python and Pelton wait for each
//! other. The layout is documented in "Understand caching" of the hub's client library.
//!
//! Invariant: every path made here lies under the cache's root; names from outside pass [`name_problem`] first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::StoreError;
use crate::digest::ContentHash;

/// The end of the name of a download that is not whole.
pub(crate) const INCOMPLETE: &str = ".incomplete";

/// What makes a name from outside unusable as a relative path, or `None` when it is fine.
pub(crate) fn name_problem(name: &str) -> Option<&'static str> {
    let bad_part = |part: &str| part.is_empty() || part == "." || part == "..";
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > 1024 || name.split('/').any(|part| part.len() > 255) {
        Some("is too long")
    } else if name.chars().any(char::is_control) {
        Some("holds a control character")
    } else if name.contains('\\') {
        Some("holds a backslash")
    } else if name.starts_with('/') {
        Some("is an absolute path")
    } else if cfg!(windows) && name.contains(':') {
        Some("holds a colon")
    } else if name.split('/').any(bad_part) {
        Some("holds an empty part, `.` or `..`")
    } else {
        None
    }
}

/// One repository's folder in the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepoDir {
    /// `root/models--ORG--NAME`.
    pub(crate) path: PathBuf,
    locks: PathBuf,
}

impl RepoDir {
    /// The folder that `folder` (of [`crate::ModelSpec::folder`]) has under `root`.
    pub(crate) fn new(root: &Path, folder: &str) -> Self {
        Self { path: root.join(folder), locks: root.join(".locks").join(folder) }
    }

    /// Where whole and incomplete blobs lie.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// The whole blob of a hash.
    pub(crate) fn blob(&self, hash: &ContentHash) -> PathBuf {
        self.blobs().join(hash.as_str())
    }

    /// The blob of a hash while it is downloaded.
    pub(crate) fn incomplete(&self, hash: &ContentHash) -> PathBuf {
        self.blobs().join(format!("{}{INCOMPLETE}", hash.as_str()))
    }

    /// Where snapshots lie, one folder per commit.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// One commit's folder.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    /// Where branches and tags lie.
    pub(crate) fn refs(&self) -> PathBuf {
        self.path.join("refs")
    }

    /// The commit that a revision stands at in the cache: itself when it is a commit, else what its ref holds.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_ascii_lowercase());
        }
        let mut text = String::new();
        File::open(self.refs().join(revision)).ok()?.take(128).read_to_string(&mut text).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Records that `revision` stands at `commit`; a commit needs no record.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), StoreError> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.refs().join(revision);
        make_parent(&path)?;
        // Written aside and renamed, so that a reader never sees half a commit; under a name of its own, since other
        // threads and processes may be writing the same ref.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let mut aside = path.clone().into_os_string();
        aside.push(format!(".{}-{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
        let aside = PathBuf::from(aside);
        let write = || File::create(&aside)?.write_all(commit.as_bytes());
        write().map_err(StoreError::io("write", &aside))?;
        fs::rename(&aside, &path).map_err(StoreError::io("write", &path))
    }

    /// Takes the lock of a blob, waiting for whoever has it; `on_wait` is called first if there is a wait.
    pub(crate) fn lock(&self, blob: &str, on_wait: &mut dyn FnMut()) -> Result<BlobLock, StoreError> {
        let mut waited = false;
        loop {
            let (path, file) = self.open_lock(blob)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    if !waited {
                        on_wait();
                        waited = true;
                    }
                    file.lock().map_err(StoreError::io("lock", &path))?;
                }
                // A file system without locks: go on without, as there is nothing to wait for.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
                Ok(()) => {}
            }
            if still_named(&file) {
                return Ok(BlobLock { _file: file });
            }
        }
    }

    /// Takes the lock of a blob if nobody has it.
    pub(crate) fn try_lock(&self, blob: &str) -> Result<BlobLock, StoreError> {
        let (_, file) = self.open_lock(blob)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(StoreError::Busy { path: self.blobs().join(blob) }),
            _ => Ok(BlobLock { _file: file }),
        }
    }

    fn open_lock(&self, blob: &str) -> Result<(PathBuf, File), StoreError> {
        let path = self.locks.join(format!("{blob}.lock"));
        make_parent(&path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(StoreError::io("open the lock", &path))?;
        Ok((path, file))
    }
}

/// The right to write one blob; given back on drop.
#[derive(Debug)]
pub(crate) struct BlobLock {
    _file: File,
}

/// Python's lock deletes its file when it is given back: a lock on a nameless file guards nothing.
#[cfg(unix)]
fn still_named(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

#[cfg(not(unix))]
fn still_named(_file: &File) -> bool {
    true
}

/// Whether a revision is a full commit id.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Makes the folder that `path` lies in.
pub(crate) fn make_parent(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(StoreError::io("make the folder", parent)),
        None => Ok(()),
    }
}

/// How a symbolic link is made: target as written in the link, then the link.
pub(crate) type Symlink = fn(&Path, &Path) -> io::Result<()>;

/// The system's way to make a symbolic link to a file.
pub(crate) fn system_symlink(target: &Path, link: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, link);
    #[cfg(windows)]
    return std::os::windows::fs::symlink_file(target, link);
    #[cfg(not(any(unix, windows)))]
    return Err(io::Error::from(io::ErrorKind::Unsupported));
}

/// How a file came into a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// As a relative link to its blob, which must stay.
    Link,
    /// As a file of its own, where links cannot be made; `huggingface_hub` then keeps no blob beside it.
    File,
}

/// Puts `file` into a snapshot.
pub(crate) fn place(snapshot: &Path, file: &str, blob: &Path, symlink: Symlink) -> Result<Placed, StoreError> {
    let link = snapshot.join(file);
    make_parent(&link)?;
    let mut target: PathBuf = std::iter::repeat_n("..", file.split('/').count() + 1).collect();
    target.extend(["blobs".as_ref(), blob.file_name().unwrap_or_default()]);
    if fs::read_link(&link).is_ok_and(|old| old == target) {
        return Ok(Placed::Link);
    }
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("replace", &link)(error)),
        _ => {}
    }
    match symlink(&target, &link) {
        Ok(()) => Ok(Placed::Link),
        // Another pull of the same file was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && link.exists() => Ok(Placed::Link),
        Err(_) => {
            let copy = |_| fs::copy(blob, &link).map(|_bytes| ());
            fs::hard_link(blob, &link).or_else(copy).map_err(StoreError::io("place", &link))?;
            Ok(Placed::File)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in ["", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/", "a\\b", "a\0b", "a\nb", &"x".repeat(256)] {
            assert!(name_problem(name).is_some(), "{name:?}");
        }
        for name in ["a", "a/b.gguf", "..a", "a..b", "Größe – 模型 (1).gguf", ".gitattributes", "...", "a b"] {
            assert_eq!(name_problem(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_snapshot_file_is_a_relative_link_or_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let repo = RepoDir::new(folder.path(), "models--a--b");
        fs::create_dir_all(repo.blobs()).unwrap();
        let blob = repo.blobs().join("abc");
        fs::write(&blob, "x").unwrap();
        let snapshot = repo.snapshot("c");
        for _ in 0..2 {
            assert_eq!(place(&snapshot, "sub/f.json", &blob, system_symlink).unwrap(), Placed::Link);
        }
        #[cfg(unix)]
        assert_eq!(fs::read_link(snapshot.join("sub/f.json")).unwrap(), Path::new("../../../blobs/abc"));
        assert_eq!(fs::read(snapshot.join("sub/f.json")).unwrap(), b"x");

        let no_links: Symlink = |_, _| Err(io::ErrorKind::PermissionDenied.into());
        for name in ["g.json", "h.json"] {
            assert_eq!(place(&snapshot, name, &blob, no_links).unwrap(), Placed::File);
            assert!(!snapshot.join(name).is_symlink());
        }
        fs::remove_file(&blob).unwrap();
        assert_eq!(fs::read(snapshot.join("h.json")).unwrap(), b"x", "the file does not need its blob");
    }

    #[test]
    fn a_lock_is_waited_for_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let repo = RepoDir::new(folder.path(), "models--a--b");
        let mut held = Some(repo.lock("x", &mut || panic!("nobody has it")).unwrap());
        assert!(matches!(repo.try_lock("x"), Err(StoreError::Busy { .. })));
        repo.try_lock("y").unwrap();
        let second = repo.lock("x", &mut || drop(held.take())).unwrap();
        assert!(held.is_none(), "the wait was announced");
        drop(second);
        repo.try_lock("x").unwrap();
    }

    #[test]
    fn refs_are_written_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let repo = RepoDir::new(folder.path(), "models--a--b");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(repo.commit_of("main"), None);
        repo.write_ref("refs/pr/1", commit).unwrap();
        assert_eq!(repo.commit_of("refs/pr/1").as_deref(), Some(commit));
        assert_eq!(repo.commit_of(commit).as_deref(), Some(commit));
        fs::write(repo.refs().join("bad"), "../../../../etc").unwrap();
        assert_eq!(repo.commit_of("bad"), None, "a ref is only ever a commit");
        assert_eq!(fs::read_dir(repo.refs().join("refs/pr")).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn a_ref_may_be_written_by_many_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let repo = RepoDir::new(folder.path(), "models--a--b");
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let (repo, start) = (&repo, &start);
                scope.spawn(move || {
                    start.wait();
                    for round in 0..50 {
                        let commit = format!("{:040x}", writer * 100 + round);
                        repo.write_ref("main", &commit).unwrap();
                    }
                });
            }
        });
        assert!(repo.commit_of("main").is_some());
        assert_eq!(fs::read_dir(repo.refs()).unwrap().count(), 1, "nothing is left aside");
    }
}
