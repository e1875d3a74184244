//! What requests of all dialects may set, checked, on its way to the engine.
//!
//! Invariant: what is out of range is refused by the name that the client used; what is only too much (an answer
//! longer than the context) is cut where the context ends.

use std::collections::BTreeMap;
use std::time::Duration;

use pelton::{Grammar, MAX_CHOICES, MAX_TOP_LOGPROBS, Request, SamplingOverrides};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::access::Caller;
use crate::engine::{Loaded, time_limit};
use crate::error::ApiError;

/// The most stop strings, and the longest one, in bytes.
const MAX_STOPS: usize = 64;
const MAX_STOP: usize = 1024;
/// The largest number of a sampling setting, in the document too.
const MAX_SETTING: f32 = 100.0;
/// The most biases.
const MAX_BIASES: usize = 4096;

/// One text or several.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// What a request sets besides its prompt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knobs {
    pub(crate) sampling: SamplingOverrides,
    pub(crate) max_tokens: Option<u64>,
    /// What the client calls it.
    pub(crate) max_tokens_name: &'static str,
    pub(crate) stop: Vec<String>,
    pub(crate) n: Option<u64>,
    pub(crate) top_logprobs: u64,
    pub(crate) ignore_eos: bool,
    pub(crate) continues_text: bool,
    pub(crate) priority: i32,
    pub(crate) timeout: Option<f64>,
}

impl Knobs {
    /// The engine's request.
    pub(crate) fn request(
        &self,
        model: &Loaded,
        prompt: Vec<u32>,
        grammar: Option<Grammar>,
        deadline: Option<Duration>,
        caller: Caller,
    ) -> Result<Request, ApiError> {
        let name = if self.max_tokens_name.is_empty() { "max_tokens" } else { self.max_tokens_name };
        let context = model.context();
        if prompt.is_empty() {
            return Err(ApiError::field("prompt", "it is empty; expected at least one token"));
        }
        let room = context.saturating_sub(prompt.len()).max(1);
        let max_tokens = match self.max_tokens {
            Some(0) => return Err(ApiError::field(name, "expected at least 1")),
            Some(n) => usize::try_from(n).unwrap_or(usize::MAX).min(room),
            None => room,
        };
        let n = self.n.unwrap_or(1);
        if n == 0 || n > MAX_CHOICES as u64 {
            return Err(ApiError::field("n", format!("{n}; expected 1 to {MAX_CHOICES}")));
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS as u64 {
            let message = format!("{}; expected 0 to {MAX_TOP_LOGPROBS}", self.top_logprobs);
            return Err(ApiError::field("top_logprobs", message));
        }
        if self.stop.len() > MAX_STOPS || self.stop.iter().any(|s| s.is_empty() || s.len() > MAX_STOP) {
            let message = format!("expected up to {MAX_STOPS} texts of 1 to {MAX_STOP} bytes");
            return Err(ApiError::field("stop", message));
        }
        let vocab = model.llm.config().vocab_size;
        if let Some((id, _)) = self.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            return Err(ApiError::field("logit_bias", format!("{id} is no token; the model has 0 to {}", vocab - 1)));
        }
        check_settings(&self.sampling)?;
        let sampling = self.sampling.resolve(&model.generation);
        sampling.validate().map_err(|e| ApiError::bad(e.to_string()))?;
        let mut request = Request::new(prompt, sampling, max_tokens);
        request.stop = self.stop.clone();
        request.n = n as usize;
        request.top_logprobs = self.top_logprobs as usize;
        request.ignore_eos = self.ignore_eos;
        request.continues_text = self.continues_text;
        request.priority = self.priority;
        request.grammar = grammar;
        request.time_limit = time_limit(self.timeout, deadline)?;
        (request.tenant, request.cache_salt) = (caller.tenant, caller.salt);
        Ok(request)
    }
}

/// The limits that only what strangers send has; the sampler has its own.
fn check_settings(sampling: &SamplingOverrides) -> Result<(), ApiError> {
    let settings = [
        ("temperature", sampling.temperature, 0.0, "0"),
        ("presence_penalty", sampling.presence_penalty, -MAX_SETTING, "-100"),
        ("frequency_penalty", sampling.frequency_penalty, -MAX_SETTING, "-100"),
        ("repetition_penalty", sampling.repetition_penalty, f32::MIN_POSITIVE, "more than 0"),
    ];
    for (name, value, least, from) in settings {
        if let Some(value) = value.filter(|value| !(least..=MAX_SETTING).contains(value)) {
            return Err(ApiError::field(name, format!("{value}; expected {from} to {MAX_SETTING}")));
        }
    }
    Ok(())
}

/// `{"42": -100}` as pairs.
pub(crate) fn biases(map: Option<BTreeMap<String, f32>>) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = map.unwrap_or_default();
    if map.len() > MAX_BIASES {
        return Err(ApiError::field("logit_bias", format!("{} tokens; at most {MAX_BIASES} are read", map.len())));
    }
    let pair = |(id, bias): (String, f32)| {
        let id =
            id.parse::<u32>().map_err(|_| ApiError::field("logit_bias", format!("`{}` is no token id", short(&id))))?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(ApiError::field("logit_bias", format!("{bias}; expected -100 to 100")));
        }
        // OpenAI's -100 bans a token.
        Ok((id, if bias <= -100.0 { f32::NEG_INFINITY } else { bias }))
    };
    map.into_iter().map(pair).collect()
}

/// The beginning of what a client wrote, for a message.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
