//! Text that comes in: from stdin or from a file that was named.
//!
//! Invariant: what is not UTF-8, or longer than any context, is refused with the place where it came from.

use std::io::{ErrorKind, IsTerminal, Read};
use std::path::Path;

use crate::Usage;
use crate::setup::Context;
use crate::term;

/// The longest text that is read: no context is longer than this many bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Reads all of stdin.
pub(crate) fn read_stdin(context: &Context) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        context.note("reading from the keyboard; Ctrl-D on a new line ends the text");
    }
    read(stdin.lock(), "stdin")
}

/// Reads a file; `-` is stdin.
pub(crate) fn read_file(path: &Path, context: &Context) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return read_stdin(context);
    }
    let name = path.display().to_string();
    match std::fs::File::open(path) {
        Ok(file) => read(file, &name),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Usage(format!("{name}: no such file")).into()),
        Err(e) => Err(anyhow::anyhow!("{name}: cannot read: {e}")),
    }
}

fn read(source: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let length = source.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    length.map_err(|e| anyhow::anyhow!("{name}: cannot read: {e}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        anyhow::bail!("{name}: holds more than {} of text", term::bytes(MAX_BYTES));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{name}: not UTF-8 text: byte {at} is invalid; convert it first, for example with iconv")
    })
}
