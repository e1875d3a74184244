//! The scheduler: sequences, plans, pages and prefixes, on integers only.
//!
//! What it is for: deciding, step by step, which tokens of which sequences run and in which KV pages
//! they lie. The engine drives it in a loop:
//!
//! ```text
//! add / fork / cancel / set_draft  ─▶  plan()  ─▶  (the engine copies pages, runs the rows)  ─▶  commit()
//! ```
//!
//! Invariants: no tensor, clock, thread, file or random number is seen here, so the same calls give the
//! same plans everywhere, and [`Scheduler::check_integrity`] can be asserted after every call. A page
//! table never names a page whose content differs from the sequence's own history; no page is lost.
//!
//! Continuous batching: sequences join and leave at every step. Each step runs the decode rows first,
//! then prefill chunks fill what is left of the token budget, then waiting sequences are admitted, all
//! in one order of importance (first come first served within a priority; see [`SeqOptions::priority`];
//! between tenants, the one for whom least was done goes first). A prompt too long for the step leaves half of it to
//! shorter ones behind it, so that these need not wait for its end.
//! When pages run out, the least important sequence loses its pages and waits again; it is prefilled
//! again later, with what it had generated (preemption by recompute).
//!
//! ```
//! use pelton_sched::{Limits, Scheduler, SeqId, SeqOptions, StepOutcome};
//!
//! let mut sched = Scheduler::new(Limits { n_pages: 64, ..Limits::default() })?;
//! sched.add(SeqId(1), vec![5, 6, 7], SeqOptions { max_new_tokens: 2, ..SeqOptions::default() })?;
//! let plan = sched.plan();
//! assert_eq!((plan.rows[0].tokens.as_slice(), plan.rows[0].sample), ([5, 6, 7].as_slice(), true));
//! sched.commit(&[StepOutcome { seq: SeqId(1), new_tokens: vec![8], finished: false }]);
//! assert_eq!(sched.plan().rows[0].tokens, [8]);
//! let done = sched.commit(&[StepOutcome { seq: SeqId(1), new_tokens: vec![9], finished: false }]);
//! assert_eq!(done[0].tokens, [5, 6, 7, 8, 9]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod ahead;
mod commit;
mod error;
mod id_map;
mod integrity;
mod limits;
mod page_pool;
mod pages;
mod plan;
mod prefix;
mod scheduler;
mod sequence;
mod share;
mod stats;
mod tenants;

pub use ahead::Ahead;
pub use commit::{FinishReason, Finished, StepOutcome};
pub use error::{AddError, ForkError, LimitsError};
pub use limits::Limits;
pub use pages::IndexedPage;
pub use plan::{Plan, PlanRow};
pub use prefix::CacheMiss;
pub use scheduler::Scheduler;
pub use sequence::{AGEING_STEPS, SeqId, SeqOptions};
pub use stats::Stats;
