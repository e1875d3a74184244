//! What every op needs: memory, the queue, the kernels.

use std::sync::Arc;

use pelton_backend::BackendError;

use crate::CudaError;
use crate::device::Device;
use crate::kernels::Kernels;
use crate::pool::{Buffer, Pool};
use crate::queue::{Function, Queue};

/// The kernels that are not of one storage type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ops {
    pub(crate) rms_norm: Function,
    pub(crate) add_rms_norm: Function,
    pub(crate) add: Function,
    pub(crate) softcap: Function,
    pub(crate) gate: Function,
    pub(crate) gather_rows: Function,
    pub(crate) copy_page: Function,
    pub(crate) rope_angles: Function,
    pub(crate) quantize_rows: Function,
    pub(crate) quantize_ordered: Function,
    pub(crate) pad_rows: Function,
    pub(crate) split_rows: Function,
    pub(crate) moe_route: Function,
    pub(crate) moe_combine: Function,
    pub(crate) moe_count: Function,
    pub(crate) moe_group: Function,
    pub(crate) join_chunks: Function,
}

impl Ops {
    pub(crate) fn load(kernels: &mut Kernels) -> Result<Ops, CudaError> {
        Ok(Ops {
            rms_norm: kernels.get("norm", "rms_norm")?,
            add_rms_norm: kernels.get("norm", "add_rms_norm")?,
            add: kernels.get("elementwise", "add")?,
            softcap: kernels.get("elementwise", "softcap")?,
            gate: kernels.get("elementwise", "gate")?,
            gather_rows: kernels.get("elementwise", "gather_rows")?,
            copy_page: kernels.get("elementwise", "copy_page")?,
            rope_angles: kernels.get("rope", "rope_angles")?,
            quantize_rows: kernels.get("quantize", "quantize_rows")?,
            quantize_ordered: kernels.get("quantize", "quantize_ordered")?,
            pad_rows: kernels.get("floats", "pad_rows")?,
            split_rows: kernels.get("terms", "split_rows")?,
            moe_route: kernels.get("moe", "moe_route")?,
            moe_combine: kernels.get("moe", "moe_combine")?,
            moe_count: kernels.get("moe", "moe_count")?,
            moe_group: kernels.get("moe", "moe_group")?,
            join_chunks: kernels.get("attention_wide", "join_chunks")?,
        })
    }
}

/// One device at work. Fields are dropped in order: graphs before the kernels that they launch, those before memory.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) queue: Queue,
    pub(crate) kernels: Kernels,
    pub(crate) ops: Ops,
    pub(crate) pool: Pool,
    pub(crate) device: Arc<Device>,
}

/// An error of loading as the seam knows it.
pub(crate) fn out_of_memory(error: CudaError) -> BackendError {
    match error {
        CudaError::OutOfMemory { what, bytes, .. } => {
            BackendError::OutOfMemory { what: format!("{what} on the GPU"), bytes }
        }
        other => BackendError::Shape { tensor: "the GPU".into(), problem: other.to_string() },
    }
}

impl Context {
    /// Memory that may have been used before; idle memory of other sizes makes room for it.
    pub(crate) fn memory(&mut self, what: &str, bytes: usize) -> Result<Buffer, CudaError> {
        self.make_room(|pool| pool.get(what, bytes))
    }

    /// As [`Context::memory`], for what is kept long: no byte more than asked for.
    pub(crate) fn memory_exact(&mut self, what: &str, bytes: usize) -> Result<Buffer, CudaError> {
        self.make_room(|pool| pool.get_exact(what, bytes))
    }

    fn make_room(&mut self, get: impl Fn(&Pool) -> Result<Buffer, CudaError>) -> Result<Buffer, CudaError> {
        match get(&self.pool) {
            Err(CudaError::OutOfMemory { .. }) => {
                // What waits to run may use idle buffers: it goes first.
                self.queue.drain()?;
                self.pool.trim();
                get(&self.pool)
            }
            other => other,
        }
    }

    /// Memory for one op of a running step.
    ///
    /// # Panics
    /// Where there is none: an op has no way to refuse. The step's requests fail with this message.
    pub(crate) fn scratch(&mut self, what: &str, bytes: usize) -> Buffer {
        self.memory(what, bytes).unwrap_or_else(|e| e.end_step())
    }

    /// New memory with these bytes.
    pub(crate) fn upload_new(&mut self, what: &str, bytes: &[u8]) -> Result<Buffer, CudaError> {
        let buffer = self.memory_exact(what, bytes.len())?;
        self.queue.upload(buffer.pointer(), bytes);
        Ok(buffer)
    }
}
