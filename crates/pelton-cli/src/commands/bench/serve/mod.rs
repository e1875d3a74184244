//! `pelton bench serve`: puts a load on any OpenAI-compatible server and times every token of every stream.
//!
//! A closed loop (`--clients`) finds what a server can do; an open one (`--rate`) what its users would see. Invariant:
//! the load depends on the arguments and on how the server counts tokens, never on who serves: two servers with the same
//! model get the same bytes in the same order.

mod client;
mod load;
mod output;
mod report;
mod sse;
mod stats;
pub(super) mod svg;
mod text;

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use crate::Usage;
use crate::args::{BenchServeArgs, EndpointArg};
use crate::progress::Progress;
use crate::setup::Context;
use crate::term;
use client::{Client, Endpoint};
use load::Load;
use stats::{Fault, Level, Pace, Record};
use text::{Ruler, Texts};

/// Words of the two prompts that measure how the server counts: a short one, and one of about the length that is asked
/// for, within these bounds.
const SHORT_RULER_WORDS: usize = 32;
const LONG_RULER_WORDS: std::ops::RangeInclusive<usize> = 96..=288;

pub(super) fn run(args: &BenchServeArgs, context: &Context) -> anyhow::Result<()> {
    let paces = paces(args)?;
    let most = paces.iter().map(|p| if let Pace::Clients(n) = p { *n } else { 1024 }).max().unwrap_or(1);
    allow_connections(most)?;
    let client = connect(args, context)?;
    let (ruler, counted) = measure(&client, args)?;
    if !counted {
        context.note("the server does not count prompt tokens: a word of the prompts is taken for a token");
    }
    let long = args.long_prompt.unwrap_or(0);
    let texts = Texts::new(args.seed, ruler, args.prompt_tokens, args.shared_tokens, long);
    for number in 0..args.warmup {
        once(&client, &texts.prompt(number), args.max_tokens, args.seed.wrapping_add(number as u64), &args.url)?;
    }
    let mut levels: Vec<Level> = Vec::with_capacity(paces.len());
    let mut first = args.warmup;
    for (i, &pace) in paces.iter().enumerate() {
        let n_requests = args.requests.unwrap_or(default_requests(pace));
        let long_after = args.long_prompt.map(|_| Duration::from_secs_f32(args.long_after));
        let max_tokens = args.max_tokens;
        let load = Load { client: &client, texts: &texts, max_tokens, seed: args.seed, n_requests, long_after };
        let bar = Progress::items(context.quiet);
        bar.set(0, n_requests as u64);
        bar.message(pace.to_string());
        let level = load::run(&load, pace, (i, first), &|| bar.step());
        drop(bar);
        levels.push(level.context("cannot start a thread for each stream")?);
        first += levels[i].records.len();
    }
    write(args, &client, &levels, context)
}

/// The levels that were asked for.
fn paces(args: &BenchServeArgs) -> anyhow::Result<Vec<Pace>> {
    if args.shared_tokens > args.prompt_tokens {
        let (shared, prompt) = (args.shared_tokens, args.prompt_tokens);
        return Err(Usage(format!("--shared-tokens {shared} is more than --prompt-tokens {prompt}")).into());
    }
    if args.rate.is_empty() {
        return Ok(args.clients.iter().map(|&n| Pace::Clients(n)).collect());
    }
    Ok(args.rate.iter().map(|&rate| Pace::Rate(f64::from(rate))).collect())
}

fn default_requests(pace: Pace) -> usize {
    match pace {
        Pace::Clients(n) => (2 * n).max(16),
        Pace::Rate(_) => 100,
    }
}

