//! Unified diffs from edits at known places; no text is compared.
//!
//! Invariant: applying the diff to the source gives exactly the source with its edits made.

use std::ops::Range;

use crate::extract::{line_end, line_start};

/// Lines around each change.
const CONTEXT: usize = 3;

/// Replaces a range of bytes.
#[derive(Clone, Debug)]
pub(super) struct Edit {
    pub(super) range: Range<usize>,
    pub(super) text: String,
}

/// Old lines replaced by new text, in whole lines.
struct Change {
    /// Index of the first old line.
    first: usize,
    n_old: usize,
    new: String,
}

/// The hunks of the edits, which are sorted and share no line.
pub(super) fn hunks(source: &str, edits: &[Edit]) -> String {
    let lines: Vec<&str> = source.split_inclusive('\n').collect();
    let mut starts = Vec::with_capacity(lines.len());
    let mut at = 0;
    for line in &lines {
        starts.push(at);
        at += line.len();
    }
    let line_of = |offset: usize| starts.partition_point(|start| *start < offset);
    let changes: Vec<Change> = edits
        .iter()
        .map(|edit| {
            let whole = whole_lines(source, &edit.range);
            let new = [&source[whole.start..edit.range.start], &edit.text, &source[edit.range.end..whole.end]].concat();
            let first = line_of(whole.start);
            Change { first, n_old: line_of(whole.end) - first, new }
        })
        .collect();
    let mut out = String::new();
    let mut n_added = 0isize;
    let mut rest = changes.as_slice();
    while !rest.is_empty() {
        let n = near(rest);
        let (group, after) = rest.split_at(n);
        n_added += hunk(&lines, group, n_added, &mut out);
        rest = after;
    }
    out
}

/// The whole lines that a range touches; an empty range at a line's start touches none.
pub(super) fn whole_lines(source: &str, range: &Range<usize>) -> Range<usize> {
    let at_start = range.start == 0 || source.as_bytes()[range.start - 1] == b'\n';
    if range.is_empty() && at_start {
        return range.clone();
    }
    let start = line_start(source, range.start);
    // A byte order mark belongs to its line.
    let start = if source[..start] == *"\u{feff}" { 0 } else { start };
    start..line_end(source, range.end)
}

/// How many changes share the first hunk.
fn near(changes: &[Change]) -> usize {
    let apart = changes.windows(2).position(|pair| pair[1].first - (pair[0].first + pair[0].n_old) > 2 * CONTEXT);
    apart.map_or(changes.len(), |at| at + 1)
}

/// Writes one hunk; returns how many lines it adds. `shift` lines were added before it.
fn hunk(lines: &[&str], changes: &[Change], shift: isize, out: &mut String) -> isize {
    let last = &changes[changes.len() - 1];
    let start = changes[0].first.saturating_sub(CONTEXT);
    let end = (last.first + last.n_old + CONTEXT).min(lines.len());
    let mut body = String::new();
    let mut n_added = 0isize;
    let mut at = start;
    for change in changes {
        lines[at..change.first].iter().for_each(|line| push(&mut body, ' ', line));
        at = change.first + change.n_old;
        lines[change.first..at].iter().for_each(|line| push(&mut body, '-', line));
        change.new.split_inclusive('\n').for_each(|line| push(&mut body, '+', line));
        n_added += change.new.split_inclusive('\n').count() as isize - change.n_old as isize;
    }
    lines[at..end].iter().for_each(|line| push(&mut body, ' ', line));
    let n_old = end - start;
    let n_new = n_old as isize + n_added;
    let new_start = start as isize + shift;
    // An empty side is numbered by the line before it.
    let number = |start: isize, n: isize| if n == 0 { start } else { start + 1 };
    let (from, to) = (number(start as isize, n_old as isize), number(new_start, n_new));
    out.push_str(&format!("@@ -{from},{n_old} +{to},{n_new} @@\n{body}"));
    n_added
}

fn push(out: &mut String, sign: char, line: &str) {
    out.push(sign);
    out.push_str(line);
    if !line.ends_with('\n') {
        out.push_str("\n\\ No newline at end of file\n");
    }
}
