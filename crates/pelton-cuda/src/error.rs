//! What can go wrong between Pelton and a GPU, and what to do about it.

/// Why there is no GPU to compute on, or why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// No driver library on this machine.
    #[error("no NVIDIA driver: {library} cannot be loaded ({reason}); install the driver, or run on the CPU")]
    NoDriver {
        /// What was looked for.
        library: String,
        /// What the system said.
        reason: String,
    },
    /// A driver that lacks a function.
    #[error("the NVIDIA driver {library} has no function {symbol}; Pelton needs a driver of version 525 or later")]
    OldDriver {
        /// The library.
        library: String,
        /// What it lacks.
        symbol: String,
    },
    /// The driver found no card.
    #[error("the NVIDIA driver reports no GPU")]
    NoDevice,
    /// A card that is not there.
    #[error("there is no GPU {index}; this machine has {count} (numbered from 0)")]
    NoSuchDevice {
        /// Asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A card without the instructions that kernels use.
    #[error("{name} has compute capability {major}.{minor}; Pelton's kernels need 8.0 or later (RTX 30 series, A100)")]
    OldDevice {
        /// The card.
        name: String,
        /// Its capability.
        major: i32,
        /// Its capability.
        minor: i32,
    },
    /// No kernels for this card.
    #[error("no kernels for {arch} in this build, and they cannot be compiled here: {reason}")]
    NoKernels {
        /// `sm_86` and the like.
        arch: String,
        /// Why not.
        reason: String,
    },
    /// A call that failed.
    #[error("{call} failed: {name} ({message})")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// The error's name.
        name: String,
        /// The driver's explanation.
        message: String,
    },
    /// Device memory that is not there.
    #[error("the GPU has {free} bytes free, {bytes} are needed for {what}; use a smaller context or fewer sequences")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// How much.
        bytes: usize,
        /// What is free.
        free: usize,
    },
}

impl CudaError {
    /// Ends a step, whose ops have no way to refuse: its requests fail with this message.
    ///
    /// # Panics
    /// Always.
    pub(crate) fn end_step(self) -> ! {
        match self {
            CudaError::OutOfMemory { .. } => panic!("{self}"),
            other => panic!("the GPU stopped; restart Pelton to use it again (a server tries to by itself): {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_words(error: CudaError) -> String {
        let panic = std::panic::catch_unwind(|| error.end_step()).unwrap_err();
        *panic.downcast::<String>().unwrap()
    }

    #[test]
    fn a_step_ends_with_what_to_do() {
        let lost = CudaError::Driver { call: "cuMemAlloc", name: "LAUNCH_FAILED".into(), message: String::new() };
        let words = last_words(lost);
        assert!(words.contains("the GPU stopped; restart") && words.contains("cuMemAlloc"), "{words}");
        let full = last_words(CudaError::OutOfMemory { what: "an op".into(), bytes: 7, free: 5 });
        assert!(full.contains("fewer sequences") && !full.contains("restart"), "{full}");
    }
}
