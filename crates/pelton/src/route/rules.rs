//! The rules, in the order in which they are asked. The first that speaks for the large model decides; where none does,
//! the small one answers.
//!
//! Invariant: [`Rules::lines`] says in words what [`Rules::decide`] does, rule for rule.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::words::{contains, is_phrase, prose, words};
use super::{Decision, Side, Signals, Sureness};
use crate::Error;

/// What an answer counts whose length nobody has said: with less room than that, the small model is not asked.
const UNSTATED_ANSWER: usize = 128;

/// Words that ask for thought rather than for a fact or a form. Looked for outside of code.
const HARD: [&str; 22] = [
    "why",
    "prove",
    "proof",
    "derive",
    "explain",
    "compare",
    "contrast",
    "analyze",
    "analyse",
    "evaluate",
    "design",
    "plan",
    "argue",
    "critique",
    "debug",
    "optimize",
    "optimise",
    "refactor",
    "trade-off",
    "trade-offs",
    "step by step",
    "pros and cons",
];

/// How sure a small model's answer has to be to stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confidence {
    /// The least mean log-probability of the answer's tokens.
    pub least_mean_logprob: f64,
    /// Questions that it was learned from.
    #[serde(default)]
    pub learned_from: usize,
    /// The small model that it was learned for: others are sure in other ways.
    #[serde(default)]
    pub model: String,
}

/// What makes a request one for the large model. Written and read as JSON; what a file leaves out is as by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Requests with tools go to the large model.
    pub tools_to_large: bool,
    /// Longest prompt of the small model, in tokens.
    pub most_prompt_tokens: usize,
    /// Most messages of user and assistant.
    pub most_turns: usize,
    /// Most words of the question, code left out.
    pub most_words: usize,
    /// Most question marks, code left out.
    pub most_questions: usize,
    /// Words and phrases that ask for thought.
    pub hard_words: Vec<String>,
    /// The cascade: where it is set, the small model's answer has to be this sure.
    pub confidence: Option<Confidence>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            tools_to_large: true,
            most_prompt_tokens: 1024,
            most_turns: 6,
            most_words: 60,
            most_questions: 1,
            hard_words: HARD.map(String::from).to_vec(),
            confidence: None,
        }
    }
}

impl Rules {
    /// Reads a file of rules. `name` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Usage`] names the field.
    pub fn parse(name: &str, json: &str) -> Result<Rules, Error> {
        let wrong = |e: serde_json::Error| Error::Usage(format!("{name}: {e}"));
        let rules: Rules = serde_json::from_str(json).map_err(wrong)?;
        // Arrays would be read as the fields in their order, and an empty one as the default.
        let value: Value = serde_json::from_str(json).map_err(wrong)?;
        if !value.is_object() || value["confidence"].is_array() {
            let what = "expected an object with fields, as `pelton route rules --json` prints it";
            return Err(Error::Usage(format!("{name}: {what}")));
        }
        if let Some(odd) = rules.hard_words.iter().find(|phrase| !is_phrase(phrase)) {
            let what = "expected words of letters and digits, with - or ' within: it would never be found";
            return Err(Error::Usage(format!("{name}: hard_words: {odd:?}: {what}")));
        }
        if rules.confidence.as_ref().is_some_and(|c| !c.least_mean_logprob.is_finite() || c.least_mean_logprob > 0.0) {
            let what = "confidence.least_mean_logprob: expected a number of at most 0, a mean of log-probabilities";
            return Err(Error::Usage(format!("{name}: {what}")));
        }
        Ok(rules)
    }

