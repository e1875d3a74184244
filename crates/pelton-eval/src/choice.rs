//! Multiple choice: which of the choices is likeliest after the question.
//!
//! A choice's tokens are those that the text of prompt and choice has beyond the prompt's own (as the field's harnesses
//! cut them). Its log-likelihood is their sum; *per character* and *per token* it is divided by the choice's length, so
//! that long choices are not worse for being long.

use pelton::{Error, Scorer, Special, Tokenizer};
use serde::Serialize;

use crate::records::{Record, Template};
use crate::statistics::Estimate;

/// How many questions were answered right.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choices {
    /// Questions.
    pub questions: usize,
    /// Questions longer than the context, which were left out.
    pub left_out: usize,
    /// Share of the questions where the likeliest choice is right.
    pub accuracy: Estimate,
    /// The same, likelihoods per character of the choice.
    pub accuracy_per_character: Estimate,
    /// The same, per token.
    pub accuracy_per_token: Estimate,
    /// What guessing would reach.
    pub chance: f64,
    /// Share of the questions where the right choice is what the model would say by itself.
    pub said: Estimate,
    /// Mean probability of the right choice among all.
    pub probability: Estimate,
    /// What was chosen for each question.
    pub chosen: Vec<Chosen>,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// The line it was in.
    pub line: usize,
    /// The right choice, from 0.
    pub right: usize,
    /// The likeliest choice.
    pub likeliest: usize,
    /// The logarithm of each choice's probability.
    pub ln: Vec<f64>,
}

/// Asks each question; those whose prompt and choices are longer than `context` tokens are left out and counted.
///
/// # Errors
/// [`Error::Usage`] where every question is too long; as [`Scorer::likelihoods`].
pub fn multiple_choice(
    scorer: &mut Scorer,
    tokenizer: &Tokenizer,
    records: &[Record],
    template: &Template,
    context: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Choices, Error> {
    let bos = if tokenizer.add_bos() { tokenizer.bos() } else { None };
    let (mut chosen, mut right, mut shares) = (Vec::new(), [const { Vec::<f64>::new() }; 4], Vec::new());
    for (done, record) in records.iter().enumerate() {
        progress(done, records.len());
        let asked = Asked::new(record, template, tokenizer, bos);
        if asked.longest() > context {
            continue;
        }
        let tails: Vec<&[u32]> = asked.tails.iter().map(Vec::as_slice).collect();
        let likelihoods = scorer.likelihoods(&asked.prefix, &tails)?;
        let ln: Vec<f64> = likelihoods.iter().map(|l| l.ln).collect();
        let per = |lengths: &dyn Fn(usize) -> usize| -> Vec<f64> {
            ln.iter().enumerate().map(|(i, ln)| ln / lengths(i).max(1) as f64).collect()
        };
        let per_character = per(&|i| record.choices[i].chars().count());
        let per_token = per(&|i| tails[i].len());
        let best = [&ln, &per_character, &per_token].map(|scores| highest(scores));
        for (all, best) in right.iter_mut().zip(best) {
            all.push(f64::from(u8::from(best == record.right)));
        }
        right[3].push(f64::from(u8::from(likelihoods[record.right].is_greedy)));
        let most = ln.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        shares.push((ln[record.right] - most).exp() / ln.iter().map(|ln| (ln - most).exp()).sum::<f64>());
        chosen.push(Chosen { line: record.line, right: record.right, likeliest: best[0], ln });
    }
    progress(records.len(), records.len());
    if chosen.is_empty() {
        return Err(Error::Usage(format!("every question is longer than {context} tokens; give a longer --context")));
    }
    let chance = records.iter().map(|r| 1.0 / r.choices.len() as f64).sum::<f64>() / records.len() as f64;
    let [accuracy, accuracy_per_character, accuracy_per_token, said] = right.map(|all| Estimate::mean(all.into_iter()));
    let (questions, left_out) = (chosen.len(), records.len() - chosen.len());
    let probability = Estimate::mean(shares.into_iter());
    Ok(Choices {
        questions,
        left_out,
        accuracy,
        accuracy_per_character,
        accuracy_per_token,
        chance,
        said,
        probability,
        chosen,
    })
}

fn highest(scores: &[f64]) -> usize {
    (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// A question's tokens, and what each choice adds.
struct Asked {
    prefix: Vec<u32>,
    tails: Vec<Vec<u32>>,
}

impl Asked {
    fn new(record: &Record, template: &Template, tokenizer: &Tokenizer, bos: Option<u32>) -> Asked {
        let encode =
            |text: &str| -> Vec<u32> { bos.into_iter().chain(tokenizer.encode(text, Special::AsText)).collect() };
        let prompt = template.fill(record);
        let prompt = prompt.trim_end();
        let wholes: Vec<Vec<u32>> = record.choices.iter().map(|c| encode(&format!("{prompt} {}", c.trim()))).collect();
        // The prompt's tokens, as far as all choices leave them as they are; each choice keeps one of its own.
        let alone = encode(prompt);
        let same = |whole: &Vec<u32>| alone.iter().zip(whole).take_while(|(a, b)| a == b).count().min(whole.len() - 1);
        let cut = wholes.iter().map(same).min().unwrap_or(0).max(1);
        let prefix = wholes[0][..cut].to_vec();
        Asked { prefix, tails: wholes.into_iter().map(|whole| whole[cut..].to_vec()).collect() }
    }

    fn longest(&self) -> usize {
        self.prefix.len() + self.tails.iter().map(Vec::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Fields, read_records};
    use pelton::{Model, ModelRef};

    #[test]
    fn choices_are_cut_where_the_prompt_ends() {
        let model = Model::open(&ModelRef::Embedded, None).unwrap();
        let tokenizer = model.tokenizer.as_ref().unwrap();
        let line = r#"{"question": "What is 1 + 1?", "choices": ["two", "three or more", "t"], "answer": 0}"#;
        let records = read_records("f", line, &Fields::default(), true, None).unwrap();
        let template = Template::parse(Template::PLAIN).unwrap();
        let asked = Asked::new(&records[0], &template, tokenizer, None);
        assert_eq!(tokenizer.decode(&asked.prefix, false), "Question: What is 1 + 1?\nAnswer:");
        let texts: Vec<String> =
            asked.tails.iter().map(|t| tokenizer.decode(&[&asked.prefix[..], t].concat(), false)).collect();
        assert!(texts[1].ends_with("Answer: three or more"), "{texts:?}");
        assert!(asked.tails.iter().all(|t| !t.is_empty()));
        assert_eq!(highest(&[-1.0, -0.5, -0.5, f64::NEG_INFINITY]), 1);
    }
}
