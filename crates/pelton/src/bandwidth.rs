//! The machine's read bandwidth, measured: the ceiling of decoding.

use pelton_cpu::{Cpu, CpuOptions};

use crate::{Error, Options};

/// Bytes a second that the CPU's threads read from memory together, in GB/s: the best of a few passes over a
/// buffer larger than the caches.
///
/// # Errors
/// Where the options ask for kernels that the machine lacks.
pub fn read_bandwidth(options: &Options) -> Result<f64, Error> {
    let cpu = Cpu::new(CpuOptions { threads: options.threads, isa: options.isa.clone() })?;
    Ok(cpu.read_bandwidth(1 << 30))
}
