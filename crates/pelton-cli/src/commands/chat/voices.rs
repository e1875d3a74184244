//! Who answers in a conversation: one model, or one of two by rules.
//!
//! Invariant: nothing of a small model's answer that does not stand is shown; each answer comes with the lines that say
//! who gave it, why, and what of the conversation had to be read anew for it.

use std::sync::atomic::AtomicBool;

use pelton::route::{Decision, Pair, Rules, Side};
use pelton::{Finished, Request, Timing};
use serde_json::Value;

use crate::Usage;
use crate::args::{ChatArgs, EngineArgs, SamplingArgs};
use crate::commands::answer::{figures, hold, stream};
use crate::commands::route;
use crate::commands::speaker::{Speaker, decide};
use crate::setup::Context;

/// What shows text as it comes.
pub(super) type Emit<'a> = &'a mut dyn FnMut(&str) -> std::io::Result<()>;

/// Who answers.
pub(super) enum Voices {
    One(Box<Speaker>),
    Two(Box<Two>),
}

/// Two models and the rules by which one of them answers.
pub(super) struct Two {
    small: Speaker,
    large: Speaker,
    rules: Rules,
    /// Who answered last, and why.
    last: Option<Decision>,
}

/// An answer to the conversation so far.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) text: String,
    /// Somebody ended it early.
    pub(super) stopped: bool,
    /// Somebody ended it before it was known who would answer: nothing was said.
    pub(super) taken_back: bool,
    /// What is said of it, line by line.
    pub(super) lines: Vec<String>,
}

/// What answering takes besides the conversation.
pub(super) struct Asking<'a> {
    pub(super) sampling: &'a SamplingArgs,
    pub(super) context: &'a Context,
    /// Ends the answer once it is true.
    pub(super) interrupted: &'a AtomicBool,
}

impl Voices {
    /// Opens and loads what was typed.
    pub(super) fn load(args: &ChatArgs, context: &Context) -> anyhow::Result<Voices> {
        let (model, engine) = (args.model.model.as_deref(), &args.model.engine);
        let Some((pair, rules)) = route::typed_without(model, &args.route, context)? else {
            return Ok(Voices::One(Box::new(Speaker::load(model, engine, 1, context)?)));
        };
        Voices::two(&pair, rules, engine, context)
    }

    fn two(pair: &Pair, rules: Rules, engine: &EngineArgs, context: &Context) -> anyhow::Result<Voices> {
        let (small, large) = Speaker::load_both(pair, engine, 1, context)?;
        Ok(Voices::Two(Box::new(Two { small, large, rules, last: None })))
    }

    /// Answers the conversation; its text goes to `emit`.
    pub(super) fn answer(&mut self, messages: &[Value], asking: &Asking<'_>, emit: Emit<'_>) -> anyhow::Result<Turn> {
        match self {
            Voices::One(speaker) => {
                let (text, finished) = spoken(speaker, messages, asking, emit)?;
                let lines = finished.iter().map(figures).collect();
                Ok(Turn { text, stopped: finished.is_none(), taken_back: false, lines })
            }
            Voices::Two(two) => two.answer(messages, asking, emit),
        }
    }

    /// Which models answer, by which rules, and who answered last.
    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Voices::One(speaker) => {
                let name = speaker.name();
                vec![format!("{name} answers everything; `pelton chat --route small=MODEL,large=MODEL` has two models")]
            }
            Voices::Two(two) => two.lines(),
        }
    }

    /// The conversation starts afresh.
    pub(super) fn forget(&mut self) {
        if let Voices::Two(two) = self {
            two.last = None;
        }
    }
}

impl Two {
    fn speaker(&self, side: Side) -> &Speaker {
        match side {
            Side::Small => &self.small,
            Side::Large => &self.large,
        }
    }

