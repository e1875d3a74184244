//! Questions with free answers: the greedy answer, held against the acceptable ones as SQuAD's evaluation does it
//! (<https://arxiv.org/abs/1606.05250>): lower case, without punctuation and articles; an exact match, and the F1 of the
//! words that both have.

use std::collections::HashMap;

use pelton::{Chat, Error, Event, Llm, ModelText, Request, SamplingParams, Special};
use serde::Serialize;

use crate::records::{Record, Template};
use crate::statistics::Estimate;

/// How questions are asked.
#[derive(Clone, Debug)]
pub struct QaOptions {
    /// The words around them.
    pub template: Template,
    /// Longest answer, in tokens.
    pub max_tokens: usize,
    /// Whether prompts are continued as plain text instead of put into the chat template.
    pub raw: bool,
    /// Longest prompt and answer, in tokens; longer questions are left out and counted.
    pub context: usize,
}

/// How well questions were answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answers {
    /// Questions.
    pub questions: usize,
    /// Questions longer than the context, which were left out.
    pub left_out: usize,
    /// Share of the answers that are one of the acceptable ones.
    pub exact_match: Estimate,
    /// Mean F1 of words with the nearest of these.
    pub f1: Estimate,
    /// The share of the commonest acceptable answer: what always saying the same would reach.
    pub most_common: f64,
    /// What was said.
    pub answers: Vec<Answered>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answered {
    /// The line the question was in.
    pub line: usize,
    /// What the model said.
    pub said: String,
    /// What would have been right.
    pub expected: Vec<String>,
    /// Whether it was.
    pub is_exact: bool,
    /// The F1 of words.
    pub f1: f64,
}

/// Asks a loaded model; as many answers are generated at once as it was loaded for.
///
/// # Errors
/// [`Error::Usage`] where every question is too long; [`Error`] of the chat template or the engine.
pub fn questions(
    llm: &Llm,
    text: ModelText,
    records: &[Record],
    options: &QaOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Answers, Error> {
    let tokenizer = text.tokenizer.clone();
    let chat = if options.raw || text.templates.is_none() { None } else { Some(Chat::new(text)?) };
    let encode = |prompt: &str| -> Result<Vec<u32>, Error> {
        match &chat {
            Some(chat) => chat.user_ids(prompt),
            None => {
                let bos = if tokenizer.add_bos() { tokenizer.bos() } else { None };
                Ok(bos.into_iter().chain(tokenizer.encode(prompt, Special::AsText)).collect())
            }
        }
    };
    let mut asked = Vec::new();
    for record in records {
        let ids = encode(&options.template.fill(record))?;
        if ids.len().saturating_add(options.max_tokens) > options.context {
            continue;
        }
        let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let request = Request { stop: stops(&chat), ..Request::new(ids, sampling, options.max_tokens) };
        asked.push((record, llm.submit(request)?));
    }
    if asked.is_empty() {
        let most = options.context;
        return Err(Error::Usage(format!("every question and answer is longer than {most} tokens; use --context")));
    }
    let (mut answers, total) = (Vec::with_capacity(asked.len()), asked.len());
    for (record, handle) in asked {
        let mut said = String::new();
        loop {
            match handle.next_event() {
                Some(Event::Token { text, .. }) => said.push_str(&text),
                Some(Event::Finished(finished)) => {
                    said.push_str(&finished.text);
                    break;
                }
                Some(Event::Refused(refused)) => return Err(refused.into()),
                Some(Event::Failed(message)) => return Err(Error::Failure(message)),
                Some(_) => {}
                None => return Err(Error::Failure("the engine has stopped".into())),
            }
        }
        answers.push(judge(record, said.trim().to_string()));
        progress(answers.len(), total);
    }
    let exact = answers.iter().filter(|a| a.is_exact).count();
    Ok(Answers {
        questions: total,
        left_out: records.len() - total,
        exact_match: Estimate::share(exact, total),
        f1: Estimate::mean(answers.iter().map(|a| a.f1)),
        most_common: most_common(&answers),
        answers,
    })
}

/// Without a template nothing ends an answer: the next line or question does.
fn stops(chat: &Option<Chat>) -> Vec<String> {
    if chat.is_some() { Vec::new() } else { vec!["\n".into()] }
}

fn judge(record: &Record, said: String) -> Answered {
    let is_exact = record.answers.iter().any(|a| normalized(a) == normalized(&said));
    let f1 = record.answers.iter().map(|a| token_f1(&said, a)).fold(0.0, f64::max);
    Answered { line: record.line, said, expected: record.answers.clone(), is_exact, f1 }
}

fn most_common(answers: &[Answered]) -> f64 {
    let mut counts: HashMap<Vec<String>, usize> = HashMap::new();
    for expected in answers.iter().flat_map(|a| a.expected.iter()) {
        *counts.entry(normalized(expected)).or_default() += 1;
    }
    counts.values().max().map_or(0.0, |&n| n as f64 / answers.len() as f64)
}

/// The words of an answer: lower case, without punctuation, without `a`, `an` and `the`.
pub fn normalized(text: &str) -> Vec<String> {
    let letters: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    letters.split_whitespace().filter(|w| !["a", "an", "the"].contains(w)).map(str::to_string).collect()
}

/// The harmonic mean of the shares of words that `said` has of `expected`, and `expected` of `said`.
pub fn token_f1(said: &str, expected: &str) -> f64 {
    let (said, expected) = (normalized(said), normalized(expected));
    if said.is_empty() || expected.is_empty() {
        return f64::from(u8::from(said == expected));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    expected.iter().for_each(|w| *left.entry(w).or_default() += 1);
    let mut common = 0;
    for word in &said {
        if let Some(n) = left.get_mut(word.as_str()).filter(|n| **n > 0) {
            *n -= 1;
            common += 1;
        }
    }
    2.0 * f64::from(common) / (said.len() + expected.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_without_case_punctuation_and_articles() {
        assert_eq!(normalized("The  Eiffel-Tower, a tower."), ["eiffeltower", "tower"]);
        assert_eq!(token_f1("yes", "Yes."), 1.0);
        assert_eq!(token_f1("no", "yes"), 0.0);
        assert_eq!(token_f1("", "the"), 1.0);
        assert_eq!(token_f1("yes", ""), 0.0);
        // Two of three words, both of two: a word counts as often as both have it.
        assert!((token_f1("red red blue", "blue red") - 0.8).abs() < 1e-12);
        assert!((token_f1("red red", "red blue") - 0.5).abs() < 1e-12);
    }
}
