//! What `pelton doctor` takes.

use clap::Args;

use super::ComputeArgs;

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Model to decode with: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short, help_heading = "Engine")]
    pub model: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}
