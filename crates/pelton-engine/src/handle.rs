//! The thread that owns an engine, and the handle that others hold.
//!
//! Invariants: dropping a [`RequestHandle`] cancels its request within one step; dropping the [`EngineHandle`] ends
//! the thread; whoever still listens gets one last event, whatever becomes of the engine, and whoever comes after a
//! failure hears what it was. A failed engine does not go on: its keys and values may be lost.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pelton_backend::Backend;

use crate::queue::{Queue, Ticket};
use crate::{DiskStats, Engine, EngineError, Event, Request, RequestId, SubmitError};

/// Cancels a request when it is dropped.
#[derive(Debug)]
pub struct CancelGuard {
    cancelled: Arc<AtomicBool>,
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A request that runs: an iterator over its events. Dropping it cancels the request.
#[derive(Debug)]
pub struct RequestHandle {
    events: Receiver<Event>,
    _cancel: CancelGuard,
}

impl RequestHandle {
    /// The next event; `None` after the last one.
    pub fn next_event(&self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// The next event if one comes in time.
    ///
    /// # Errors
    /// [`RecvTimeoutError::Timeout`] where none came, `Disconnected` after the last one.
    pub fn next_event_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        self.events.recv_timeout(timeout)
    }
}

impl Iterator for RequestHandle {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.next_event()
    }
}

struct Submit {
    request: Request,
    ticket: Ticket,
    submitted: Instant,
    listener: Listener,
}

/// Where a request's events go. Called on the engine's thread: it must not wait. Should it panic, its request is
/// cancelled and it is not called again.
pub type EventSink = Box<dyn FnMut(Event) + Send>;

/// Asked now and then whether memory is short. As long as it is, fewer sequences are let in to run at once: requests
/// wait, and nobody is driven out.
pub type Pressure = Box<dyn FnMut() -> bool + Send>;

/// How often memory is looked at.
const PRESSURE_INTERVAL: Duration = Duration::from_secs(1);

/// How often an idle engine looks whether the disk takes more pages.
const PAGES_INTERVAL: Duration = Duration::from_millis(5);

/// Stack of the engine's thread: recognizers of grammars recurse.
const STACK_BYTES: usize = 16 << 20;

/// The engine's end of a request. Dropped before its last event, as when the engine's thread panics, it says so.
struct Listener {
    sink: EventSink,
    cancelled: Arc<AtomicBool>,
    /// It has had its last event, or wants none any more.
    ended: bool,
}

impl Listener {
    /// Hands an event over; `false` where that was the last one.
    fn tell(&mut self, event: Event) -> bool {
        self.ended |= event.is_last();
        // A listener's panic is its own affair: the other requests go on.
        self.ended |= catch_unwind(AssertUnwindSafe(|| (self.sink)(event))).is_err();
        !self.ended
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Event::Failed(SubmitError::Stopped.to_string()));
        }
    }
}

/// An engine's state as of its last step, for those who watch it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Answers that wait, on their way to the engine too; and sequences that were driven out or forked and wait.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// KV pages with nothing in them.
    pub free_pages: usize,
    /// KV pages that no sequence uses, kept for their content.
    pub cached_pages: usize,
    /// KV pages that sequences use.
    pub used_pages: usize,
    /// Steps made.
    pub steps: u64,
    /// Time in steps.
    pub busy: Duration,
    /// Tokens run.
    pub computed_tokens: u64,
    /// Tokens taken from the prefix cache instead.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Of these, how many were chosen on a device, which kept the logits.
    pub weighed_tokens: u64,
    /// Drafts run.
    pub drafted_tokens: u64,
    /// Of these, how many were accepted.
    pub accepted_tokens: u64,
    /// Times that a sequence lost its pages to another.
    pub preemptions: u64,
    /// Cached pages given up.
    pub evictions: u64,
    /// Sequences that may run at once now: less than was planned while memory is short.
    pub max_running: usize,
    /// Pages on disk, where they are kept there.
    pub disk: Option<DiskStats>,
}

/// Submits requests to an engine that runs on a thread of its own.
pub struct EngineHandle {
    submit: Option<Sender<Submit>>,
    thread: Option<JoinHandle<()>>,
    queue: Queue,
    /// The longest sequence, and the size of the vocabulary.
    context: usize,
    vocab: usize,
    stats: Arc<Mutex<EngineStats>>,
    failure: Arc<OnceLock<String>>,
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    text.unwrap_or_else(|| "a panic without a message".into())
}

