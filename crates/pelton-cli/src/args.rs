//! What can be typed. Help texts live here; nothing is resolved or checked against the world.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::numbers;

mod doctor;
mod eval;
mod ladder;
mod quantize;
mod route;

pub(crate) use doctor::DoctorArgs;
pub(crate) use eval::{
    CompareArgs, EvalArgs, EvalChoiceArgs, EvalCommand, EvalKlArgs, EvalLogitsArgs, EvalPerplexityArgs, EvalQaArgs,
    EvalQuestionArgs, WindowArgs,
};
pub(crate) use ladder::{LadderArgs, SpeculationArg};
pub(crate) use quantize::{ImatrixArgs, QuantizeArgs};
pub(crate) use route::{
    QuestionArgs, RouteArgs, RouteCommand, RouteCommandArgs, RouteEvalArgs, RouteLearnArgs, RouteRulesArgs,
};

/// Runs language models on your own machine, as fast as the machine allows.
///
/// Without -m, every command uses the small model that is built in: it writes documentation comments and needs no
/// download. MODEL is a .gguf file, a folder of safetensors, or a hub name ORG/NAME[:QUANT] that `pelton pull` brought.
#[derive(Debug, Parser)]
#[command(name = "pelton", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print no progress and no notes, only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Document a codebase: one entry for each function and type
    Docs(DocsArgs),
    /// Answer one prompt
    Run(RunArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Serve models over HTTP, in the dialects of OpenAI, Anthropic and Ollama
    Serve(Box<ServeArgs>),
    /// Send simple requests to a small model: the rules, and what they bring
    Route(RouteCommandArgs),
    /// Show what is in a model: architecture, quantization, memory, template
    Inspect(InspectArgs),
    /// Measure prompt and generation speed beside the machine's limits
    Bench(BenchArgs),
    /// Look at this machine: processor, GPUs, and whether decoding is as fast as they allow
    Doctor(DoctorArgs),
    /// Make a quantized GGUF file of a model
    Quantize(QuantizeArgs),
    /// Collect from a text how much each weight counts, for `pelton quantize --imatrix`
    Imatrix(ImatrixArgs),
    /// Download a model from the hub into the local store
    Pull(PullArgs),
    /// List the models in the local store
    List(ListArgs),
    /// Remove a model from the local store
    Rm(RmArgs),
    /// Turn text on stdin into token ids (or back)
    Tokenize(TokenizeArgs),
    /// Render a conversation with a model's chat template
    Template(TemplateArgs),
    /// Show what each quantization, or each KV type, of a model costs and buys
    Compare(Box<CompareArgs>),
    /// Measure what a model is worth: perplexity, divergence from another, questions
    Eval(Box<EvalArgs>),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Where and how a model runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub(crate) struct ModelArgs {
    /// Model: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short)]
    pub model: Option<String>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Longest sequence, prompt and answer, in tokens [default: the model's, at most 16384]
    #[arg(long, short, value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub context: Option<usize>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Do not reuse the computed beginning of earlier prompts
    #[arg(long)]
    pub no_prefix_cache: bool,
    #[command(flatten)]
    pub drafts: DraftArgs,
    /// Keep the packed weights in the model store and map them at the next start: about as much disk as the model
    #[arg(long)]
    pub cache_packed: bool,
    /// Refuse to start unless this much is granted, such as gpu, or ctx=32768,seqs=8
    #[arg(long, value_name = "WHAT")]
    pub require: Option<String>,
    /// List which kernel runs each group of layers
    #[arg(long, short)]
    pub verbose: bool,
}

/// Who proposes tokens ahead, for the model to check several at once. Answers are the same, bit for bit.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub(crate) struct DraftArgs {
    /// Proposes tokens that the model then checks together, wherever that measures faster; answers stay the same. A
    /// smaller MODEL with the same vocabulary, `auto` (one that is found, and ngram), `ngram` (repeats of the text so
    /// far and of earlier answers), or `none`
    #[arg(long, default_value = "ngram", value_name = "MODEL|auto|ngram|none")]
    pub draft: String,
    /// Most tokens proposed at a time, 0 to 16
    #[arg(long, default_value = "16", value_name = "N", value_parser = numbers::drafts)]
    pub draft_max: usize,
}

/// What computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub(crate) struct ComputeArgs {
    /// Threads [default: one for each core that this process may use, fewer under a CPU quota]
    #[arg(long, short, value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub threads: Option<usize>,
    /// Threads while prompts are read [default: as many as --threads]
    #[arg(long, value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub threads_batch: Option<usize>,
    /// Quantize 16- and 32-bit weights while they are loaded [default: none]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub quantization: Option<QuantizationArg>,
    /// How keys and values are stored: the smaller, the longer the context that fits [default: bf16]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub kv_type: Option<KvTypeArg>,
    /// Prompt tokens that are computed together
    #[arg(long, default_value = "512", value_name = "ROWS", value_parser = numbers::one_to::<65_536>)]
    pub batch_rows: usize,
    /// Layers that run on GPUs, the first ones: a number, `all`, or `auto` (as many as fit). 0 looks for none
    #[arg(long, default_value = "auto", value_name = "N|auto|all", value_parser = numbers::gpu_layers)]
    pub gpu_layers: pelton::GpuLayers,
    /// Run on the slow scalar reference instead of the CPU's kernels
    #[arg(long)]
    pub reference: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuantizationArg {
    /// The mix Q4_K_M: some 4.8 bits a weight
    #[value(name = "4bit")]
    Bits4,
    /// The mix Q5_K_M: some 5.7 bits a weight
    #[value(name = "5bit")]
    Bits5,
    /// Q6_K: 6.6 bits a weight
    #[value(name = "6bit")]
    Bits6,
    /// Q8_0: 8.5 bits a weight
    #[value(name = "8bit")]
    Bits8,
    /// 8-bit floats (e4m3) with a scale for each row; embedding and head stay
    Fp8,
    /// Bytes with a scale for each row; embedding and head stay
    Int8,
    /// NF4 in blocks of 64, as bitsandbytes; embedding and head stay
    Nf4,
    /// As the files have them
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvTypeArg {
    /// Exact, and slow
    F32,
    /// Finer than bf16, slower
    F16,
    /// What the fastest kernels read
    Bf16,
    /// Whole numbers with a scale for each token: half the memory
    Int8,
    /// 8-bit floats (e4m3) with a scale for each token: half the memory
    Fp8,
}

/// How tokens are chosen. What is left out comes from the model's own recommendation, else greedy decoding.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Longest answer in tokens [default: up to the end of the context]
    #[arg(long, short = 'n', value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub max_tokens: Option<usize>,
    /// Randomness; 0 always takes the likeliest token
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = numbers::not_negative)]
    pub temperature: Option<f32>,
    /// Choose among the K likeliest tokens (0: all)
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = numbers::mass)]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than P times the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = numbers::share)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that occurred (1: off)
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = numbers::positive)]
    pub repetition_penalty: Option<f32>,
    /// Subtract from the logits of tokens that were generated
    #[arg(long, value_name = "A", allow_negative_numbers = true, value_parser = numbers::finite)]
    pub presence_penalty: Option<f32>,
    /// Subtract from a token's logit each time it was generated
    #[arg(long, value_name = "A", allow_negative_numbers = true, value_parser = numbers::finite)]
    pub frequency_penalty: Option<f32>,
    /// Add BIAS to the logit of a token id; -inf forbids it (repeatable)
    #[arg(long, value_name = "ID=BIAS", value_parser = numbers::bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same output
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// End the answer before this text (repeatable)
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct DocsArgs {
    /// A folder or a source file: Rust, Python, JavaScript, TypeScript, Go, Java, C or C++
    pub path: PathBuf,
    /// What to write
    #[arg(long, short, value_enum, default_value = "markdown")]
    pub format: DocsFormat,
    /// Where to: a folder for markdown [default: docs-out], a file for jsonl and patch [default: stdout]
    #[arg(long, short, value_name = "DIR_OR_FILE")]
    pub out: Option<PathBuf>,
    /// Write new documentation for items that have some
    #[arg(long)]
    pub regenerate: bool,
    /// Longest entry in tokens
    #[arg(long, short = 'n', default_value = "120", value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub max_tokens: usize,
    /// Leave items that have documentation out of pages and records
    #[arg(long)]
    pub only_undocumented: bool,
    /// Document at most this many items
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Entries that are written at once
    #[arg(long, default_value = "16", value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub parallel: usize,
    /// Name everything that was left out, and why
    #[arg(long)]
    pub show_skipped: bool,
    /// Print the summary as JSON: on stdout, or on stderr where the records go to stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub route: RouteArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocsFormat {
    /// A page for each source file, and an index
    Markdown,
    /// One JSON object a line
    Jsonl,
    /// A unified diff that inserts doc comments, for `git apply`
    Patch,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The prompt; `-` reads it from stdin
    pub prompt: String,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,
    /// Print the answer and its figures as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub route: RouteArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ChatArgs {
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub route: RouteArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Model: a path, a hub name ORG/NAME[:QUANT], or NAME=MODEL to call it NAME; the built-in one if left out.
    /// Repeatable: the first is loaded at the start, the others when they are asked for
    #[arg(long, short, value_name = "[NAME=]MODEL")]
    pub model: Vec<String>,
    /// Where to listen; addresses beyond this machine need a key
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: std::net::IpAddr,
    /// Port; 0 is any free one
    #[arg(long, short, default_value = "8080", value_name = "PORT")]
    pub port: u16,
    /// Key that requests must carry, repeatable; other users of this machine can see it, the file's and
    /// PELTON_API_KEY's they cannot
    #[arg(long, value_name = "KEY", help_heading = "Access")]
    pub api_key: Vec<String>,
    /// File with keys, one a line; empty lines and lines that begin with # are left out
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub api_key_file: Option<PathBuf>,
    /// Listen beyond this machine without a key: everybody who reaches the port is let in
    #[arg(long, help_heading = "Access")]
    pub insecure_no_auth: bool,
    /// Let all keys share computed prefixes: faster where they send the same long prompts, but how soon an answer comes
    /// then tells one key what others have asked
    #[arg(long, help_heading = "Access")]
    pub share_prefixes: bool,
    /// Origin of web pages that may use the server, such as https://example.org (repeatable; * is all)
    #[arg(long, value_name = "ORIGIN", help_heading = "Access")]
    pub cors_origin: Vec<String>,
    /// Do not serve the web page
    #[arg(long, help_heading = "Access")]
    pub no_page: bool,
    /// Answers that are generated at once, where memory allows
    #[arg(long, default_value = "64", value_name = "N", help_heading = "Limits", value_parser = numbers::one_to::<65_536>)]
    pub parallel: usize,
    /// Answers that may wait; beyond that requests are refused with 429
    #[arg(long, default_value = "1024", value_name = "N", help_heading = "Limits", value_parser = numbers::one_to::<1_048_576>)]
    pub queue: usize,
    /// Requests of one key at once [default: no limit]
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = numbers::at_least_one)]
    pub key_concurrency: Option<usize>,
    /// Connections at once
    #[arg(long, default_value = "4096", value_name = "N", help_heading = "Limits", value_parser = numbers::one_to::<1_048_576>)]
    pub max_connections: usize,
    /// Largest body of a request
    #[arg(long, default_value = "8", value_name = "MIB", help_heading = "Limits", value_parser = numbers::one_to::<1024>)]
    pub max_body: usize,
    /// Time for the headers of a request to arrive, and then for its body
    #[arg(long, default_value = "30", value_name = "SECONDS", help_heading = "Limits", value_parser = numbers::one_to::<86_400>)]
    pub read_timeout: usize,
    /// Give a client up that takes none of its answer for so long
    #[arg(long, default_value = "30", value_name = "SECONDS", help_heading = "Limits", value_parser = numbers::one_to::<86_400>)]
    pub write_timeout: usize,
    /// End every answer after so long [default: no limit]
    #[arg(long, value_name = "SECONDS", help_heading = "Limits", value_parser = numbers::one_to::<86_400>)]
    pub deadline: Option<usize>,
    /// Time for running answers to end after SIGTERM or Ctrl-C
    #[arg(long, default_value = "30", value_name = "SECONDS", help_heading = "Limits")]
    pub drain: u64,
    /// Memory that all models together may take [default: what is free]
    #[arg(long, value_name = "MIB", help_heading = "Limits", value_parser = numbers::at_least_one)]
    pub memory: Option<usize>,
    /// Let further models go that were not used for so long [default: when another needs the memory]
    #[arg(long, value_name = "SECONDS", help_heading = "Limits", value_parser = numbers::one_to::<31_536_000>)]
    pub idle_unload: Option<usize>,
    /// Keep the computed beginnings of prompts in this folder, for the next start
    #[arg(long, value_name = "DIR", help_heading = "Engine", conflicts_with = "no_prefix_cache")]
    pub prefix_cache_dir: Option<PathBuf>,
    /// What that folder may hold
    #[arg(long, default_value = "4096", value_name = "MIB", help_heading = "Engine", value_parser = numbers::one_to::<16_777_216>)]
    pub prefix_cache_size: usize,
    /// Log why the beginning of a prompt had to be computed again; the lines quote the prompt
    #[arg(long, help_heading = "Log")]
    pub log_cache: bool,
    /// Log prompts and answers
    #[arg(long, help_heading = "Log")]
    pub log_prompts: bool,
    #[command(flatten)]
    pub route: RouteArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// Model: a path or a hub name; the built-in one if left out
    pub model: Option<String>,
    /// Context of the memory figures, in tokens [default: the model's, at most 16384]
    #[arg(long, short, value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub context: Option<usize>,
    /// Sequences of the memory figures
    #[arg(long, short, default_value = "1", value_name = "N", value_parser = numbers::one_to::<65_536>)]
    pub batch: usize,
    /// KV type of the memory figures
    #[arg(long, value_enum, default_value = "bf16", value_name = "TYPE")]
    pub kv_type: KvTypeArg,
    /// Also print the file's own metadata and the chat template
    #[arg(long, short)]
    pub verbose: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub what: Option<BenchCommand>,
    /// Lengths of prompts to compute, in tokens (0: none)
    #[arg(long, short, value_delimiter = ',', default_value = "512", value_name = "TOKENS")]
    pub prompt: Vec<usize>,
    /// Numbers of tokens to generate (0: none)
    #[arg(long, short = 'n', value_delimiter = ',', default_value = "128", value_name = "TOKENS")]
    pub generate: Vec<usize>,
    /// Tokens that are there before, for each of the above
    #[arg(long, short, value_delimiter = ',', default_value = "0", value_name = "TOKENS")]
    pub depth: Vec<usize>,
    /// Sequences that are generated together; they share the tokens before
    #[arg(long, short, value_delimiter = ',', default_value = "1", value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub batch: Vec<usize>,
    /// Repetitions; the median is printed
    #[arg(long, short, default_value = "3", value_name = "N", value_parser = numbers::one_to::<1000>)]
    pub repeat: usize,
    /// Also print where the time of each step goes, op by op
    #[arg(long)]
    pub profile: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print comma-separated values
    #[arg(long, conflicts_with_all = ["json", "profile"])]
    pub csv: bool,
    /// Model: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short, help_heading = "Engine")]
    pub model: Option<String>,
    /// Random weights in the shape of a published model, such as qwen2.5-7b:Q4_K_M, or of a config.json; an unknown
    /// name lists them
    #[arg(long, value_name = "NAME[:TYPES]", conflicts_with = "model", help_heading = "Engine")]
    pub shape: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// List which kernel runs each group of layers
    #[arg(long, short, help_heading = "Engine")]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure single ops, for each storage type, shape and number of rows
    Kernels(BenchKernelsArgs),
    /// Put a load on an OpenAI-compatible server and time every token
    Serve(BenchServeArgs),
    /// Switch every optimization on, one after the other, and show what each of them buys
    Ladder(LadderArgs),
    /// Measure what drafts bring: the same prompts with and without, in turn
    Speculation(BenchSpeculationArgs),
}

