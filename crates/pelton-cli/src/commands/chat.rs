//! `pelton chat`: a conversation at the keyboard.
//!
//! Invariant: Ctrl-C stops the answer, never the program; what was said stays in the conversation.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::Context as _;
use pelton::{Chat, Event, Finished, Llm, Model};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Config, Editor, Helper, Highlighter, Hinter};
use serde_json::{Value, json};

use crate::args::ChatArgs;
use crate::commands::run::{build_request, figures, read_stdin};
use crate::setup::Context;
use crate::term;

const HELP: &str = "\
/help            this list
/system TEXT     set the system message (without TEXT: show it)
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
    model: &'a Model,
    llm: &'a Llm,
    chat: Chat,
    system: Option<String>,
    messages: Vec<Value>,
    interrupted: Arc<AtomicBool>,
    quiet: bool,
}

pub fn run(args: &ChatArgs, context: &Context) -> anyhow::Result<()> {
    let (model, llm) = context.load(&args.model, 1)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot handle Ctrl-C")?;
    let mut session = Session {
        args,
        model: &model,
        llm: &llm,
        chat: Chat::new(model.text()?)?,
        system: args.system.clone(),
        messages: Vec::new(),
        interrupted,
        quiet: context.quiet,
    };
    if !term::stdin_is_terminal() {
        // Piped in: the whole text is one message.
        return session.say(read_stdin()?.trim_end());
    }
    if !context.quiet {
        term::note("/help lists the commands; Ctrl-D leaves");
    }
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

    fn conversation(&self) -> Value {
        let system = self.system.iter().map(|s| json!({ "role": "system", "content": s }));
        system.chain(self.messages.iter().cloned()).collect()
    }

    fn save(&self, file: &str) {
        if file.is_empty() {
            return term::note("/save FILE: which file?");
        }
        let text = serde_json::to_string_pretty(&json!({ "messages": self.conversation() }));
        let written = text.map_err(std::io::Error::from).and_then(|text| std::fs::write(file, text + "\n"));
        match written {
            Ok(()) => term::note(&format!("{} messages in {file}", self.messages.len())),
            Err(e) => term::note(&format!("{file}: cannot write: {e}")),
        }
    }

    /// Sends a message and streams the answer. A message that cannot be sent leaves no trace.
    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({ "role": "user", "content": text }));
        let asked = self.chat.ids(&self.conversation(), None).map_err(anyhow::Error::from);
        let request = asked.and_then(|ids| build_request(ids, &self.args.sampling, self.model, self.llm));
        let answered = request.and_then(|request| self.stream(self.llm.submit(request)?));
        match answered {
            Ok((answer, finished)) => {
                self.messages.push(json!({ "role": "assistant", "content": answer }));
                if let Some(finished) = finished.filter(|_| !self.quiet) {
                    term::note(&figures(&finished));
                }
                Ok(())
            }
            Err(e) => {
                self.messages.pop();
                Err(e)
            }
        }
    }

    /// Prints an answer as it comes; Ctrl-C ends it early.
    fn stream(&self, request: pelton::RequestHandle) -> anyhow::Result<(String, Option<Finished>)> {
        self.interrupted.store(false, Ordering::Relaxed);
        let mut answer = String::new();
        let mut emit = |text: &str| {
            answer.push_str(text);
            term::print_now(text)
        };
        let finished = loop {
            if self.interrupted.swap(false, Ordering::Relaxed) {
                break None;
            }
            match request.next_event_timeout(Duration::from_millis(50)) {
                Ok(Event::Token { text, .. }) => emit(&text)?,
                Ok(Event::Finished(finished)) => {
                    emit(&finished.text)?;
                    break Some(finished);
                }
                Ok(Event::Failed(message)) => anyhow::bail!("{message}"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the engine stopped before the answer was complete"),
            }
        };
        if !answer.ends_with('\n') {
            term::print_line("")?;
        }
        if finished.is_none() {
            term::note("[stopped]");
        }
        Ok((answer, finished))
    }
}
