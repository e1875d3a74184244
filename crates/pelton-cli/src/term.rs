//! The terminal: colours only where someone looks, progress bars for anything over a second.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Prints an error and its causes.
pub fn error(error: &anyhow::Error) {
    eprintln!("{} {error:#}", style("error:").red().bold().for_stderr());
}

/// Prints a note for people: on stderr, dimmed.
pub fn note(text: &str) {
    eprintln!("{}", style(text).dim().for_stderr());
}

/// Whether stdin is a person's keyboard.
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Writes to stdout at once, as streamed text needs; a closed pipe is an error for `main` to judge.
pub fn print_now(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a line to stdout.
pub fn print_line(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")
}

/// A bar over bytes. Hidden where stderr is no terminal or `quiet`.
pub fn byte_bar(total: u64, quiet: bool) -> ProgressBar {
    let template = "{msg:28!} {bar:30} {binary_bytes:>11} of {binary_total_bytes} · {binary_bytes_per_sec} · {eta} left";
    bar(total, template, quiet)
}

/// A bar over items.
pub fn item_bar(total: u64, quiet: bool) -> ProgressBar {
    bar(total, "{bar:30} {pos} of {len} · {per_sec} · {eta} left · {wide_msg}", quiet)
}

fn bar(total: u64, template: &str, quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(8) };
    let style = ProgressStyle::with_template(template).expect("the templates above are valid");
    let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style.progress_chars("━╸ "));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes with a binary unit.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(123_456), "123,456");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(7 * 1024 * 1024 + 512 * 1024), "7.5 MiB");
    }
}
