//! What can be typed after `pelton eval` and `pelton compare`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ComputeArgs, KvTypeArg, ModelArgs};
use crate::numbers;

#[derive(Args, Debug)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub what: EvalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// How well a model predicts a text
    Perplexity(EvalPerplexityArgs),
    /// How far a model's predictions of a text are from another model's
    Kl(EvalKlArgs),
    /// How many questions of a file a model answers right, of which the answers are given
    MultipleChoice(EvalChoiceArgs),
    /// How many questions of a file a model answers right in its own words
    Qa(EvalQaArgs),
    /// The logits at every position of a sequence of ids
    Logits(EvalLogitsArgs),
}

#[derive(Args, Debug)]
pub(crate) struct EvalLogitsArgs {
    /// Model: a path or a hub name; the built-in one if left out
    pub model: Option<String>,
    /// A JSON array of token ids (`-`: stdin)
    #[arg(long, value_name = "FILE")]
    pub ids: PathBuf,
    /// The safetensors file to write: `logits` f32 [rows, vocab], `input_ids` i64 [rows]
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Round the rotary frequencies to bf16, as a model does that was cast to bf16 as a whole
    #[arg(long)]
    pub rope_bf16: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How a text is cut. The figures are those of llama.cpp's llama-perplexity with the same window.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Windows")]
pub(crate) struct WindowArgs {
    /// Tokens of a window; predictions of its second half count
    #[arg(long, short, default_value = "512", value_name = "TOKENS", value_parser = numbers::one_to::<1_048_576>)]
    pub window: usize,
    /// Tokens from one window to the next, whose predictions count [default: windows lie side by side]
    #[arg(long, value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub stride: Option<usize>,
    /// At most so many windows [default: all]
    #[arg(long, value_name = "N", value_parser = numbers::at_least_one)]
    pub windows: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct EvalPerplexityArgs {
    /// A text file (`-`: stdin)
    pub file: PathBuf,
    #[command(flatten)]
    pub windows: WindowArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Model: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short, help_heading = "Engine")]
    pub model: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct EvalKlArgs {
    /// A text file (`-`: stdin); with --base-file none is needed
    #[arg(required_unless_present = "base_file", conflicts_with = "base_file")]
    pub file: Option<PathBuf>,
    /// The model to compare with: a path or a hub name
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["base_file", "write_base"])]
    pub base: Option<String>,
    /// The predictions to compare with, from --write-base or llama.cpp's --kl-divergence-base
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base", "write_base"])]
    pub base_file: Option<PathBuf>,
    /// Write the model's own predictions to a file for --base-file, and compare nothing
    #[arg(long, value_name = "FILE", conflicts_with = "base")]
    pub write_base: Option<PathBuf>,
    #[command(flatten)]
    pub windows: WindowArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Model: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short, help_heading = "Engine")]
    pub model: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// What a line's members are called; `question.text` is the member `text` of the member `question`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Questions")]
pub(crate) struct EvalQuestionArgs {
    /// Member with the question
    #[arg(long, default_value = "question", value_name = "NAME")]
    pub question: String,
    /// Member with a text to read first: a string or an array of strings; may be missing
    #[arg(long, default_value = "context", value_name = "NAME")]
    pub context_field: String,
    /// Member with the right answer: a text, an array of acceptable ones; of choices also a number or a letter
    #[arg(long, default_value = "answer", value_name = "NAME")]
    pub answer: String,
    /// The words around each question: {question}, {context} and \n stand for themselves
    #[arg(long, value_name = "TEMPLATE")]
    pub prompt: Option<String>,
    /// Only the first questions
    #[arg(long, value_name = "N", value_parser = numbers::at_least_one)]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct EvalChoiceArgs {
    /// Questions, one JSON object a line (`-`: stdin)
    pub file: PathBuf,
    #[command(flatten)]
    pub questions: EvalQuestionArgs,
    /// Member with the choices
    #[arg(long, default_value = "choices", value_name = "NAME", help_heading = "Questions")]
    pub choices_field: String,
    /// The choices of every question, in place of the member
    #[arg(long, value_name = "TEXT,…", value_delimiter = ',', help_heading = "Questions")]
    pub choices: Vec<String>,
    /// Print JSON, each question's choice among it
    #[arg(long)]
    pub json: bool,
    /// Longest question and choice in tokens; longer ones are left out [default: the model's, at most 4096]
    #[arg(long, short, value_name = "TOKENS", value_parser = numbers::at_least_one, help_heading = "Engine")]
    pub context: Option<usize>,
    /// Model: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short, help_heading = "Engine")]
    pub model: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct EvalQaArgs {
    /// Questions, one JSON object a line (`-`: stdin)
    pub file: PathBuf,
    #[command(flatten)]
    pub questions: EvalQuestionArgs,
    /// Longest answer in tokens
    #[arg(long, short = 'n', default_value = "32", value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub max_tokens: usize,
    /// Continue the prompt as plain text up to the end of a line, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Answers that are generated at once
    #[arg(long, default_value = "16", value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub parallel: usize,
    /// Print JSON, each answer among it
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

const COMPARE_EXAMPLES: &str = "Examples:
  pelton compare model-q8_0.gguf model-q4_k_m.gguf model-q4_0.gguf --html report.html
  pelton compare model.gguf --kv bf16,int8,fp8
  pelton compare ORG/NAME --quantizations none,8bit,4bit";

#[derive(Args, Debug)]
#[command(after_help = COMPARE_EXAMPLES)]
pub(crate) struct CompareArgs {
    /// The base, then the models to compare with it: paths or hub names; with --kv one model, or none for the built-in
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Compare these KV types of one model; the first is the base
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TYPE,…", conflicts_with = "kv_type")]
    pub kv: Vec<KvTypeArg>,
    /// Compare what a model's 16- or 32-bit weights may become while it is loaded, such as none,8bit,4bit; the first is
    /// the base
    #[arg(long, value_delimiter = ',', value_name = "TYPE,…", conflicts_with = "kv")]
    pub quantizations: Vec<String>,
    /// A text to predict [default: some two thousand words that are built in]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Prompts to answer: one a line, or JSON objects with a member `prompt` [default: eight that are built in]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Longest answer in tokens (0: answer no prompts)
    #[arg(long, short = 'n', default_value = "64", value_name = "TOKENS")]
    pub max_tokens: usize,
    /// Continue prompts as plain text, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Repetitions of each measurement of speed (0: measure none)
    #[arg(long, short, default_value = "3", value_name = "N")]
    pub repeat: usize,
    /// Context of the memory figures, in tokens
    #[arg(long, short, default_value = "4096", value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub context: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Write a report with charts, one HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub windows: WindowArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}
