//! What is taken from strangers: sizes, nesting, time, work.
//!
//! Invariant: a specification within the limits does not overflow the stack of the thread that compiles it, and one
//! beyond them is refused before it is parsed.

use std::time::Duration;

use llguidance::api::ParserLimits;
use serde_json::Value;

use super::{GrammarError, GrammarSpec};

/// Bounds on one grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Bytes of a specification: its text, or a schema's JSON.
    pub bytes: usize,
    /// Nesting of brackets or of a schema's values.
    pub depth: usize,
    /// Wall time of compiling.
    pub time: Duration,
    /// Grammars compiled at once, those among them whose time is up and that have not ended yet.
    pub at_once: usize,
}

impl Default for GrammarLimits {
    /// 1 MiB, 64 levels, 5 s, 4 at once.
    fn default() -> Self {
        Self { bytes: 1 << 20, depth: 64, time: Duration::from_secs(5), at_once: 4 }
    }
}

impl GrammarLimits {
    /// Checks a specification's size and nesting.
    pub(super) fn check(&self, spec: &GrammarSpec) -> Result<(), GrammarError> {
        let (bytes, depth) = match spec {
            GrammarSpec::JsonObject => (0, 0),
            GrammarSpec::JsonSchema(schema) => {
                let mut patterns = 0;
                let depth = measure(schema, self.depth, &mut patterns);
                // Deeper values are not even counted, so that this recursion is bounded as well.
                let bytes = if depth > self.depth { 0 } else { schema.to_string().len() };
                (bytes, depth.max(patterns))
            }
            GrammarSpec::Regex(text) | GrammarSpec::Lark(text) => (text.len(), bracket_depth(text)),
        };
        let found = [("size in bytes", bytes, self.bytes), ("nesting", depth, self.depth)];
        match found.into_iter().find(|(_, value, max)| value > max) {
            Some((what, value, max)) => Err(GrammarError::TooLarge { what, value, max }),
            None => Ok(()),
        }
    }
}

/// Levels of a value, at most one more than `max`; and the deepest brackets of its strings, which may be patterns.
fn measure(value: &Value, max: usize, brackets: &mut usize) -> usize {
    if max == 0 {
        return 1;
    }
    match value {
        Value::Array(items) => 1 + items.iter().map(|v| measure(v, max - 1, brackets)).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(|v| measure(v, max - 1, brackets)).max().unwrap_or(0),
        Value::String(text) => {
            *brackets = (*brackets).max(bracket_depth(text));
            1
        }
        _ => 1,
    }
}

/// The deepest nesting of brackets, counted without regard to quotes: an upper bound where they pair up, and where
/// they do not, one that grows.
fn bracket_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Bounds on work, counted in the recognizer's own units: about 20 ms to begin, 10 ms a step; and on memory, a
/// kilobyte or two for each state.
pub(super) fn parser_limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 20_000,
        verbose_errors: false,
        precompute_large_lexemes: false,
        ..ParserLimits::default()
    }
}

/// The first line of a message, of bounded length.
pub(super) fn first_line(message: &str) -> String {
    let line = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn depth_counts_brackets_and_levels() {
        assert_eq!(bracket_depth("a(b[c]{d})(e)"), 2);
        assert_eq!(bracket_depth("))))(("), 2);
        let mut brackets = 0;
        assert_eq!(measure(&json!({"a": [1, {"pattern": "((x))"}]}), 64, &mut brackets), 4);
        assert_eq!(brackets, 2);
        assert_eq!(measure(&json!([[[[[1]]]]]), 3, &mut brackets), 4);
    }

    #[test]
    fn what_is_too_large_is_refused_with_the_numbers() {
        let limits = GrammarLimits { bytes: 100, depth: 5, ..GrammarLimits::default() };
        let error = limits.check(&GrammarSpec::Regex("a".repeat(101))).unwrap_err();
        assert_eq!(error, GrammarError::TooLarge { what: "size in bytes", value: 101, max: 100 });
        let error = limits.check(&GrammarSpec::Lark("(".repeat(6))).unwrap_err();
        assert_eq!(error, GrammarError::TooLarge { what: "nesting", value: 6, max: 5 });
        assert!(limits.check(&GrammarSpec::JsonSchema(json!([[[[[[1]]]]]]))).is_err());
        assert!(limits.check(&GrammarSpec::JsonSchema(json!({"type": "object"}))).is_ok());
    }
}
