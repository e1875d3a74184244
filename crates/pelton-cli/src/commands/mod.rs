//! One file for each command.

pub(crate) mod answer;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod docs;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod imatrix;
pub(crate) mod inspect;
pub(crate) mod quantize;
pub(crate) mod route;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod speaker;
pub(crate) mod store;
pub(crate) mod template;
pub(crate) mod tokenize;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// Prints a completion script.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pelton", &mut script);
    Ok(crate::term::print_now(&String::from_utf8(script)?)?)
}