    /// The file that [`Rules::parse`] reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("rules are plain numbers and words")
    }

    /// Where a request goes.
    pub fn decide(&self, s: &Signals<'_>) -> Decision {
        match self.against_small(s) {
            Some(why) => Decision { to: Side::Large, why },
            None => Decision { to: Side::Small, why: "no rule asks for the large one".into() },
        }
    }

    /// The first rule that speaks for the large model.
    fn against_small(&self, s: &Signals<'_>) -> Option<String> {
        if self.tools_to_large && s.tools {
            return Some("tools are on offer".into());
        }
        if s.prompt_tokens > self.most_prompt_tokens {
            return Some(format!("the prompt has {} tokens, more than {}", s.prompt_tokens, self.most_prompt_tokens));
        }
        let answer = if s.max_tokens == 0 { UNSTATED_ANSWER } else { s.max_tokens };
        let wanted = s.prompt_tokens.saturating_add(answer);
        if wanted > s.small_context {
            return Some(format!(
                "prompt and answer may take {wanted} tokens, the small model holds {}",
                s.small_context
            ));
        }
        if s.turns > self.most_turns {
            return Some(format!("the conversation has {} messages, more than {}", s.turns, self.most_turns));
        }
        let prose = prose(s.question);
        let words = words(&prose);
        if words.len() > self.most_words {
            return Some(format!("the question has {} words, more than {}", words.len(), self.most_words));
        }
        let questions = prose.matches('?').count();
        if questions > self.most_questions {
            return Some(format!("it asks {questions} questions, more than {}", self.most_questions));
        }
        let hard = self.hard_words.iter().find(|hard| contains(&words, hard))?;
        Some(format!("it says \"{hard}\", which asks for thought"))
    }

    /// The rules in words, one a line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.tools_to_large {
            lines.push("with tools on offer: large".to_string());
        }
        lines.push(format!("a prompt of more than {} tokens: large", self.most_prompt_tokens));
        lines.push(format!(
            "more tokens of prompt and answer ({UNSTATED_ANSWER} where its length is not said) than the small model holds: \
             large"
        ));
        lines.push(format!("more than {} messages: large", self.most_turns));
        lines.push(format!("a question of more than {} words, code not counted: large", self.most_words));
        lines.push(format!("more than {} question marks, code not counted: large", self.most_questions));
        if !self.hard_words.is_empty() {
            lines.push(format!("one of these words, code not counted: large ({})", self.hard_words.join(", ")));
        }
        lines.push("everything else: small".to_string());
        lines.push(match &self.confidence {
            None => "no cascade: the small model's answers stand (`pelton route learn` finds where to draw the line)".into(),
            Some(c) => format!(
                "cascade: a small answer whose tokens have a mean log-probability below {:.3}, or that the small model's \
                 context cuts off, is asked of the large model instead",
                c.least_mean_logprob
            ),
        });
        lines
    }

    /// Why the small model's answer does not stand, where it does not. One for which the time ran out always does: none is
    /// left for another.
    pub fn hand_over(&self, said: &Sureness) -> Option<Decision> {
        let least = self.confidence.as_ref()?.least_mean_logprob;
        let mean = said.mean_logprob();
        let why = match () {
            () if said.is_out_of_time() => return None,
            () if said.tokens() == 0 => "the small model said nothing".to_string(),
            () if said.is_cut() => "the small model's context had no room for its whole answer".to_string(),
            () if mean >= least => return None,
            // A mean that is no number is none to rely on.
            () => format!("the small model was not sure: a mean log-probability of {mean:.3}, below {least:.3}"),
        };
        Some(Decision { to: Side::Large, why })
    }

    /// What people should know before `small` answers by these rules: a line that was learned for another model.
    pub fn note(&self, small: &str) -> Option<String> {
        let learned_for = self.confidence.as_ref().map(|c| c.model.as_str()).filter(|model| !model.is_empty())?;
        let name = |model: &str| model.rsplit(['/', '\\']).next().unwrap_or_default().to_string();
        (name(learned_for) != name(small)).then(|| {
            format!(
                "the rules' cascade was learned for {learned_for}; {small} may be sure in other ways: `pelton route learn` \
                 finds its own line"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use pelton_engine::FinishReason;

    use super::*;

    fn ask(question: &str) -> Signals<'_> {
        Signals { question, turns: 1, prompt_tokens: 40, max_tokens: 100, tools: false, small_context: 1024 }
    }

    #[test]
    fn each_rule_says_why() {
        let rules = Rules::default();
        let decide = |s: Signals<'_>| rules.decide(&s);
        assert_eq!(decide(ask("What is the capital of Norway?")).to, Side::Small);
        let long = "word ".repeat(61);
        for (signals, why) in [
            (Signals { tools: true, ..ask("x") }, "tools are on offer"),
            (Signals { prompt_tokens: 1025, ..ask("x") }, "the prompt has 1025 tokens, more than 1024"),
            (Signals { max_tokens: 1000, ..ask("x") }, "may take 1040 tokens, the small model holds 1024"),
            (Signals { prompt_tokens: 897, max_tokens: 0, ..ask("x") }, "may take 1025 tokens"),
            (Signals { max_tokens: usize::MAX, ..ask("x") }, "the small model holds 1024"),
            (Signals { turns: 7, ..ask("x") }, "7 messages"),
            (ask(&long), "61 words"),
            (ask("Is it? Or not?"), "2 questions"),
            (ask("Why is the sky blue?"), "\"why\""),
            (ask("Think step by step."), "\"step by step\""),
            (ask("List the TRADE-OFFS."), "\"trade-offs\""),
        ] {
            let decision = decide(signals);
            assert_eq!(decision.to, Side::Large, "{signals:?}");
            assert!(decision.why.contains(why), "{} / {why}", decision.why);
        }
    }

    #[test]
    fn code_is_not_read_as_a_question() {
        let rules = Rules::default();
        let code =
            format!("Document this Rust function:\n```rust\n{}fn why() {{ a?; b?; }}\n```", "// plan\n".repeat(90));
        assert_eq!(rules.decide(&ask(&code)).to, Side::Small);
        assert_eq!(rules.decide(&ask("What does `explain()` return?")).to, Side::Small);
        // Words that only contain one.
        assert_eq!(rules.decide(&ask("Is a planet round?")).to, Side::Small);
    }

    #[test]
    fn what_holds_the_answer_is_left_to_the_small_model() {
        let rules = Rules { tools_to_large: false, most_questions: 2, ..Rules::default() };
        let fits = Signals { prompt_tokens: 896, max_tokens: 0, tools: true, ..ask("Is it? Or not?") };
        let decision = rules.decide(&fits);
        assert_eq!(decision.to, Side::Small);
        // What the rules did not look at is not said.
        assert!(!decision.why.contains("tools") && !decision.why.contains("question"), "{}", decision.why);
    }

    fn said(logprobs: &[f32], end: FinishReason) -> Sureness {
        let mut sure = Sureness::default();
        logprobs.iter().for_each(|&l| sure.token(l));
        sure.end(end);
        sure
    }

    #[test]
    fn the_cascade_hands_over_what_is_not_sure() {
        let eos = |logprob| said(&[logprob], FinishReason::Eos);
        let mut rules = Rules::default();
        assert_eq!(rules.hand_over(&eos(-9.0)), None, "no line is drawn");
        assert_eq!(rules.hand_over(&said(&[-9.0], FinishReason::Context)), None);
        let line = |least_mean_logprob| {
            let confidence = Confidence { least_mean_logprob, learned_from: 10, model: "m".into() };
            Rules { confidence: Some(confidence), ..Rules::default() }
        };
        rules = line(-0.5);
        assert_eq!(rules.hand_over(&eos(-0.5)), None);
        for unsure in [-0.501, f32::NAN, f32::NEG_INFINITY] {
            let decision = rules.hand_over(&eos(unsure)).unwrap();
            assert!(decision.to == Side::Large && decision.why.contains("not sure"), "{unsure}: {decision:?}");
        }
        let nothing = rules.hand_over(&Sureness::default()).unwrap();
        assert!(nothing.why.contains("said nothing"), "{nothing:?}");
        let cut = rules.hand_over(&said(&[-0.1], FinishReason::Context)).unwrap();
        assert!(cut.why.contains("context"), "{cut:?}");
        assert_eq!(rules.hand_over(&said(&[-0.1], FinishReason::MaxTokens)), None, "as long as was asked for");
        assert_eq!(rules.hand_over(&said(&[-9.0], FinishReason::Deadline)), None, "no time is left");
        assert!(rules.lines().last().unwrap().contains("-0.500"));
        // Made in code, a line that is no number lets nothing stand.
        assert_eq!(line(f64::NAN).hand_over(&eos(0.0)).unwrap().to, Side::Large);
    }

    #[test]
    fn a_line_of_another_model_is_said() {
        let mut rules = Rules::default();
        assert_eq!(rules.note("a"), None);
        let mut learned_for = |model: &str| {
            rules.confidence = Some(Confidence { least_mean_logprob: -1.0, learned_from: 1, model: model.into() });
            rules.note("models/a.gguf")
        };
        assert_eq!((learned_for(""), learned_for("models/a.gguf"), learned_for("/x/a.gguf")), (None, None, None));
        let note = learned_for("models/b.gguf").unwrap();
        assert!(note.contains("models/b.gguf") && note.contains("models/a.gguf"), "{note}");
    }

    #[test]
    fn files_are_read_back_and_mistakes_are_named() {
        let rules = Rules { most_words: 7, ..Rules::default() };
        assert_eq!(Rules::parse("r.json", &rules.to_json()).unwrap(), rules);
        assert_eq!(Rules::parse("r.json", "{}").unwrap(), Rules::default());
        for (bad, word) in [
            ("", "r.json"),
            (r#"{"most_wrods": 1}"#, "most_wrods"),
            (r#"{"most_words": -1}"#, "r.json"),
            (r#"{"confidence": {"least_mean_logprob": 0.5}}"#, "least_mean_logprob"),
            (r#"{"confidence": {"least_mean_logprob": NaN}}"#, "r.json"),
            (r#"{"confidence": {"least_mean_logprob": -1e999}}"#, "r.json"),
            (r#"{"confidence": {"least_mean_logprob": null}}"#, "r.json"),
            (r#"{"confidence": {}}"#, "least_mean_logprob"),
            (r#"{"confidence": [-0.5, 3, "m"]}"#, "expected an object"),
            ("[]", "expected an object"),
            ("[true, 5]", "expected an object"),
            ("null", "r.json"),
            (r#"{"most_words": 1, "most_words": 2}"#, "most_words"),
            (r#"{"most_words": 99999999999999999999}"#, "r.json"),
            (r#"{"hard_words": ["why", "c++"]}"#, "\"c++\""),
            (r#"{"hard_words": [""]}"#, "hard_words"),
        ] {
            let error = Rules::parse("r.json", bad).unwrap_err().to_string();
            assert!(error.contains(word) && error.starts_with("r.json"), "{error}");
        }
        assert!(Rules::default().lines().len() >= 8);
        assert_eq!(Rules::parse("r.json", &Rules::default().to_json()).unwrap(), Rules::default());
        // Capitals in the file are no reason not to find a word.
        let rules = Rules::parse("r.json", r#"{"hard_words": ["Sum Up"], "most_prompt_tokens": 0}"#).unwrap();
        assert_eq!(
            rules.decide(&Signals { prompt_tokens: 0, ..ask("please sum up") }).why,
            "it says \"Sum Up\", which asks for thought"
        );
        assert_eq!(rules.decide(&ask("x")).to, Side::Large);
    }
}
