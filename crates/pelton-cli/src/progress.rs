//! Progress of anything that takes longer than a moment.
//!
//! Invariant: a bar appears only on a terminal, only after [`APPEARS_AFTER`], and leaves nothing behind.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::term;

/// Shorter waits show nothing: a bar that only flashes is noise.
const APPEARS_AFTER: Duration = Duration::from_millis(700);

const BYTES: &str =
    "{msg:28!} {bar:30} {binary_bytes:>11} of {binary_total_bytes} · {binary_bytes_per_sec} · {eta} left";
const ITEMS: &str = "{bar:30} {pos} of {len} · {rate} · {eta} left · {wide_msg}";
const STEPS: &str = "{bar:30} {pos} of {len} · {wide_msg}";
const SPINNER: &str = "{spinner} {msg} · {elapsed}";

/// A bar on stderr, removed when dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// The thread that shows the bar in time, and how to tell it that the work is over.
    appearing: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Over bytes.
    pub(crate) fn bytes(quiet: bool) -> Progress {
        Progress::new(BYTES, quiet)
    }

    /// Over items of about equal length, with the time that is left.
    pub(crate) fn items(quiet: bool) -> Progress {
        Progress::new(ITEMS, quiet)
    }

    /// Over steps of different length.
    pub(crate) fn steps(quiet: bool) -> Progress {
        Progress::new(STEPS, quiet)
    }

    /// Over work that does not say how far it is.
    pub(crate) fn spinner(message: &'static str, quiet: bool) -> Progress {
        let progress = Progress::new(SPINNER, quiet);
        progress.bar.set_message(message);
        progress
    }

    fn new(template: &str, quiet: bool) -> Progress {
        let style = ProgressStyle::with_template(template).expect("the templates above are valid");
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A string takes all that is written; were it not to, the rate would be missing from the bar.
            let _written = write!(out, "{:.1}/s", state.per_sec());
        };
        bar.set_style(style.progress_chars("━╸ ").with_key("rate", rate));
        let seen = !quiet && std::io::stderr().is_terminal();
        Progress { appearing: seen.then(|| appear_later(bar.clone())), bar }
    }

    /// `done` of `total`.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// One step further.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    /// What is worked on.
    pub(crate) fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Prints a note above the bar.
    pub(crate) fn note(&self, text: &str) {
        self.bar.suspend(|| term::note(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((over, thread)) = self.appearing.take() {
            drop(over);
            // The thread only draws: were it to fail, there would be no bar to remove.
            let _ended = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

fn appear_later(bar: ProgressBar) -> (Sender<()>, JoinHandle<()>) {
    let (over, is_over) = channel();
    let thread = std::thread::spawn(move || {
        if is_over.recv_timeout(APPEARS_AFTER) == Err(RecvTimeoutError::Timeout) {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            bar.enable_steady_tick(Duration::from_millis(250));
        }
    });
    (over, thread)
}
