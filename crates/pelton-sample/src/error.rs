//! What can be wrong with parameters or logits, each with the value that was.

/// Why no token was sampled, or a sampler not made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A sampling parameter outside its range.
    #[error("sampling parameter `{field}` is {value}; it must be {expected}")]
    BadParam {
        /// The field of [`SamplingParams`](crate::SamplingParams).
        field: &'static str,
        /// What it was.
        value: f32,
        /// The range, in words.
        expected: &'static str,
    },
    /// A bias for a token that the model does not have.
    #[error("`logit_bias` names token {id}; the model has {vocab_size} tokens (0 to {})", vocab_size.saturating_sub(1))]
    BiasOutOfVocabulary {
        /// The token.
        id: u32,
        /// Number of logits.
        vocab_size: usize,
    },
    /// No logits at all.
    #[error("there are no logits to sample from (the vocabulary is empty)")]
    EmptyVocabulary,
    /// A logit is NaN or positive infinity: the model computed nonsense.
    #[error("the logit of token {id} is {value}; the model's output is broken, no token was sampled")]
    NotFinite {
        /// The first such token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// Mask, bias and logits together rule out every token.
    #[error("no token is allowed: mask, `logit_bias` and -inf logits rule out all {vocab_size}")]
    NothingAllowed {
        /// Number of logits.
        vocab_size: usize,
    },
}
