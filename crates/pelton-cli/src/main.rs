//! The `pelton` command: arguments in, façade calls, text out.
//!
//! Invariant: exit code 0 is success, 2 is a call that cannot succeed as it was typed, 1 is everything else that
//! went wrong; errors go to stderr, results to stdout.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod environment;
mod input;
mod numbers;
mod progress;
mod setup;
mod term;

use std::io::ErrorKind as IoKind;
use std::process::ExitCode;

use clap::Parser;
use pelton_docs::DocsError;

use crate::args::{Cli, Command};
use crate::environment::Environment;
use crate::setup::Context;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(Environment::read(), cli.quiet);
    match dispatch(cli.command, &context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            term::error(&e);
            ExitCode::from(exit_code(&e))
        }
    }
}

fn dispatch(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Docs(args) => commands::docs::run(&args, context),
        Command::Run(args) => commands::run::run(&args, context),
        Command::Chat(args) => commands::chat::run(&args, context),
        Command::Serve(args) => commands::serve::run(&args, context),
        Command::Route(args) => commands::route::run(&args.what, context),
        Command::Inspect(args) => commands::inspect::run(&args, context),
        Command::Bench(args) => commands::bench::run(&args, context),
        Command::Doctor(args) => commands::doctor::run(&args, context),
        Command::Quantize(args) => commands::quantize::run(&args, context),
        Command::Imatrix(args) => commands::imatrix::run(&args, context),
        Command::Pull(args) => commands::store::pull(&args, context),
        Command::List(args) => commands::store::list(&args, context),
        Command::Rm(args) => commands::store::rm(&args, context),
        Command::Tokenize(args) => commands::tokenize::run(&args, context),
        Command::Template(args) => commands::template::run(&args, context),
        Command::Compare(args) => commands::compare::run(&args, context),
        Command::Eval(args) => commands::eval::run(&args, context),
        Command::Completions { shell } => commands::completions(shell),
    }
}

/// A mistake in the call, found after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

fn exit_code(error: &anyhow::Error) -> u8 {
    let usage = error.chain().any(|cause| {
        let facade = cause.downcast_ref::<pelton::Error>();
        let docs = cause.downcast_ref::<DocsError>();
        cause.is::<Usage>()
            || facade.is_some_and(|e| e.kind() == pelton::ErrorKind::Usage)
            || docs.is_some_and(|e| matches!(e, DocsError::Out { .. } | DocsError::Unsupported { .. }))
    });
    if usage { 2 } else { 1 }
}

/// Whoever read our output has seen enough (`pelton list | head`).
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.into_iter().any(|e| e.kind() == IoKind::BrokenPipe)
}
