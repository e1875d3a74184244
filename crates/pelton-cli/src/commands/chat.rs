//! `pelton chat`: a conversation at the keyboard.
//!
//! Invariant: Ctrl-C stops the answer, never the program; what was said stays in the conversation, whoever of two models
//! said it.

mod voices;

use std::collections::HashSet;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Config, Editor, Helper, Highlighter, Hinter};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::ChatArgs;
use crate::input::read_stdin;
use crate::setup::Context;
use crate::term;
use voices::{Asking, Voices};

const HELP: &str = "\
/help            this list
/system TEXT     set the system message (without TEXT: show it)
/route           show which models answer, and by which rules
/save FILE       write the conversation as JSON
/reset           forget the conversation
/quit            leave (also Ctrl-D)
A line that ends with \\ goes on in the next one; pasted lines stay together. Ctrl-C stops an answer.";

/// Lets a line that ends with a backslash go on.
#[derive(Completer, Helper, Highlighter, Hinter)]
struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

struct Session<'a> {
    args: &'a ChatArgs,
    context: &'a Context,
    voices: Voices,
    system: Option<String>,
    messages: Vec<Value>,
    /// Files that this session wrote and may write again.
    saved: HashSet<String>,
    interrupted: Arc<AtomicBool>,
}

pub(crate) fn run(args: &ChatArgs, context: &Context) -> anyhow::Result<()> {
    let at_keyboard = std::io::stdin().is_terminal();
    // Piped in: the whole text is one message.
    let piped = if at_keyboard { None } else { Some(read_stdin(context)?) };
    if piped.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Err(Usage("the message on stdin is empty".into()).into());
    }
    let voices = Voices::load(args, context)?;
    let (messages, saved, interrupted) = (Vec::new(), HashSet::new(), Arc::new(AtomicBool::new(false)));
    let mut session = Session { args, context, voices, system: args.system.clone(), messages, saved, interrupted };
    if let Some(text) = piped {
        return session.say(text.trim_end());
    }
    let flag = session.interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot handle Ctrl-C")?;
    context.note("/help lists the commands; Ctrl-D leaves");
    session.read_lines(context.environment.history.as_deref())
}

impl Session<'_> {
    fn read_lines(&mut self, history: Option<&Path>) -> anyhow::Result<()> {
        let config = Config::builder().auto_add_history(true).bracketed_paste(true).build();
        let mut editor: Editor<Lines, FileHistory> = Editor::with_config(config)?;
        editor.set_helper(Some(Lines));
        if let Some(path) = history {
            // The first session has no history to load.
            let _ = editor.load_history(path);
        }
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    let line = line.replace("\\\n", "\n");
                    if !self.line(line.trim())? {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => term::note("Ctrl-D or /quit leaves"),
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(e.into()),
            }
        }
        if let Some(path) = history {
            let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            if let Err(e) = saved.map_err(ReadlineError::from).and_then(|()| editor.save_history(path)) {
                term::note(&format!("{}: the history was not saved: {e}", path.display()));
            }
        }
        Ok(())
    }

    /// One line of input; `false` ends the session.
    fn line(&mut self, line: &str) -> anyhow::Result<bool> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "" => {}
            "/quit" | "/exit" => return Ok(false),
            "/help" => term::print_line(HELP)?,
            "/reset" => {
                self.messages.clear();
                self.voices.forget();
                term::note("the conversation starts afresh");
            }
            "/system" if rest.is_empty() => {
                let system = self.system.as_deref().unwrap_or("(the model's own)");
                term::print_line(system)?;
            }
            "/system" => {
                self.system = Some(rest.to_string());
                term::note("the system message holds from the next answer on");
            }
            "/route" => self.voices.lines().iter().try_for_each(|line| term::print_line(line))?,
            "/save" => self.save(rest),
            _ if command.starts_with('/') && !command[1..].contains('/') => {
                term::note(&format!("no command {command}; /help lists them"));
            }
            _ => {
                if let Err(e) = self.say(line) {
                    term::error(&e);
                }
            }
        }
        Ok(true)
    }

    fn conversation(&self) -> Vec<Value> {
        let system = self.system.iter().map(|s| json!({ "role": "system", "content": s }));
        system.chain(self.messages.iter().cloned()).collect()
    }

    fn save(&mut self, file: &str) {
        if file.is_empty() {
            return term::note("/save FILE: which file?");
        }
        match self.write(file) {
            Ok(()) => term::note(&format!("{} messages in {file}", self.messages.len())),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                term::note(&format!("{file} is there already and not from this conversation; choose another name"));
            }
            Err(e) => term::note(&format!("{file}: cannot write: {e}")),
        }
    }

    fn write(&mut self, file: &str) -> std::io::Result<()> {
        let text = serde_json::to_string_pretty(&json!({ "messages": self.conversation() }))?;
        let mut out = if self.saved.contains(file) { File::create(file)? } else { File::create_new(file)? };
        self.saved.insert(file.to_string());
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")
    }

    /// Sends a message and prints the answer as it comes; Ctrl-C ends it early. A message that cannot be sent, or was
    /// taken back before anything was said, leaves no trace.
    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({ "role": "user", "content": text }));
        self.interrupted.store(false, Ordering::Relaxed);
        let conversation = self.conversation();
        let (sampling, context, interrupted) = (&self.args.sampling, self.context, self.interrupted.as_ref());
        let turn = self.voices.answer(&conversation, &Asking { sampling, context, interrupted }, &mut term::print_now);
        let turn = match turn {
            Ok(turn) => turn,
            Err(e) => {
                self.messages.pop();
                return Err(e);
            }
        };
        if turn.taken_back {
            self.messages.pop();
            term::note("[stopped before there was an answer; the message is taken back]");
            return Ok(());
        }
        if !turn.text.ends_with('\n') {
            term::print_line("")?;
        }
        if turn.stopped {
            term::note("[stopped]");
        }
        turn.lines.iter().for_each(|line| self.context.note(line));
        self.messages.push(json!({ "role": "assistant", "content": turn.text }));
        Ok(())
    }
}
