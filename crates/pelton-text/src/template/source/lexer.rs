//! The words of a tag or expression. Invariant: the tokens, put together, are the source.

use std::borrow::Cow;

/// What a token is, as far as adapting needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Space,
    Name,
    Number,
    Text,
    Sign,
}

#[derive(Debug)]
pub(super) struct Token<'s> {
    pub(super) text: Cow<'s, str>,
    pub(super) kind: Kind,
}

impl Token<'_> {
    /// Whether a `[` after this token is a subscript rather than a list.
    pub(super) fn ends_value(&self) -> bool {
        match self.kind {
            Kind::Text => true,
            Kind::Name => !matches!(
                self.text.as_ref(),
                "in" | "if" | "else" | "and" | "or" | "not" | "is" | "elif" | "for" | "set" | "with"
            ),
            Kind::Sign => matches!(self.text.as_ref(), "]" | ")" | "}"),
            Kind::Number | Kind::Space => false,
        }
    }
}

/// The tokens up to `end` and their length in bytes; `None` where it never comes. `end` counts only
/// outside of texts and brackets, as in Jinja.
pub(super) fn tokens<'s>(source: &'s str, end: &str) -> Option<(Vec<Token<'s>>, usize)> {
    let mut tokens = Vec::new();
    let mut depth = 0usize;
    let mut at = 0;
    loop {
        let rest = &source[at..];
        let first = rest.chars().next()?;
        if depth == 0 && rest.starts_with(end) {
            return Some((tokens, at));
        }
        let run = |of: fn(char) -> bool| rest.find(|ch| !of(ch)).unwrap_or(rest.len());
        let (kind, len) = match first {
            '\'' | '"' => (Kind::Text, text_len(rest, first)?),
            _ if first.is_whitespace() => (Kind::Space, run(char::is_whitespace)),
            '0'..='9' => (Kind::Number, run(|ch| ch.is_alphanumeric() || ch == '_')),
            _ if in_name(first) => (Kind::Name, run(in_name)),
            _ => (Kind::Sign, first.len_utf8()),
        };
        match first {
            '[' | '(' | '{' => depth += 1,
            ']' | ')' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        tokens.push(Token { text: Cow::Borrowed(&rest[..len]), kind });
        at += len;
    }
}

fn in_name(ch: char) -> bool {
    ch.is_alphanumeric() || ch == '_'
}

/// The length of a quoted text with its quotes.
fn text_len(source: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, ch) in source.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if ch == '\\' {
            escaped = true;
        } else if ch == quote {
            return Some(at + ch.len_utf8());
        }
    }
    None
}

/// The positions of the tokens that mean something: not the spaces, nor the whitespace marks at the
/// ends.
pub(super) fn significant(tokens: &[Token<'_>]) -> Vec<usize> {
    let is_mark = |index: usize| matches!(tokens[index].text.as_ref(), "-" | "+");
    let mut words: Vec<usize> = (0..tokens.len()).filter(|&index| tokens[index].kind != Kind::Space).collect();
    if words.first().is_some_and(|&index| index == 0 && is_mark(index)) {
        words.remove(0);
    }
    if words.last().is_some_and(|&index| index + 1 == tokens.len() && is_mark(index)) {
        words.pop();
    }
    words
}
