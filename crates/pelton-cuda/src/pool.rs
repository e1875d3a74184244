//! Device memory: allocations of their own, kept for the next one of the same size.
//!
//! Buffers of a step come and go with every step; here they come back at the same address, so that a step's launches are
//! the same as the last step's and a graph can replay them. Invariant: memory is given back to the driver only when all
//! work is done; everything on the stream happens in order, so a buffer may be used again while what read it is still
//! waiting to run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::CudaError;
use crate::device::Device;
use crate::driver::{DevicePointer, OUT_OF_MEMORY};

/// The allocator of one device.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Free buffers by size.
    free: BTreeMap<usize, Vec<DevicePointer>>,
    /// Bytes allocated, used or free.
    allocated: usize,
}

/// Some device memory; returns to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    shared: Arc<Shared>,
    pointer: DevicePointer,
    bytes: usize,
}

/// Sizes are rounded up, so that batches that grow by a row now and then find a buffer.
fn rounded(bytes: usize) -> usize {
    let bytes = bytes.max(256);
    // An eighth of the next power of two: at most 12.5% more than asked for.
    let step = (bytes.next_power_of_two() / 16).max(256);
    bytes.div_ceil(step) * step
}

impl Pool {
    pub(crate) fn new(device: Arc<Device>) -> Pool {
        Pool { shared: Arc::new(Shared { device, state: Mutex::default() }) }
    }

    /// Bytes that the pool has of the device.
    pub(crate) fn allocated(&self) -> usize {
        self.shared.state.lock().expect("nothing panics while it is held").allocated
    }

    /// Memory for `bytes` bytes, contents unspecified, that may have been used before.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], and what the driver says.
    pub(crate) fn get(&self, what: &str, bytes: usize) -> Result<Buffer, CudaError> {
        self.take(what, rounded(bytes))
    }

    /// Memory that is kept long: exactly `bytes`.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub(crate) fn get_exact(&self, what: &str, bytes: usize) -> Result<Buffer, CudaError> {
        self.take(what, bytes.max(16))
    }

    fn take(&self, what: &str, bytes: usize) -> Result<Buffer, CudaError> {
        let mut state = self.shared.state.lock().expect("nothing panics while it is held");
        if let Some(pointer) = state.free.get_mut(&bytes).and_then(Vec::pop) {
            return Ok(Buffer { shared: self.shared.clone(), pointer, bytes });
        }
        let Some(pointer) = self.shared.allocate(bytes)? else {
            let free = self.shared.device.free_memory()?;
            return Err(CudaError::OutOfMemory { what: what.to_string(), bytes, free });
        };
        state.allocated += bytes;
        Ok(Buffer { shared: self.shared.clone(), pointer, bytes })
    }
}

impl Pool {
    /// Gives idle buffers back to the driver. Nothing may be waiting to run that uses them.
    pub(crate) fn trim(&self) {
        let mut state = self.shared.state.lock().expect("nothing panics while it is held");
        state.release(&self.shared.device);
    }
}

impl Shared {
    /// New memory; `None` where there is not enough.
    fn allocate(&self, bytes: usize) -> Result<Option<DevicePointer>, CudaError> {
        self.device.enter()?;
        let driver = &self.device.driver;
        let mut pointer = 0;
        // SAFETY: the pointer is to an address.
        match unsafe { (driver.allocate)(&mut pointer, bytes) } {
            OUT_OF_MEMORY => Ok(None),
            status => driver.check("cuMemAlloc", status).map(|()| Some(pointer)),
        }
    }
}

impl State {
    /// Gives all free buffers back to the driver. The stream must be idle.
    fn release(&mut self, device: &Device) {
        for (bytes, pointers) in std::mem::take(&mut self.free) {
            for pointer in pointers {
                self.allocated -= bytes;
                // SAFETY: the address came from the driver and nobody has it any more.
                unsafe { (device.driver.free)(pointer) };
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A device that is lost refuses both, and its memory is gone anyway.
        let _entered = self.device.enter();
        let _waited = self.device.wait();
        self.state.get_mut().expect("nothing panics while it is held").release(&self.device);
    }
}

impl Buffer {
    /// Its address.
    pub(crate) fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut state) = self.shared.state.lock() {
            state.free.entry(self.bytes).or_default().push(self.pointer);
        }
    }
}
