//! The job from end to end: scan, ask, clean, write.
//!
//! Invariant: entries reach the output in the order of the scan, whatever the order of the replies; each as
//! soon as it and all before it are done.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use crate::entry::{Entry, Flag, Source};
use crate::error::DocsError;
use crate::item::Item;
use crate::prompt;
use crate::reply;
use crate::scan::Scan;
use crate::skip::{Skip, SkipReason};
use crate::summary::{Authored, Summary};
use crate::write::{JsonLines, Pages, Patch, Sink, Stream, obstacle};
use crate::writer::{Reply, Request, Writer};

/// Where Markdown pages go by default, in the current folder.
pub const DEFAULT_PAGES: &str = "docs-out";

/// What the job writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A folder of Markdown pages with an index.
    #[default]
    Markdown,
    /// JSON lines.
    Jsonl,
    /// A unified diff that inserts doc comments.
    Patch,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "markdown" => Ok(Self::Markdown),
            "jsonl" => Ok(Self::Jsonl),
            "patch" => Ok(Self::Patch),
            _ => Err(format!("unknown format {name:?}; known are markdown, jsonl and patch")),
        }
    }
}

/// What to document and how.
///
/// The model writes an entry for each item without a doc comment. Items that have one are listed with their
/// own text, marked as from the source, in pages and records, and left alone in a patch.
#[derive(Clone, Debug)]
pub struct DocsOptions {
    /// A folder or a file.
    pub path: PathBuf,
    /// What to write.
    pub format: Format,
    /// Pages: the folder, [`DEFAULT_PAGES`] by default. Records and patch: the file, standard output by default.
    pub out: Option<PathBuf>,
    /// Ask the model for items that have a doc comment too; a patch then replaces it.
    pub regenerate: bool,
    /// Leave items that have a doc comment out of pages and records. With `regenerate` it has no effect.
    pub only_undocumented: bool,
    /// Ask the model for at most this many items; those past it are left out and counted.
    pub limit: Option<usize>,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// The model's name, for the index.
    pub model: String,
}

impl DocsOptions {
    /// Pages of `path`, with answers of up to 160 tokens.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::default(),
            out: None,
            regenerate: false,
            only_undocumented: false,
            limit: None,
            max_tokens: 160,
            model: "unknown".to_owned(),
        }
    }
}

/// How far the job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Discovery has ended.
    Scanned {
        /// Files with items.
        files: usize,
        /// Items that the model is asked for.
        total: usize,
    },
    /// A reply has come.
    Item {
        /// Replies so far, this one included.
        done: usize,
        /// Items that the model is asked for.
        total: usize,
        /// Tokens generated so far.
        tokens: usize,
        /// The item's qualified name.
        name: String,
    },
}

/// Runs the job; records and patches without `out` go to the standard output.
///
/// # Errors
///
/// The path cannot be documented, the output cannot be written, the context is too small, or the model stops.
/// Items that fail alone are counted in the summary instead.
pub fn run(
    options: &DocsOptions,
    writer: &mut dyn Writer,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, DocsError> {
    run_to(options, writer, progress, &mut std::io::stdout())
}

/// [`run`] with another standard output.
///
/// # Errors
///
/// As for [`run`].
pub fn run_to(
    options: &DocsOptions,
    writer: &mut dyn Writer,
    progress: &mut dyn FnMut(Progress),
    stdout: &mut dyn Write,
) -> Result<Summary, DocsError> {
    let room = prompt::room(writer.context_len(), options.max_tokens)?;
    let started = Instant::now();
    let scan = Scan::of(&options.path)?;
    let scan_seconds = started.elapsed().as_secs_f64();
    let mut plan = Plan::of(&scan, options);
    let mut sink = sink(options, &scan.root, stdout)?;
    let mut requests = Vec::with_capacity(plan.asked.len());
    for &slot in &plan.asked {
        let prompted =
            prompt::request(plan.items[slot].into(), &|text| writer.count_tokens(text), room, options.max_tokens);
        plan.truncated_code[slot] = prompted.truncated_code;
        requests.push(prompted.request);
    }
    progress(Progress::Scanned { files: scan.files.len(), total: requests.len() });
    let summary = Summary { skips: scan.skips.clone(), scan_seconds, ..Summary::default() };
    let mut run = Run { scan: &scan, plan, sink: sink.as_mut(), summary, file: 0, slot: 0, error: None };
    run.advance();
    run.ask(writer, &requests, progress)?;
    run.finish()
}

/// The output that the options ask for.
fn sink<'w>(options: &DocsOptions, root: &Path, stdout: &'w mut dyn Write) -> Result<Box<dyn Sink + 'w>, DocsError> {
    let out = options.out.as_deref();
    Ok(match options.format {
        Format::Markdown => Box::new(Pages::new(out.unwrap_or(Path::new(DEFAULT_PAGES)), root, &options.model)?),
        Format::Jsonl => Box::new(JsonLines(Stream::open(out, stdout)?)),
        Format::Patch => Box::new(Patch::new(Stream::open(out, stdout)?, root)),
    })
}

