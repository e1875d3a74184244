//! A fork-join pool with a dispatch of a few microseconds, made for ops that last tens of them.
//!
//! One op is one [`Pool::run`]: the caller publishes a job, takes part in it and returns when no thread touches it
//! any more. Between jobs workers spin for [`SPIN`], since the next op of a forward pass comes within
//! microseconds, and then sleep in the kernel: an idle pool costs nothing.
//!
//! How a job is handed over: everything is in one atomic word, the *gate*.
//!
//! ```text
//! gate = generation << 17 | open << 16 | workers inside
//!
//! caller                                worker
//! write job; reset the task counters    wait until the generation changes
//! gate := (generation + 1, open, 0)     open?  yes: inside += 1, take tasks, inside -= 1
//! wake who sleeps; take tasks                  no:  the job is over, wait for the next
//! clear open; wait until inside = 0
//! ```
//!
//! A worker that wakes late finds the gate closed, so a busy machine never makes the caller wait for a thread that
//! has nothing to do. Invariant: the job is read only between `inside += 1` and `inside -= 1`, and the caller's
//! borrow outlives that.
//!
//! Tasks are dealt in equal runs, one run to each thread (the same thread sees the same weights each time), and a
//! thread that is done takes from the runs of the others.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker spins for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(60);

const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u32 = 17;

/// A task whose borrows are promised to last.
type Task = dyn Fn(usize) + Sync + 'static;