#[derive(Args, Debug)]
pub(crate) struct BenchSpeculationArgs {
    /// Prompts, one JSON object a line: {"turns": [TEXT, …]} or {"prompt": TEXT}, and a "category" to report them by
    /// [default: functions to document, and functions to repeat with a change]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Where functions are from: a folder, or a file of {"lang", "code"} objects [default: built-in ones]
    #[arg(long, value_name = "FILE_OR_FOLDER", conflicts_with = "prompts")]
    pub source: Option<PathBuf>,
    /// Categories of --prompts to measure [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME", requires = "prompts")]
    pub category: Vec<String>,
    /// Of longer prompts, only so many tokens at their end: large models read for long before they answer [default: all]
    #[arg(long, value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub prompt_tokens: Option<usize>,
    /// Prompts of each category
    #[arg(long, default_value = "16", value_name = "N", value_parser = numbers::at_least_one)]
    pub limit: usize,
    /// Times that everything is measured, caches being empty each time: what is printed is their sum
    #[arg(long, default_value = "1", value_name = "N", value_parser = numbers::one_to::<1000>)]
    pub rounds: usize,
    /// Longest answer in tokens
    #[arg(long, short = 'n', default_value = "96", value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub max_tokens: usize,
    /// Requests that run at once
    #[arg(long, short, value_delimiter = ',', default_value = "1,16", value_name = "N", value_parser = numbers::one_to::<1024>)]
    pub batch: Vec<usize>,
    /// Randomness; 0 always takes the likeliest token
    #[arg(long, default_value = "0", value_name = "T", value_parser = numbers::not_negative)]
    pub temperature: f32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Model: a path, a hub name ORG/NAME[:QUANT]; the built-in one if left out
    #[arg(long, short, help_heading = "Engine")]
    pub model: Option<String>,
    /// Random weights in the shape of a published model, such as qwen2.5-1.5b:Q4_K_M: nothing is ever accepted
    #[arg(long, value_name = "NAME[:TYPES]", conflicts_with = "model", help_heading = "Engine")]
    pub shape: Option<String>,
    #[command(flatten)]
    pub drafts: DraftArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct BenchKernelsArgs {
    /// Whose widths: a published model, or a config.json
    #[arg(long, default_value = "qwen2.5-1.5b", value_name = "NAME")]
    pub shape: String,
    /// Storage types of weights; those whose blocks do not divide a width are left out there
    #[arg(long, value_delimiter = ',', default_value = "Q4_0,Q5_0,Q8_0,Q4_K,Q5_K,Q6_K,F16", value_name = "TYPE",
        value_parser = numbers::storage_type)]
    pub types: Vec<pelton::DType>,
    /// Rows of a batch: 1 is decoding, many are a prompt
    #[arg(long, value_delimiter = ',', default_value = "1,8,512", value_name = "N", value_parser = numbers::one_to::<65_536>)]
    pub rows: Vec<usize>,
    /// Tokens before the rows, for attention
    #[arg(long, short, value_delimiter = ',', default_value = "4096", value_name = "TOKENS", value_parser = numbers::one_to::<1_048_576>)]
    pub depth: Vec<usize>,
    /// Repetitions; the median is printed
    #[arg(long, short, default_value = "5", value_name = "N", value_parser = numbers::one_to::<1000>)]
    pub repeat: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct BenchServeArgs {
    /// The server, with or without /v1
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
    /// Name of the model there [default: the first that it lists]
    #[arg(long, short)]
    pub model: Option<String>,
    /// Key to send [default: PELTON_API_KEY of the environment]
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// What completes the prompts
    #[arg(long, value_enum, default_value = "chat")]
    pub endpoint: EndpointArg,
    /// Closed loop: clients at once, each of which sends its next request when the last one is answered
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_name = "N", value_parser = numbers::one_to::<16_384>)]
    pub clients: Vec<usize>,
    /// Open loop instead: requests a second on average, sent at random times (Poisson)
    #[arg(long, value_delimiter = ',', value_name = "PER_SECOND", conflicts_with = "clients", value_parser = numbers::rate)]
    pub rate: Vec<f32>,
    /// Requests of each level [default: twice the clients, at least 16; 100 with --rate]
    #[arg(long, value_name = "N", value_parser = numbers::one_to::<10_000_000>)]
    pub requests: Option<usize>,
    /// Requests before the first level that are in no figure
    #[arg(long, default_value = "1", value_name = "N")]
    pub warmup: usize,
    /// Length of each prompt in tokens
    #[arg(long, short, default_value = "288", value_name = "TOKENS", value_parser = numbers::one_to::<4_194_304>)]
    pub prompt_tokens: usize,
    /// Of these so many are the same at the beginning of every prompt
    #[arg(long, default_value = "256", value_name = "TOKENS")]
    pub shared_tokens: usize,
    /// Longest answer in tokens
    #[arg(long, short = 'n', default_value = "128", value_name = "TOKENS", value_parser = numbers::at_least_one)]
    pub max_tokens: usize,
    /// Ask the server to go on to the longest answer, where it knows `ignore_eos`
    #[arg(long)]
    pub ignore_eos: bool,
    /// Also send one prompt of this length in the midst of each level, and compare the others before and during it
    #[arg(long, value_name = "TOKENS", value_parser = numbers::one_to::<4_194_304>)]
    pub long_prompt: Option<usize>,
    /// When the long prompt is sent, in seconds
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = numbers::seconds)]
    pub long_after: f32,
    /// The same seed gives the same prompts and the same arrivals
    #[arg(long, default_value = "0", value_name = "N")]
    pub seed: u64,
    /// Give a request up when nothing comes for so many seconds
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = numbers::one_to::<86_400>)]
    pub timeout: usize,
    /// Write all figures as JSON (`-`: to stdout, in place of the tables)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a report with plots, one HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointArg {
    /// /v1/chat/completions: one message, in the model's template
    Chat,
    /// /v1/completions: the text alone
    Completions,
}

#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// ORG/NAME[:QUANT][@REVISION], for example Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
    pub model: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// ORG/NAME[:QUANT][@REVISION]; with --packed also a path
    #[arg(required_unless_present = "packed")]
    pub model: Option<String>,
    /// Remove only the packed weights that --cache-packed keeps: of this model, or of all
    #[arg(long)]
    pub packed: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TokenizeArgs {
    /// Model: a path (vocabulary-only files too), a hub name; the built-in one if left out
    pub model: Option<String>,
    /// Parse special tokens in the text
    #[arg(long)]
    pub special: bool,
    /// Read a JSON array of ids and print their text
    #[arg(long, conflicts_with = "special")]
    pub decode: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TemplateArgs {
    /// Model: a path, a hub name, or a .jinja file
    pub model: String,
    /// JSON file (`-`: stdin): an array of messages, or an object with messages, tools, add_generation_prompt and
    /// further variables of the template
    pub conversation: PathBuf,
    /// What `bos_token` stands for in a .jinja file
    #[arg(long, default_value = "<s>", value_name = "TEXT")]
    pub bos: String,
    /// What `eos_token` stands for in a .jinja file
    #[arg(long, default_value = "</s>", value_name = "TEXT")]
    pub eos: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