/// Which items get an entry, and where each comes from. A slot is an item's place among them.
struct Plan<'s> {
    items: Vec<&'s Item>,
    /// Entries by slot, as they are done.
    entries: Vec<Option<Entry<'s>>>,
    truncated_code: Vec<bool>,
    /// Slots that the model is asked for.
    asked: Vec<usize>,
    /// For each file of the scan, the end of its slots.
    file_ends: Vec<usize>,
    skips: Vec<Skip>,
}

impl<'s> Plan<'s> {
    fn of(scan: &'s Scan, options: &DocsOptions) -> Self {
        let mut plan = Self {
            items: Vec::new(),
            entries: Vec::new(),
            truncated_code: Vec::new(),
            asked: Vec::new(),
            file_ends: Vec::new(),
            skips: Vec::new(),
        };
        for file in &scan.files {
            for item in &file.items {
                plan.place(item, options);
            }
            plan.file_ends.push(plan.items.len());
        }
        plan
    }

    fn place(&mut self, item: &'s Item, options: &DocsOptions) {
        let ask = item.doc.is_none() || options.regenerate;
        if !ask && options.only_undocumented {
            return;
        }
        if ask
            && options.format == Format::Patch
            && let Some(reason) = obstacle(item)
        {
            return self.skips.push(skip(item, reason));
        }
        if ask && options.limit.is_some_and(|limit| self.asked.len() >= limit) {
            return self.skips.push(skip(item, SkipReason::OverLimit));
        }
        if ask {
            self.asked.push(self.items.len());
        }
        self.items.push(item);
        self.entries.push((!ask).then(|| Entry::existing(item)));
        self.truncated_code.push(false);
    }
}

fn skip(item: &Item, reason: SkipReason) -> Skip {
    Skip { path: item.path.clone(), line: Some(item.line_start), name: Some(item.name.clone()), reason }
}

/// A job that is under way.
struct Run<'s, 'o> {
    scan: &'s Scan,
    plan: Plan<'s>,
    sink: &'o mut (dyn Sink + 'o),
    summary: Summary,
    /// The first file, and the first slot, that the output has not had yet.
    file: usize,
    slot: usize,
    /// The first error of the output; nothing is written after it.
    error: Option<DocsError>,
}

