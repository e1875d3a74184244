//! Stop strings over a stream of text. Invariant: no byte is emitted that belongs to, or may still
//! become, a stop string; and the result does not depend on how the text was cut into pieces.

/// Finds the first stop string in a text that arrives in pieces.
///
/// The stop string that *completes* first wins; of several that complete at the same byte, the
/// longest, then the first in the list. Empty stop strings never match.
///
/// ```
/// # use pelton_text::StopStrings;
/// let mut stops = StopStrings::new(vec!["\nUser:".into()]);
/// assert_eq!(stops.push("Hello.\nUs").emit, "Hello.");
/// let end = stops.push("er: and more");
/// assert_eq!((end.emit.as_str(), end.stopped), ("", Some(0)));
/// ```
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// A suffix of the text so far that is a proper prefix of some stop string.
    held: String,
    stopped: Option<usize>,
}

/// What one piece of text led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certainly part of the answer.
    pub emit: String,
    /// The index of the stop string that was found, if one was; nothing is emitted afterwards.
    pub stopped: Option<usize>,
}

impl StopStrings {
    /// A matcher for these strings; with an empty list, everything is emitted at once.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), stopped: None }
    }

    /// Adds a piece of text. Once stopped, further text is dropped.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped.is_some() {
            return StopOutcome { emit: String::new(), stopped: self.stopped };
        }
        let seen = self.held.len();
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        // No stop string ends inside of what was held: it would have been found before.
        for (offset, ch) in piece.char_indices() {
            let end = seen + offset + ch.len_utf8();
            if let Some(index) = self.ends_at(&text[..end]) {
                self.stopped = Some(index);
                text.truncate(end - self.stops[index].len());
                return StopOutcome { emit: text, stopped: Some(index) };
            }
        }
        let keep = self.hold_from(&text);
        self.held = text.split_off(keep);
        StopOutcome { emit: text, stopped: None }
    }

    /// The end of the stream: the text that was held back, which turned out to be no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn ends_at(&self, text: &str) -> Option<usize> {
        let mut found: Option<usize> = None;
        for (index, stop) in self.stops.iter().enumerate() {
            let longer = found.is_none_or(|best| stop.len() > self.stops[best].len());
            if longer && !stop.is_empty() && text.ends_with(stop.as_str()) {
                found = Some(index);
            }
        }
        found
    }

    /// Where the longest suffix of `text` begins that is a proper prefix of a stop string.
    fn hold_from(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(|stop| stop.len()).max().unwrap_or(0);
        let first = text.len().saturating_sub(longest.saturating_sub(1));
        (first..text.len())
            .filter(|&start| text.is_char_boundary(start))
            .find(|&start| {
                let suffix = &text[start..];
                self.stops.iter().any(|stop| stop.len() > suffix.len() && stop.starts_with(suffix))
            })
            .unwrap_or(text.len())
    }
}
