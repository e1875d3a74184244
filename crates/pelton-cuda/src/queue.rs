//! What is to run: launches in order, sent one by one or as one graph a step.
//!
//! In a step of few rows launches are collected and sent when an answer is read. A list of launches that has been sent
//! before becomes a graph, and from then on the whole step is one call to the driver. Lists are compared word for word, so a
//! graph replays exactly what would be launched, and results are the same bits with graphs and without. That lists repeat
//! is the doing of the pool (buffers come back at the same address) and of sizes that grow in powers of two.
//!
//! Invariant: after an error nothing is sent any more, and the error is kept for whoever reads an answer.

use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::CudaError;
use crate::device::Device;
use crate::driver::{DevicePointer, Handle, LaunchAttribute, LaunchConfig};
use crate::pool::Buffer;

/// A kernel that can be launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Function {
    pub(crate) handle: Handle,
    /// It waits for the kernel before it, so it may be launched early.
    pub(crate) waits: bool,
}

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Most arguments of a kernel.
const MAX_ARGS: usize = 20;

/// One value of a kernel's argument list, in the low bytes of a word.
pub(crate) trait Arg {
    fn word(&self) -> u64;
}

impl Arg for DevicePointer {
    fn word(&self) -> u64 {
        *self
    }
}

impl Arg for &Buffer {
    fn word(&self) -> u64 {
        self.pointer()
    }
}

impl Arg for Option<&Buffer> {
    fn word(&self) -> u64 {
        self.map_or(0, Buffer::pointer)
    }
}

impl Arg for i32 {
    fn word(&self) -> u64 {
        u64::from(self.cast_unsigned())
    }
}

impl Arg for usize {
    /// A 32-bit whole number; sizes of matrices are checked to fit when they are made.
    fn word(&self) -> u64 {
        assert!(*self <= i32::MAX as usize, "{self} as an argument of a kernel");
        *self as u64
    }
}

impl Arg for f32 {
    fn word(&self) -> u64 {
        u64::from(self.to_bits())
    }
}

/// The arguments of a launch, in order.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::queue::Arg::word(&$arg)),*] };
}
pub(crate) use args;

/// How many blocks, how many threads in each, and the shared memory that they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

