//! Documents a codebase: finds its functions and types, has a model write one entry for each, and writes
//! pages, records or a patch.
//!
//! The way of an item: [`Scan`] finds it (tree-sitter, eight languages), the prompt shows its code to the
//! model behind [`Writer`], the reply is cleaned, and the entry goes to Markdown pages, JSON lines or a unified
//! diff. [`run`] does it all.
//!
//! # What is written, and what is not
//!
//! - The model writes for items that have no doc comment. Items that have one are listed with their own text
//!   (`existing`), and a patch leaves them alone; [`DocsOptions::regenerate`] asks for all.
//! - Tests, generated, vendored, minified and ignored code is left out, by rules that look only below PATH; a
//!   file named outright is read whatever its name. All that is left out is counted and listed by reason.
//! - What is nested in a function belongs to it. A type longer than 60 lines is shown to the model without the
//!   bodies of its methods. In patches, methods that implement a Rust trait or that Java marks `@Override`
//!   inherit their comment and get none.
//! - Nothing is cut silently: code that does not fit the context, answers at the token limit and loops are
//!   flagged on the entry and counted in the [`Summary`].
//!
//! Invariant: this crate reaches a model only through [`Writer`] and writes only under the output it was given.
#![forbid(unsafe_code)]

mod entry;
mod error;
mod extract;
mod item;
mod job;
mod language;
mod prompt;
mod qualify;
mod reply;
mod rules;
mod scan;
mod skip;
mod summary;
mod write;
mod writer;

pub use entry::{Flag, Source};
pub use error::DocsError;
pub use item::{ExistingDoc, InsertPoint, Item, ItemKind};
pub use job::{DEFAULT_PAGES, DocsOptions, Format, Progress, run, run_to};
pub use language::Language;
pub use prompt::{Snippet, prompts};
pub use scan::{MAX_FILE_BYTES, Scan, SourceFile};
pub use skip::{Skip, SkipReason, count_by_reason};
pub use summary::{Authored, Summary};
pub use writer::{Author, Reply, Request, Writer};
