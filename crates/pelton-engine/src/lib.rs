//! The step loop, and the thread that owns a model.
//!
//! [`Engine::step`] is one turn of the wheel: plan (integers), run one ragged batch, sample, commit, and hand out
//! text. It is synchronous and owns everything it touches; a test calls it without a thread or a runtime.
//! [`EngineHandle`] hides the backend's type behind a channel, for everyone else. Invariants: what a request
//! yields never depends on its company in the batch; a request that nobody listens to any more is cancelled
//! within one step.

#![forbid(unsafe_code)]

mod answer;
mod disk;
mod engine;
mod event;
mod handle;
mod pace;
mod pages;
mod pool;
mod queue;
mod request;
mod sequence;
mod speculate;

pub use disk::{DiskOptions, DiskStats};
pub use engine::{Engine, EngineError, EngineLimits};
pub use event::{Embedded, Event, FinishReason, Finished, Miss, MissCause, Speculated, Timing};
pub use handle::{CancelGuard, EngineHandle, EngineStats, EventSink, Pressure, RequestHandle, panic_text};
pub use request::{MAX_CHOICES, MAX_TOP_LOGPROBS, Pooling, Request, RequestId, SubmitError, Task};
pub use speculate::{
    Asks, CLASSES, DraftModel, Drafter, MAX_DRAFT, Ngrams, Offer, Recall, SpeculationOptions, VocabularyMismatch,
    check_vocabularies,
};
