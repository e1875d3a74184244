//! From the model's reply to the text of an entry.
//!
//! Small models repeat the comment's marks, wrap the text in fences and fall into loops. Invariant: the text
//! that leaves this file has no control characters but line breaks, no text-direction overrides, at most one
//! blank line in a row, and at most [`MAX_DOC_BYTES`] bytes; whatever was cut is flagged.

use crate::entry::Flag;

/// The longest entry.
pub(crate) const MAX_DOC_BYTES: usize = 6000;
/// A stretch that repeats this many times is a loop.
const MIN_COPIES: usize = 3;
/// Loops shorter than this many words may be wanted (`ha ha ha`).
const MIN_LOOP_WORDS: usize = 8;
/// The longest period of a loop, in words.
const MAX_PERIOD: usize = 120;
/// Identical lines at least this long count towards a loop.
const MIN_LINE_BYTES: usize = 12;

/// The cleaned text and what was done to it; empty text is flagged [`Flag::NoAnswer`].
pub(crate) fn clean(reply: &str, truncated: bool) -> (String, Vec<Flag>) {
    let mut flags = Vec::new();
    let text = without_controls(reply);
    let text = without_wrapping(text.trim());
    let mut text = normal_lines(&without_marks(&text));
    let whole = text.len();
    text = cut_repeated_lines(&cut_loop(&text));
    let looped = text.len() < whole;
    if looped {
        flags.push(Flag::RepetitionCut);
    }
    if truncated {
        flags.push(Flag::TruncatedReply);
        if !looped {
            text = last_sentence(&text).to_owned();
        }
    }
    if text.len() > MAX_DOC_BYTES {
        let mut end = MAX_DOC_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.truncate(text.rfind('\n').unwrap_or(end));
        flags.push(Flag::LongCut);
    }
    text.truncate(text.trim_end().len());
    if !text.chars().any(char::is_alphanumeric) {
        text.clear();
        flags.push(Flag::NoAnswer);
    }
    (text, flags)
}

/// Line breaks become `\n`, tabs four spaces; other control characters and direction overrides go.
fn without_controls(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n").replace('\t', "    ");
    let bad = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffd}')
    };
    text.chars().filter(|c| !bad(*c)).collect()
}

/// Takes off one fence around all, and quotes of a docstring.
fn without_wrapping(text: &str) -> String {
    let mut text = text;
    if let Some(rest) = text.strip_prefix("```")
        && let Some((tag, inner)) = rest.split_once('\n')
        && !tag.contains('`')
    {
        text = inner.split("\n```").next().unwrap_or(inner).trim();
    }
    for quote in ["\"\"\"", "'''"] {
        let opened =
            text.strip_prefix(quote).or_else(|| text.strip_prefix('r').and_then(|rest| rest.strip_prefix(quote)));
        if let Some(inner) = opened {
            // What follows the closing quotes is code that the model went on to write.
            return inner.split(quote).next().unwrap_or(inner).trim().to_owned();
        }
    }
    if let Some(inner) = text.strip_prefix("/*") {
        let inner = inner.split("*/").next().unwrap_or(inner);
        let inner = inner.trim_start_matches(['*', '!']).trim();
        let strip = |line: &str| {
            let line = line.trim();
            let rest = line.strip_prefix('*').unwrap_or(line);
            rest.strip_prefix(' ').unwrap_or(rest).to_owned()
        };
        return inner.lines().map(strip).collect::<Vec<_>>().join("\n");
    }
    text.trim_end_matches("\"\"\"").trim_end().to_owned()
}

/// Takes comment marks off where every line has them.
fn without_marks(text: &str) -> String {
    for mark in ["///", "//!", "//", "*"] {
        let all = text.lines().filter(|line| !line.trim().is_empty()).all(|line| {
            // One star may open the items of a list.
            line.trim_start().starts_with(mark) && (mark != "*" || text.lines().count() > 1)
        });
        let list = mark == "*" && text.trim_start().starts_with('*');
        let rest_starred = mark == "*" && text.lines().count() > 1 && rest_has(text, mark);
        if (all && !list) || rest_starred {
            let strip = |line: &str| {
                let line = line.trim_start();
                let rest = line.strip_prefix(mark).unwrap_or(line);
                rest.strip_prefix(' ').unwrap_or(rest).to_owned()
            };
            return text.lines().map(strip).collect::<Vec<_>>().join("\n");
        }
    }
    text.to_owned()
}

/// The block comment's edge: every line but the first begins with ` *`, and one of them is bare.
fn rest_has(text: &str, mark: &str) -> bool {
    !text.trim_start().starts_with(mark)
        && text.lines().skip(1).all(|line| line.trim_start().starts_with(mark))
        && text.lines().skip(1).any(|line| line.trim() == mark)
}

