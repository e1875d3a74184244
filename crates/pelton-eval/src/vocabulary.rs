//! Models may be held against each other only where a token means the same to both.

use pelton::{Error, Model};

/// Refuses two models whose ids mean different tokens.
///
/// # Errors
/// [`Error::Usage`] names the first difference.
pub fn same_vocabulary(base: &Model, other: &Model) -> Result<(), Error> {
    let widths = [base, other].map(|m| m.files.config.vocab_size);
    let refuse = |what: String| {
        Err(Error::Usage(format!(
            "{} and {} cannot be compared: {what}; probabilities are compared token by token, so models must share \
             their vocabulary",
            base.name, other.name
        )))
    };
    if widths[0] != widths[1] {
        return refuse(format!("vocabularies of {} and {} tokens", widths[0], widths[1]));
    }
    let (Some(a), Some(b)) = (&base.tokenizer, &other.tokenizer) else { return Ok(()) };
    for id in 0..widths[0] as u32 {
        // Files differ in whether they name ids that no text has.
        let (Some(mine), Some(theirs)) = (a.token_bytes(id), b.token_bytes(id)) else { continue };
        if mine != theirs {
            let [mine, theirs] = [mine, theirs].map(|t| String::from_utf8_lossy(&t).into_owned());
            return refuse(format!("token {id} is {mine:?} in one and {theirs:?} in the other"));
        }
    }
    Ok(())
}
