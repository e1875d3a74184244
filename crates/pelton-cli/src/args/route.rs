//! What routing takes: a pair of models, a file of rules, and the commands of `pelton route`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{EngineArgs, SamplingArgs};
use crate::numbers;

/// Two models, one of which answers.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Routing")]
pub(crate) struct RouteArgs {
    /// Two models: simple requests go to the small one, the others to the large one; the answer says which and why
    #[arg(long, value_name = "small=MODEL,large=MODEL")]
    pub route: Option<String>,
    /// File with the rules [default: those that `pelton route rules` prints]
    #[arg(long, value_name = "FILE", requires = "route")]
    pub route_rules: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct RouteCommandArgs {
    #[command(subcommand)]
    pub what: RouteCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// Print the rules in words, or as the file that --route-rules reads
    Rules(RouteRulesArgs),
    /// Find how sure a small model's answers have to be to stand, from questions that both models answer
    Learn(RouteLearnArgs),
    /// Answer questions with both models: share routed, agreement with the large model, time saved
    Eval(RouteEvalArgs),
}

#[derive(Args, Debug)]
pub(crate) struct RouteRulesArgs {
    /// A file of rules [default: the built-in ones]
    pub file: Option<PathBuf>,
    /// Print the file, to be edited
    #[arg(long)]
    pub json: bool,
}

/// Questions, and how they are answered.
#[derive(Args, Debug)]
pub(crate) struct QuestionArgs {
    /// Questions, one JSON object a line: with `question`, `prompt`, `messages`, or the `lang` and `code` of a function to
    /// document
    pub file: PathBuf,
    /// The two models
    #[arg(long, value_name = "small=MODEL,large=MODEL")]
    pub route: String,
    /// File with the rules [default: those that `pelton route rules` prints]
    #[arg(long, value_name = "FILE")]
    pub route_rules: Option<PathBuf>,
    /// Questions to ask, from the first [default: all]
    #[arg(long, value_name = "N", value_parser = numbers::at_least_one)]
    pub limit: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Args, Debug)]
pub(crate) struct RouteLearnArgs {
    #[command(flatten)]
    pub questions: QuestionArgs,
    /// How much answers that stand have to agree with the large model's, 0 to 1, on average (F1 of their words)
    #[arg(long, default_value = "0.6", value_name = "SHARE", value_parser = numbers::part)]
    pub agreement: f32,
    /// Where to write the rules with what was learned, for --route-rules
    #[arg(long, short, default_value = "route.json", value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct RouteEvalArgs {
    #[command(flatten)]
    pub questions: QuestionArgs,
}
