//! The comparison as a page: medians, ranges, ratios, and everything that somebody needs to run it again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::definitions::{Engine, Test};

/// One engine at one test: a figure a round, or what went wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    command: String,
    figures: Vec<f64>,
    failure: Option<String>,
}

impl Cell {
    pub(super) fn new(command: &[String]) -> Cell {
        Cell { command: command.join(" "), ..Cell::default() }
    }

    pub(super) fn add(&mut self, result: Result<f64, String>) {
        match result {
            Ok(figure) => self.figures.push(figure),
            Err(e) => {
                eprintln!("{e}");
                self.failure = Some(e);
            }
        }
    }

    fn median(&self) -> Option<f64> {
        let mut sorted = self.figures.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        match n {
            0 => None,
            n if n % 2 == 1 => Some(sorted[n / 2]),
            _ => Some((sorted[n / 2 - 1] + sorted[n / 2]) / 2.0),
        }
    }

    fn text(&self) -> String {
        let Some(median) = self.median() else { return "failed".into() };
        let least = self.figures.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.figures.iter().copied().fold(0.0, f64::max);
        format!("{median:.1} ({least:.1}–{most:.1})")
    }
}

/// All tables.
pub(super) struct Report {
    engines: Vec<(String, String)>,
    settings: String,
    tables: String,
    commands: String,
    failures: String,
}

impl Report {
    pub(super) fn new(engines: &[Engine], threads: usize, rounds: usize) -> Report {
        let settings = format!("{threads} threads, {rounds} rounds in turn, one process a test and round");
        let engines = engines.iter().map(|e| (e.name.clone(), e.version())).collect();
        let (tables, commands, failures) = (String::new(), String::new(), String::new());
        Report { engines, settings, tables, commands, failures }
    }

    /// Adds a model's table. `cells` are by test and engine.
    pub(super) fn add(&mut self, model: &Path, tests: &[&Test], cells: BTreeMap<(usize, usize), Cell>) {
        let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy();
        let names: Vec<&str> = self.engines.iter().map(|(name, _)| name.as_str()).collect();
        let line = |out: &mut String, cells: &[String]| out.push_str(&format!("| {} |\n", cells.join(" | ")));
        let mut table = format!("\n## {name}\n\n");
        let header = ["tokens/s"].iter().chain(&names).map(ToString::to_string).chain(["against the best".into()]);
        let header: Vec<String> = header.collect();
        line(&mut table, &header);
        line(&mut table, &vec!["---".to_string(); header.len()]);
        for (t, test) in tests.iter().enumerate() {
            let of = |e: usize| cells.get(&(t, e));
            let mut row = vec![test.name.clone()];
            row.extend((0..names.len()).map(|e| of(e).map_or("–".into(), Cell::text)));
            let others = (1..names.len()).filter_map(|e| of(e)?.median()).fold(0.0, f64::max);
            let ratio = of(0).and_then(Cell::median).filter(|_| others > 0.0 && names[0] == "pelton");
            row.push(ratio.map_or("–".into(), |ours| format!("{:.2}×", ours / others)));
            line(&mut table, &row);
        }
        self.tables += &table;
        for cell in cells.into_values() {
            let _written = writeln!(self.commands, "    {}", cell.command);
            if let Some(e) = cell.failure {
                let _written = writeln!(self.failures, "- {e}");
            }
        }
    }

    /// The commands alone.
    pub(super) fn commands(&self) -> String {
        self.commands.clone()
    }

    /// The whole page.
    pub(super) fn markdown(&self) -> String {
        let mut out = format!("# {}: beside other engines\n\n| | |\n| --- | --- |\n", today());
        let commit = said("git", &["rev-parse", "--short", "HEAD"]);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        let mut rows = vec![("commit", commit), ("processor", processor()), ("settings", self.settings.clone())];
        rows.push(("load average at the end", load));
        rows.extend(self.engines.iter().map(|(name, version)| (name.as_str(), version.clone())));
        for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
            let _written = writeln!(out, "| {name} | {value} |");
        }
        out += "\nMedians, with the least and the most of the rounds in brackets.\n";
        out += &self.tables;
        if !self.failures.is_empty() {
            let _written = write!(out, "\n## Failures\n\n{}", self.failures);
        }
        let _written = write!(out, "\n## Commands\n\n{}", self.commands);
        out
    }

    /// Writes the page to `benches/record`, where there is none of that name.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !plain {
            return Err(format!("--record {name}: letters, digits, - and _ only"));
        }
        let path = format!("benches/record/{}-{name}.md", today());
        if Path::new(&path).exists() {
            return Err(format!("{path} is there already: records are not overwritten"));
        }
        std::fs::write(&path, text).map_err(|e| format!("{path}: {e}"))?;
        eprintln!("written: {path}");
        Ok(())
    }
}

/// The first line that a command says.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_string()
}

/// Name, cores and the instruction sets that matter, as Linux has them.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let flags = field("flags").unwrap_or_default();
    let known = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"];
    let has: Vec<_> = known.into_iter().filter(|k| flags.split(' ').any(|f| f == *k)).collect();
    let cores = info.lines().filter(|l| l.starts_with("processor")).count();
    match field("model name") {
        Some(name) => format!("{name}, {cores} processors, {}", has.join(" ")),
        None => String::new(),
    }
}

/// The date, in UTC.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a day since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
    }

    #[test]
    fn tables_have_medians_ranges_ratios_and_failures() {
        let engines = vec![("pelton".to_string(), "pelton 0.1".to_string()), ("other".to_string(), String::new())];
        let (settings, tables, commands, failures) = Default::default();
        let mut report = Report { engines, settings, tables, commands, failures };
        let test = |name: &str| Test { name: name.into(), prefill: true, tokens: 1, depth: 0, batch: 1 };
        let (a, b) = (test("prefill"), test("decode"));
        let cell = |figures: &[f64]| Cell { command: "run".into(), figures: figures.to_vec(), failure: None };
        let mut failed = Cell::new(&["x".to_string()]);
        failed.add(Err("x: exit status 1".into()));
        let cells =
            BTreeMap::from([((0, 0), cell(&[30.0, 10.0, 20.0])), ((0, 1), cell(&[8.0, 12.0])), ((1, 1), failed)]);
        report.add(Path::new("/m/tiny.gguf"), &[&a, &b], cells);
        let page = report.markdown();
        assert!(page.contains("## tiny.gguf"), "{page}");
        assert!(page.contains("| prefill | 20.0 (10.0–30.0) | 10.0 (8.0–12.0) | 2.00× |"), "{page}");
        assert!(page.contains("| decode | – | failed | – |") && page.contains("- x: exit status 1"), "{page}");
        assert!(report.write("../x", "").is_err());
    }
}
