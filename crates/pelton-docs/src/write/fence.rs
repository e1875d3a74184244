//! Fenced code blocks as Markdown reads them (CommonMark 0.31, section 4.5), one line at a time.
//!
//! Fences are written at the first column, whatever their indentation was: there they end every list before them,
//! so that no list item can end one of them early. Invariant: the lines as written, followed by
//! [`Fences::end`], leave no fence open.

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// The first line of a block: its fence, and what follows that.
    Open(&'a str, &'a str),
    /// A line of code, without the indentation of its fence.
    Code(&'a str),
    /// The last line of a block: its fence.
    Close(&'a str),
    /// A line outside of any block.
    Text(&'a str),
}

/// Follows the fences of a text.
#[derive(Default)]
pub(super) struct Fences {
    /// The fence that is open, and how far it was indented.
    open: Option<(String, usize)>,
}

impl Fences {
    /// Takes the next line.
    pub(super) fn line<'a>(&mut self, line: &'a str) -> Line<'a> {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let (fence, rest) = text.split_at(fence_len(text));
        match &self.open {
            Some((open, _)) if fence.starts_with(open.as_str()) && rest.trim().is_empty() => {
                self.open = None;
                Line::Close(fence)
            }
            Some((_, outer)) => {
                let cut = line.bytes().take(*outer).take_while(|b| *b == b' ').count();
                Line::Code(&line[cut..])
            }
            // Backticks after backticks are code within the line.
            None if !(fence.is_empty() || fence.starts_with('`') && rest.contains('`')) => {
                self.open = Some((fence.to_owned(), indent));
                Line::Open(fence, rest.trim())
            }
            None => Line::Text(line),
        }
    }

    /// The line that closes what is open, if anything is.
    pub(super) fn end(&mut self) -> Option<String> {
        self.open.take().map(|(fence, _)| fence)
    }
}

/// Length of the fence that a text begins with: 3 or more backticks or tildes, else 0.
pub(super) fn fence_len(text: &str) -> usize {
    let of = |sign: char| text.len() - text.trim_start_matches(sign).len();
    let len = of('`').max(of('~'));
    if len < 3 { 0 } else { len }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A letter for each line, and the end.
    fn kinds(text: &str) -> String {
        let mut fences = Fences::default();
        let mut kinds: String = text
            .lines()
            .map(|line| match fences.line(line) {
                Line::Open(..) => 'o',
                Line::Code(_) => 'c',
                Line::Close(_) => 'x',
                Line::Text(_) => 't',
            })
            .collect();
        kinds.push_str(&fences.end().unwrap_or_default());
        kinds
    }

    #[test]
    fn a_fence_ends_at_its_like_and_nowhere_else() {
        assert_eq!(kinds("a\n```\nb\n```\nc"), "tocxt");
        assert_eq!(kinds("````\n```\n~~~~\n````"), "occx");
        assert_eq!(kinds("~~~\n```\n~~~ rust\n~~~~"), "occx");
        assert_eq!(kinds("```a`b\n``\n~~"), "ttt");
        assert_eq!(kinds("~~~~ a`b\n~~~"), "oc~~~~");
    }

    #[test]
    fn code_loses_its_fences_indentation() {
        let mut fences = Fences::default();
        assert_eq!(fences.line("  ```c  "), Line::Open("```", "c"));
        assert_eq!([fences.line("    a"), fences.line(" b")], [Line::Code("  a"), Line::Code("b")]);
        assert_eq!(fences.line("      ```"), Line::Close("```"));
    }
}
