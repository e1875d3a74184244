//! A model that takes part in conversations: opened, loaded, with its template. `chat`, `docs` and `route` speak through
//! it.

use pelton::route::{Decision, Rules, Signals, question_of};
use pelton::{Chat, Llm, Model, Request};
use serde_json::Value;

use crate::args::{EngineArgs, SamplingArgs};
use crate::commands::answer::build_request;
use crate::setup::Context;

/// A loaded model with its chat template.
pub(crate) struct Speaker {
    pub(crate) model: Model,
    pub(crate) chat: Chat,
    pub(crate) llm: Llm,
}

impl Speaker {
    /// Opens and loads a model for `max_seqs` conversations at once.
    pub(crate) fn load(
        name: Option<&str>,
        args: &EngineArgs,
        max_seqs: usize,
        context: &Context,
    ) -> anyhow::Result<Speaker> {
        let model = context.open(name)?;
        let chat = Chat::new(model.text()?)?;
        let llm = context.load(&model, args, max_seqs)?;
        Ok(Speaker { model, chat, llm })
    }

    /// The small and the large one, within one budget of memory.
    pub(crate) fn load_both(
        pair: &pelton::route::Pair,
        args: &EngineArgs,
        max_seqs: usize,
        context: &Context,
    ) -> anyhow::Result<(Speaker, Speaker)> {
        let [small, large] = [&pair.small, &pair.large].map(|name| -> anyhow::Result<(Model, Chat)> {
            let model = context.open(Some(name))?;
            let chat = Chat::new(model.text()?)?;
            Ok((model, chat))
        });
        let ((small, small_chat), (large, large_chat)) = (small?, large?);
        let (small_llm, large_llm) = context.load_both(&small, &large, args, max_seqs)?;
        Ok((
            Speaker { model: small, chat: small_chat, llm: small_llm },
            Speaker { model: large, chat: large_chat, llm: large_llm },
        ))
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> &str {
        &self.model.name
    }

    /// Tokens of the longest sequence, prompt and answer.
    pub(crate) fn context_len(&self) -> usize {
        self.llm.report().memory.context
    }

    /// The ids of a conversation that asks for an answer.
    pub(crate) fn ids(&self, messages: &[Value]) -> anyhow::Result<Vec<u32>> {
        Ok(self.chat.ids(&Value::Array(messages.to_vec()), None)?)
    }

    /// The request for the next answer of a conversation.
    pub(crate) fn request(
        &self,
        messages: &[Value],
        sampling: &SamplingArgs,
        context: &Context,
    ) -> anyhow::Result<Request> {
        build_request(self.ids(messages)?, sampling, &self.model, &self.llm, context)
    }
}

/// Where the rules send a conversation, of which `small` is the small model.
pub(crate) fn decide(rules: &Rules, small: &Speaker, messages: &[Value], max_tokens: Option<usize>) -> Decision {
    let prompt_tokens = match small.ids(messages) {
        Ok(ids) => ids.len(),
        Err(e) => return Decision::unreadable(e),
    };
    let (question, turns) = question_of(messages);
    rules.decide(&Signals {
        question: &question,
        turns,
        prompt_tokens,
        max_tokens: max_tokens.unwrap_or(0),
        tools: false,
        small_context: small.context_len(),
    })
}