thread_local! {
    /// Whether this thread is running a task of some pool: a run inside a task is done inline.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// The published job; read only by threads that are inside the gate.
#[derive(Clone, Copy)]
struct Job {
    /// The caller's closure, its lifetime erased.
    task: *const Task,
    n_tasks: usize,
}

/// One thread's run of tasks: the next to take. A cache line of its own.
#[repr(align(128))]
struct Next(AtomicUsize);

struct Shared {
    gate: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: Box<[Next]>,
    /// Set by a task's panic: the tasks that are left are dropped.
    cancelled: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Workers that sleep or are about to.
    asleep: Box<[AtomicBool]>,
    /// The caller, while it sleeps until the gate is empty.
    caller: Mutex<Option<Thread>>,
    caller_asleep: AtomicBool,
    spin: Duration,
}

// SAFETY: `job` is written by the one caller that holds `Pool::submit` while no worker is inside the gate, and read
// by workers that are inside; the gate's release/acquire pairs order the two. The task itself is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is only followed while the caller keeps its target alive.
unsafe impl Send for Shared {}

/// A pool of threads that work on one job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    submit: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// A pool in which `threads` threads work, the caller of [`Pool::run`] among them; at least 1, at most 1024.
    ///
    /// # Errors
    /// Where the system refuses to start a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.clamp(1, 1024);
        // More threads than cores: whoever spins takes the core from one that would work.
        let spin = if threads <= Pool::default_threads() { SPIN } else { Duration::ZERO };
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: (0..threads).map(|_| Next(AtomicUsize::new(0))).collect(),
            cancelled: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            caller_asleep: AtomicBool::new(false),
            spin,
        });
        let mut pool = Pool { shared, workers: Vec::new(), submit: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("pelton-cpu-{index}");
            pool.workers.push(thread::Builder::new().name(name).spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// The number of threads that this process may use (honours affinity and cgroup quotas).
    pub fn default_threads() -> usize {
        static THREADS: OnceLock<usize> = OnceLock::new();
        *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
    }

    /// Threads that take part in a run, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` to `task(n_tasks - 1)`, each once, in any order and on any thread; returns when all are done.
    /// A run inside a task is done inline. Runs of several threads on one pool take turns.
    ///
    /// # Panics
    /// With the payload of the first task that panicked, after all threads have let go of the job; tasks that had
    /// not started by then may be left out.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if n_tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            return (0..n_tasks).for_each(task);
        }
        let turn = self.submit.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(shared.run_of(thread, n_tasks).0, Ordering::Relaxed);
        }
        shared.cancelled.store(false, Ordering::Relaxed);
        let task: *const (dyn Fn(usize) + Sync + '_) = task;
        // SAFETY: erases the lifetime. The pointer is followed only by threads inside the gate, and this function
        // does not return or unwind before the gate is closed and empty.
        let task: *const Task = unsafe { std::mem::transmute(task) };
        let job = Job { task, n_tasks };
        // SAFETY: the gate is closed and empty (the run before left it so) and `turn` keeps other callers out.
        unsafe { *shared.job.get() = Some(job) };
        let generation = (shared.gate.load(Ordering::Relaxed) >> GENERATION).wrapping_add(1);
        shared.gate.store(generation << GENERATION | OPEN, Ordering::SeqCst);
        self.wake();
        shared.take_tasks(0, job);
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        shared.wait_until_empty();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn wake(&self) {
        for (worker, asleep) in self.workers.iter().zip(&self.shared.asleep) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.gate.fetch_add(1 << GENERATION, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics, so it ends well; there is nobody to tell otherwise.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The tasks dealt to `thread`: `(first, end)`.
    fn run_of(&self, thread: usize, n_tasks: usize) -> (usize, usize) {
        let threads = self.next.len();
        (n_tasks * thread / threads, n_tasks * (thread + 1) / threads)
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_generation(index, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self.enter(seen) {
                // SAFETY: this thread is inside the gate, so the job is published and stays.
                let job = unsafe { *self.job.get() }.expect("an open gate has a job");
                self.take_tasks(index, job);
                let before = self.gate.fetch_sub(1, Ordering::SeqCst);
                if before & (OPEN | INSIDE) == 1 && self.caller_asleep.load(Ordering::SeqCst) {
                    self.wake_caller();
                }
            }
        }
    }

    /// Waits until the generation is another than `seen` and returns it.
    fn wait_for_generation(&self, index: usize, seen: u64) -> u64 {
        let now = || self.gate.load(Ordering::SeqCst) >> GENERATION;
        if spin_until(self.spin, || now() != seen) {
            return now();
        }
        let asleep = &self.asleep[index - 1];
        loop {
            // Announce first, look second; the caller publishes first, looks second: one of them sees the other.
            asleep.store(true, Ordering::SeqCst);
            let generation = now();
            if generation != seen {
                asleep.store(false, Ordering::SeqCst);
                return generation;
            }
            thread::park();
        }
    }

    /// Steps inside the gate if it is open for this generation.
    fn enter(&self, generation: u64) -> bool {
        let mut gate = self.gate.load(Ordering::SeqCst);
        while gate & OPEN != 0 && gate >> GENERATION == generation {
            match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(other) => gate = other,
            }
        }
        false
    }

    /// Runs tasks until none is left: first the own run, then what others have not begun.
    fn take_tasks(&self, me: usize, job: Job) {
        // SAFETY: the caller's borrow lives until the gate is empty; this thread is inside, or is the caller.
        let task = unsafe { &*job.task };
        IN_TASK.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let threads = self.next.len();
            for thread in (me..threads).chain(0..me) {
                let (_, end) = self.run_of(thread, job.n_tasks);
                while !self.cancelled.load(Ordering::Relaxed) {
                    let index = self.next[thread].0.fetch_add(1, Ordering::Relaxed);
                    if index >= end {
                        break;
                    }
                    task(index);
                }
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = result {
            self.cancelled.store(true, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// The caller's join: waits until no worker is inside the closed gate.
    fn wait_until_empty(&self) {
        let empty = || self.gate.load(Ordering::SeqCst) & INSIDE == 0;
        if spin_until(self.spin, empty) {
            return;
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.caller_asleep.store(true, Ordering::SeqCst);
        while !empty() {
            thread::park();
        }
        self.caller_asleep.store(false, Ordering::SeqCst);
    }

    fn wake_caller(&self) {
        if let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner) {
            caller.unpark();
        }
    }
}

/// Spins until `done` or until `limit` has passed; says whether it was done.
fn spin_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    if limit.is_zero() {
        return false;
    }
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= limit {
            return done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_each(pool: &Pool, n: usize) {
        let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        pool.run(n, &|i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{n} tasks on {pool:?}");
    }

    #[test]
    fn each_task_runs_once_for_any_number_of_tasks_and_threads() {
        // 1 thread, as many as cores, and more threads than cores.
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for n in [0, 1, 2, 3, 7, 8, 9, 100, 1000] {
                count_each(&pool, n);
            }
        }
    }

    #[test]
    fn many_short_runs_end() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(2, &|_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.into_inner(), 40_000);
    }

    #[test]
    fn sleeping_workers_wake_for_the_next_run() {
        let pool = Pool::new(4).unwrap();
        for _ in 0..20 {
            thread::sleep(SPIN * 4);
            count_each(&pool, 16);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for bad in [0, 7, 15] {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(16, &|i| assert!(i != bad, "task {bad} fails"));
                }));
                let payload = result.unwrap_err();
                assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {bad} fails")));
                count_each(&pool, 16);
            }
        }
    }

    #[test]
    fn a_run_inside_a_task_is_done_inline() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        pool.run(8, &|_| {
            let me = thread::current().id();
            pool.run(8, &|_| {
                assert_eq!(thread::current().id(), me);
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 64);
    }

    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..500).for_each(|_| count_each(&pool, 5)));
            }
        });
    }
}
