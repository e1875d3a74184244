//! How much memory this process may still take.
//!
//! Invariant: memory that the system gives back on demand counts as free. Model files are mapped, so the pages of
//! a file that was just read would otherwise count twice: once as the file's, once as the packed weights'.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process may still take: the system's available memory, or what the tightest of its control
/// groups (version 1 or 2) leaves of it. `None` where the system does not say.
pub fn available_memory() -> Option<u64> {
    let system = parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_free(Path::new("/sys/fs/cgroup"), &groups).map_or(system, |free| free.min(system)))
}

/// Bytes that this process could take at most: the system's memory, or the limit of the tightest of its control
/// groups. `None` where the system does not say.
pub(crate) fn total_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    let system = kib.checked_mul(1024)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = folders_of(Path::new("/sys/fs/cgroup"), &groups).iter().filter_map(|f| limit_of(f)).min();
    Some(limits.map_or(system, |limit| limit.min(system)))
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn parse_meminfo(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// What the groups that `membership` (`/proc/self/cgroup`) names leave, and all groups above them: a limit holds
/// for everything below it. `None` where none has a limit.
fn group_free(root: &Path, membership: &str) -> Option<u64> {
    folders_of(root, membership).iter().filter_map(|folder| free_of(folder)).min()
}

/// The folders of these groups.
fn folders_of(root: &Path, membership: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let base = match controllers {
            "" => root.to_path_buf(),
            c if c.split(',').any(|c| c == "memory") => root.join("memory"),
            _ => continue,
        };
        // A container may see its own group as the root, whatever the path says: the root is always asked.
        let below = path.trim_start_matches('/');
        folders.extend(Path::new(below).ancestors().map(|p| base.join(p)));
    }
    folders
}

/// The limit of one group; "max", version 2's word for no limit, is no number.
fn limit_of(folder: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    number("memory.max").or_else(|| number("memory.limit_in_bytes"))
}

/// Limit less use of one group, with cached pages of files counted as free.
fn free_of(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name).and_then(|s| s.trim().parse::<u64>().ok());
    let limit = limit_of(folder)?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = read("memory.stat").unwrap_or_default();
    let cached = file_pages(&stat, "total_").or_else(|| file_pages(&stat, "")).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// Bytes of files' pages in a `memory.stat`; version 1 names a group's and its children's sum `total_…`.
fn file_pages(stat: &str, prefix: &str) -> Option<u64> {
    let field = |name: &str| {
        let value = |l: &str| l.strip_prefix(prefix)?.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok();
        stat.lines().find_map(value)
    };
    Some(field("active_file")?.saturating_add(field("inactive_file")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(folder: PathBuf, files: &[(&str, &str)]) {
        fs::create_dir_all(&folder).unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        let info = "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:      42 kB\n";
        assert_eq!(parse_meminfo(info), Some(42 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB"), None);
        assert_eq!(parse_meminfo("MemAvailable: 99999999999999999999 kB"), None);
        assert_eq!(parse_meminfo(&format!("MemAvailable: {} kB", u64::MAX)), None);
    }

    #[test]
    fn version_2_limits_of_all_groups_above_hold_and_cached_files_are_free() {
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        let stat = "anon 100\nactive_file 300\ninactive_file 200\n";
        group(at(""), &[]);
        group(at("app"), &[("memory.max", "1000\n"), ("memory.current", "900\n"), ("memory.stat", stat)]);
        group(at("app/job"), &[("memory.max", "max\n"), ("memory.current", "900\n")]);
        assert_eq!(group_free(root.path(), "0::/app/job\n"), Some(600));
        assert_eq!(group_free(root.path(), "0::/elsewhere\n"), None);
        // Inside a container its group lies at the root.
        group(at(""), &[("memory.max", "500"), ("memory.current", "900"), ("memory.stat", "")]);
        assert_eq!(group_free(root.path(), "0::/not/visible/here\n"), Some(0));
    }

    #[test]
    fn version_1_limits_hold_too() {
        let root = tempfile::tempdir().unwrap();
        let stat = "active_file 1\ninactive_file 1\ntotal_active_file 10\ntotal_inactive_file 20\n";
        let files = [("memory.limit_in_bytes", "100"), ("memory.usage_in_bytes", "90"), ("memory.stat", stat)];
        group(root.path().join("memory/box"), &files);
        let unlimited = [("memory.limit_in_bytes", "9223372036854771712"), ("memory.usage_in_bytes", "5000")];
        group(root.path().join("memory"), &unlimited);
        let membership = "5:devices:/\n4:cpu,memory:/box\n1:cpu:/\n0::/\nnonsense\n";
        assert_eq!(group_free(root.path(), membership), Some(40));
    }

    #[test]
    fn this_machine_gives_a_plausible_figure() {
        if let Some(free) = available_memory() {
            assert!(free < 1 << 50, "{free} bytes");
        }
    }
}