impl EngineHandle {
    /// Moves `engine` onto a thread.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn spawn<B>(engine: Engine<B>) -> std::io::Result<EngineHandle>
    where
        B: Backend + Send + 'static,
        Engine<B>: Send,
    {
        EngineHandle::spawn_governed(engine, Box::new(|| false))
    }

    /// Moves `engine` onto a thread; `pressure` says when memory is short.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn spawn_governed<B>(engine: Engine<B>, pressure: Pressure) -> std::io::Result<EngineHandle>
    where
        B: Backend + Send + 'static,
        Engine<B>: Send,
    {
        let (submit, requests) = channel();
        let (queue, stats) = (engine.queue().clone(), Arc::<Mutex<EngineStats>>::default());
        let (context, vocab) = (engine.limits().effective_context(), engine.model().vocab_size());
        let failure = Arc::<OnceLock<String>>::default();
        let (owner_stats, owner_failure) = (Arc::clone(&stats), Arc::clone(&failure));
        let max_running = engine.limits().max_seqs;
        let run = move || {
            let next_look = Instant::now();
            let listeners = HashMap::new();
            let busy = Duration::ZERO;
            let (stats, failure) = (owner_stats, owner_failure);
            Owner { engine, requests, listeners, stats, failure, pressure, next_look, max_running, busy }.run();
        };
        let thread = std::thread::Builder::new().name("pelton-engine".into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(EngineHandle { submit: Some(submit), thread: Some(thread), queue, context, vocab, stats, failure })
    }

    /// Queues a request. What is wrong with it is said at once.
    ///
    /// # Errors
    /// [`SubmitError`]: the request cannot be run, the queue is full, or the engine has ended.
    pub fn submit(&self, request: Request) -> Result<RequestHandle, SubmitError> {
        let (sender, events) = channel();
        // A handle that has gone is seen by `drop_cancelled` before the next step.
        let sink = Box::new(move |event| drop(sender.send(event)));
        Ok(RequestHandle { events, _cancel: self.submit_to(request, sink)? })
    }

    /// Queues a request whose events go to `sink`, for callers that listen to many requests at once. The request
    /// is cancelled when the guard is dropped; no event tells of that.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`]; the sink is then not called.
    pub fn submit_to(&self, request: Request, sink: EventSink) -> Result<CancelGuard, SubmitError> {
        request.check(self.context, self.vocab)?;
        if let Some(message) = self.failure.get() {
            return Err(SubmitError::Failed(message.clone()));
        }
        let ticket = self.queue.enter(request.n)?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let listener = Listener { sink, cancelled: cancelled.clone(), ended: false };
        let submit = self.submit.as_ref().expect("taken by drop alone");
        submit.send(Submit { request, ticket, submitted: Instant::now(), listener }).map_err(|mut refused| {
            refused.0.listener.ended = true;
            self.failure.get().map_or(SubmitError::Stopped, |message| SubmitError::Failed(message.clone()))
        })?;
        Ok(CancelGuard { cancelled })
    }

    /// What the engine said when it stopped, where it could not go on.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Whether the engine's thread has ended: all that the engine had is given back.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The state as of the last step. Never waits for a step.
    pub fn stats(&self) -> EngineStats {
        let mut stats = *self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.waiting = stats.waiting.max(self.queue.waiting());
        stats
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.submit = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the engine's thread has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

/// The loop of the engine's thread.
struct Owner<B: Backend> {
    engine: Engine<B>,
    requests: Receiver<Submit>,
    listeners: HashMap<RequestId, Listener>,
    stats: Arc<Mutex<EngineStats>>,
    /// What the engine cannot go on after.
    failure: Arc<OnceLock<String>>,
    pressure: Pressure,
    next_look: Instant,
    /// Sequences that may run at once now.
    max_running: usize,
    /// Time in steps.
    busy: Duration,
}

impl<B: Backend> Owner<B> {
    fn run(mut self) {
        // A backend whose device is lost panics: an op has no other way to say so.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let message = match ended {
            Ok(Ok(())) => return self.cancel_all(),
            Ok(Err(e)) => e.to_string(),
            Err(panic) => panic_text(&*panic),
        };
        self.fail(&message);
    }

    /// Tells all who wait, those on their way to the engine too, and whoever will come.
    fn fail(&mut self, message: &str) {
        // Before anybody hears of it, so that who does and asks again hears why.
        self.failure.get_or_init(|| message.to_string());
        let told = SubmitError::Failed(message.to_string()).to_string();
        for mut listener in self.listeners.drain().map(|(_, listener)| listener) {
            listener.tell(Event::Failed(told.clone()));
        }
        while let Ok(mut submit) = self.requests.try_recv() {
            submit.listener.tell(Event::Failed(told.clone()));
        }
    }

    /// Until nobody can submit any more.
    fn serve(&mut self) -> Result<(), EngineError> {
        self.engine.bind_thread();
        self.publish();
        let mut events = Vec::new();
        loop {
            if !self.admit() {
                self.engine.flush_pages();
                return Ok(());
            }
            self.drop_cancelled();
            self.look_at_memory();
            let begun = Instant::now();
            let stepped = self.engine.step(&mut events);
            self.busy += begun.elapsed();
            stepped?;
            // First, so that who hears of an event sees at least its state.
            self.publish();
            self.deliver(&mut events);
        }
    }

    /// Takes in what has arrived; waits where there is nothing else to do. `false` where nobody can submit any more.
    fn admit(&mut self) -> bool {
        loop {
            let received = if self.engine.has_work() {
                self.requests.try_recv()
            } else if self.engine.write_pages() {
                // Idle but for pages that the disk has not taken yet.
                match self.requests.recv_timeout(PAGES_INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => continue,
                    received => received.map_err(|_| TryRecvError::Disconnected),
                }
            } else {
                self.requests.recv().map_err(|_| TryRecvError::Disconnected)
            };
            match received {
                Ok(Submit { request, ticket, submitted, mut listener }) => {
                    match self.engine.submit_checked(request, ticket, submitted) {
                        Ok(id) => {
                            self.listeners.insert(id, listener);
                        }
                        Err(e) => {
                            listener.tell(Event::Refused(e));
                        }
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Cancels the requests that nobody listens to any more.
    fn drop_cancelled(&mut self) {
        let engine = &mut self.engine;
        self.listeners.retain(|&id, listener| {
            let cancelled = listener.cancelled.load(Ordering::Relaxed);
            if cancelled {
                listener.ended = true;
                engine.cancel(id);
            }
            !cancelled
        });
    }

    /// While memory is short, lets fewer sequences run at once than do; then more again, step by step.
    fn look_at_memory(&mut self) {
        if Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + PRESSURE_INTERVAL;
        let running = self.engine.stats().running;
        let most = self.engine.limits().max_seqs;
        self.max_running = match (self.pressure)() {
            true => (self.max_running.min(running) / 4 * 3).max(1),
            false => self.max_running.saturating_mul(2).min(most),
        };
        self.engine.set_max_running(self.max_running);
    }

    /// Lets others see the state.
    fn publish(&self) {
        let now = self.engine.stats();
        let stats = EngineStats {
            waiting: now.waiting,
            running: now.running,
            free_pages: now.free_pages,
            cached_pages: now.cached_pages,
            used_pages: now.used_pages,
            steps: now.steps,
            busy: self.busy,
            computed_tokens: now.computed_tokens,
            cached_tokens: now.cached_tokens,
            generated_tokens: now.generated_tokens,
            weighed_tokens: self.engine.weighed_tokens(),
            drafted_tokens: now.draft_tokens,
            accepted_tokens: now.accepted_tokens,
            preemptions: now.preemptions,
            evictions: now.evictions,
            max_running: self.max_running,
            disk: self.engine.disk_stats(),
        };
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Ends what still runs, and says so.
    fn cancel_all(mut self) {
        for (id, mut listener) in self.listeners.drain() {
            for event in self.engine.cancel(id) {
                listener.tell(event);
            }
        }
    }

    /// Sends events to their listeners.
    fn deliver(&mut self, events: &mut Vec<(RequestId, Event)>) {
        for (id, event) in events.drain(..) {
            if self.listeners.get_mut(&id).is_some_and(|listener| !listener.tell(event)) {
                self.listeners.remove(&id);
                // Has ended already, but where the listener panicked.
                self.engine.cancel(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_is_dropped_early_hears_of_it() {
        let (sender, events) = channel();
        let sink = Box::new(move |event| drop(sender.send(event)));
        let listener = Listener { sink, cancelled: Arc::default(), ended: false };
        // As when the engine's thread unwinds.
        let _ = std::thread::spawn(move || {
            let _listener = listener;
            panic!("part of the test");
        })
        .join();
        assert!(matches!(events.recv(), Ok(Event::Failed(message)) if message.contains("stopped")));
        assert!(events.recv().is_err(), "one last event");
    }
}