/// No blanks at line ends, at most one blank line in a row.
fn normal_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank = true;
    for line in text.lines().map(str::trim_end) {
        if line.is_empty() && blank {
            continue;
        }
        blank = line.is_empty();
        out.push_str(line);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

/// Cuts a stretch of words that repeats to the end down to its first copy.
///
/// For each period `p`, the words at the end that equal the word `p` before them form the loop; with `p`
/// words before it, it holds `(run + p) / p` copies.
fn cut_loop(text: &str) -> String {
    let words: Vec<(usize, &str)> = words(text);
    for period in 1..=MAX_PERIOD.min(words.len() / 2) {
        let run = (period..words.len()).rev().take_while(|&at| words[at].1 == words[at - period].1).count();
        let n_looped = run + period;
        if run > 0 && n_looped >= MIN_COPIES * period && n_looped >= MIN_LOOP_WORDS {
            // The loop may have been met in the middle of a sentence: the cut goes to the end of one.
            let first = words.len() - n_looped + period - 1;
            let ends = |word: &&(usize, &str)| word.1.ends_with(['.', '!', '?']);
            let last = words[first..first + period].iter().find(ends).unwrap_or(&words[first]);
            return text[..last.0 + last.1.len()].to_owned();
        }
    }
    text.to_owned()
}

/// Words with their byte offsets.
fn words(text: &str) -> Vec<(usize, &str)> {
    let base = text.as_ptr() as usize;
    text.split_whitespace().map(|word| (word.as_ptr() as usize - base, word)).collect()
}

/// Cuts before the third copy of a long line.
fn cut_repeated_lines(text: &str) -> String {
    let mut seen = std::collections::HashMap::new();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let count = seen.entry(line.trim()).or_insert(0usize);
        *count += 1;
        if *count >= MIN_COPIES && line.trim().len() >= MIN_LINE_BYTES {
            break;
        }
        out.push_str(line);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

/// The text up to its last finished sentence or line, where that is at least a quarter of it.
fn last_sentence(text: &str) -> &str {
    let mut ends = text.char_indices().filter(|(at, sign)| {
        let next = text[at + sign.len_utf8()..].chars().next();
        (matches!(sign, '.' | '!' | '?' | ':') && next.is_none_or(char::is_whitespace)) || *sign == '\n'
    });
    match ends.next_back() {
        Some((at, sign)) if at * 4 >= text.len() => text[..at + sign.len_utf8()].trim_end(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(text: &str) -> String {
        clean(text, false).0
    }

    #[test]
    fn marks_and_wrapping_go() {
        assert_eq!(cleaned("  \"\"\"Adds.\n\nMore.\"\"\"\n\ndef f(): pass"), "Adds.\n\nMore.");
        assert_eq!(cleaned("```python\nAdds.\n```"), "Adds.");
        assert_eq!(cleaned("/// Adds.\n///\n/// More."), "Adds.\n\nMore.");
        assert_eq!(cleaned("/**\n * Adds.\n *\n * More.\n */"), "Adds.\n\nMore.");
        assert_eq!(cleaned("* one\n* two"), "* one\n* two");
        assert_eq!(cleaned("Adds.\n\n\n\nMore.  \r\n"), "Adds.\n\nMore.");
        assert_eq!(cleaned("Adds\u{0}\u{202e} \u{1b}[1mtwo"), "Adds [1mtwo");
    }

    #[test]
    fn loops_are_cut_to_one_copy() {
        let looped = format!("Returns the value. {}", "It is the value of the value. ".repeat(20));
        let (text, flags) = clean(&looped, true);
        assert_eq!(text, "Returns the value. It is the value of the value.");
        assert_eq!(flags, [Flag::RepetitionCut, Flag::TruncatedReply]);
        let (text, flags) = clean("Adds a to b, then b to c, then a to b once more.", false);
        assert_eq!((text.as_str(), flags.len()), ("Adds a to b, then b to c, then a to b once more.", 0));
        let lines = "Args:\n    value: The value.\n    other: It.\n    value: The value.\n    x: It.\n    value: The value.\n    y: No.";
        let (text, flags) = clean(lines, false);
        assert!(text.ends_with("x: It.") && flags == [Flag::RepetitionCut], "{text}");
        let (text, _) = clean(&"word ".repeat(300), false);
        assert_eq!(text, "word");
    }

    #[test]
    fn empty_and_long_replies_are_flagged() {
        assert_eq!(clean(" \n\"\"\" \"\"\" ", false), (String::new(), vec![Flag::NoAnswer]));
        let long: String = (0..2000).map(|n| format!("Line number {n} says something.\n")).collect();
        let (text, flags) = clean(&long, false);
        assert!(text.len() <= MAX_DOC_BYTES && text.ends_with("something.") && flags == [Flag::LongCut]);
        assert_eq!(clean("Adds two. Then it goes on and", true).0, "Adds two.");
    }
}
