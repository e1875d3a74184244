//! The terminal: results on stdout, notes and errors on stderr, colours only where someone looks.

use std::io::Write;

use console::style;

/// Prints an error and its causes.
pub(crate) fn error(error: &anyhow::Error) {
    say(&format!("{} {}", style("error:").red().bold().for_stderr(), with_causes(error)));
}

/// The error and those of its causes that its own words do not contain already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Prints a note for people: on stderr, dimmed.
pub(crate) fn note(text: &str) {
    say(&style(text).dim().for_stderr().to_string());
}

/// Prints a line to stderr. Where nobody reads it there is nobody left to tell.
pub(crate) fn say(text: &str) {
    let _closed = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes to stdout at once, as streamed text needs; a closed pipe is an error for `main` to judge.
pub(crate) fn print_now(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a line to stdout.
pub(crate) fn print_line(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(n: usize) -> String {
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
pub(crate) fn bytes(n: u64) -> String {
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
    fn a_cause_is_said_once() {
        let inner = std::io::Error::other("disk on fire");
        let outer = anyhow::Error::new(inner).context("x.gguf: cannot read: disk on fire");
        assert_eq!(with_causes(&outer), "x.gguf: cannot read: disk on fire");
        assert_eq!(with_causes(&anyhow::anyhow!("b").context("a")), "a: b");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(123_456), "123,456");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(7 * 1024 * 1024 + 512 * 1024), "7.5 MiB");
    }
}
