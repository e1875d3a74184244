//! The words of a question, without its code.
//!
//! Invariant: only what stands between marks that answer each other counts as code (as CommonMark has it): a backtick
//! too many hides no word from the rules, and a fence within code does not end it.

/// The text without fenced blocks and `code`.
pub(super) fn prose(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut fence: Option<(char, usize)> = None;
    for line in text.lines() {
        match (fence, mark_of(line)) {
            (None, Some((sign, length, rest))) if sign == '~' || !rest.contains('`') => fence = Some((sign, length)),
            (None, _) => {
                out.push_str(line);
                out.push('\n');
            }
            (Some((sign, length)), Some((closing, n, rest)))
                if closing == sign && n >= length && rest.trim().is_empty() =>
            {
                fence = None;
            }
            (Some(_), _) => {}
        }
    }
    without_spans(&out)
}

/// The sign of a fence that the line may begin or end a block with, how often it is there, and what follows it.
fn mark_of(line: &str) -> Option<(char, usize, &str)> {
    let text = line.trim_start_matches(' ');
    let sign = text.chars().next().filter(|&c| (c == '`' || c == '~') && line.len() - text.len() <= 3)?;
    let rest = text.trim_start_matches(sign);
    let n = text.len() - rest.len();
    (n >= 3).then_some((sign, n, rest))
}

/// The text without what stands between two equally long runs of backticks.
fn without_spans(text: &str) -> String {
    // Each run of backticks: where it begins, and how long it is.
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, _) in text.match_indices('`') {
        match runs.last_mut() {
            Some((start, n)) if *start + *n == at => *n += 1,
            _ => runs.push((at, 1)),
        }
    }
    // Lengths whose last run is behind us: nothing will answer them. Keeps many runs from being searched many times.
    let last: std::collections::HashMap<usize, usize> = runs.iter().enumerate().map(|(i, &(_, n))| (n, i)).collect();
    let (mut out, mut from, mut i) = (String::with_capacity(text.len()), 0, 0);
    while i < runs.len() {
        let (start, n) = runs[i];
        if last[&n] > i
            && let Some(j) = (i + 1..runs.len()).find(|&j| runs[j].1 == n)
        {
            out.push_str(&text[from..start]);
            out.push(' ');
            from = runs[j].0 + n;
            i = j;
        }
        i += 1;
    }
    out + &text[from..]
}

/// Words in lower case; a hyphen joins.
pub(super) fn words(text: &str) -> Vec<String> {
    let split = text.split(|c: char| !is_of_word(c));
    split.map(|w| w.trim_matches(['-', '\''])).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '-' || c == '\''
}

/// Whether a phrase can be among words at all: it has some, and nothing but them and spaces.
pub(super) fn is_phrase(phrase: &str) -> bool {
    let mut parts = phrase.split_whitespace().peekable();
    parts.peek().is_some() && parts.all(|w| w.chars().all(is_of_word) && w.chars().any(char::is_alphanumeric))
}

/// Whether a phrase is among the words, all of its words one after the other; hyphens may join them.
pub(super) fn contains(said: &[String], phrase: &str) -> bool {
    let phrase = words(phrase);
    let joined = phrase.join("-");
    let is_there = |w: &[String]| w.iter().zip(&phrase).all(|(a, b)| a == b);
    !phrase.is_empty() && (said.windows(phrase.len()).any(is_there) || said.contains(&joined))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<String> {
        words(&prose(text))
    }

    #[test]
    fn code_is_left_out_and_only_code() {
        assert_eq!(said("Run `why()` now"), ["run", "now"]);
        assert_eq!(said("a ``x ` y`` b"), ["a", "b"]);
        assert_eq!(said("It`s slow: why?"), ["it", "s", "slow", "why"], "nothing answers this backtick");
        assert_eq!(said("a `` b ` c"), ["a", "b", "c"], "runs of different length");
        assert_eq!(said("see:\n```rust\nwhy\n```\nplan"), ["see", "plan"]);
        assert_eq!(said("see:\n~~~\n```\nwhy\n~~~\nplan"), ["see", "plan"]);
        // A fence within code, as in a doc comment or a longer fence, ends nothing.
        assert_eq!(said("see\n```rust\n/// ```\nwhy\n/// ```\n```\nplan"), ["see", "plan"]);
        assert_eq!(said("see\n````\n```\nwhy\n```\n````\nplan"), ["see", "plan"]);
        assert_eq!(said("see\n```\n``` why\n```\nplan"), ["see", "plan"]);
        // Four spaces make no fence, nor does one with backticks behind it.
        assert_eq!(said("    ```\nwhy"), ["why"]);
        assert_eq!(said("```a``` why"), ["why"]);
        assert_eq!(said("a\n```\nwhy"), ["a"], "a block that nothing closes goes on to the end");
        assert_eq!(said(""), [""; 0]);
        assert_eq!(said("größe `ä` 'straße' - x"), ["größe", "straße", "x"]);
    }

    #[test]
    fn many_backticks_take_no_time() {
        let odd: String = (1..500).map(|n| "`".repeat(n) + " ").collect();
        assert_eq!(said(&(odd + "why")), ["why"]);
        assert_eq!(said(&"` a ".repeat(100_001)).len(), 50_001, "every other one is code, and the last");
    }

    #[test]
    fn phrases_are_found_however_they_are_written() {
        let words = said("Think Step by step about trade-offs.");
        for phrase in ["step by step", "STEP BY step", "trade-offs", " think  step "] {
            assert!(contains(&words, phrase), "{phrase}");
        }
        assert!(contains(&said("think step-by-step"), "step by step"));
        assert!(!contains(&words, "by think") && !contains(&words, "") && !contains(&[], "a"));
        assert!(contains(&words, "trade offs") && !contains(&said("trade it offs"), "trade offs"));
        assert!(!contains(&said("trade offs"), "trade-offs"), "what the phrase joins has to be joined");
        assert!(is_phrase("pros and cons") && is_phrase("trade-offs") && is_phrase("größe"));
        for no in ["", " ", "c++", "why?", "a, b", "-", "x '"] {
            assert!(!is_phrase(no), "{no}");
        }
    }
}
