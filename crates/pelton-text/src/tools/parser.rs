//! The parser of a streamed answer. Invariant: see the module's.

use super::ToolFormat;
use super::call::{CallScanner, Found, Scan, ValueScanner, Within};

/// A part of an answer. Calls are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The model thinks.
    Reasoning(String),
    /// The answer's text.
    Content(String),
    /// A call begins; its arguments follow.
    Call {
        /// Which call.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments: all of them together are a JSON text.
    Arguments {
        /// Which call.
        index: usize,
        /// The text.
        json: String,
    },
}

/// Whether the answer has a part in which the model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// It has none: `<think>` is text like any other.
    Never,
    /// It may begin with `<think>`.
    Maybe,
    /// The prompt ended with `<think>`: the answer begins inside.
    Open,
}

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL_END: &str = "</tool_call>";
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
/// The longest name of a tool.
const MAX_NAME: usize = 256;

#[derive(Debug)]
enum Stage {
    /// Nothing but space has come.
    Start,
    Thinking,
    /// Thinking has ended: space is dropped.
    Thought,
    Text,
    /// Behind an opening mark.
    Opened,
    Call(CallScanner),
    /// Arguments alone, after a name.
    Arguments(ValueScanner),
    /// Behind a call.
    Closed,
}

/// Takes an answer apart while it arrives.
///
/// ```
/// # use pelton_text::{AnswerParser, Part, Thinking, ToolFormat};
/// let mut parser = AnswerParser::new(Thinking::Maybe, Some(ToolFormat::Hermes), vec![]);
/// let mut parts = Vec::new();
/// parser.push("<think>Easy.</think>\n\nI look", &mut parts);
/// parser.push(".\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>", &mut parts);
/// parser.finish(&mut parts);
/// assert_eq!(parts[0], Part::Reasoning("Easy.".into()));
/// assert_eq!(parts[2], Part::Call { index: 0, name: "look".into() });
/// assert_eq!(parts[3], Part::Arguments { index: 0, json: r#"{"at": 1}"#.into() });
/// ```
#[derive(Debug)]
pub struct AnswerParser {
    tools: Option<ToolFormat>,
    names: Vec<String>,
    stage: Stage,
    thinking: Thinking,
    /// Text that no stage has taken yet.
    held: String,
    /// The text of a call that is not certain.
    raw: String,
    calls: usize,
    /// Within Mistral's array of calls.
    in_array: bool,
    /// The call being read followed an opening mark.
    marked: bool,
    /// No reasoning has been handed out yet.
    fresh: bool,
}

impl AnswerParser {
    /// A parser for one answer. `names` are the tools on offer: where a notation has no opening mark, only these are
    /// calls.
    pub fn new(thinking: Thinking, tools: Option<ToolFormat>, names: Vec<String>) -> AnswerParser {
        let stage = if thinking == Thinking::Open { Stage::Thinking } else { Stage::Start };
        let (held, raw) = (String::new(), String::new());
        let (in_array, marked, fresh) = (false, false, true);
        AnswerParser { tools, names, stage, thinking, held, raw, calls: 0, in_array, marked, fresh }
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Whether the model thinks at this point.
    pub fn is_thinking(&self) -> bool {
        matches!(self.stage, Stage::Thinking)
    }

    /// Adds text; appends the parts that are certain.
    pub fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.held.push_str(text);
        while self.step(parts) {}
    }

