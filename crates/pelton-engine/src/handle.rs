//! The thread that owns an engine, and the handle that others hold.
//!
//! Invariants: dropping a [`RequestHandle`] cancels its request within one step; dropping the [`EngineHandle`] ends
//! the thread; whoever still listens gets one last event, whatever becomes of the engine.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pelton_backend::Backend;

use crate::{Engine, Event, Request, RequestId, SubmitError};

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
    listener: Listener,
}

/// Where a request's events go. Called on the engine's thread: it must not wait. Should it panic, its request is
/// cancelled and it is not called again.
pub type EventSink = Box<dyn FnMut(Event) + Send>;

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
        self.ended |= !matches!(event, Event::Token { .. });
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

/// Submits requests to an engine that runs on a thread of its own.
pub struct EngineHandle {
    submit: Option<Sender<Submit>>,
    thread: Option<JoinHandle<()>>,
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
        let (submit, requests) = channel();
        let run = move || Owner { engine, requests, listeners: HashMap::new() }.run();
        let thread = std::thread::Builder::new().name("pelton-engine".into()).spawn(run)?;
        Ok(EngineHandle { submit: Some(submit), thread: Some(thread) })
    }

    /// Queues a request; a refusal arrives as its only event ([`Event::Failed`]).
    ///
    /// # Errors
    /// [`SubmitError::Stopped`] where the engine has ended.
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
    /// [`SubmitError::Stopped`] where the engine has ended.
    pub fn submit_to(&self, request: Request, sink: EventSink) -> Result<CancelGuard, SubmitError> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let listener = Listener { sink, cancelled: cancelled.clone(), ended: false };
        let submit = self.submit.as_ref().expect("taken by drop alone");
        submit.send(Submit { request, listener }).map_err(|mut refused| {
            refused.0.listener.ended = true;
            SubmitError::Stopped
        })?;
        Ok(CancelGuard { cancelled })
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
}

impl<B: Backend> Owner<B> {
    fn run(mut self) {
        self.engine.bind_thread();
        let mut events = Vec::new();
        loop {
            if !self.admit() {
                return self.cancel_all();
            }
            self.drop_cancelled();
            if let Err(e) = self.engine.step(&mut events) {
                let message = e.to_string();
                for listener in self.listeners.values_mut() {
                    listener.tell(Event::Failed(message.clone()));
                }
                return;
            }
            self.deliver(&mut events);
        }
    }

    /// Takes in what has arrived; waits where there is nothing else to do. `false` where nobody can submit any more.
    fn admit(&mut self) -> bool {
        loop {
            let idle = !self.engine.has_work();
            let received = match idle {
                true => self.requests.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.requests.try_recv(),
            };
            match received {
                Ok(Submit { request, mut listener }) => match self.engine.submit(request) {
                    Ok(id) => {
                        self.listeners.insert(id, listener);
                    }
                    Err(e) => {
                        listener.tell(Event::Failed(e.to_string()));
                    }
                },
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

    /// Ends what still runs, and says so.
    fn cancel_all(mut self) {
        for (id, mut listener) in self.listeners.drain() {
            if let Some(event) = self.engine.cancel(id) {
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
