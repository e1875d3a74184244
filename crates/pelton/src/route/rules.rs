//! The rules, in the order in which they are asked. The first that speaks for the large model decides; where none does,
//! the small one answers.
//!
//! Invariant: [`Rules::lines`] says in words what [`Rules::decide`] does, rule for rule.

use serde::{Deserialize, Serialize};

use super::{Decision, Side, Signals};
use crate::Error;

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
    /// Words and phrases, in lower case, that ask for thought.
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
        let rules: Rules = serde_json::from_str(json).map_err(|e| Error::Usage(format!("{name}: {e}")))?;
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
            None => Decision { to: Side::Small, why: "short, one plain question, no tools".into() },
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
        if s.prompt_tokens.saturating_add(s.max_tokens) > s.small_context {
            let wanted = s.prompt_tokens.saturating_add(s.max_tokens);
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
        lines.push("more tokens of prompt and answer than the small model holds: large".to_string());
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
                "cascade: a small answer whose tokens have a mean log-probability below {:.3} is asked of the large model \
                 instead",
                c.least_mean_logprob
            ),
        });
        lines
    }

    /// Why the small model's answer does not stand, where it does not. `mean_logprob` is that of its tokens.
    pub fn hand_over(&self, mean_logprob: f64) -> Option<Decision> {
        let least = self.confidence.as_ref()?.least_mean_logprob;
        // An answer whose confidence is no number is none to rely on.
        let stands = mean_logprob >= least;
        let why =
            format!("the small model was not sure: a mean log-probability of {mean_logprob:.3}, below {least:.3}");
        (!stands).then_some(Decision { to: Side::Large, why })
    }
}

/// The text without fenced code and `code`.
fn prose(text: &str) -> String {
    let outside_fences: Vec<&str> = text.split("```").step_by(2).collect();
    let text = outside_fences.join(" ");
    let outside_ticks: Vec<&str> = text.split('`').step_by(2).collect();
    outside_ticks.join(" ")
}

/// Words in lower case; a hyphen joins.
fn words(text: &str) -> Vec<String> {
    let split = text.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '\''));
    split.filter(|w| w.chars().any(char::is_alphanumeric)).map(str::to_lowercase).collect()
}

/// Whether a phrase is among the words, all of its words one after the other.
fn contains(words: &[String], phrase: &str) -> bool {
    let phrase: Vec<&str> = phrase.split_whitespace().collect();
    !phrase.is_empty() && words.windows(phrase.len()).any(|w| w.iter().zip(&phrase).all(|(a, b)| a == b))
}

#[cfg(test)]
mod tests {
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
    fn the_cascade_hands_over_what_is_not_sure() {
        let mut rules = Rules::default();
        assert_eq!(rules.hand_over(-9.0), None, "no line is drawn");
        rules.confidence = Some(Confidence { least_mean_logprob: -0.5, learned_from: 10, model: "m".into() });
        assert_eq!(rules.hand_over(-0.5), None);
        for unsure in [-0.501, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(rules.hand_over(unsure).unwrap().to, Side::Large, "{unsure}");
        }
        assert!(rules.lines().last().unwrap().contains("-0.500"));
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
        ] {
            let error = Rules::parse("r.json", bad).unwrap_err().to_string();
            assert!(error.contains(word) && error.starts_with("r.json"), "{error}");
        }
        assert!(Rules::default().lines().len() >= 8);
    }
}
