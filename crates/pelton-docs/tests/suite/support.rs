//! A writer that answers by rule, and folders to work in. Invariant: same requests, same replies.

use std::fs;
use std::path::{Path, PathBuf};

use pelton_docs::{DocsOptions, Format, Progress, Reply, Request, Scan, Summary, Writer, run_to};

/// Answers each request with what `answer` makes of its prompt; counts a token for four bytes.
pub(crate) struct Fake<F> {
    pub(crate) answer: F,
    pub(crate) context: usize,
    /// Reports the last request first.
    pub(crate) backwards: bool,
}

impl<F: FnMut(&str) -> Result<String, String>> Writer for Fake<F> {
    fn count_tokens(&self, text: &str) -> usize {
        text.len() / 4
    }

    fn context_len(&self) -> usize {
        self.context
    }

    fn write_all(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Result<Reply, String>),
    ) -> Result<(), String> {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        if self.backwards {
            order.reverse();
        }
        for index in order {
            let prompt = &requests[index].prompt;
            let prompt_tokens = self.count_tokens(prompt);
            let reply = (self.answer)(prompt).map(|text| Reply {
                tokens: text.len() / 4,
                text,
                prompt_tokens,
                cached_tokens: 2,
                truncated: false,
                author: None,
            });
            done(index, reply);
        }
        Ok(())
    }
}

/// A writer with a large context.
pub(crate) fn fake<F: FnMut(&str) -> Result<String, String>>(answer: F) -> Fake<F> {
    Fake { answer, context: 100_000, backwards: false }
}

/// A writer that always gives the same text.
pub(crate) fn always(text: &str) -> Fake<impl FnMut(&str) -> Result<String, String>> {
    let text = text.to_owned();
    fake(move |_| Ok(text.clone()))
}

/// The fixture project of a language.
pub(crate) fn project(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/projects").join(name)
}

/// A new folder with these files.
pub(crate) fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for (path, text) in files {
        put(dir.path(), path, text.as_bytes());
    }
    dir
}

/// Writes a file and its folders.
pub(crate) fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a file has a folder")).expect("folders can be made");
    fs::write(path, bytes).expect("files can be written");
}

/// Runs the job and returns what went to the standard output.
pub(crate) fn output(options: &DocsOptions, writer: &mut dyn Writer) -> (Summary, String) {
    let mut out = Vec::new();
    let summary = run_to(options, writer, &mut |_: Progress| {}, &mut out).expect("the job runs");
    (summary, String::from_utf8(out).expect("output is UTF-8"))
}

/// Options for a format with output on the standard output.
pub(crate) fn options(path: &Path, format: Format) -> DocsOptions {
    DocsOptions { format, ..DocsOptions::new(path) }
}

/// `lines kind qualified_name`, with a `*` for an item that has a doc comment.
pub(crate) fn outline(scan: &Scan) -> String {
    let mut text = String::new();
    for item in scan.items() {
        let doc = if item.doc.is_some() { " *" } else { "" };
        text += &format!("{}-{} {} {}{doc}\n", item.line_start, item.line_end, item.kind.words(), item.qualified_name);
    }
    text
}
