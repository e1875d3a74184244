//! From logits to a token: penalties, truncation, seeded sampling.
//!
//! The stages, in this order (each is off by default):
//!
//! 1. **penalties**: repetition over prompt and generated tokens, as in CTRL (Keskar et al. 2019) and
//!    transformers: a positive logit is divided by it, a negative one multiplied. Presence and frequency
//!    over generated tokens, as OpenAI defines them: `logit -= frequency * count + presence * (count > 0)`.
//! 2. **bias**: `logit += bias`.
//! 3. **mask**: a grammar's allowed tokens; all others are out.
//! 4. **temperature**: `logit / temperature`; 0 takes the best token (of equals the lowest id) and ends here.
//! 5. **top-k**: the `k` best tokens (of equals at the edge the lowest ids).
//! 6. **top-p** (nucleus, Holtzman et al. 2019): the fewest best tokens whose probability, among those left
//!    by top-k, reaches `p`.
//! 7. **min-p** (Nguyen et al. 2024): the tokens with at least `min_p` times the best one's probability.
//! 8. **draw** among what is left.
//!
//! Invariants: the result is a function of logits, tokens, parameters and seed alone. The draw for the
//! `i`-th generated token depends only on seed and `i`, so neither preemption nor speculation nor other
//! requests can change it; and no platform's mathematics library takes part in it, so it is the same
//! everywhere. Logits that are not numbers are an error, never a token.
//!
//! ```
//! use pelton_sample::{Sampler, SamplingParams};
//!
//! let params = SamplingParams { temperature: 0.7, top_p: 0.9, seed: Some(42), ..SamplingParams::default() };
//! let mut sampler = Sampler::new(params, 0)?;
//! let mut logits = vec![0.5, 2.0, -1.0, 1.5];
//! let token = sampler.sample(&mut logits, &[0], &[])?;
//! assert!(token.id < 4 && token.logprob < 0.0);
//! # Ok::<(), pelton_sample::SampleError>(())
//! ```
#![deny(unsafe_code)]

mod error;
mod exp;
mod grammar;
mod logprobs;
mod params;
mod penalties;
pub mod rng;
mod sampler;
mod truncate;
mod wide;

pub use error::SampleError;
pub use grammar::{Grammar, GrammarCompiler, GrammarError, GrammarLimits, GrammarSpec, GrammarState};
pub use logprobs::{logprob, top_logprobs};
pub use params::SamplingParams;
pub use sampler::{Sampled, Sampler, Shortlist, Wanted};