impl<'s> Run<'s, '_> {
    /// Asks the model for all; returns once every slot has its entry.
    fn ask(
        &mut self,
        writer: &mut dyn Writer,
        requests: &[Request],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DocsError> {
        let (total, started) = (requests.len(), Instant::now());
        let mut done = 0;
        let outcome = if total == 0 {
            Ok(())
        } else {
            writer.write_all(requests, &mut |index, reply| {
                let slot = self.plan.asked[index];
                assert!(self.plan.entries[slot].is_none(), "the writer reported request {index} twice");
                let entry = self.entry(slot, reply);
                done += 1;
                let name = entry.item.qualified_name.clone();
                self.plan.entries[slot] = Some(entry);
                self.advance();
                progress(Progress::Item { done, total, tokens: self.summary.tokens, name });
            })
        };
        self.summary.seconds = started.elapsed().as_secs_f64();
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if let Err(reason) = outcome {
            return Err(DocsError::Model { done, total, reason, kept: self.sink.kept() });
        }
        for slot in 0..self.plan.items.len() {
            if self.plan.entries[slot].is_none() {
                let entry = self.entry(slot, Err("the model gave no reply".to_owned()));
                self.plan.entries[slot] = Some(entry);
            }
        }
        self.advance();
        self.error.take().map_or(Ok(()), Err)
    }

    /// The entry of a reply; adds the reply to the figures.
    fn entry(&mut self, slot: usize, reply: Result<Reply, String>) -> Entry<'s> {
        let item = self.plan.items[slot];
        let cut = self.plan.truncated_code[slot].then_some(Flag::TruncatedCode);
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return Entry::failed(item, error, cut.into_iter().collect()),
        };
        self.summary.prompt_tokens += reply.prompt_tokens;
        self.summary.cached_tokens += reply.cached_tokens;
        self.summary.tokens += reply.tokens;
        let (text, flags) = reply::clean(&reply.text, reply.truncated);
        Entry {
            doc: (!text.is_empty()).then_some(text),
            source: Source::Model,
            flags: cut.into_iter().chain(flags).collect(),
            prompt_tokens: reply.prompt_tokens,
            cached_tokens: reply.cached_tokens,
            tokens: reply.tokens,
            author: reply.author,
            ..Entry::existing(item)
        }
    }

    /// Hands on every entry that is done and has none before it that is not.
    fn advance(&mut self) {
        while self.error.is_none() {
            if self.file < self.plan.file_ends.len() && self.slot == self.plan.file_ends[self.file] {
                self.end_file();
                continue;
            }
            let Some(Some(entry)) = self.plan.entries.get(self.slot) else {
                return;
            };
            self.error = self.sink.entry(entry).err();
            self.slot += 1;
        }
    }

    /// Hands on a whole file and counts its entries.
    fn end_file(&mut self) {
        let start = self.file.checked_sub(1).map_or(0, |before| self.plan.file_ends[before]);
        let entries: Vec<Entry<'s>> = self.plan.entries[start..self.slot].iter().flatten().cloned().collect();
        match self.sink.file(&self.scan.files[self.file], &entries) {
            Ok(skips) => self.summary.skips.extend(skips),
            Err(error) => self.error = Some(error),
        }
        self.file += 1;
        let summary = &mut self.summary;
        summary.files += usize::from(!entries.is_empty());
        summary.items += entries.len();
        for entry in &entries {
            let has = |flag: Flag| usize::from(entry.flags.contains(&flag));
            summary.existing += usize::from(entry.source == Source::Existing);
            summary.written += usize::from(entry.source == Source::Model && entry.doc.is_some());
            summary.failed += has(Flag::Failed);
            summary.no_answer += has(Flag::NoAnswer);
            summary.truncated_code += has(Flag::TruncatedCode);
            summary.truncated_replies += has(Flag::TruncatedReply);
            summary.repetitions_cut += has(Flag::RepetitionCut);
            if let Some(author) = &entry.author {
                let (path, name) = (entry.item.path.clone(), entry.item.qualified_name.clone());
                summary.authored.push(Authored { path, line: entry.item.line_start, name, author: author.clone() });
            }
        }
    }

    fn finish(mut self) -> Result<Summary, DocsError> {
        assert_eq!(self.slot, self.plan.items.len(), "every entry has reached the output");
        self.summary.skips.append(&mut self.plan.skips);
        self.sink.finish(self.scan, &self.summary)?;
        Ok(self.summary)
    }
}
