//! Room on the disk, asked before a download begins.
//!
//! Invariant: where the room cannot be known (no such call on this system, or it failed), nothing is refused here;
//! a disk that fills up is then named when the write fails.

use std::path::Path;

use crate::StoreError;

/// Refuses when `folder`'s disk has less than `needed` bytes for this user.
///
/// # Errors
/// [`StoreError::DiskFull`] with what is missing.
pub fn check_room(folder: &Path, needed: u64) -> Result<(), StoreError> {
    match free_bytes(folder) {
        Some(free) if free < needed => {
            Err(StoreError::DiskFull { path: folder.to_path_buf(), needed, free, short: needed - free })
        }
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_download_larger_than_the_disk_is_refused_with_the_shortfall() {
        let folder = tempfile::tempdir().unwrap();
        check_room(folder.path(), 1).unwrap();
        let error = check_room(folder.path(), u64::MAX).unwrap_err();
        let StoreError::DiskFull { needed, free, short, .. } = &error else { panic!("{error}") };
        assert_eq!((*needed, *short), (u64::MAX, u64::MAX - free));
        assert!(error.to_string().contains("more bytes"), "{error}");
    }
}
