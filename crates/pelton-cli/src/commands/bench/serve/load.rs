//! Drives a load: a thread for each request that is under way, since a thread that waits costs little and keeps the
//! timing of each stream free of the others.
//!
//! Invariant: numbers of requests are given out once, in order, so that a seed gives the same prompts however they
//! interleave.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::client::Client;
use super::stats::{Fault, FaultKind, Level, Pace, Record};
use super::text::{ARRIVALS, Random, Texts};

/// Enough for a TLS handshake in a debug build.
const STACK_BYTES: usize = 512 << 10;
/// Of an open loop whose server does not keep up.
const MAX_IN_FLIGHT: usize = 4096;
/// What is of interest is when the long prompt's answer begins.
const LONG_ANSWER_TOKENS: usize = 8;
/// Of a client whose request failed: against a server that is gone a loop would only spin.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// What is sent.
pub(super) struct Load<'a> {
    pub(super) client: &'a Client,
    pub(super) texts: &'a Texts,
    pub(super) max_tokens: usize,
    pub(super) seed: u64,
    /// Requests of a level; more where the long prompt takes longer than they do.
    pub(super) n_requests: usize,
    /// When the long prompt is sent, if there is one.
    pub(super) long_after: Option<Duration>,
}

/// One level as it runs.
struct Running<'a> {
    load: &'a Load<'a>,
    clock: Instant,
    first_number: usize,
    n_taken: AtomicUsize,
    n_in_flight: AtomicUsize,
    /// The long prompt was answered, or there is none.
    long_is_over: AtomicBool,
    records: Mutex<Vec<Record>>,
    on_answer: &'a (dyn Fn() + Sync),
}

/// Runs one level; requests are numbered from `first_number` on.
pub(super) fn run(
    load: &Load<'_>,
    pace: Pace,
    (level, first_number): (usize, usize),
    on_answer: &(dyn Fn() + Sync),
) -> std::io::Result<Level> {
    let running = Running {
        load,
        clock: Instant::now(),
        first_number,
        n_taken: AtomicUsize::new(0),
        n_in_flight: AtomicUsize::new(0),
        long_is_over: AtomicBool::new(load.long_after.is_none()),
        records: Mutex::new(Vec::with_capacity(load.n_requests)),
        on_answer,
    };
    let running_ref = &running;
    let long = std::thread::scope(|scope| {
        let long = load.long_after.map(|after| spawn(scope, move || running_ref.long_prompt(level, after)));
        let long = long.transpose()?;
        let driven = match pace {
            Pace::Clients(n) => running_ref.closed(scope, n.min(load.n_requests)),
            Pace::Rate(rate) => running_ref.open(scope, rate),
        };
        if driven.is_err() {
            running_ref.n_taken.store(usize::MAX / 2, Ordering::Relaxed);
            running_ref.long_is_over.store(true, Ordering::Relaxed);
        }
        let long = long.map(|thread| thread.join().expect("a request never panics"));
        driven.map(|()| long)
    })?;
    let mut records = running.records.into_inner().expect("a request never panics");
    records.sort_by(|a, b| a.due.total_cmp(&b.due));
    Ok(Level { pace, records, long })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work)
}

impl Running<'_> {
    /// The number of the next request, while there is one.
    fn take(&self) -> Option<usize> {
        let n = self.n_taken.fetch_add(1, Ordering::Relaxed);
        let more = n < self.load.n_requests || !self.long_is_over.load(Ordering::Relaxed);
        more.then_some(self.first_number + n)
    }

    /// Whether it was answered.
    fn send(&self, number: usize, due: f64) -> bool {
        let Load { client, texts, max_tokens, seed, .. } = *self.load;
        let record =
            client.stream(&texts.prompt(number), max_tokens, seed.wrapping_add(number as u64), self.clock, due);
        let answered = record.fault.is_none();
        self.keep(record);
        answered
    }

    fn keep(&self, record: Record) {
        self.records.lock().expect("nothing panics while it holds the lock").push(record);
        (self.on_answer)();
    }

    fn closed<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, n_clients: usize) -> std::io::Result<()> {
        for _ in 0..n_clients {
            spawn(scope, move || {
                while let Some(number) = self.take() {
                    if !self.send(number, self.clock.elapsed().as_secs_f64()) {
                        std::thread::sleep(PAUSE_AFTER_FAILURE);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Arrivals keep to their times, whether or not the server keeps up: a late one is late for its reader too.
    fn open<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, rate: f64) -> std::io::Result<()> {
        let mut arrivals = Random::new(self.load.seed, ARRIVALS + ((self.first_number as u64) << 32));
        let mut due = 0.0;
        while let Some(number) = self.take() {
            let early = due - self.clock.elapsed().as_secs_f64();
            if early > 0.0 {
                std::thread::sleep(Duration::from_secs_f64(early));
            }
            if self.n_in_flight.fetch_add(1, Ordering::Relaxed) >= MAX_IN_FLIGHT {
                self.n_in_flight.fetch_sub(1, Ordering::Relaxed);
                let fault = Fault::new(FaultKind::Overrun, format!("{MAX_IN_FLIGHT} requests were under way"));
                self.keep(Record { due, end: due, fault: Some(fault), ..Record::default() });
            } else {
                spawn(scope, move || {
                    self.send(number, due);
                    self.n_in_flight.fetch_sub(1, Ordering::Relaxed);
                })?;
            }
            due += arrivals.until_next(rate);
        }
        Ok(())
    }

    fn long_prompt(&self, level: usize, after: Duration) -> Record {
        std::thread::sleep(after);
        let prompt = self.load.texts.long(level);
        let due = self.clock.elapsed().as_secs_f64();
        let record = self.load.client.stream(&prompt, LONG_ANSWER_TOKENS, self.load.seed, self.clock, due);
        self.long_is_over.store(true, Ordering::Relaxed);
        record
    }
}
