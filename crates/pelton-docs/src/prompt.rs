//! The prompt, in the words that the embedded model was trained on, and its fit into the context.
//!
//! Invariant: every prompt of at least one line of code fits `context − max_tokens − TEMPLATE_TOKENS`, and
//! whatever was cut to make it fit is marked in the code and reported.

use crate::error::DocsError;
use crate::item::{Item, ItemKind};
use crate::language::Language;
use crate::writer::Request;

/// Tokens that a chat template adds around the message, at most.
const TEMPLATE_TOKENS: usize = 48;
/// Of the lines kept, the share that comes from the start: 2 of 3.
const HEAD_SHARE: (usize, usize) = (2, 3);

/// What a prompt shows.
#[derive(Clone, Copy, Debug)]
pub struct Snippet<'a> {
    /// The language.
    pub language: Language,
    /// What it is.
    pub kind: ItemKind,
    /// The code, with `\n` line ends.
    pub code: &'a str,
}

impl<'a> From<&'a Item> for Snippet<'a> {
    fn from(item: &'a Item) -> Self {
        Self { language: item.language, kind: item.kind, code: &item.code }
    }
}

/// A request and whether its code was cut.
pub(crate) struct Prompted {
    pub(crate) request: Request,
    pub(crate) truncated_code: bool,
}

/// The most tokens that the message may have.
///
/// # Errors
///
/// The context leaves no room for a prompt beside the answer.
pub(crate) fn room(context: usize, max_tokens: usize) -> Result<usize, DocsError> {
    let room = context.checked_sub(max_tokens).and_then(|left| left.checked_sub(TEMPLATE_TOKENS));
    // The frame alone is some twenty tokens.
    room.filter(|room| *room >= 32).ok_or(DocsError::Context { context, max_tokens })
}

/// The messages that [`run`](crate::run) would send for `snippets` to a model with a context of so many tokens: code that
/// does not fit is cut, with a mark in its place.
///
/// # Errors
/// [`DocsError::Context`] where the context leaves no room for a prompt beside the answer.
pub fn prompts<'a>(
    snippets: impl IntoIterator<Item = Snippet<'a>>,
    count_tokens: &dyn Fn(&str) -> usize,
    context: usize,
    max_tokens: usize,
) -> Result<Vec<String>, DocsError> {
    let room = room(context, max_tokens)?;
    Ok(snippets.into_iter().map(|snippet| request(snippet, count_tokens, room, max_tokens).request.prompt).collect())
}

/// The request for one item.
pub(crate) fn request(
    item: Snippet<'_>,
    count_tokens: &dyn Fn(&str) -> usize,
    room: usize,
    max_tokens: usize,
) -> Prompted {
    let whole = message(item, item.code);
    if count_tokens(&whole) <= room {
        return Prompted { request: Request { prompt: whole, max_tokens }, truncated_code: false };
    }
    let prompt = cut_to_fit(item, |message| count_tokens(message) <= room);
    Prompted { request: Request { prompt, max_tokens }, truncated_code: true }
}

/// The message around the code.
fn message(item: Snippet<'_>, code: &str) -> String {
    let (name, noun, tag) = (item.language.name(), item.kind.prompt_noun(), item.language.tag());
    format!("Document this {name} {noun}:\n```{tag}\n{code}\n```")
}

/// The largest number of lines that fits, by bisection; then, if no line fits, the longest start of the text.
fn cut_to_fit(item: Snippet<'_>, fits: impl Fn(&str) -> bool) -> String {
    let lines: Vec<&str> = item.code.lines().collect();
    let by_lines = |n_kept: usize| {
        let n_head = (n_kept * HEAD_SHARE.0).div_ceil(HEAD_SHARE.1);
        let n_left_out = lines.len() - n_kept;
        let mark = mark(item, &format!("{n_left_out} lines left out"), lines.get(n_head).copied().unwrap_or_default());
        let mut kept: Vec<&str> = lines[..n_head].to_vec();
        kept.push(&mark);
        kept.extend(&lines[lines.len() - (n_kept - n_head)..]);
        message(item, &kept.join("\n"))
    };
    let n_kept = largest(lines.len().saturating_sub(1), |n| fits(&by_lines(n)));
    if n_kept > 0 {
        return by_lines(n_kept);
    }
    let by_chars = |n_chars: usize| {
        let start: String = item.code.chars().take(n_chars).collect();
        let mark = mark(item, &format!("{} characters left out", item.code.chars().count() - n_chars), "");
        message(item, &format!("{start}\n{mark}"))
    };
    by_chars(largest(item.code.chars().count().saturating_sub(1), |n| fits(&by_chars(n))))
}

/// The comment that stands for what was cut, with the indentation of the line that it replaces.
fn mark(item: Snippet<'_>, what: &str, line: &str) -> String {
    let indent = &line[..line.len() - line.trim_start().len()];
    format!("{indent}{} … {what} …", item.language.line_comment())
}

/// The largest `n` in `0..=max` for which `fits`, which holds for all smaller ones too; 0 where none does.
fn largest(max: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, max);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(language: Language, code: &str) -> Snippet<'_> {
        Snippet { language, kind: ItemKind::Method, code }
    }

    #[test]
    fn the_prompt_is_word_for_word_as_trained() {
        let prompted = request(item(Language::Rust, "fn a() -> u8 { 1 }"), &str::len, 4000, 96);
        assert_eq!(prompted.request.prompt, "Document this Rust function:\n```rust\nfn a() -> u8 { 1 }\n```");
        assert!(!prompted.truncated_code);
        let mut class = item(Language::Cpp, "class A {}");
        class.kind = ItemKind::Class;
        let prompted = request(class, &str::len, 4000, 96);
        assert_eq!(prompted.request.prompt, "Document this C++ class:\n```cpp\nclass A {}\n```");
    }

    #[test]
    fn long_code_keeps_its_head_and_tail() {
        let lines: Vec<String> = (0..100).map(|n| format!("    line_{n:02}()")).collect();
        let code = format!("def f():\n{}", lines.join("\n"));
        let prompted = request(item(Language::Python, &code), &str::len, 300, 96);
        let text = prompted.request.prompt;
        assert!(prompted.truncated_code && text.len() <= 300, "{text}");
        assert!(text.contains("def f():\n    line_00()") && text.ends_with("    line_99()\n```"), "{text}");
        let kept = text.lines().count() - 4;
        assert!(text.contains(&format!("    # … {} lines left out …", 101 - kept)), "{text}");
    }

    #[test]
    fn one_huge_line_is_cut_at_a_character() {
        let code = "é".repeat(5000);
        let prompted = request(item(Language::C, &code), &str::len, 200, 96);
        assert!(prompted.request.prompt.len() <= 200);
        assert!(prompted.request.prompt.contains("characters left out …"));
    }

    #[test]
    fn a_context_without_room_is_an_error() {
        assert!(matches!(room(128, 96), Err(DocsError::Context { context: 128, max_tokens: 96 })));
        assert_eq!(room(512, 96).unwrap(), 368);
    }
}
