//! The scorer against whole passages computed at once, and against transformers' logits.

use std::path::Path;

use super::*;
use crate::{Logits, ModelRef};

fn fixture(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    Model::open(&ModelRef::Path(path), None).unwrap()
}

fn ids(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + seed * 101) % 509).collect()
}

fn options(batch_rows: usize) -> Options {
    Options { threads: Some(2), batch_rows, ..Options::default() }
}

fn scorer(model: &Model, context: usize, sequences: usize, batch_rows: usize) -> Scorer {
    Scorer::load(model, &options(batch_rows), ScorerSize { context, sequences }, &mut |_| ()).unwrap()
}

#[test]
fn rows_are_those_of_passages_alone_whatever_their_company() {
    let model = fixture("qwen3");
    let all = [ids(70, 1), ids(1, 2), ids(33, 3), ids(64, 4), ids(5, 5)];
    let from = [0, 0, 32, 40, 9];
    for (sequences, batch_rows) in [(1, 512), (2, 7), (5, 64), (3, 100)] {
        let mut scorer = scorer(&model, 70, sequences, batch_rows);
        let passages: Vec<_> = all.iter().zip(from).map(|(ids, from)| Passage { ids, from }).collect();
        let (mut got, mut next) = (vec![Vec::new(); all.len()], from);
        scorer
            .run(&passages, &mut |at, logits| {
                for (at, row) in at.iter().zip(logits.chunks_exact(512)) {
                    assert_eq!(at.position, next[at.passage], "rows come in order");
                    next[at.passage] += 1;
                    got[at.passage].extend_from_slice(row);
                }
                Ok(())
            })
            .unwrap();
        for ((ids, from), got) in all.iter().zip(from).zip(&got) {
            let whole = Logits::compute(&model, ids, &options(512), false).unwrap();
            assert_eq!(got, &whole.data[(from * 512).min(whole.data.len())..], "{sequences} {batch_rows}");
        }
    }
}

#[test]
fn continuations_are_as_likely_as_their_tokens_one_by_one() {
    let model = fixture("qwen3");
    for (prefix, sequences) in [(31, 1), (32, 1), (33, 4), (1, 2)] {
        let mut scorer = scorer(&model, 80, sequences, 20);
        let (prefix, tails) = (ids(prefix, 7), [ids(1, 8), ids(40, 9), ids(2, 10), ids(33, 11), ids(7, 12)]);
        let refs: Vec<&[u32]> = tails.iter().map(Vec::as_slice).collect();
        let got = scorer.likelihoods(&prefix, &refs).unwrap();
        assert_eq!(scorer.likelihoods(&prefix, &refs).unwrap(), got, "nothing is left behind");
        for (tail, got) in tails.iter().zip(&got) {
            let whole = [&prefix[..], tail].concat();
            let logits = Logits::compute(&model, &whole, &options(512), false).unwrap();
            let ln = |i: usize| {
                let row = logits.row(prefix.len() + i - 1);
                let most = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
                let sum: f64 = row.iter().map(|&v| f64::from(v - most).exp()).sum();
                f64::from(row[tail[i] as usize] - most) - sum.ln()
            };
            let expected: f64 = (0..tail.len()).map(ln).sum();
            assert!((got.ln - expected).abs() < 1e-3 * tail.len() as f64, "{} {expected}", got.ln);
        }
    }
}

#[test]
fn greedy_answers_are_the_likeliest_tokens() {
    let model = fixture("qwen3");
    let prompts = [ids(33, 1), ids(2, 2), ids(60, 3)];
    let mut scorer = scorer(&model, 72, 2, 16);
    let answers = scorer.greedy(&prompts, 20, &[]).unwrap();
    assert_eq!(answers.iter().map(Vec::len).collect::<Vec<_>>(), [20, 20, 13], "the context ends the last one");
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let whole = [&prompt[..], &answer[..answer.len() - 1]].concat();
        let logits = Logits::compute(&model, &whole, &options(512), false).unwrap();
        let said: Vec<u32> = (prompt.len() - 1..whole.len()).map(|r| likeliest(logits.row(r))).collect();
        assert_eq!(&said, answer);
    }
    // The first token that is there for the first time ends the answer, and is part of it.
    let end = answers[0][3];
    let at = answers[0].iter().position(|&id| id == end).unwrap();
    assert_eq!(scorer.greedy(&prompts[..1], 20, &[end]).unwrap()[0], answers[0][..=at]);
    assert_eq!(scorer.greedy(&prompts[..1], 1, &[]).unwrap()[0], answers[0][..1]);
}

#[test]
fn what_cannot_be_run_is_refused() {
    let model = fixture("qwen3");
    let mut scorer = scorer(&model, 40, 1, 16);
    let mut refused = |ids: &[u32], words: &str| {
        let error = scorer.run(&[Passage { ids, from: 0 }], &mut |_, _| panic!("nothing is run")).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&[], "without tokens");
    refused(&ids(41, 1), "41 tokens");
    refused(&[5, 512], "id 512 at position 1");
    let error = scorer.likelihoods(&ids(30, 1), &[&ids(11, 2)]).unwrap_err();
    assert!(error.to_string().contains("41 tokens"), "{error}");
    let size = ScorerSize { context: 513, sequences: 1 };
    let error = Scorer::load(&model, &options(16), size, &mut |_| ()).err().unwrap();
    assert!(error.to_string().contains("512"), "{error}");
    let small = Options { memory: Some(1000), ..options(16) };
    let error = Scorer::load(&model, &small, ScorerSize { context: 40, sequences: 1 }, &mut |_| ()).err().unwrap();
    assert!(error.to_string().contains("does not fit"), "{error}");
    // What the caller says ends the run.
    let stop = scorer.run(&[Passage { ids: &[1], from: 0 }], &mut |_, _| Err(Error::Failure("enough".into())));
    assert_eq!(stop.unwrap_err().to_string(), "enough");
}
