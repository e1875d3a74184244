//! Routing: simple requests go to a small model, the others to a large one.
//!
//! [`Rules`] look at a request and say where it goes, and why ([`Decision`]). A cascade may follow: the small model's own
//! answer shows how sure it was ([`Confidence`]), and one that was not sure enough is asked of the large model instead.
//! Where the line is drawn is learned from questions that both have answered ([`learn`]).
//!
//! Invariants: a decision depends on the request and the rules alone; every decision says why in words.

mod agreement;
mod beside;
mod learn;
mod rules;
mod sureness;
mod words;

use std::fmt;

use serde_json::Value;

use crate::Error;

pub use agreement::agreement;
pub use beside::load_both;
pub use learn::{Learned, Sample, learn};
pub use rules::{Confidence, Rules};
pub use sureness::Sureness;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The small model.
    Small,
    /// The large model.
    Large,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Small => "small",
            Side::Large => "large",
        })
    }
}

/// Where a request goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where.
    pub to: Side,
    /// In words, for people.
    pub why: String,
}

impl Decision {
    /// For what the small model cannot even read: its template refuses the conversation, or it has none.
    pub fn unreadable(why: impl fmt::Display) -> Decision {
        Decision { to: Side::Large, why: format!("the small model cannot take it: {why}") }
    }
}

/// What rules see of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signals<'a> {
    /// The last message of the user, or the whole text that is to be continued.
    pub question: &'a str,
    /// Messages of user and assistant, this one included.
    pub turns: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Longest answer that is wanted, in tokens; 0 where nobody has said.
    pub max_tokens: usize,
    /// Whether tools are on offer.
    pub tools: bool,
    /// Longest sequence of the small model, prompt and answer.
    pub small_context: usize,
}

/// The text of a conversation's last user message, and how many messages of user and assistant there are. Messages are
/// objects with `role` and `content`, which is a text or parts with a `text`.
pub fn question_of(messages: &[Value]) -> (String, usize) {
    let speaks = |m: &&Value| m["role"] == "user" || m["role"] == "assistant";
    let turns = messages.iter().filter(speaks).count();
    let Some(last) = messages.iter().rfind(|m| m["role"] == "user") else { return (String::new(), turns) };
    let text = match &last["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|p| p["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    };
    (text, turns)
}

/// The names of two models, as they are typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The small model.
    pub small: String,
    /// The large model.
    pub large: String,
}

impl Pair {
    /// Reads `small=M1,large=M2`, in either order.
    ///
    /// # Errors
    /// [`Error::Usage`] says what is missing or there twice.
    pub fn parse(text: &str) -> Result<Pair, Error> {
        let wrong = |what: &str| Error::Usage(format!("--route {text}: {what}; expected small=MODEL,large=MODEL"));
        let (mut small, mut large) = (None, None);
        for part in text.split(',') {
            let (side, model) = part.trim().split_once('=').ok_or_else(|| wrong("a part without `=`"))?;
            let slot = match side.trim() {
                "small" => &mut small,
                "large" => &mut large,
                _ => return Err(wrong("neither small nor large")),
            };
            if model.trim().is_empty() || slot.replace(model.trim().to_string()).is_some() {
                return Err(wrong("a model that is empty or there twice"));
            }
        }
        match (small, large) {
            (Some(small), Some(large)) if small != large => Ok(Pair { small, large }),
            (Some(_), Some(_)) => Err(wrong("both are the same model")),
            _ => Err(wrong("one of the two is missing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pairs_are_read_or_refused() {
        let pair = Pair { small: "a/b:Q4".into(), large: "./c.gguf".into() };
        assert_eq!(Pair::parse("small=a/b:Q4,large=./c.gguf").unwrap(), pair);
        assert_eq!(Pair::parse("large=./c.gguf, small=a/b:Q4").unwrap(), pair);
        for bad in ["", "small=a", "small=a,large=", "small=a,small=b", "tiny=a,large=b", "small=a,large=a", "a,b"] {
            assert!(Pair::parse(bad).unwrap_err().to_string().contains("small=MODEL,large=MODEL"), "{bad}");
        }
    }

    #[test]
    fn the_last_question_counts() {
        let messages = json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "One?" },
            { "role": "assistant", "content": "Yes." },
            { "role": "user", "content": [{ "type": "text", "text": "Two" }, { "type": "text", "text": "parts?" }] },
        ]);
        assert_eq!(question_of(messages.as_array().unwrap()), ("Two\nparts?".to_string(), 3));
        assert_eq!(question_of(&[]), (String::new(), 0));
    }
}