    /// The end of the answer.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        let rest = std::mem::take(&mut self.held);
        match &self.stage {
            Stage::Thinking => emit(parts, Part::Reasoning(rest.trim_end().to_string())),
            Stage::Call(scanner) if !scanner.is_certain() => {
                let raw = std::mem::take(&mut self.raw);
                emit(parts, Part::Content(raw + &rest));
            }
            Stage::Start | Stage::Text => emit(parts, Part::Content(rest)),
            Stage::Opened => {
                let raw = std::mem::take(&mut self.raw);
                emit(parts, Part::Content(raw + &rest));
            }
            Stage::Thought | Stage::Call(_) | Stage::Arguments(_) | Stage::Closed => {}
        }
        self.stage = Stage::Text;
    }

    /// Takes a piece of the held text; `false` where more has to come first.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match self.stage {
            Stage::Start => self.start(),
            Stage::Thinking => self.think(parts),
            Stage::Thought => self.skip_space(Stage::Text),
            Stage::Text => self.text(parts),
            Stage::Opened => self.opened(parts),
            Stage::Call(_) => self.call(parts),
            Stage::Arguments(_) => self.arguments(parts),
            Stage::Closed => self.closed(),
        }
    }

    fn start(&mut self) -> bool {
        let text = self.held.trim_start();
        if self.thinking == Thinking::Maybe {
            if let Some(rest) = text.strip_prefix(THINK) {
                self.held = rest.to_string();
                self.stage = Stage::Thinking;
                return true;
            }
            if THINK.starts_with(text) {
                return false;
            }
        }
        if text.is_empty() && self.tools.is_some() {
            return false;
        }
        if self.tools == Some(ToolFormat::Llama) && text.starts_with('{') {
            self.begin_call();
            return true;
        }
        self.stage = Stage::Text;
        true
    }

    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        if self.fresh {
            // The line break after the opening tag.
            self.held = self.held.trim_start().to_string();
        }
        if let Some(at) = self.held.find(THINK_END) {
            emit(parts, Part::Reasoning(self.held[..at].trim_end().to_string()));
            self.held.drain(..at + THINK_END.len());
            self.stage = Stage::Thought;
            return true;
        }
        let keep = hold_from(&self.held, THINK_END);
        self.fresh &= keep == 0;
        emit(parts, Part::Reasoning(self.held.drain(..keep).collect()));
        false
    }

    fn skip_space(&mut self, next: Stage) -> bool {
        self.held = self.held.trim_start().to_string();
        if self.held.is_empty() {
            return false;
        }
        // Llama's calls have no mark; after thinking, the answer begins anew.
        if self.tools == Some(ToolFormat::Llama) && self.held.starts_with('{') {
            self.begin_call();
        } else {
            self.stage = next;
        }
        true
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(format) = self.tools else {
            emit(parts, Part::Content(std::mem::take(&mut self.held)));
            return false;
        };
        let mark = format.opening();
        if let Some(at) = self.held.find(mark) {
            emit(parts, Part::Content(self.held[..at].trim_end().to_string()));
            self.held.drain(..at + mark.len());
            self.raw = mark.to_string();
            self.marked = true;
            self.stage = Stage::Opened;
            return true;
        }
        let keep = hold_from(&self.held, mark);
        emit(parts, Part::Content(self.held.drain(..keep).collect()));
        false
    }

    /// Behind an opening mark: an object, Mistral's array, or a name.
    fn opened(&mut self, parts: &mut Vec<Part>) -> bool {
        let text = self.held.trim_start();
        let Some(first) = text.chars().next() else { return false };
        if first == '{' {
            let skipped = self.held.len() - text.len();
            self.raw.extend(self.held.drain(..skipped));
            self.stage = Stage::Call(CallScanner::new());
            return true;
        }
        if self.tools != Some(ToolFormat::Mistral) {
            return self.not_a_call(parts);
        }
        if first == '[' && !self.in_array {
            let skipped = self.held.len() - text.len() + 1;
            self.raw.extend(self.held.drain(..skipped));
            self.in_array = true;
            return true;
        }
        self.named(parts)
    }

    /// `name[ARGS]{`, `name[CALL_ID]id[ARGS]{` or `name{`.
    fn named(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(end) = self.held.find(['{', '[']) else {
            return if self.held.len() > MAX_NAME { self.not_a_call(parts) } else { false };
        };
        let name = self.held[..end].trim().to_string();
        let rest = &self.held[end..];
        let mut brace = end;
        if rest.starts_with('[') {
            let whole = [ARGS, CALL_ID].iter().any(|m| rest.starts_with(m));
            if !whole && [ARGS, CALL_ID].iter().any(|m| m.starts_with(rest)) {
                return false;
            }
            let Some(at) = rest.find('{').filter(|&at| whole && at <= MAX_NAME) else {
                return if whole && rest.len() <= MAX_NAME { false } else { self.not_a_call(parts) };
            };
            brace += at;
        }
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_whitespace) {
            return self.not_a_call(parts);
        }
        self.held.drain(..brace);
        self.raw.clear();
        parts.push(Part::Call { index: self.calls, name });
        self.calls += 1;
        self.stage = Stage::Arguments(ValueScanner::default());
        true
    }

    fn begin_call(&mut self) {
        self.raw.clear();
        self.marked = false;
        self.stage = Stage::Call(CallScanner::new());
    }

    fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let Stage::Call(scanner) = &mut self.stage else { return false };
        let mut found = Vec::new();
        let mut outcome = (Scan::More, self.held.len());
        let mut rejected = false;
        for (at, c) in self.held.char_indices() {
            let mut scan = scanner.push(c, &mut found);
            let unknown = |name: &str| !self.names.is_empty() && !self.names.iter().any(|n| n == name);
            if !self.marked && scanner.name().is_some_and(unknown) {
                (scan, rejected) = (Scan::Broken, true);
            }
            if scan != Scan::More {
                outcome = (scan, at + c.len_utf8());
                break;
            }
        }
        let certain = scanner.is_certain() && !rejected;
        let taken: String = self.held.drain(..outcome.1).collect();
        if outcome.0 == Scan::Broken && !certain {
            self.held.insert_str(0, &taken);
            return self.not_a_call(parts);
        }
        self.hand_out(found, parts);
        match outcome.0 {
            Scan::More => {
                if certain {
                    self.raw.clear();
                } else {
                    self.raw.push_str(&taken);
                }
                false
            }
            Scan::Done | Scan::Broken => {
                self.raw.clear();
                self.stage = Stage::Closed;
                true
            }
        }
    }

    fn hand_out(&mut self, found: Vec<Found>, parts: &mut Vec<Part>) {
        for item in found {
            match item {
                Found::Name(name) => {
                    parts.push(Part::Call { index: self.calls, name });
                    self.calls += 1;
                }
                Found::Arguments(json) if !json.is_empty() => {
                    let index = self.calls.saturating_sub(1);
                    parts.push(Part::Arguments { index, json });
                }
                Found::Arguments(_) => {}
            }
        }
    }

    fn arguments(&mut self, parts: &mut Vec<Part>) -> bool {
        let Stage::Arguments(scanner) = &mut self.stage else { return false };
        let mut end = None;
        for (at, c) in self.held.char_indices() {
            match scanner.push(c) {
                Within::Value(true) => end = Some(at + c.len_utf8()),
                Within::Value(false) => continue,
                Within::Behind | Within::Invalid => end = Some(at),
            }
            break;
        }
        let json: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        if !json.is_empty() {
            parts.push(Part::Arguments { index: self.calls.saturating_sub(1), json });
        }
        if end.is_some() {
            self.stage = Stage::Closed;
        }
        end.is_some()
    }

    /// Behind a call: its closing mark, another call, or text.
    fn closed(&mut self) -> bool {
        self.held = self.held.trim_start().to_string();
        let text = self.held.as_str();
        if text.is_empty() {
            return false;
        }
        match self.tools {
            Some(ToolFormat::Hermes) => {
                if let Some(rest) = text.strip_prefix(CALL_END) {
                    self.held = rest.to_string();
                    return true;
                }
                if CALL_END.starts_with(text) {
                    return false;
                }
            }
            Some(ToolFormat::Llama) => {
                if let Some(rest) = text.strip_prefix(';') {
                    self.held = rest.to_string();
                    return true;
                }
                if text.starts_with('{') {
                    self.begin_call();
                    return true;
                }
            }
            Some(ToolFormat::Mistral) if self.in_array => {
                if let Some(rest) = text.strip_prefix(',') {
                    self.held = rest.to_string();
                    self.stage = Stage::Opened;
                    return true;
                }
                if let Some(rest) = text.strip_prefix(']') {
                    (self.held, self.in_array) = (rest.to_string(), false);
                    return true;
                }
            }
            Some(ToolFormat::Mistral) | None => {}
        }
        self.stage = Stage::Text;
        true
    }

    /// What was held back is text after all: its mark, or its first character, and then what follows may be a call.
    fn not_a_call(&mut self, parts: &mut Vec<Part>) -> bool {
        self.held.insert_str(0, &std::mem::take(&mut self.raw));
        let mark = self.tools.map_or("", ToolFormat::opening);
        let lead = match self.held.strip_prefix(mark) {
            Some(_) if !mark.is_empty() => mark.len(),
            _ => self.held.chars().next().map_or(0, char::len_utf8),
        };
        emit(parts, Part::Content(self.held.drain(..lead).collect()));
        self.stage = Stage::Text;
        self.in_array = false;
        true
    }
}

/// Appends a part, unless it is empty; joins texts of one kind.
fn emit(parts: &mut Vec<Part>, part: Part) {
    match (parts.last_mut(), &part) {
        (_, Part::Reasoning(text) | Part::Content(text)) if text.is_empty() => {}
        (Some(Part::Reasoning(last)), Part::Reasoning(text)) | (Some(Part::Content(last)), Part::Content(text)) => {
            last.push_str(text);
        }
        _ => parts.push(part),
    }
}

/// Where the text begins that may still become `mark`, with the space before it.
fn hold_from(text: &str, mark: &str) -> usize {
    let first = text.len().saturating_sub(mark.len() - 1);
    let begins = |at: &usize| text.is_char_boundary(*at) && mark.starts_with(&text[*at..]);
    let at = (first..text.len()).find(begins).unwrap_or(text.len());
    text[..at].trim_end().len()
}
