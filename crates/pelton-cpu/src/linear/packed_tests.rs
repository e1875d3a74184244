//! Packed files: what is stored comes back, and nothing else does.

use std::sync::Arc;

use pelton_backend::{LinearSpec, Weight};
use pelton_quant::DType;

use super::*;
use crate::isa::Isa;
use crate::linear::{LinearScratch, PackedLinear};

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("pelton-packed-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("sub/model.packed")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A weight of blocks that decode to finite numbers.
fn weight(name: &str, dtype: DType, rows: usize, cols: usize, seed: usize) -> Weight {
    let row: Vec<f32> = (0..rows * cols).map(|i| ((i * 31 + seed) % 97) as f32 / 48.0 - 1.0).collect();
    let mut bytes = Vec::new();
    pelton_quant::encode(dtype, &row, &mut bytes).unwrap();
    Weight::new(name, dtype, rows, cols, Arc::new(bytes)).unwrap()
}

fn specs() -> Vec<LinearSpec> {
    let parts = |weights: Vec<Weight>| {
        let bias = vec![0.5; weights.iter().map(Weight::rows).sum()];
        LinearSpec::new("layer", weights, bias).unwrap()
    };
    vec![
        parts(vec![weight("q", DType::Q4_0, 40, 64, 1), weight("k", DType::Q5_0, 16, 64, 2)]),
        parts(vec![weight("down", DType::Q6_K, 33, 256, 3)]),
        parts(vec![weight("head", DType::F16, 7, 33, 4)]),
        // Longer than a chunk, so that it has several checksums.
        parts(vec![weight("wide", DType::F32, 48, 8192, 5)]),
    ]
}

fn outputs(linears: &[PackedLinear], pool: &Pool) -> Vec<Vec<u32>> {
    let mut scratch = LinearScratch::new();
    let forward = |linear: &PackedLinear| {
        let x: Vec<f32> = (0..2 * linear.in_features()).map(|i| (i % 19) as f32 - 9.0).collect();
        let mut out = vec![0.0; 2 * linear.out_features()];
        linear.forward(&x, 2, &mut out, &mut scratch, pool);
        out.iter().map(|v| v.to_bits()).collect()
    };
    linears.iter().map(forward).collect()
}

fn pack(pool: &Pool) -> Vec<PackedLinear> {
    specs().iter().map(|spec| PackedLinear::pack(spec, Isa::detect(), pool).unwrap()).collect()
}

fn store(path: &Path, source: &str, pool: &Pool) -> Vec<PackedLinear> {
    let (linears, mut writer) = (pack(pool), PackedWriter::create(path, source).unwrap());
    linears.iter().for_each(|linear| linear.store(&mut writer, pool).unwrap());
    assert!(!path.exists(), "a file has its name only when it is whole");
    assert_eq!(writer.finish().unwrap(), fs::metadata(path).unwrap().len());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    linears
}

fn open(path: &Path, source: &str, pool: &Pool) -> Result<Option<PackedFile>, PackedError> {
    PackedFile::open(path, source, pool, &mut |_, _| ())
}

#[test]
fn what_is_stored_is_mapped_with_the_same_bits() {
    let (folder, pool) = (Folder::new("same"), Pool::new(2).unwrap());
    let path = folder.file();
    assert!(open(&path, "a", &pool).unwrap().is_none());
    let packed = store(&path, "a", &pool);
    assert_eq!(packed_source(&path).unwrap(), "a");
    let (mut seen, mut calls) = ((0, 0), 0);
    let mut progress = |done, total| {
        calls += 1;
        seen = (done, total);
    };
    let mut file = PackedFile::open(&path, "a", &pool, &mut progress).unwrap().unwrap();
    assert!(calls > 0 && seen.0 == seen.1, "{seen:?}");
    let isa = Isa::detect();
    let mapped: Vec<PackedLinear> =
        specs().iter().map(|s| PackedLinear::take_or_pack(s, isa, &pool, &mut file).unwrap()).collect();
    assert_eq!((file.missed, file.used_bytes), (0, packed.iter().map(PackedLinear::bytes).sum()));
    drop(file);
    // The panels outlive the file's handle and its name.
    fs::remove_file(&path).unwrap();
    assert_eq!(outputs(&mapped, &pool), outputs(&packed, &pool));
}

#[test]
fn another_source_is_out_of_date() {
    let (folder, pool) = (Folder::new("stale"), Pool::new(1).unwrap());
    store(&folder.file(), "model of monday", &pool);
    let error = open(&folder.file(), "model of tuesday", &pool).unwrap_err();
    assert!(matches!(error, PackedError::Stale { .. }), "{error}");
}

#[test]
fn every_changed_byte_and_every_cut_is_found() {
    let (folder, pool) = (Folder::new("damage"), Pool::new(2).unwrap());
    let path = folder.file();
    store(&path, "a", &pool);
    let whole = fs::read(&path).unwrap();
    let table = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    // Padding between matrices is used by nobody.
    let panels = [PAGE, PAGE + 1, PAGE + 1000, table - 48 * 8192 * 4, table - 1];
    for at in (0..HEAD).chain(panels).chain(table..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x80;
        fs::write(&path, &bytes).unwrap();
        assert!(open(&path, "a", &pool).is_err(), "byte {at} was changed");
    }
    for len in [0, 1, HEAD - 1, HEAD, PAGE, table, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(open(&path, "a", &pool).is_err(), "cut to {len} bytes");
        assert!(packed_source(&path).is_err(), "cut to {len} bytes");
    }
    fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
    assert!(open(&path, "a", &pool).is_err(), "a byte too many");
}

#[test]
fn a_weight_that_the_file_has_otherwise_is_packed() {
    let (folder, pool) = (Folder::new("other"), Pool::new(1).unwrap());
    store(&folder.file(), "a", &pool);
    let mut file = open(&folder.file(), "a", &pool).unwrap().unwrap();
    let odd = [
        weight("new", DType::Q4_0, 40, 64, 1),
        weight("q", DType::Q4_0, 40, 64, 9),
        weight("q", DType::Q4_0, 24, 64, 1),
        weight("q", DType::Q4_0, 40, 96, 1),
        weight("q", DType::Q5_0, 40, 64, 1),
    ];
    for (i, odd) in odd.into_iter().enumerate() {
        let spec = LinearSpec::new("layer", vec![odd], Vec::new()).unwrap();
        let taken = PackedLinear::take_or_pack(&spec, Isa::detect(), &pool, &mut file).unwrap();
        let packed = PackedLinear::pack(&spec, Isa::detect(), &pool).unwrap();
        assert_eq!(outputs(&[taken], &pool), outputs(&[packed], &pool));
        assert_eq!((file.missed, file.used_bytes), (i + 1, 0));
    }
}

#[test]
fn a_writer_that_gives_up_leaves_nothing_and_two_do_not_mix() {
    let (folder, pool) = (Folder::new("writer"), Pool::new(1).unwrap());
    let path = folder.file();
    let first = PackedWriter::create(&path, "a").unwrap();
    assert!(matches!(PackedWriter::create(&path, "a"), Err(PackedError::Busy { .. })));
    drop(first);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    // What a killed process left is overwritten, however long it is.
    fs::write(path.with_extension("tmp"), vec![7; 4 << 20]).unwrap();
    store(&path, "b", &pool);
    assert!(open(&path, "b", &pool).unwrap().is_some());
}

#[test]
fn a_checksum_sees_every_bit_and_the_length() {
    let bytes: Vec<u8> = (0..200).map(|i| (i * 7) as u8).collect();
    let sum = checksum(&bytes);
    for bit in 0..8 * bytes.len() {
        let mut other = bytes.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(checksum(&other), sum, "bit {bit}");
        // Two changes of the same bit of a lane do not cancel out.
        if let Some(second) = other.get_mut(bit / 8 + 64) {
            *second ^= 1 << (bit % 8);
            assert_ne!(checksum(&other), sum, "bit {bit} twice");
        }
    }
    assert_ne!(checksum(&[0; 64]), checksum(&[0; 65]));
    assert_ne!(checksum(&[]), checksum(&[0]));
}
