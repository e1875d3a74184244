//! Names of answers and calls.
//!
//! Invariant: no two are alike within a process, and hardly any across processes; they tell nothing.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pelton::ToolFormat;

use crate::engine::Loaded;

/// Makes names.
pub(crate) struct Serial {
    keys: [RandomState; 2],
    next: AtomicU64,
}

impl Serial {
    pub(crate) fn new() -> Serial {
        Serial { keys: [RandomState::new(), RandomState::new()], next: AtomicU64::new(0) }
    }

    /// `prefix` and 24 hexadecimal digits.
    pub(crate) fn name(&self, prefix: &str) -> String {
        let n = self.next.fetch_add(1, Relaxed);
        let [a, b] = [0, 1].map(|i: usize| self.keys[i].hash_one(n));
        format!("{prefix}{a:016x}{:08x}", b as u32)
    }

    /// The name of a tool call. Mistral's templates want nine letters or digits.
    pub(crate) fn call(&self, model: &Loaded) -> String {
        match model.tool_format {
            Some(ToolFormat::Mistral) => self.name("").chars().take(9).collect(),
            _ => self.name("call_"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ() {
        let serial = Serial::new();
        let (a, b) = (serial.name("x-"), serial.name("x-"));
        assert_ne!(a, b);
        assert_eq!(a.len(), 26);
    }
}
