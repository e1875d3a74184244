//! Two models as the writer of entries: rules choose for each item.
//!
//! The models take turns: the small one writes all that is left to it, then the large one the rest, with what the small
//! one was not sure of. So each has the machine to itself, and its time is its own.
//!
//! Invariant: every entry names its author; nothing of an answer that does not stand reaches an entry.

use std::fmt;
use std::time::Instant;

use pelton::route::{Decision, Rules, Side};
use pelton_docs::{Author, Reply, Request, Summary, Writer};
use serde_json::{Value, json};

use super::counted;
use super::writer::EngineWriter;
use crate::commands::speaker::decide;
use crate::term::thousands;

/// The two, and what each has done.
pub(super) struct RoutedWriter<'a> {
    pub(super) small: EngineWriter<'a>,
    pub(super) large: EngineWriter<'a>,
    pub(super) rules: &'a Rules,
    pub(super) tally: Tally,
}

/// What one model did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Share {
    /// Replies that stand.
    items: usize,
    /// Tokens generated for them.
    tokens: usize,
    /// Seconds from the first request to the last reply, replies that do not stand among them.
    seconds: f64,
}

impl Share {
    fn add(&mut self, reply: &Reply) {
        self.items += 1;
        self.tokens += reply.tokens;
    }
}

/// Who did how much.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    small_name: String,
    large_name: String,
    small: Share,
    large: Share,
    /// What the small model wrote and was not sure of; the large one wrote it again.
    handed_over: Share,
}

impl<'a> RoutedWriter<'a> {
    pub(super) fn new(small: EngineWriter<'a>, large: EngineWriter<'a>, rules: &'a Rules) -> RoutedWriter<'a> {
        let [small_name, large_name] = [&small, &large].map(|writer| writer.speaker.name().to_string());
        RoutedWriter { small, large, rules, tally: Tally { small_name, large_name, ..Tally::default() } }
    }

    fn author(&self, decision: &Decision) -> Author {
        let writer = if decision.to == Side::Small { &self.small } else { &self.large };
        let (to, model) = (decision.to.to_string(), writer.speaker.name().to_string());
        Author { to, model, why: decision.why.clone() }
    }
}

impl Writer for RoutedWriter<'_> {
    // Prompts are made for the large model: what the small one cannot hold is the large one's.
    fn count_tokens(&self, text: &str) -> usize {
        self.large.count_tokens(text)
    }

    fn context_len(&self) -> usize {
        self.large.context_len()
    }

    fn write_all(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Result<Reply, String>),
    ) -> Result<(), String> {
        let send = |request: &Request| {
            decide(self.rules, self.small.speaker, &self.small.messages(request), Some(request.max_tokens))
        };
        let mut decisions: Vec<Decision> = requests.iter().map(send).collect();
        let of = |decisions: &[Decision], side: Side| -> Vec<usize> {
            (0..decisions.len()).filter(|&i| decisions[i].to == side).collect()
        };
        let numbered = |numbers: &[usize]| numbers.iter().map(|&i| (i, &requests[i])).collect::<Vec<_>>();
        let mut tally = self.tally.clone();
        let begun = Instant::now();
        let for_small = numbered(&of(&decisions, Side::Small));
        let small = self.small.write(for_small.into_iter(), &mut |i, brought| {
            let (mut reply, sure) = match brought {
                Ok(brought) => brought,
                Err(e) => return done(i, Err(format!("{}: {e}", tally.small_name))),
            };
            if let Some(handed_over) = self.rules.hand_over(&sure) {
                tally.handed_over.add(&reply);
                decisions[i] = handed_over;
                return;
            }
            tally.small.add(&reply);
            reply.author = Some(self.author(&decisions[i]));
            done(i, Ok(reply));
        });
        tally.small.seconds += begun.elapsed().as_secs_f64();
        small.map_err(|e| format!("{}: {e}", self.small.speaker.name()))?;
        let begun = Instant::now();
        let for_large = numbered(&of(&decisions, Side::Large));
        let large = self.large.write(for_large.into_iter(), &mut |i, brought| match brought {
            Ok((mut reply, _)) => {
                tally.large.add(&reply);
                reply.author = Some(self.author(&decisions[i]));
                done(i, Ok(reply));
            }
            Err(e) => done(i, Err(format!("{}: {e}", tally.large_name))),
        });
        tally.large.seconds += begun.elapsed().as_secs_f64();
        self.tally = tally;
        large.map_err(|e| format!("{}: {e}", self.large.speaker.name()))
    }
}

impl Tally {
    /// For programs, with the decision for each item.
    pub(super) fn json(&self, summary: &Summary) -> Value {
        let share = |name: &str, s: &Share| json!({ "model": name, "items": s.items, "tokens": s.tokens, "seconds": s.seconds });
        let each = summary.authored.iter().map(|a| {
            let Author { to, model, why } = &a.author;
            json!({ "path": a.path, "line": a.line, "name": a.name, "to": to, "model": model, "why": why })
        });
        json!({
            "small": share(&self.small_name, &self.small),
            "large": share(&self.large_name, &self.large),
            "handed_over": { "items": self.handed_over.items, "tokens": self.handed_over.tokens },
            "each": each.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Tally {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |s: &Share| {
            format!("{} and {} in {:.1} s", counted(s.items, "item"), counted(s.tokens, "token"), s.seconds)
        };
        write!(f, "{} (small) wrote {}", self.small_name, share(&self.small))?;
        if self.handed_over.items > 0 {
            let (items, tokens) = (self.handed_over.items, self.handed_over.tokens);
            write!(f, ", {} more that it was not sure of ({})", thousands(items), counted(tokens, "token"))?;
        }
        write!(f, " · {} (large) wrote {}", self.large_name, share(&self.large))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_who_wrote_how_much() {
        let share = |items, tokens, seconds| Share { items, tokens, seconds };
        let mut tally = Tally {
            small_name: "a".into(),
            large_name: "b".into(),
            small: share(1, 12, 0.5),
            large: share(2, 1_200, 3.25),
            handed_over: Share::default(),
        };
        let line = "a (small) wrote 1 item and 12 tokens in 0.5 s · b (large) wrote 2 items and 1,200 tokens in 3.2 s";
        assert_eq!(tally.to_string(), line);
        tally.handed_over = share(3, 40, 0.0);
        assert!(tally.to_string().contains("0.5 s, 3 more that it was not sure of (40 tokens) · b"), "{tally}");
    }
}
