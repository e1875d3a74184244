//! The seam to the model. Invariant: this crate reaches a model through [`Writer`] alone.

use serde::Serialize;

/// One request to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The user's message; the chat template and the system message are the writer's business.
    pub prompt: String,
    /// The most tokens of the answer.
    pub max_tokens: usize,
}

/// Which of several models wrote a reply, and why that one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Author {
    /// What it is among them: `small` or `large`.
    pub to: String,
    /// Its name.
    pub model: String,
    /// In words.
    pub why: String,
}

/// The model's answer to one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The text, as generated.
    pub text: String,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: usize,
    /// Of these, tokens whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// The answer reached `max_tokens` before it ended.
    pub truncated: bool,
    /// Who wrote it, where the writer has several models.
    pub author: Option<Author>,
}

/// A model that writes.
pub trait Writer {
    /// Tokens in a text, without template.
    fn count_tokens(&self, text: &str) -> usize;

    /// The context in tokens: prompt and answer together.
    fn context_len(&self) -> usize;

    /// Runs all requests, batched as the writer sees fit, and calls `done` exactly once for each request with
    /// its index, in any order, as it ends. A request that fails alone is an `Err` in `done`.
    ///
    /// # Errors
    ///
    /// In words: why the writer cannot go on at all. Requests not reported by then count as failed.
    fn write_all(
        &mut self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Result<Reply, String>),
    ) -> Result<(), String>;
}