    fn answer(&mut self, messages: &[Value], asking: &Asking<'_>, emit: Emit<'_>) -> anyhow::Result<Turn> {
        let mut decision = decide(&self.rules, &self.small, messages, asking.sampling.max_tokens);
        let mut waited = None;
        if decision.to == Side::Small && self.rules.confidence.is_some() {
            let request = request(&self.small, messages, asking)?;
            let said = hold(&self.small.llm.submit(request)?, asking.interrupted, asking.context.quiet)?;
            // Nobody knows whether it would have stood, so it is not shown.
            let Some(said) = said else { return Ok(Turn { taken_back: true, ..Turn::default() }) };
            match self.rules.hand_over(&said.sure) {
                None => {
                    emit(&said.text)?;
                    return Ok(self.turn(said.text, decision, None, Some(&said.finished)));
                }
                Some(handed_over) => (decision, waited) = (handed_over, Some(said.seconds())),
            }
        }
        let (text, finished) = spoken(self.speaker(decision.to), messages, asking, emit)?;
        Ok(self.turn(text, decision, waited, finished.as_ref()))
    }

    /// The answer with its lines. `waited` is what an answer took before that did not stand, in seconds.
    fn turn(&mut self, text: String, decision: Decision, waited: Option<f64>, finished: Option<&Finished>) -> Turn {
        let name = self.speaker(decision.to).name();
        let mut line = format!("answered by {name}, the {} model: {}", decision.to, decision.why);
        if let Some(seconds) = waited {
            line += &format!(" ({} had answered in {seconds:.2} s)", self.small.name());
        }
        let mut lines = vec![line];
        let before = self.last.as_ref().map(|last| last.to).filter(|&side| side != decision.to);
        if let Some(finished) = finished {
            if before.is_some() || waited.is_some() {
                lines.push(read_anew(name, before.map(|side| self.speaker(side).name()), &finished.timing));
            }
            lines.push(figures(finished));
        }
        self.last = Some(decision);
        Turn { text, stopped: finished.is_none(), taken_back: false, lines }
    }

    fn lines(&self) -> Vec<String> {
        let model =
            |side: Side| format!("{side}: {}, context {}", self.speaker(side).name(), self.speaker(side).context_len());
        let mut lines = vec![model(Side::Small), model(Side::Large)];
        lines.extend(self.rules.lines().into_iter().enumerate().map(|(i, line)| format!("{}. {line}", i + 1)));
        if let Some(last) = &self.last {
            lines.push(format!("last answer: {}, the {} model: {}", self.speaker(last.to).name(), last.to, last.why));
        }
        lines
    }
}

/// Each model has keys and values of its own: what one has read, the other has not.
fn read_anew(name: &str, before: Option<&str>, timing: &Timing) -> String {
    let switch = before.map(|before| format!("{before} had answered before: ")).unwrap_or_default();
    let (tokens, cached) = (timing.prompt_tokens, timing.cached_tokens);
    format!(
        "{switch}{name} read {} of the {tokens} prompt tokens anew, {cached} were in its own cache",
        tokens.saturating_sub(cached)
    )
}

/// Streams one model's answer; without figures where it was interrupted.
fn spoken(
    speaker: &Speaker,
    messages: &[Value],
    asking: &Asking<'_>,
    emit: Emit<'_>,
) -> anyhow::Result<(String, Option<Finished>)> {
    let handle = speaker.llm.submit(request(speaker, messages, asking)?)?;
    let mut answer = String::new();
    let finished = stream(&handle, asking.interrupted, asking.context.quiet, &mut |text| {
        answer.push_str(text);
        emit(text)
    })?;
    Ok((answer, finished))
}

/// The request for the next answer. A conversation that has outgrown the context is refused with what to do.
fn request(speaker: &Speaker, messages: &[Value], asking: &Asking<'_>) -> anyhow::Result<Request> {
    let (tokens, room) = (speaker.ids(messages)?.len(), speaker.context_len());
    if tokens >= room && messages.iter().any(|m| m["role"] == "assistant") {
        let name = speaker.name();
        let message =
            format!("the conversation has {tokens} tokens, the context of {name} holds {room}; /reset starts afresh");
        return Err(Usage(message).into());
    }
    speaker.request(messages, asking.sampling, asking.context)
}

#[cfg(test)]
mod tests;
