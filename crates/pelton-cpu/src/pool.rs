//! A fork-join pool with a dispatch of a few microseconds, made for ops that last tens of them.
//!
//! One op is one [`Pool::run`]: the caller publishes a job, takes part in it and returns when no thread touches it
//! any more. Between jobs workers spin for [`SPIN`], since the next op of a forward pass comes within
//! microseconds, and then sleep in the kernel: an idle pool costs nothing. So does a worker that the jobs of a phase
//! do not want ([`Pool::use_threads`]): it sleeps at once and is not woken.
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
//! thread that is done takes from the runs of the others, those of its neighbours first: threads are numbered as
//! [`Cores`] orders processors, so neighbours share caches and memory.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::cores::{self, Cores};

/// How long a worker spins for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(60);

const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u32 = 17;
/// More threads than any machine that this is for; far fewer than [`INSIDE`] counts.
const MOST_THREADS: usize = 1024;

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
    /// Threads that the tasks are dealt to, from the first.
    threads: usize,
}

impl Job {
    /// The tasks dealt to `thread`: `(first, end)`.
    fn run_of(&self, thread: usize) -> (usize, usize) {
        (self.n_tasks * thread / self.threads, self.n_tasks * (thread + 1) / self.threads)
    }
}

/// One thread's run of tasks: the next to take. A cache line of its own.
#[repr(align(128))]
struct Next(AtomicUsize);

struct Shared {
    gate: AtomicU64,
    /// Threads that take part in jobs, the caller among them; the workers from there on sleep.
    threads: AtomicUsize,
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
    /// The processors that each thread may use; empty where the system chooses.
    places: Vec<Vec<usize>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} of {} threads)", self.threads(), self.most_threads())
    }
}

