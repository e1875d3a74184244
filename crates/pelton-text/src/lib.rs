//! Text to tokens and back: tokenizers, chat templates, the streaming detokenizer, stop strings.
//!
//! * [`Tokenizer`]: one interface over `tokenizer.json` and GGUF vocabularies.
//! * [`StreamDecoder`]: token ids to text, a whole character at a time.
//! * [`StopStrings`]: finds the end of an answer across piece boundaries.
//! * [`ChatTemplate`]: a model's Jinja template, rendered as Python renders it.
//! * [`AnswerParser`]: takes answers apart into reasoning, text and tool calls.
//!
//! Invariant: everything read here (vocabularies, templates, messages) comes from strangers, so every
//! failure is a [`TextError`] that says which field is wrong; nothing panics and nothing allocates
//! from a number that was not checked.

#![forbid(unsafe_code)]

mod error;
mod stop;
mod stream;
mod template;
mod tokenizer;
mod tools;

pub use error::TextError;
pub use stop::{StopOutcome, StopStrings};
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, DateTime, RenderInput, TemplateTokens};
pub use tokenizer::{GgufVocab, Special, Tokenizer, supported_pre_tokenizers};
pub use tools::{AnswerParser, Part, Thinking, ToolFormat, ToolGrammar};
