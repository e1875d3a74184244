//! Compiled kernels in one file: what a release puts into the binary.
//!
//! Layout: `PELTCU01`, then entries: length of the name (u32), name (`norm.sm_86`, `norm.compute_80`), length of the
//! content (u32), length as compressed (u32), zlib bytes. Little endian. Invariant: no length is trusted: each is held
//! against what is there, and a content against its own.

use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

const MAGIC: &[u8] = b"PELTCU01";
/// No kernel's machine code is this long.
const MAX_CONTENT: usize = 64 << 20;

/// Why a file is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compiled kernels: {0}; make them again with `cargo xtask cuda-kernels`")]
pub struct BundleError(String);

/// Compiled kernels by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    entries: Vec<(String, Vec<u8>)>,
}

impl Bundle {
    /// Adds the code of a file of kernels for an architecture.
    pub fn add(&mut self, file: &str, arch: &str, content: Vec<u8>) {
        self.entries.push((format!("{file}.{arch}"), content));
    }

    /// The code of a file for an architecture.
    pub fn get(&self, file: &str, arch: &str) -> Option<&[u8]> {
        let name = format!("{file}.{arch}");
        self.entries.iter().find(|(n, _)| *n == name).map(|(_, content)| content.as_slice())
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, content) in &self.entries {
            let compressed = compress_to_vec_zlib(content, 10);
            for length in [name.len(), content.len(), compressed.len()] {
                let length = u32::try_from(length).expect("code of less than 4 GiB");
                out.extend(length.to_le_bytes());
            }
            out.extend(name.as_bytes());
            out.extend(&compressed);
        }
        out
    }

    /// Reads a file's bytes; an empty file is an empty bundle.
    ///
    /// # Errors
    /// [`BundleError`] says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Bundle, BundleError> {
        let mut bundle = Bundle::default();
        if bytes.is_empty() {
            return Ok(bundle);
        }
        let wrong = |what: &str| BundleError(what.to_string());
        let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("the file does not begin as it should"))?;
        while !rest.is_empty() {
            let (head, after) = rest.split_first_chunk::<12>().ok_or_else(|| wrong("an entry is cut short"))?;
            let [name_len, content_len, compressed_len] =
                [0, 4, 8].map(|i| u32::from_le_bytes(std::array::from_fn(|j| head[i + j])) as usize);
            let end = name_len.checked_add(compressed_len).filter(|&end| end <= after.len());
            let end = end.ok_or_else(|| wrong("an entry is cut short"))?;
            let name = std::str::from_utf8(&after[..name_len]).map_err(|_| wrong("a name is no text"))?;
            if content_len > MAX_CONTENT {
                return Err(BundleError(format!("{name} says that it is {content_len} bytes long")));
            }
            let content = decompress_to_vec_zlib_with_limit(&after[name_len..end], content_len);
            let content = content.ok().filter(|c| c.len() == content_len);
            let content = content.ok_or_else(|| BundleError(format!("{name} cannot be decompressed")))?;
            bundle.entries.push((name.to_string(), content));
            rest = &after[end..];
        }
        Ok(bundle)
    }

    /// What is in this binary; empty where it was built without compiled kernels.
    ///
    /// # Errors
    /// [`BundleError`]: the file that it was built with was none.
    pub fn embedded() -> Result<Bundle, BundleError> {
        Bundle::from_bytes(include_bytes!(concat!(env!("OUT_DIR"), "/kernels.bundle")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let mut bundle = Bundle::default();
        bundle.add("norm", "sm_86", vec![7; 5000]);
        bundle.add("norm", "compute_80", b"// text".to_vec());
        bundle
    }

    #[test]
    fn what_goes_in_comes_out() {
        let bytes = bundle().to_bytes();
        assert!(bytes.len() < 200, "{} bytes: equal bytes compress well", bytes.len());
        let back = Bundle::from_bytes(&bytes).unwrap();
        assert_eq!(back, bundle());
        assert_eq!(back.get("norm", "sm_86").map(<[u8]>::len), Some(5000));
        assert_eq!(back.get("norm", "sm_90a"), None);
        assert_eq!(Bundle::from_bytes(&[]), Ok(Bundle::default()));
    }

    #[test]
    fn a_file_that_is_cut_or_changed_anywhere_is_refused_or_stays_what_it_was() {
        let bytes = bundle().to_bytes();
        for n in 1..bytes.len() {
            let cut = Bundle::from_bytes(&bytes[..n]);
            assert!(cut.is_err() || cut.unwrap().entries.len() < 2, "cut at {n}");
        }
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 0x41;
            // Whatever it is, it is no panic and no endless allocation.
            let _read = Bundle::from_bytes(&changed);
        }
    }
}
