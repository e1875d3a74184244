//! What `pelton bench ladder` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ComputeArgs, KvTypeArg};
use crate::numbers;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpeculationArg {
    /// With what finds drafts: a draft model where there is one, and n-grams
    Auto,
    /// Without
    Off,
}

#[derive(Args, Debug)]
pub(crate) struct LadderArgs {
    /// What to document: a folder or a source file, or a .jsonl file with a `lang` and a `code` on each line [default: 100
    /// functions of Pelton's own source]
    #[arg(long, value_name = "PATH")]
    pub source: Option<PathBuf>,
    /// Functions to document
    #[arg(long, default_value = "100", value_name = "N", value_parser = numbers::one_to::<100_000>)]
    pub chunks: usize,
    /// File with the system prompt that all functions share [default: a page of rules for documentation]
    #[arg(long, value_name = "FILE")]
    pub system: Option<PathBuf>,
    /// Longest entry in tokens
    #[arg(long, short = 'n', default_value = "120", value_name = "TOKENS", value_parser = numbers::one_to::<65_536>)]
    pub max_tokens: usize,
    /// Answers at once: a rung for each
    #[arg(long, value_delimiter = ',', default_value = "4,8,16", value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub batch: Vec<usize>,
    /// Rounds in which all rungs are measured in turn; the median is printed
    #[arg(long, default_value = "3", value_name = "N", value_parser = numbers::one_to::<1000>)]
    pub rounds: usize,
    /// Leave out the first rung, unquantized weights: it takes longest
    #[arg(long)]
    pub skip_baseline: bool,
    /// Model of the first rung [default: the model itself, its weights decoded to bfloat16]
    #[arg(long, value_name = "MODEL", conflicts_with = "skip_baseline")]
    pub base_model: Option<String>,
    /// How keys and values are stored on the rung that quantizes them; bf16 leaves it out
    #[arg(long, value_enum, default_value = "int8", value_name = "TYPE")]
    pub quantized_kv: KvTypeArg,
    /// Whether there is a rung with speculation
    #[arg(long, value_enum, default_value = "auto")]
    pub speculation: SpeculationArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Write the table with a chart, one HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Model: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short, help_heading = "Engine")]
    pub model: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}