/// A client that knows its model.
fn connect(args: &BenchServeArgs, context: &Context) -> anyhow::Result<Client> {
    if !["http://", "https://"].iter().any(|scheme| args.url.starts_with(scheme)) {
        return Err(Usage(format!("--url {}: expected http://HOST:PORT or https://HOST", args.url)).into());
    }
    let endpoint = match args.endpoint {
        EndpointArg::Chat => Endpoint::Chat,
        EndpointArg::Completions => Endpoint::Completions,
    };
    let timeout = Duration::from_secs(args.timeout as u64);
    let key = args.api_key.clone().or_else(|| context.environment.api_key.clone());
    let mut client = Client::new(&args.url, key, endpoint, timeout);
    client.ignore_eos = args.ignore_eos;
    client.model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let models = client.models().map_err(|f| failure(&args.url, "its list of models", &f))?;
            let first = models.first().ok_or_else(|| anyhow!("{} serves no model; name one with --model", args.url))?;
            if models.len() > 1 {
                context.note(&format!("model: {first}, the first of {}", models.len()));
            }
            first.clone()
        }
    };
    Ok(client)
}

fn failure(url: &str, what: &str, fault: &Fault) -> anyhow::Error {
    anyhow!("{url} did not answer with {what}: {}: {}", fault.kind, fault.detail)
}

/// How the server counts, and whether it does.
fn measure(client: &Client, args: &BenchServeArgs) -> anyhow::Result<(Ruler, bool)> {
    let mut counts = Vec::new();
    let long = args.prompt_tokens.clamp(*LONG_RULER_WORDS.start(), *LONG_RULER_WORDS.end());
    for words in [SHORT_RULER_WORDS, long] {
        // Two tokens: some servers answer one token with an empty text.
        let r = once(client, &Texts::ruler(args.seed, words), 2, args.seed, &args.url)?;
        counts.push(r.prompt_tokens.map(|n| (words, n)));
    }
    let ruler = counts[0].zip(counts[1]).and_then(|(short, long)| Ruler::from_two(short, long));
    Ok((ruler.unwrap_or(Ruler::UNKNOWN), ruler.is_some()))
}

/// A request outside of any figure; an answer without text will do.
fn once(client: &Client, prompt: &str, max_tokens: usize, seed: u64, url: &str) -> anyhow::Result<Record> {
    let r = client.stream(prompt, max_tokens, seed, Instant::now(), 0.0);
    match &r.fault {
        Some(fault) if fault.kind != stats::FaultKind::Empty => Err(failure(url, "a completion", fault)),
        _ => Ok(r),
    }
}

/// Prints and writes what was measured; failed requests make the command fail once their figures are out.
fn write(args: &BenchServeArgs, client: &Client, levels: &[Level], context: &Context) -> anyhow::Result<()> {
    let to_stdout = args.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    let object = || output::json(args, &client.model, levels);
    if to_stdout {
        term::print_line(&serde_json::to_string_pretty(&object())?)?;
    } else {
        term::print_line(&output::headline(args, &client.model))?;
        term::print_now(&output::tables(levels))?;
    }
    if let Some(path) = args.json.as_ref().filter(|_| !to_stdout) {
        let text = serde_json::to_string_pretty(&object())? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        let page = report::page(&output::headline(args, &client.model), levels);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        context.note(&format!("report: {}", path.display()));
    }
    let (n, n_failed) = levels.iter().fold((0, 0), |(n, bad), l| (n + l.records.len(), bad + l.n_failed()));
    let long_failed = levels.iter().filter_map(|l| l.long.as_ref()?.fault.as_ref()).next();
    match (n_failed, long_failed) {
        (0, None) => Ok(()),
        (0, Some(fault)) => Err(anyhow!("the long prompt failed: {}: {}", fault.kind, fault.detail)),
        _ => Err(anyhow!("{n_failed} of {n} requests failed")),
    }
}

/// Raises the limit of open files where it is too low for `n` connections.
#[cfg(unix)]
fn allow_connections(n: usize) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = n as u64 + 64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(most) = limit.maximum.filter(|&most| most < needed) {
        return Err(
            Usage(format!("{n} streams need {needed} open files, and the system allows {most} (ulimit -Hn)")).into()
        );
    }
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).with_context(|| format!("cannot raise the limit of open files to {needed}"))
}

/// Other systems have no such limit, or one that is not in the way.
#[cfg(not(unix))]
fn allow_connections(_n: usize) -> anyhow::Result<()> {
    Ok(())
}
