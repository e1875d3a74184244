//! A model whose GPU was lost (a fault in a kernel, a driver's reset): what it ran is told why, and its card is opened again
//! with the weights of its files, as often as it takes.
//!
//! Invariant: a model that was on a card comes back on a card or not at all. Nothing falls back to the CPU in silence, and
//! who asks meanwhile hears at once why there is no answer and when to ask again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{BUG, Entry, LoadedShare, Registry, State, open};
use crate::engine::Loaded;
use crate::error::ApiError;

/// Between two attempts; the last for all that follow.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(60)];
/// How long a stopped engine may take to give its card back.
const PARTING: Duration = Duration::from_secs(30);

/// What became of a model's GPU.
pub(super) struct Loss {
    /// What the engine said last.
    why: String,
    since: Instant,
    attempts: Mutex<Attempts>,
}

/// How often the card was tried in vain, why the last time, and when the next is.
#[derive(Default)]
struct Attempts {
    failed: usize,
    error: String,
    next: Option<Instant>,
}

impl Loss {
    fn retry_after(&self) -> u64 {
        let next = self.attempts.lock().unwrap_or_else(PoisonError::into_inner).next;
        next.map_or(0, |next| next.saturating_duration_since(Instant::now()).as_secs()).max(1)
    }

    /// What is wrong, for people; and whether the card could not be opened again.
    pub(super) fn describe(&self) -> (String, bool) {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        match attempts.failed {
            0 => (format!("its GPU was lost and is being opened again: {}", self.why), false),
            n => {
                let text = format!(
                    "its GPU was lost and cannot be opened again (tries: {n}): {}; it was lost to: {}",
                    attempts.error, self.why
                );
                (text, true)
            }
        }
    }

    fn note_failure(&self, error: String) -> (usize, Duration) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.failed += 1;
        let pause = PAUSES[(attempts.failed - 1).min(PAUSES.len() - 1)];
        (attempts.error, attempts.next) = (error, Some(Instant::now() + pause));
        (attempts.failed, pause)
    }
}

/// The cards that a model is on.
fn cards(model: &Loaded) -> HashSet<usize> {
    model.llm.report().gpu.cards.iter().map(|card| card.index).collect()
}

impl Entry {
    /// Why the model cannot answer, where its GPU was lost.
    pub(super) fn loss(&self) -> Option<Arc<Loss>> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Lost(loss) => Some(loss.clone()),
            _ => None,
        }
    }

    /// The model, if its GPU was lost and nobody has seen it yet.
    fn take_lost(&self) -> Option<(Arc<Loaded>, Arc<Loss>)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Loaded(model) = &*state else { return None };
        let why = model.llm.failure().filter(|_| !cards(model).is_empty())?.to_string();
        let loss = Arc::new(Loss { why, since: Instant::now(), attempts: Mutex::default() });
        match std::mem::replace(&mut *state, State::Lost(loss.clone())) {
            State::Loaded(model) => Some((model, loss)),
            _ => unreachable!("looked at above, under the same lock"),
        }
    }
}

impl Registry {
    /// Looks whether a model's GPU was lost, and then opens it again in the background.
    ///
    /// # Errors
    /// Where it is: the request cannot be answered now.
    pub(super) fn check(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(), ApiError> {
        if let Some((model, loss)) = entry.take_lost() {
            (self.log)(&format!("{}: its GPU was lost: {}; opening it again", entry.source.id, loss.why));
            let (registry, entry) = (self.clone(), entry.clone());
            tokio::spawn(async move { registry.revive(&entry, model, &loss).await });
        }
        let Some(loss) = entry.loss() else { return Ok(()) };
        let message = format!("{}: {}", entry.source.id, loss.describe().0);
        Err(ApiError { retry_after: Some(loss.retry_after()), ..ApiError::unavailable(message) })
    }

    /// Looks at all models; called now and then.
    pub(crate) fn look_for_losses(self: &Arc<Self>) {
        self.entries.iter().for_each(|entry| drop(self.check(entry)));
    }

    /// For each model whose GPU was lost: its name, what happened, and whether the GPU could not be opened again.
    pub(crate) fn losses(&self) -> Vec<(String, String, bool)> {
        let lost = self.entries.iter().filter_map(|entry| Some((entry.source.id.clone(), entry.loss()?.describe())));
        lost.map(|(id, (text, is_gone))| (id, text, is_gone)).collect()
    }

    /// Opens the card again, and loads the model.
    async fn revive(self: Arc<Self>, entry: &Arc<Entry>, model: Arc<Loaded>, loss: &Loss) {
        let cards = cards(&model);
        // The engine's thread holds the old context, requests may hold the model: that one ends, these need not.
        let parted = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            while !model.llm.has_ended() && begun.elapsed() < PARTING {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        drop(parted.await);
        loop {
            let error = match self.reopen(entry, &cards).await {
                Ok(model) => {
                    let seconds = loss.since.elapsed().as_secs_f64();
                    let line = format!(
                        "{}: opened again after {seconds:.1} s: {}",
                        entry.source.id,
                        model.llm.report().line()
                    );
                    (self.log)(&line);
                    entry.touch();
                    return entry.set(State::Loaded(Arc::new(model)));
                }
                Err(error) => error.to_string(),
            };
            let (failed, pause) = loss.note_failure(error.clone());
            (self.log)(&format!(
                "{}: its GPU cannot be opened again (tries: {failed}): {error}; there are no answers until it can; next try in {} s",
                entry.source.id,
                pause.as_secs()
            ));
            tokio::time::sleep(pause).await;
        }
    }

    /// One attempt. A card's context belongs to the process: models on the same cards, which are of no use any more, let go
    /// of it first.
    async fn reopen(&self, entry: &Arc<Entry>, lost: &HashSet<usize>) -> Result<Loaded, pelton::Error> {
        let _turn = self.turn.clone().lock_owned().await;
        for other in &self.entries {
            let is_there = other.loaded().is_some_and(|model| !cards(&model).is_disjoint(lost));
            if is_there && let Some(model) = other.take_idle() {
                (self.log)(&format!("{}: let go, its GPU was lost under another model", other.source.id));
                drop(tokio::task::spawn_blocking(move || drop(model)).await);
            }
        }
        let room = self.options.memory.map(|all| all.saturating_sub(self.bytes()));
        let (mut source, store) = (entry.source.clone(), self.options.store.clone());
        source.options.require.gpu = true;
        let opened =
            tokio::task::spawn_blocking(move || open(&source, store.as_deref(), room, &LoadedShare::default()));
        opened.await.unwrap_or_else(|_| Err(pelton::Error::Failure(BUG.into())))
    }
}

/// What `GET /health` answers: `ok`; `reopening` while a lost GPU is opened again; `unhealthy` where it cannot be. With what
/// happened to each model.
pub(crate) fn health(losses: &[(String, String, bool)]) -> (bool, Value) {
    if losses.is_empty() {
        return (true, json!({ "status": "ok" }));
    }
    let is_gone = losses.iter().any(|(_, _, is_gone)| *is_gone);
    let models: Vec<Value> = losses.iter().map(|(id, text, _)| json!({ "id": id, "reason": text })).collect();
    (!is_gone, json!({ "status": if is_gone { "unhealthy" } else { "reopening" }, "models": models }))
}
