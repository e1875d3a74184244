//! Sequences by id. The hash is fixed, so the same calls give the same plans everywhere; no order is ever taken
//! from the map.

use crate::sequence::SeqId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map from ids, for lookups that a step makes by the thousand.
pub(crate) type IdMap<T> = HashMap<SeqId, T, BuildHasherDefault<IdHasher>>;

/// Spreads a number over all bits (the finalizer of SplitMix64).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u64(&mut self, id: u64) {
        let x = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = x ^ (x >> 27) ^ self.0.rotate_left(5);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
