//! `cargo xtask rivals`: Pelton beside other engines on this machine.
//!
//! What is measured is in `benches/definitions/`, how each engine is asked for it in `benches/rivals.json`; the user
//! says where the engines' binaries are. Invariant: engines take turns (A B A B …), one process a test and round, so
//! that whatever drifts on the machine drifts for all of them.

mod definitions;
mod output;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use definitions::{Definitions, Engine, Test};
use report::{Cell, Report};

const USAGE: &str = "usage: cargo xtask rivals --pelton DIR --rival NAME=DIR … --model FILE … [options]

  --pelton DIR       folder of the pelton binary, such as target/release
  --rival NAME=DIR   folder of an engine's binaries; the names are those of benches/rivals.json (repeatable)
  --model FILE       a GGUF file (repeatable)
  --threads N        threads of every engine [default: 2]
  --rounds N         turns that every engine has at every test [default: 3]
  --test TEXT        only tests whose name contains TEXT (repeatable)
  --definitions FILE [default: benches/definitions/cpu.json]
  --record NAME      also write benches/record/DATE-NAME.md
  --dry-run          print the commands and run none";

/// What was typed.
#[derive(Debug, Default, PartialEq)]
struct Options {
    /// Engines' names and the folders of their binaries.
    folders: Vec<(String, PathBuf)>,
    models: Vec<PathBuf>,
    threads: usize,
    rounds: usize,
    tests: Vec<String>,
    definitions: PathBuf,
    record: Option<String>,
    dry_run: bool,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
        let definitions = PathBuf::from("benches/definitions/cpu.json");
        let mut o = Options { threads: 2, rounds: 3, definitions, ..Options::default() };
        let mut args = args;
        while let Some(arg) = args.next() {
            if arg == "--dry-run" {
                o.dry_run = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{arg} needs a value\n{USAGE}"))?;
            let count = || value.parse().ok().filter(|&n| n > 0).ok_or(format!("{arg} {value}: expected a count"));
            match arg.as_str() {
                "--pelton" => o.folders.insert(0, ("pelton".into(), value.into())),
                "--rival" => {
                    let (name, folder) = value.split_once('=').ok_or(format!("--rival {value}: expected NAME=DIR"))?;
                    o.folders.push((name.into(), folder.into()));
                }
                "--model" => o.models.push(value.into()),
                "--threads" => o.threads = count()?,
                "--rounds" => o.rounds = count()?,
                "--test" => o.tests.push(value),
                "--definitions" => o.definitions = value.into(),
                "--record" => o.record = Some(value),
                _ => return Err(format!("unknown option {arg}\n{USAGE}")),
            }
        }
        if o.folders.is_empty() || o.models.is_empty() {
            return Err(USAGE.into());
        }
        Ok(o)
    }
}

/// Runs the comparison; what went wrong, where it could not be run at all.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result<(), String> {
    let options = Options::parse(args)?;
    let definitions = Definitions::read(&options.definitions, "benches/rivals.json".as_ref())?;
    let engines = options.folders.iter().map(|(name, folder)| definitions.engine(name, folder));
    let engines = engines.collect::<Result<Vec<Engine>, String>>()?;
    let wanted = |t: &&Test| options.tests.is_empty() || options.tests.iter().any(|name| t.name.contains(name));
    let tests: Vec<&Test> = definitions.tests.iter().filter(wanted).collect();
    if tests.is_empty() {
        let names: Vec<_> = definitions.tests.iter().map(|t| t.name.as_str()).collect();
        return Err(format!("no such test; there are: {}", names.join(", ")));
    }
    let mut report = Report::new(&engines, options.threads, options.rounds);
    for model in &options.models {
        let mut cells: BTreeMap<(usize, usize), Cell> = BTreeMap::new();
        for round in 0..options.rounds {
            for (t, test) in tests.iter().enumerate() {
                for (e, engine) in engines.iter().enumerate() {
                    let Some(command) = engine.command(test, model, options.threads) else { continue };
                    let cell = cells.entry((t, e)).or_insert_with(|| Cell::new(&command));
                    if options.dry_run {
                        continue;
                    }
                    eprintln!("{} · {} · round {} · {}", model.display(), test.name, round + 1, engine.name);
                    cell.add(measure(engine, test, &command));
                }
            }
        }
        report.add(model, &tests, cells);
    }
    let text = if options.dry_run { report.commands() } else { report.markdown() };
    print!("{text}");
    match &options.record {
        Some(name) if !options.dry_run => report.write(name, &text),
        _ => Ok(()),
    }
}

/// Runs one command; tokens a second, or why there is no figure.
fn measure(engine: &Engine, test: &Test, command: &[String]) -> Result<f64, String> {
    let failed = |e: String| format!("{}: {e}", command[0]);
    let output = Command::new(&command[0]).args(&command[1..]).output().map_err(|e| failed(e.to_string()))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        let last = stderr.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message");
        return Err(failed(format!("{} ({last})", output.status)));
    }
    let figure = engine.output(test).figure(&stdout, test);
    // The batched programs print their table through a logger, which some versions send to stderr.
    figure.or_else(|| engine.output(test).figure(&stderr, test)).ok_or_else(|| failed("no figure in its output".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(text.split_whitespace().map(String::from))
    }

    #[test]
    fn pelton_comes_first_and_counts_are_positive() {
        let o = parse("--rival llama.cpp=/a --pelton /p --model x.gguf --rounds 5 --test prefill").unwrap();
        assert_eq!(o.folders, [("pelton".into(), "/p".into()), ("llama.cpp".into(), "/a".into())]);
        assert_eq!((o.rounds, o.threads, o.dry_run, o.tests.len()), (5, 2, false, 1));
        for wrong in
            ["", "--pelton", "--pelton /p", "--rival x --model y", "--pelton /p --model m --rounds 0", "--frob 1"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
