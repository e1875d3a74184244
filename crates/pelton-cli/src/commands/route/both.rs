//! Asking two models the same questions, one answer at a time.
//!
//! Invariant: each model answers each question alone, so that its time is what a person would wait.

use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use pelton::route::{Decision, Pair, Rules, Side, agreement, question_of};
use serde_json::{Value, json};

use super::questions;
use crate::Usage;
use crate::args::{QuestionArgs, SamplingArgs};
use crate::commands::answer::{Said, hold};
use crate::commands::speaker::{Speaker, decide};
use crate::input::read_file;
use crate::progress::Progress;
use crate::setup::Context;

/// A question that both models answered, and where the rules send it.
pub(super) struct Asked {
    pub(super) question: String,
    pub(super) decision: Decision,
    /// Where the small model's answer does not stand, why.
    handed_over: Option<Decision>,
    /// The small model's answer, where it has room for the question at all.
    pub(super) small: Option<Said>,
    pub(super) large: Said,
}

impl Asked {
    /// How much both say the same, where both said something.
    pub(super) fn agreement(&self) -> Option<f64> {
        self.small.as_ref().map(|small| agreement(&small.text, &self.large.text))
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
        let small = self.small.as_ref().filter(|_| self.decision.to == Side::Small).map_or(0.0, Said::seconds);
        if self.stands() { small } else { small + self.large.seconds() }
    }
}

fn ask(speaker: &Speaker, messages: &[Value], sampling: &SamplingArgs, context: &Context) -> anyhow::Result<Said> {
    let handle = speaker.llm.submit(speaker.request(messages, sampling, context)?)?;
    hold(&handle, &AtomicBool::new(false), true)?.context("the answer was interrupted")
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
    let (small, large) = Speaker::load_both(pair, &args.engine, 1, context)?;
    // Where the caller sets no limit, a question's answer may not take for ever.
    let sampling = SamplingArgs { max_tokens: args.sampling.max_tokens.or(Some(128)), ..args.sampling.clone() };
    let bar = Progress::items(context.quiet);
    bar.set(0, questions.len() as u64);
    let mut asked = Vec::with_capacity(questions.len());
    // The first answer of each model wakes its threads; a question of the file would be in the prefix cache after it.
    let hello = [json!({ "role": "user", "content": "Hello." })];
    ask(&small, &hello, &sampling, context)?;
    ask(&large, &hello, &sampling, context)?;
    for (i, messages) in questions.iter().enumerate() {
        let (question, _) = question_of(messages);
        let decision = decide(rules, &small, messages, sampling.max_tokens);
        let has_room = small.ids(messages).is_ok_and(|ids| ids.len() < small.context_len());
        let of_question = || format!("{file}: question {}", i + 1);
        let said = has_room.then(|| ask(&small, messages, &sampling, context)).transpose().with_context(of_question)?;
        let handed_over = said.as_ref().and_then(|said| rules.hand_over(&said.sure));
        let large = ask(&large, messages, &sampling, context).with_context(of_question)?;
        asked.push(Asked { question, decision, handed_over, small: said, large });
        bar.step();
    }
    Ok(asked)
}
