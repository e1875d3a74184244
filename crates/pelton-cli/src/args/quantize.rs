//! Arguments of `pelton quantize` and `pelton imatrix`.

use std::path::PathBuf;

use clap::Args;
use pelton_quantize::Budget;

use crate::numbers;

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("types").required(true))]
pub(crate) struct QuantizeArgs {
    /// Model: a .gguf file, a folder of safetensors, or a hub name
    #[arg(value_name = "IN")]
    pub input: String,
    /// The .gguf file to write; it appears when it is whole
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// A mix of types such as Q4_K_M, Q6_K or IQ3_XXS, or `TYPE:pure` for one type in all matrices; an unknown name lists
    /// them
    #[arg(long, value_name = "MIX", group = "types")]
    pub to: Option<String>,
    /// Choose a type for each matrix so that all tensors take at most so much, with least harm: 6GiB, 900MB or 4.5bpw
    #[arg(long, value_name = "SIZE", group = "types")]
    pub fit: Option<Budget>,
    /// Choose a type for each matrix so that the predicted divergence (KL, in nats) is at most this, in the fewest bytes
    #[arg(long, value_name = "KL", group = "types", requires = "text", value_parser = numbers::positive)]
    pub fit_quality: Option<f32>,
    /// Round each element so that it makes good the errors of those before it (GPTQ), by what the layers read on --text.
    /// For types with a code for each element, Q4_0 to Q5_1 and Q2_K to Q6_K; no --imatrix is needed, and on the built-in
    /// model Q2_K and Q4_K_M do half the harm that they do with one
    #[arg(long, requires = "text")]
    pub gptq: bool,
    /// Scale columns that meet large inputs up before they are rounded, and what makes these inputs down (AWQ), by what the
    /// layers read on --text. For models with a few very large inputs, and beside --gptq; alone it did not help the built-in
    /// model: `pelton compare` says what it does for yours
    #[arg(long, requires = "text")]
    pub awq: bool,
    /// Text on which --fit measures what an error in each matrix does to the model's predictions, and which --gptq and
    /// --awq run: one of the kind that the model will meet
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens of --text that are used [default: 4096 for --fit, 65536 for --gptq and --awq]
    #[arg(long, value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub tokens: Option<usize>,
    /// Importance matrix: of `pelton imatrix`, or of llama.cpp
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Threads [default: one for each core]
    #[arg(long, short, value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub threads: Option<usize>,
    /// Print the types and the size, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ImatrixArgs {
    /// Model: a .gguf file, a folder of safetensors, or a hub name
    pub model: String,
    /// A text of the kind that the model will meet
    #[arg(value_name = "TEXT")]
    pub text: PathBuf,
    /// The file to write, in llama.cpp's GGUF form
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Tokens that are run together
    #[arg(long, default_value = "512", value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub chunk: usize,
    /// Use at most so many chunks
    #[arg(long, value_name = "N", value_parser = numbers::at_least_one)]
    pub chunks: Option<usize>,
    /// Threads [default: one for each core]
    #[arg(long, short, value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
