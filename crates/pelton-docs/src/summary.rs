//! The figures of a run. Invariant: `written + existing + failed + no_answer == items`.

use std::fmt;

use crate::skip::{Skip, count_by_reason};
use crate::writer::Author;

/// An item that one of several models documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authored {
    /// File, relative to the documented path, with `/`.
    pub path: String,
    /// Its first line, from 1.
    pub line: usize,
    /// Its qualified name.
    pub name: String,
    /// Who wrote its entry.
    pub author: Author,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Files with at least one entry.
    pub files: usize,
    /// Entries.
    pub items: usize,
    /// Entries that the model wrote.
    pub written: usize,
    /// Entries taken from the source.
    pub existing: usize,
    /// Entries that failed.
    pub failed: usize,
    /// Entries to which the model answered nothing.
    pub no_answer: usize,
    /// Entries whose code was cut to fit the context.
    pub truncated_code: usize,
    /// Entries whose answer reached the token limit.
    pub truncated_replies: usize,
    /// Entries that fell into a loop, which was cut.
    pub repetitions_cut: usize,
    /// Who wrote which entry, in the order of the output; empty where the writer has one model.
    pub authored: Vec<Authored>,
    /// What was left out.
    pub skips: Vec<Skip>,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Of these, tokens from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// Seconds that the model took, from the first request to the last reply.
    pub seconds: f64,
    /// Seconds that discovery took.
    pub scan_seconds: f64,
}

impl fmt::Display for Summary {
    /// Two to four lines, without a line break at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", counted(self.items, "item"), counted(self.files, "file"))?;
        let n_asked = self.items - self.existing;
        if n_asked > 0 {
            write!(f, " · {} in {:.1} s", counted(self.tokens, "token"), self.seconds)?;
            if self.seconds > 0.0 {
                let (tokens, items) = (self.tokens as f64 / self.seconds, n_asked as f64 / self.seconds);
                write!(f, " · {} tokens/s · {items:.1} items/s", grouped(tokens.round() as usize))?;
            }
        }
        write!(f, "\n{} written · {} from source", grouped(self.written), grouped(self.existing))?;
        let notes = [
            (self.failed, "failed"),
            (self.no_answer, "without answer"),
            (self.truncated_code, "with code cut to fit the context"),
            (self.truncated_replies, "cut at the token limit"),
            (self.repetitions_cut, "with repetition cut"),
        ];
        for (n, words) in notes.into_iter().filter(|(n, _)| *n > 0) {
            write!(f, " · {} {words}", grouped(n))?;
        }
        if n_asked > 0 {
            write!(f, "\nprompts {}, {} cached", counted(self.prompt_tokens, "token"), grouped(self.cached_tokens))?;
        }
        let counts = count_by_reason(&self.skips);
        for (index, (reason, n)) in counts.into_iter().enumerate() {
            f.write_str(if index == 0 { "\nleft out: " } else { ", " })?;
            write!(f, "{} {}", grouped(n), reason.words())?;
        }
        Ok(())
    }
}

/// `1 item`, `2,345 items`.
fn counted(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// `20,112`.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::SkipReason;

    #[test]
    fn the_lines_read_well() {
        let summary = Summary {
            files: 41,
            items: 312,
            written: 300,
            existing: 10,
            failed: 2,
            tokens: 20_112,
            seconds: 35.1,
            prompt_tokens: 1000,
            skips: vec![Skip::file("a", SkipReason::Test), Skip::file("b", SkipReason::Test)],
            ..Summary::default()
        };
        let expected = "312 items in 41 files · 20,112 tokens in 35.1 s · 573 tokens/s · 8.6 items/s\n\
            300 written · 10 from source · 2 failed\nprompts 1,000 tokens, 0 cached\nleft out: 2 test files or folders";
        assert_eq!(summary.to_string(), expected);
        assert_eq!(Summary::default().to_string(), "0 items in 0 files\n0 written · 0 from source");
    }
}
