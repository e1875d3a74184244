//! How many answers wait, wherever they do: on their way to the engine's thread, or in the scheduler.
//!
//! Invariant: whoever counts has a [`Ticket`], and a ticket is given back when its request begins to run or ends, so
//! the count neither leaks nor passes its limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::SubmitError;

/// The bound on what waits.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    waiting: Arc<AtomicUsize>,
    max: usize,
}

/// The places of one request in the queue.
#[derive(Debug)]
pub(crate) struct Ticket {
    waiting: Arc<AtomicUsize>,
    n: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.n, Ordering::AcqRel);
    }
}

impl Queue {
    pub(crate) fn new(max: usize) -> Queue {
        Queue { waiting: Arc::default(), max }
    }

    /// Takes `n` places. A request of more answers than may wait at all is let in where nothing else waits.
    pub(crate) fn enter(&self, n: usize) -> Result<Ticket, SubmitError> {
        let most = self.max.saturating_sub(n);
        let enter = |waiting: usize| (waiting <= most && n <= self.max || waiting == 0).then_some(waiting + n);
        match self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter) {
            Ok(_) => Ok(Ticket { waiting: Arc::clone(&self.waiting), n }),
            Err(waiting) => Err(SubmitError::QueueFull { waiting, max_waiting: self.max }),
        }
    }

    /// Answers that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_counted_and_given_back() {
        let queue = Queue::new(3);
        let first = queue.enter(2).unwrap();
        assert_eq!(queue.enter(2).unwrap_err(), SubmitError::QueueFull { waiting: 2, max_waiting: 3 });
        let second = queue.enter(1).unwrap();
        assert!(queue.enter(1).is_err());
        drop(first);
        assert_eq!(queue.waiting(), 1);
        drop(second);
        assert!(queue.enter(100).is_ok(), "alone, a large one waits for nobody");
    }
}
