//! What the compiler says that kernels use: registers, stack, spills, shared memory.

use std::collections::BTreeMap;

/// One kernel on one architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) registers: u32,
    pub(super) stack: u32,
    pub(super) spills: u32,
    pub(super) shared: u32,
}

/// By kernel and architecture.
#[derive(Debug, Default)]
pub(super) struct Resources {
    uses: BTreeMap<(String, String), Use>,
}

/// The number before `unit` in a line.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Resources {
    /// Reads what ptxas prints with `-v`.
    pub(super) fn read(&mut self, log: &str, arch: &str) {
        let mut kernel = None;
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                kernel = rest.split_once('\'').map(|(name, _)| name.to_string());
            }
            let Some(name) = &kernel else { continue };
            let used = self.uses.entry((name.clone(), arch.to_string())).or_default();
            if let Some(stack) = number_before(line, " bytes stack frame") {
                used.stack = stack;
                used.spills = number_before(line, " bytes spill stores").unwrap_or(0);
            }
            if let Some(registers) = number_before(line, " registers") {
                used.registers = registers;
                used.shared = number_before(line, " bytes smem").unwrap_or(0);
            }
        }
    }

    pub(super) fn kernels(&self) -> Vec<String> {
        let mut names: Vec<String> = self.uses.keys().map(|(name, _)| name.clone()).collect();
        names.dedup();
        names
    }

    pub(super) fn get(&self, kernel: &str, arch: &str) -> Option<Use> {
        self.uses.get(&(kernel.to_string(), arch.to_string())).copied()
    }

    /// One line a kernel and architecture, for [`Resources::from_lines`].
    pub(super) fn to_lines(&self) -> String {
        let line = |((kernel, arch), u): (&(String, String), &Use)| {
            format!("{kernel} {arch} {} {} {} {}\n", u.registers, u.stack, u.spills, u.shared)
        };
        self.uses.iter().map(line).collect()
    }

    pub(super) fn from_lines(text: &str) -> Resources {
        let read = |line: &str| {
            let mut words = line.split(' ');
            let key = (words.next()?.to_string(), words.next()?.to_string());
            let mut number = || words.next()?.parse().ok();
            Some((key, Use { registers: number()?, stack: number()?, spills: number()?, shared: number()? }))
        };
        Resources { uses: text.lines().filter_map(read).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'rms_norm' for 'sm_86'
ptxas info    : Function properties for rms_norm
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 32 bytes smem, 388 bytes cmem[0]
";

    #[test]
    fn the_compilers_lines_are_read() {
        let mut resources = Resources::default();
        resources.read(LOG, "sm_86");
        let used = Use { registers: 24, stack: 8, spills: 4, shared: 32 };
        assert_eq!(resources.get("rms_norm", "sm_86"), Some(used));
        let back = Resources::from_lines(&resources.to_lines());
        assert_eq!(back.get("rms_norm", "sm_86"), Some(used));
        assert_eq!(back.kernels(), ["rms_norm"]);
    }
}
