//! Asking two models the same questions, one answer at a time.
//!
//! Invariant: each model answers each question alone, so that its time is what a person would wait.

use pelton::route::{Decision, Pair, Rules, Side, Signals, agreement, question_of};
use pelton::{Chat, Event, Llm, Model, RequestHandle};
use serde_json::Value;

use super::questions;
use crate::Usage;
use crate::args::{QuestionArgs, SamplingArgs};
use crate::commands::answer::build_request;
use crate::input::read_file;
use crate::progress::Progress;
use crate::setup::Context;

/// A whole answer, kept back.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) text: String,
    /// Mean log-probability of its tokens.
    pub(crate) mean_logprob: f64,
    pub(crate) seconds: f64,
    pub(crate) finished: pelton::Finished,
}

impl Said {
    /// Waits for an answer's end.
    pub(crate) fn wait(handle: &RequestHandle) -> anyhow::Result<Said> {
        let (mut text, mut sum, mut n) = (String::new(), 0.0, 0usize);
        while let Some(event) = handle.next_event() {
            match event {
                Event::Token { text: piece, logprob, .. } => {
                    text.push_str(&piece);
                    sum += f64::from(logprob);
                    n += 1;
                }
                Event::Finished(finished) => {
                    text.push_str(&finished.text);
                    let mean_logprob = if n == 0 { f64::NEG_INFINITY } else { sum / n as f64 };
                    let seconds = finished.timing.total.as_secs_f64();
                    return Ok(Said { text, mean_logprob, seconds, finished });
                }
                Event::Refused(refused) => anyhow::bail!("{refused}"),
                Event::Failed(message) => anyhow::bail!("{message}"),
                Event::Embedded(_) => anyhow::bail!("a vector came where an answer was expected"),
            }
        }
        anyhow::bail!("the engine stopped before the answer was complete")
    }
}

/// A question that both models answered, and where the rules send it.
pub(super) struct Asked {
    pub(super) question: String,
    pub(super) decision: Decision,
    /// Where the small model's answer does not stand, why.
    handed_over: Option<Decision>,
    pub(super) small: Said,
    pub(super) large: Said,
}

impl Asked {
    pub(super) fn agreement(&self) -> f64 {
        agreement(&self.small.text, &self.large.text)
    }

    /// The small model answers, and its answer stands.
    pub(super) fn stands(&self) -> bool {
        self.decision.to == Side::Small && self.handed_over.is_none()
    }

    /// The small model answers, and then the large one.
    pub(super) fn is_handed_over(&self) -> bool {
        self.decision.to == Side::Small && self.handed_over.is_some()
    }

    pub(super) fn routed_seconds(&self) -> f64 {
        let small = if self.decision.to == Side::Small { self.small.seconds } else { 0.0 };
        if self.stands() { small } else { small + self.large.seconds }
    }
}

/// A model that is asked.
struct Speaker {
    model: Model,
    chat: Chat,
    llm: Llm,
}

impl Speaker {
    fn load(name: &str, args: &QuestionArgs, context: &Context) -> anyhow::Result<Speaker> {
        let model = context.open(Some(name))?;
        let chat = Chat::new(model.text()?)?;
        let llm = context.load(&model, &args.engine, 1)?;
        Ok(Speaker { model, chat, llm })
    }

    fn ids(&self, messages: &[Value]) -> anyhow::Result<Vec<u32>> {
        Ok(self.chat.ids(&Value::Array(messages.to_vec()), None)?)
    }

    fn ask(&self, messages: &[Value], sampling: &SamplingArgs, context: &Context) -> anyhow::Result<Said> {
        let request = build_request(self.ids(messages)?, sampling, &self.model, &self.llm, context)?;
        Said::wait(&self.llm.submit(request)?)
    }
}

/// Asks both models every question of the file.
pub(super) fn ask_both(
    args: &QuestionArgs,
    pair: &Pair,
    rules: &Rules,
    context: &Context,
) -> anyhow::Result<Vec<Asked>> {
    let file = args.file.display();
    let questions = questions::parse(&read_file(&args.file, context)?, args.limit);
    let questions = questions.map_err(|e| Usage(format!("{file}: {e}")))?;
    let small = Speaker::load(&pair.small, args, context)?;
    let large = Speaker::load(&pair.large, args, context)?;
    // Where the caller sets no limit, a question's answer may not take for ever.
    let sampling = SamplingArgs { max_tokens: args.sampling.max_tokens.or(Some(128)), ..args.sampling.clone() };
    let bar = Progress::items(context.quiet);
    bar.set(0, questions.len() as u64);
    let mut asked = Vec::with_capacity(questions.len());
    // The first answer of each model wakes its threads.
    small.ask(&questions[0], &sampling, context)?;
    large.ask(&questions[0], &sampling, context)?;
    for messages in &questions {
        let (question, turns) = question_of(messages);
        let decision = rules.decide(&Signals {
            question: &question,
            turns,
            prompt_tokens: small.ids(messages)?.len(),
            max_tokens: sampling.max_tokens.unwrap_or(0),
            tools: false,
            small_context: small.llm.report().memory.context,
        });
        let said = small.ask(messages, &sampling, context)?;
        let handed_over = rules.hand_over(said.mean_logprob);
        let large = large.ask(messages, &sampling, context)?;
        asked.push(Asked { question, decision, handed_over, small: said, large });
        bar.step();
    }
    Ok(asked)
}
