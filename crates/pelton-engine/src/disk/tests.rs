//! Pages out and back, damaged files, and the limit.

use std::fs;

use super::*;

const PAYLOAD: usize = 1000;

fn options(folder: &Path, max_bytes: u64) -> DiskOptions {
    DiskOptions { folder: folder.to_path_buf(), max_bytes, identity: "a model".into() }
}

fn open(folder: &Path, max_bytes: u64) -> Disk {
    Disk::open(&options(folder, max_bytes), "bf16", PAYLOAD).unwrap()
}

fn tokens(n: u32) -> Arc<[u32]> {
    (n..n + 4).collect()
}

/// A chain of pages and their keys.
fn chain(disk: &Disk, n: u32) -> Vec<PageKey> {
    let mut key = disk.root(0);
    (0..n)
        .map(|i| {
            key = key.next(&tokens(i));
            key
        })
        .collect()
}

fn write(disk: &Disk, keys: &[PageKey]) {
    for (i, &key) in keys.iter().enumerate() {
        disk.write_waiting(NewPage { key, tokens: tokens(i as u32), bytes: vec![i as u8; PAYLOAD] });
    }
}

#[test]
fn pages_come_back_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let disk = open(&path, 1 << 20);
    let keys = chain(&disk, 5);
    write(&disk, &keys);
    drop(disk);
    // What a killed process leaves behind is no page.
    fs::write(path.join("half.kvpage-1"), b"PELTON").unwrap();
    let disk = open(&path, 1 << 20);
    assert_eq!((disk.stats().pages, disk.stats().bytes), (5, 5 * file::len(4, PAYLOAD)));
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(disk.read(key, &tokens(i as u32)), Some(vec![i as u8; PAYLOAD]));
    }
    assert!(disk.read(&keys[0], &tokens(1)).is_none(), "other tokens");
    assert_eq!((disk.stats().read, disk.stats().rejected), (5, 1));
    // Another model's keys are others.
    let other = DiskOptions { identity: "another model".into(), ..options(&path, 1 << 20) };
    let other = Disk::open(&other, "bf16", PAYLOAD).unwrap();
    assert!(!other.contains(&chain(&other, 1)[0]));
}

#[test]
fn damage_anywhere_is_found_and_the_file_removed() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path(), 1 << 20);
    let keys = chain(&disk, 1);
    write(&disk, &keys);
    drop(disk);
    let path = path_of(folder.path(), &keys[0]);
    let whole = fs::read(&path).unwrap();
    let disk = open(folder.path(), 1 << 20);
    for at in (0..whole.len()).step_by(7) {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert!(disk.read(&keys[0], &tokens(0)).is_none(), "byte {at}");
        assert!(!path.exists());
    }
    for len in [0, 10, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(disk.read(&keys[0], &tokens(0)).is_none());
    }
    fs::write(&path, &whole).unwrap();
    assert!(disk.read(&keys[0], &tokens(0)).is_some());
}

#[test]
fn the_folder_stays_below_its_limit_and_keeps_what_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let one = file::len(4, PAYLOAD);
    let disk = open(folder.path(), 3 * one + 10);
    let keys = chain(&disk, 5);
    write(&disk, &keys[..3]);
    // Wait for the writer: a page in use is kept, the one used longest ago goes.
    while disk.stats().written < 3 {
        std::thread::yield_now();
    }
    disk.touch(&keys[..1]);
    write(&disk, &keys[..1]);
    disk.write_waiting(NewPage { key: keys[3], tokens: tokens(3), bytes: vec![3; PAYLOAD] });
    drop(disk);
    let n_files = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(n_files, 3);
    let disk = open(folder.path(), 3 * one + 10);
    let kept: Vec<bool> = keys.iter().map(|key| disk.contains(key)).collect();
    assert_eq!(kept, [true, false, true, true, false]);
    drop(disk);
    // A smaller limit at the next start removes the surplus; one that nothing fits keeps nothing.
    assert_eq!(open(folder.path(), one).stats().pages, 1);
    let none = open(folder.path(), 10);
    write(&none, &keys[..1]);
    drop(none);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_cannot_be_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(Disk::open(&options(&file, 1 << 20), "bf16", PAYLOAD).is_err());
}
