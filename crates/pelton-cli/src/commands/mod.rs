//! One file for each command.

pub mod bench;
pub mod chat;
pub mod docs;
pub mod eval;
pub mod inspect;
pub mod run;
pub mod store;
pub mod template;
pub mod tokenize;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// Prints a completion script.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pelton", &mut script);
    Ok(crate::term::print_now(&String::from_utf8(script)?)?)
}