impl Pool {
    /// A pool in which `threads` threads work, the caller of [`Pool::run`] among them, on whatever processors the
    /// system chooses.
    ///
    /// # Errors
    /// Where `threads` is not between 1 and 1024, or the system refuses to start a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        Pool::on(Vec::new(), threads)
    }

    /// A pool whose workers keep to the processors that `cores` gives them; the thread that calls [`Pool::run`]
    /// does so after [`Pool::bind_caller`].
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn bound(threads: usize, cores: &Cores) -> std::io::Result<Pool> {
        Pool::on(cores.places(threads), threads)
    }

    fn on(places: Vec<Vec<usize>>, threads: usize) -> std::io::Result<Pool> {
        if !(1..=MOST_THREADS).contains(&threads) {
            let problem = format!("{threads} threads, where 1 to {MOST_THREADS} can work together");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, problem));
        }
        // More threads than processors: whoever spins takes one from a thread that would work.
        let spin = if threads <= Cores::detect().spinnable() { SPIN } else { Duration::ZERO };
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            threads: AtomicUsize::new(threads),
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
        let mut pool = Pool { shared, workers: Vec::new(), submit: Mutex::new(()), places };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let place = pool.places.get(index).cloned().unwrap_or_default();
            let life = move || {
                cores::bind_thread(&place);
                shared.work(index);
            };
            pool.workers.push(thread::Builder::new().name(format!("pelton-cpu-{index}")).spawn(life)?);
        }
        Ok(pool)
    }

    /// The number of threads that an op gains from: [`Cores::default_threads`] of this process.
    pub fn default_threads() -> usize {
        Cores::detect().default_threads()
    }

    /// Threads that take part in a run now, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.threads.load(Ordering::SeqCst)
    }

    /// Threads that the pool has, the caller included.
    pub fn most_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// From the next run on, `threads` threads take part; the others sleep. Results do not depend on it.
    ///
    /// # Panics
    /// Where `threads` is not between 1 and [`Pool::most_threads`].
    pub fn use_threads(&self, threads: usize) {
        assert!((1..=self.most_threads()).contains(&threads), "{threads} threads of {self:?}");
        self.shared.threads.store(threads, Ordering::SeqCst);
    }

    /// Keeps the calling thread to the first thread's processors, for a thread that does nothing but run jobs of
    /// this pool: what it starts inherits the limit.
    pub fn bind_caller(&self) {
        cores::bind_thread(self.places.first().map_or(&[], Vec::as_slice));
    }

    /// Whether each thread has a processor of its own.
    pub fn is_bound(&self) -> bool {
        self.places.first().is_some_and(|place| place.len() == 1)
    }

    /// Calls `task(0)` to `task(n_tasks - 1)`, each once, in any order and on any thread; returns when all are done.
    /// A run inside a task is done inline. Runs of several threads on one pool take turns.
    ///
    /// # Panics
    /// With the payload of the first task that panicked, after all threads have let go of the job; tasks that had
    /// not started by then may be left out.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if n_tasks <= 1 || self.threads() == 1 || IN_TASK.get() {
            return (0..n_tasks).for_each(task);
        }
        let turn = self.submit.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.cancelled.store(false, Ordering::Relaxed);
        let task: *const (dyn Fn(usize) + Sync + '_) = task;
        // SAFETY: erases the lifetime. The pointer is followed only by threads inside the gate, and this function
        // does not return or unwind before the gate is closed and empty.
        let task: *const Task = unsafe { std::mem::transmute(task) };
        // Once: another thread may change it meanwhile. Workers that see the new number before this job's end only
        // come late or not at all.
        let job = Job { task, n_tasks, threads: self.threads() };
        for (thread, next) in shared.next[..job.threads].iter().enumerate() {
            next.0.store(job.run_of(thread).0, Ordering::Relaxed);
        }
        // SAFETY: the gate is closed and empty (the run before left it so) and `turn` keeps other callers out.
        unsafe { *shared.job.get() = Some(job) };
        let generation = (shared.gate.load(Ordering::Relaxed) >> GENERATION).wrapping_add(1);
        shared.gate.store(generation << GENERATION | OPEN, Ordering::SeqCst);
        self.wake(job.threads);
        shared.take_tasks(0, job);
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        shared.wait_until_empty();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn wake(&self, threads: usize) {
        for (worker, asleep) in self.workers.iter().zip(&self.shared.asleep).take(threads - 1) {
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
    /// A worker's life.
    fn work(&self, index: usize) {
        let (mut seen, mut spin) = (0, self.spin);
        loop {
            seen = self.wait_for_generation(index, seen, spin);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // Jobs that do not want this thread go by while it sleeps.
            let is_wanted = index < self.threads.load(Ordering::SeqCst);
            spin = if is_wanted { self.spin } else { Duration::ZERO };
            if is_wanted && self.enter(seen) {
                // SAFETY: this thread is inside the gate, so the job is published and stays.
                let job = unsafe { *self.job.get() }.expect("an open gate has a job");
                if index < job.threads {
                    self.take_tasks(index, job);
                }
                let before = self.gate.fetch_sub(1, Ordering::SeqCst);
                if before & (OPEN | INSIDE) == 1 && self.caller_asleep.load(Ordering::SeqCst) {
                    self.wake_caller();
                }
            }
        }
    }

    /// Waits until the generation is another than `seen` and returns it; spins first, for `spin`.
    fn wait_for_generation(&self, index: usize, seen: u64, spin: Duration) -> u64 {
        let now = || self.gate.load(Ordering::SeqCst) >> GENERATION;
        if spin_until(spin, || now() != seen) {
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
            for thread in (me..job.threads).chain(0..me) {
                let (_, end) = job.run_of(thread);
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

    /// Waits until a worker has announced that it sleeps; a minute is for ever here.
    fn wait_until_asleep(pool: &Pool, worker: usize) {
        let start = Instant::now();
        while !pool.shared.asleep[worker].load(Ordering::SeqCst) {
            assert!(start.elapsed() < Duration::from_secs(60), "worker {worker} of {pool:?} spins");
            thread::sleep(SPIN);
        }
    }

    #[test]
    fn idle_workers_sleep() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..3 {
            count_each(&pool, 9);
            (0..2).for_each(|worker| wait_until_asleep(&pool, worker));
        }
    }

    #[test]
    fn threads_that_are_not_wanted_take_no_task_and_stay_asleep() {
        let pool = Pool::new(4).unwrap();
        for wanted in [4, 2, 1, 3, 4] {
            pool.use_threads(wanted);
            assert_eq!((pool.threads(), pool.most_threads()), (wanted, 4));
            let names = Mutex::new(std::collections::BTreeSet::new());
            for _ in 0..200 {
                count_each(&pool, 17);
                pool.run(8, &|_| {
                    names.lock().unwrap().extend(
                        thread::current().name().and_then(|n| n.strip_prefix("pelton-cpu-")?.parse::<usize>().ok()),
                    );
                });
            }
            let names = names.into_inner().unwrap();
            assert!(names.iter().all(|&index| index < wanted), "{names:?} of {wanted}");
            for index in wanted..4 {
                wait_until_asleep(&pool, index - 1);
                count_each(&pool, 8);
                assert!(pool.shared.asleep[index - 1].load(Ordering::SeqCst), "a job woke worker {index}");
            }
        }
    }

    #[test]
    fn odd_numbers_of_threads_are_refused() {
        for threads in [0, 1025, usize::MAX] {
            let error = Pool::new(threads).unwrap_err();
            assert!(error.to_string().contains("1 to 1024"), "{error}");
        }
    }

    #[test]
    fn bound_workers_keep_to_their_processors() {
        let cores = Cores::detect();
        for threads in [1, cores.physical(), cores.logical(), cores.logical() + 1] {
            let pool = Pool::bound(threads, cores).unwrap();
            assert_eq!(pool.is_bound(), cores.can_bind() && threads <= cores.logical() && pool.places[0].len() == 1);
            count_each(&pool, 64);
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
