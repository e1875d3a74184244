//! `pelton tokenize`: text to ids and back, for people who port or check models.

use pelton::Special;

use crate::Usage;
use crate::args::TokenizeArgs;
use crate::input::read_stdin;
use crate::setup::Context;
use crate::term::{print_line, print_now};

pub(crate) fn run(args: &TokenizeArgs, context: &Context) -> anyhow::Result<()> {
    let text = context.open_text(args.model.as_deref())?;
    let input = read_stdin(context)?;
    if !args.decode {
        let special = if args.special { Special::Parse } else { Special::AsText };
        let ids = text.tokenizer.encode(&input, special);
        return Ok(print_line(&serde_json::to_string(&ids)?)?);
    }
    let ids: Vec<u32> =
        serde_json::from_str(&input).map_err(|e| Usage(format!("stdin: expected a JSON array of token ids: {e}")))?;
    let size = text.tokenizer.vocab_size();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= size) {
        return Err(Usage(format!(
            "stdin: id {id} is outside the vocabulary of {size} (0 to {})",
            size.saturating_sub(1)
        ))
        .into());
    }
    Ok(print_now(&text.tokenizer.decode(&ids, false))?)
}
