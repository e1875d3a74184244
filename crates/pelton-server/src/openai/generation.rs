//! What a chat completion and a text completion may both set: how tokens are chosen, when an answer ends, its form.
//!
//! Invariant: a field stands in one place, for the parser and for the OpenAPI document alike. It is read from the whole
//! body a second time, beside the route's own fields: serde's `flatten` would forget which field an error is about.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pelton::{GrammarSpec, SamplingOverrides};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::messages::ResponseFormat;
use crate::body;
use crate::error::ApiError;
use crate::knobs::{Knobs, OneOrMany, biases};

/// A request: what is the route's own, and the rest.
#[derive(Clone, Debug)]
pub(crate) struct Asked<T> {
    pub(crate) own: T,
    pub(crate) generation: Generation,
}

impl<T: DeserializeOwned> Asked<T> {
    /// Reads a body; the message of an error names the field.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Asked<T>, ApiError> {
        Ok(Asked { own: body::parse(bytes)?, generation: body::parse(bytes)? })
    }
}

impl<T: JsonSchema> JsonSchema for Asked<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = T::json_schema(generator);
        let mut rest = Generation::json_schema(generator);
        if let (Some(own), Some(Value::Object(fields))) = (schema.get_mut("properties"), rest.remove("properties"))
            && let Value::Object(own) = own
        {
            own.extend(fields);
        }
        if let Some(excluded) = rest.remove("not") {
            schema.insert("not".into(), excluded);
        }
        schema
    }
}

/// How an answer is made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("not" = { "anyOf": [
    { "required": ["response_format", "regex"] },
    { "required": ["response_format", "grammar"] },
    { "required": ["regex", "grammar"] },
] }))]
pub(crate) struct Generation {
    /// The model; the server's first if left out.
    pub(crate) model: Option<String>,
    /// Send the answer as it comes.
    pub(crate) stream: Option<bool>,
    /// What a stream holds.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Randomness; 0 always takes the likeliest token.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub(crate) temperature: Option<f32>,
    /// Choose among the likeliest tokens that together have this probability.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<f32>,
    /// Choose among so many likeliest tokens; 0 is all.
    pub(crate) top_k: Option<u32>,
    /// Drop tokens less likely than this share of the likeliest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) min_p: Option<f32>,
    /// Subtracted from the logits of tokens that were generated.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) presence_penalty: Option<f32>,
    /// Subtracted from a token's logit each time it was generated.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) frequency_penalty: Option<f32>,
    /// Divides the logits of tokens that occurred; 1 is off.
    #[schemars(range(max = 100.0), extend("exclusiveMinimum" = 0))]
    pub(crate) repetition_penalty: Option<f32>,
    /// The same seed gives the same answer.
    pub(crate) seed: Option<i64>,
    /// Added to the logits of single tokens, by id; -100 bans one.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// Texts that end the answer.
    pub(crate) stop: Option<OneOrMany>,
    /// How many answers to each prompt.
    #[schemars(range(min = 1, max = 128))]
    pub(crate) n: Option<u64>,
    /// The form of the answer.
    pub(crate) response_format: Option<ResponseFormat>,
    /// Extension: a regular expression that the answer has to match.
    pub(crate) regex: Option<String>,
    /// Extension: a Lark grammar that the answer has to obey.
    pub(crate) grammar: Option<String>,
    /// Extension: go on after an end-of-text token.
    pub(crate) ignore_eos: Option<bool>,
    /// Extension: higher goes first.
    pub(crate) priority: Option<i32>,
    /// Extension: seconds after which the answer ends.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) timeout: Option<f64>,
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk with the usage.
    pub(crate) include_usage: Option<bool>,
}

impl Generation {
    /// All of it but the form; the rest is for the route to fill in.
    pub(crate) fn knobs(&self) -> Result<Knobs, ApiError> {
        Ok(Knobs {
            sampling: SamplingOverrides {
                temperature: self.temperature,
                top_k: self.top_k.map(|k| k as usize),
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                logit_bias: biases(self.logit_bias.clone())?,
                seed: self.seed.map(|s| s as u64),
            },
            stop: self.stop.clone().map_or_else(Vec::new, OneOrMany::into_vec),
            n: self.n,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            priority: self.priority.unwrap_or(0),
            timeout: self.timeout,
            ..Knobs::default()
        })
    }

    /// What the answer is bound to.
    pub(crate) fn form(&self) -> Result<Option<GrammarSpec>, ApiError> {
        let format = self.response_format.as_ref().map_or(Ok(None), |f| f.spec())?;
        let regex = self.regex.clone().map(GrammarSpec::Regex);
        let lark = self.grammar.clone().map(GrammarSpec::Lark);
        let mut forms = [format, regex, lark].into_iter().flatten();
        match (forms.next(), forms.next()) {
            (form, None) => Ok(form),
            _ => Err(ApiError::bad("response_format, regex and grammar exclude each other; give one")),
        }
    }

    pub(crate) fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether a stream ends with the usage.
    pub(crate) fn streams_usage(&self) -> bool {
        self.stream_options.unwrap_or_default().include_usage == Some(true)
    }
}