impl Shape {
    pub(crate) fn new(x: usize, y: usize, z: usize, threads: u32) -> Shape {
        let size = |n: usize| u32::try_from(n).expect("a grid of 32-bit size");
        Shape { grid: [size(x), size(y), size(z)], threads, shared: 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Launch {
    function: Function,
    shape: Shape,
    n_args: usize,
    args: [u64; MAX_ARGS],
}

/// A graph and the launches that it replays.
struct Graph {
    hash: u64,
    launches: Vec<Launch>,
    executable: Handle,
    last_used: u64,
}

// SAFETY: the handle is only passed to the driver.
unsafe impl Send for Graph {}

/// Fewer launches than this are not worth a graph.
const MIN_GRAPH: usize = 4;
/// Graphs kept: a server's batch sizes, times a few context lengths.
const MAX_GRAPHS: usize = 64;
/// Lists remembered that were seen once.
const MAX_SEEN: usize = 256;

/// The device's work.
pub(crate) struct Queue {
    device: Arc<Device>,
    pending: Vec<Launch>,
    /// Whether launches wait for the end of the step.
    collects: bool,
    uses_graphs: bool,
    /// Kernels that wait are launched early.
    launches_early: bool,
    graphs: Vec<Graph>,
    seen: Vec<u64>,
    clock: u64,
    error: Option<CudaError>,
    counts: QueueCounts,
}

/// What a queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Kernels launched one by one.
    pub launches: usize,
    /// Steps that ran as a graph.
    pub graph_launches: usize,
    /// Graphs made.
    pub graphs_made: usize,
    /// Graphs whose parameters were changed instead of making another.
    pub graphs_updated: usize,
}

impl Queue {
    pub(crate) fn new(device: Arc<Device>, uses_graphs: bool, launches_early: bool) -> Queue {
        Queue {
            launches_early: launches_early && device.can_launch_early(),
            device,
            pending: Vec::new(),
            collects: false,
            uses_graphs,
            graphs: Vec::new(),
            seen: Vec::new(),
            clock: 0,
            error: None,
            counts: QueueCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> QueueCounts {
        self.counts
    }

    /// From now on launches wait for [`Queue::finish`], or they do not.
    pub(crate) fn collect(&mut self, collects: bool) {
        self.collects = collects && self.uses_graphs;
        if !self.collects {
            self.send();
        }
    }

    /// Puts a launch at the end. A grid without blocks is nothing to do.
    pub(crate) fn launch(&mut self, function: Function, shape: Shape, args: &[u64]) {
        if shape.grid.contains(&0) {
            return;
        }
        let mut words = [0; MAX_ARGS];
        words[..args.len()].copy_from_slice(args);
        self.pending.push(Launch { function, shape, n_args: args.len(), args: words });
        if !self.collects {
            self.send();
        }
    }

    /// Copies to the device, after all that was launched before.
    pub(crate) fn upload(&mut self, to: DevicePointer, bytes: &[u8]) {
        self.send();
        self.upload_ahead(to, bytes);
    }

    /// Copies to the device ahead of what waits, none of which may read or write there.
    pub(crate) fn upload_ahead(&mut self, to: DevicePointer, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (device, from) = (self.device.clone(), bytes.as_ptr().cast::<c_void>());
        self.attempt(|| {
            device.enter()?;
            // SAFETY: the driver reads `bytes.len()` bytes before it returns, since they are not page-locked; `to` is a
            // buffer of at least that size, which the callers assert.
            let status = unsafe { (device.driver.to_device)(to, from, bytes.len(), device.stream()) };
            device.driver.check("cuMemcpyHtoDAsync", status)
        });
    }

    /// Ends a step: sends what waits, copies `to.len()` bytes at `from` to the host, and waits for them.
    ///
    /// # Errors
    /// The first thing that went wrong on the device since it was opened.
    pub(crate) fn finish(&mut self, from: DevicePointer, to: &mut [u8]) -> Result<(), CudaError> {
        self.send_as_graph();
        let device = self.device.clone();
        self.attempt(|| {
            device.enter()?;
            if !to.is_empty() {
                // SAFETY: `to` is written before `wait` returns, and is borrowed until then.
                let status =
                    unsafe { (device.driver.to_host)(to.as_mut_ptr().cast(), from, to.len(), device.stream()) };
                device.driver.check("cuMemcpyDtoHAsync", status)?;
            }
            device.wait()
        });
        self.error.take().map_or(Ok(()), |error| {
            let message = error.to_string();
            self.error = Some(error);
            Err(CudaError::Driver { call: "the GPU's work", name: "stopped".into(), message })
        })
    }

    /// Sends what waits, and waits for it to be done.
    pub(crate) fn drain(&mut self) -> Result<(), CudaError> {
        self.finish(0, &mut [])
    }

    /// Does something on the device, unless something has failed before.
    fn attempt(&mut self, work: impl FnOnce() -> Result<(), CudaError>) {
        if self.error.is_none() {
            self.error = work().err();
        }
    }

    /// Sends what waits, one by one.
    pub(crate) fn send(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let launches = std::mem::take(&mut self.pending);
        let (device, launches_early) = (self.device.clone(), self.launches_early);
        self.counts.launches += launches.len();
        self.attempt(|| {
            device.enter()?;
            launches.iter().try_for_each(|l| l.send(&device, launches_early))
        });
        self.pending = launches;
        self.pending.clear();
    }

    /// Sends what waits as a graph, if the same list has been sent before.
    fn send_as_graph(&mut self) {
        if !self.collects || self.pending.len() < MIN_GRAPH || self.error.is_some() {
            return self.send();
        }
        let mut hasher = DefaultHasher::new();
        self.pending.hash(&mut hasher);
        let hash = hasher.finish();
        self.clock += 1;
        let known = self.graphs.iter().position(|g| g.hash == hash && g.launches == self.pending);
        let Some(index) = known.or_else(|| self.make_graph(hash)) else { return self.send() };
        self.graphs[index].last_used = self.clock;
        self.counts.graph_launches += 1;
        let (device, executable) = (self.device.clone(), self.graphs[index].executable);
        self.attempt(|| {
            device.enter()?;
            // SAFETY: the graph lives until it leaves `graphs`.
            let status = unsafe { (device.driver.graph_launch)(executable, device.stream()) };
            device.driver.check("cuGraphLaunch", status)
        });
        self.pending.clear();
    }

    /// A graph of what waits, where it was seen before; its index.
    fn make_graph(&mut self, hash: u64) -> Option<usize> {
        if !self.seen.contains(&hash) {
            if self.seen.len() == MAX_SEEN {
                self.seen.remove(0);
            }
            self.seen.push(hash);
            return None;
        }
        // A graph that cannot be made is no error: the launches are sent one by one.
        let captured = self.capture().ok()?;
        let made = self.instantiate(captured, hash);
        // SAFETY: the template is not used any more; the executable graph is a copy.
        unsafe { (self.device.driver.graph_destroy)(captured) };
        made
    }

    fn instantiate(&mut self, captured: Handle, hash: u64) -> Option<usize> {
        let driver = &self.device.driver;
        if self.graphs.len() == MAX_GRAPHS {
            let oldest = (0..MAX_GRAPHS).min_by_key(|&i| self.graphs[i].last_used).expect("there are graphs");
            let graph = &mut self.graphs[oldest];
            let mut info = [0u64; 8];
            // SAFETY: both graphs live; the driver writes less than 64 bytes of explanation.
            let update = |f: unsafe extern "C" fn(Handle, Handle, *mut c_void) -> i32| unsafe {
                f(graph.executable, captured, info.as_mut_ptr().cast())
            };
            if driver.graph_exec_update.map(update) == Some(0) {
                (graph.hash, graph.launches) = (hash, self.pending.clone());
                self.counts.graphs_updated += 1;
                return Some(oldest);
            }
            let gone = self.graphs.swap_remove(oldest);
            // SAFETY: nothing has the handle any more.
            unsafe { (driver.graph_exec_destroy)(gone.executable) };
        }
        let mut executable = std::ptr::null_mut();
        // SAFETY: the pointer is to a handle; the captured graph lives.
        let status = unsafe { (driver.graph_instantiate)(&mut executable, captured, 0) };
        driver.check("cuGraphInstantiate", status).ok()?;
        self.counts.graphs_made += 1;
        self.graphs.push(Graph { hash, launches: self.pending.clone(), executable, last_used: self.clock });
        Some(self.graphs.len() - 1)
    }

    /// What waits, as a graph.
    fn capture(&self) -> Result<Handle, CudaError> {
        let device = &self.device;
        let mut graph = std::ptr::null_mut();
        device.enter()?;
        // SAFETY: between begin and end only this thread launches on the stream (mode 1, thread-local); the pointer is to
        // a handle.
        unsafe {
            device.driver.check("cuStreamBeginCapture", (device.driver.capture_begin)(device.stream(), 1))?;
            let sent = self.pending.iter().try_for_each(|l| l.send(device, self.launches_early));
            let ended =
                device.driver.check("cuStreamEndCapture", (device.driver.capture_end)(device.stream(), &mut graph));
            sent.and(ended)?;
        }
        Ok(graph)
    }
}

impl Launch {
    /// Where `early`, the driver may set it up while the launch before it still runs, if it waits for that itself.
    fn send(&self, device: &Device, early: bool) -> Result<(), CudaError> {
        let Shape { grid: [x, y, z], threads, shared } = self.shape;
        let mut args = self.args;
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        for (pointer, arg) in pointers.iter_mut().zip(&mut args[..self.n_args]) {
            *pointer = std::ptr::from_mut(arg).cast();
        }
        if let Some(launch_with) = device.driver.launch_with.filter(|_| early && self.function.waits) {
            let attributes = [LaunchAttribute::EARLY];
            let (stream, n_attributes) = (device.stream(), attributes.len() as u32);
            let (grid, block, attributes) = ([x, y, z], [threads, 1, 1], attributes.as_ptr());
            let config = LaunchConfig { grid, block, shared, stream, attributes, n_attributes };
            // SAFETY: as below; the attributes live until the driver returns.
            let status =
                unsafe { launch_with(&config, self.function.handle, pointers.as_mut_ptr(), std::ptr::null_mut()) };
            return device.driver.check("cuLaunchKernelEx", status);
        }
        // SAFETY: the driver reads each argument through its pointer, as many bytes as the kernel declares, at most 8,
        // before it returns. That a kernel stays in its buffers is what the ops assert before they launch.
        let status = unsafe {
            let extra = std::ptr::null_mut();
            (device.driver.launch)(
                self.function.handle,
                x,
                y,
                z,
                threads,
                1,
                1,
                shared,
                device.stream(),
                pointers.as_mut_ptr(),
                extra,
            )
        };
        device.driver.check("cuLaunchKernel", status)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} waiting, {} graphs, {:?})", self.pending.len(), self.graphs.len(), self.counts)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _entered = self.device.enter();
        let _waited = self.device.wait();
        for graph in &self.graphs {
            // SAFETY: nothing runs and nothing else has the handle.
            unsafe { (self.device.driver.graph_exec_destroy)(graph.executable) };
        }
    }
}
