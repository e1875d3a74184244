//! Every stage, and all together, against the definitions written down as plainly as possible in f64: sort
//! everything, add everything up.

use pelton_sample::{Sampler, SamplingParams, logprob, rng, top_logprobs};
use std::cmp::Ordering;

/// Logits that are the same on every platform: sums of uniform numbers, about normal, from -9 to 9.
fn logits_of(seed: u64, n: usize) -> Vec<f32> {
    let uniform = |i: u64| rng::uniform(seed, i) as f32;
    (0..n as u64).map(|i| ((0..6).map(|j| uniform(6 * i + j)).sum::<f32>() - 3.0) * 3.0).collect()
}

/// Logits with many ties: halves of small integers.
fn coarse_logits(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (rng::uniform(seed, i) * 12.0).floor() as f32 / 2.0 - 3.0).collect()
}

fn tokens_of(seed: u64, n: usize, vocab_size: usize) -> Vec<u32> {
    (0..n as u64).map(|i| (rng::uniform(seed ^ 0xabc, i) * vocab_size as f64) as u32).collect()
}

/// `(token, probability)` by ascending token, from the definitions.
fn naive(logits: &[f32], params: &SamplingParams, prompt: &[u32], generated: &[u32]) -> Vec<(u32, f64)> {
    let mut logits: Vec<f32> = logits.to_vec();
    let window = |tokens: Vec<u32>| match params.penalty_window {
        0 => tokens,
        n => tokens[tokens.len().saturating_sub(n)..].to_vec(),
    };
    let seen = window([prompt, generated].concat());
    let said = window(generated.to_vec());
    for (id, logit) in logits.iter_mut().enumerate() {
        if seen.contains(&(id as u32)) {
            let penalty = params.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        let count = said.iter().filter(|&&token| token == id as u32).count();
        if count > 0 {
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
        for &(token, bias) in &params.logit_bias {
            if token == id as u32 {
                *logit += bias;
            }
        }
    }
    let best_first =
        |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
    let mut sorted: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit)).collect();
    sorted.sort_by(best_first);
    if params.temperature == 0.0 {
        return vec![(sorted[0].0, 1.0)];
    }
    if params.top_k > 0 {
        sorted.truncate(params.top_k);
    }
    let max = f64::from(sorted[0].1);
    let weight = |logit: f32| ((f64::from(logit) - max) / f64::from(params.temperature)).exp();
    let total: f64 = sorted.iter().map(|&(_, logit)| weight(logit)).sum();
    let mut reached = 0.0;
    let mut kept = Vec::new();
    for &(id, logit) in &sorted {
        if params.top_p < 1.0 && reached >= f64::from(params.top_p) {
            break;
        }
        reached += weight(logit) / total;
        kept.push((id, weight(logit)));
    }
    kept.retain(|&(_, weight)| weight >= f64::from(params.min_p));
    let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
    kept.sort_by_key(|&(id, _)| id);
    kept.into_iter().map(|(id, weight)| (id, weight / total)).collect()
}

fn check(logits: &[f32], params: &SamplingParams, prompt: &[u32], generated: &[u32]) {
    let expected = naive(logits, params, prompt, generated);
    let mut sampler = Sampler::new(params.clone(), 5).expect("parameters are valid");
    let found = sampler.distribution(&mut logits.to_vec(), prompt, generated, None).expect("logits are numbers");
    let ids = |distribution: &[(u32, f64)]| distribution.iter().map(|&(id, _)| id).collect::<Vec<u32>>();
    // Near 1e-38 a probability may be 0.
    let expected: Vec<(u32, f64)> = expected.into_iter().filter(|&(_, p)| p > 1e-35).collect();
    let found: Vec<(u32, f64)> = found.into_iter().filter(|&(_, p)| p > 1e-35).collect();
    assert_eq!(ids(&found), ids(&expected), "{params:?}");
    for (&(id, p), &(_, q)) in found.iter().zip(&expected) {
        assert!((p - q).abs() <= 2e-6 * q + 1e-12, "token {id}: {p} and {q} with {params:?}");
    }
    // The draw agrees with the distribution it should be from.
    let sampled = sampler.sample(&mut logits.to_vec(), prompt, generated).expect("logits are numbers");
    let point = rng::uniform(5, generated.len() as u64);
    let mut passed = 0.0;
    let drawn = found.iter().find(|&&(_, p)| {
        passed += p;
        passed > point
    });
    let drawn = drawn.or(found.last()).expect("a token is left").0;
    assert_eq!(sampled.id, drawn, "{params:?}");
    let raw = logprob(logits, sampled.id).expect("logits are numbers");
    assert!((sampled.logprob - raw).abs() < 1e-5, "{} and {raw}", sampled.logprob);
}

fn sizes() -> [usize; 9] {
    [1, 2, 15, 16, 17, 300, 1024, 1025, 5000]
}

/// Runs `params` on smooth and on coarse logits of all sizes, with and without history.
fn check_everywhere(params: &SamplingParams) {
    for (index, n) in sizes().into_iter().enumerate() {
        let seed = index as u64;
        let prompt = tokens_of(seed, 40, n);
        let generated = tokens_of(seed + 100, 25, n);
        for logits in [logits_of(seed, n), coarse_logits(seed, n)] {
            check(&logits, params, &prompt, &generated);
            check(&logits, params, &[], &[]);
        }
    }
}

fn warm() -> SamplingParams {
    SamplingParams { temperature: 0.8, ..SamplingParams::default() }
}

#[test]
fn greedy_takes_the_best_and_of_equals_the_lowest() {
    check_everywhere(&SamplingParams::default());
}

#[test]
fn temperature_alone() {
    for temperature in [0.01, 0.3, 1.0, 1.7, 50.0] {
        check_everywhere(&SamplingParams { temperature, ..warm() });
    }
}

#[test]
fn top_k_alone() {
    for top_k in [1, 2, 7, 40, 256, 999, 100_000] {
        check_everywhere(&SamplingParams { top_k, ..warm() });
    }
}

#[test]
fn top_p_alone() {
    // The smallest and largest nuclei: one token, and nearly all.
    for top_p in [1e-6, 0.1, 0.53, 0.9, 0.99, 0.9999] {
        check_everywhere(&SamplingParams { top_p, ..warm() });
        check_everywhere(&SamplingParams { top_p, temperature: 3.0, ..warm() });
    }
}

#[test]
fn min_p_alone() {
    for min_p in [1e-4, 0.05, 0.31, 1.0] {
        check_everywhere(&SamplingParams { min_p, ..warm() });
    }
}

#[test]
fn penalties_and_bias_alone() {
    for penalty_window in [0, 1, 10, 30, 1000] {
        let base = SamplingParams { penalty_window, ..warm() };
        check_everywhere(&SamplingParams { repetition_penalty: 1.3, ..base.clone() });
        check_everywhere(&SamplingParams { repetition_penalty: 0.7, ..base.clone() });
        check_everywhere(&SamplingParams { presence_penalty: 0.9, ..base.clone() });
        check_everywhere(&SamplingParams { frequency_penalty: -0.4, ..base });
    }
    check_everywhere(&SamplingParams { logit_bias: vec![(0, 1.5), (0, 0.25)], ..warm() });
}

#[test]
fn all_stages_together() {
    for case in 0..60u64 {
        let pick = |i: u64, choices: &[f32]| choices[(rng::uniform(case, i) * choices.len() as f64) as usize];
        let params = SamplingParams {
            temperature: pick(0, &[0.0, 0.4, 1.0, 2.0]),
            top_k: pick(1, &[0.0, 3.0, 50.0, 700.0]) as usize,
            top_p: pick(2, &[1.0, 0.95, 0.611]),
            min_p: pick(3, &[0.0, 0.021, 0.17]),
            repetition_penalty: pick(4, &[1.0, 1.15]),
            presence_penalty: pick(5, &[0.0, 0.35]),
            frequency_penalty: pick(6, &[0.0, 0.22]),
            penalty_window: pick(7, &[0.0, 12.0]) as usize,
            logit_bias: vec![(0, pick(8, &[0.0, -2.0, 3.0]))],
            seed: None,
        };
        check_everywhere(&params);
    }
}

#[test]
fn a_whole_vocabulary_in_one_go() {
    let logits = logits_of(3, 151_936);
    for top_p in [0.5, 0.9, 0.999] {
        check(&logits, &SamplingParams { temperature: 1.0, top_p, ..warm() }, &[], &[]);
    }
    check(&logits, &SamplingParams { temperature: 1.0, ..warm() }, &[], &[]);
    check(&logits, &SamplingParams { top_k: 20, top_p: 0.8, min_p: 0.01, ..warm() }, &[], &[]);
}

#[test]
fn top_logprobs_are_the_sorted_log_softmax() {
    for n in sizes() {
        let logits = coarse_logits(n as u64, n);
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let mut sorted: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit)).collect();
        sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0)));
        for k in [0, 1, 5, 20, n, n + 1] {
            let top = top_logprobs(&logits, k).expect("logits are numbers");
            assert_eq!(top.len(), k.min(n));
            for (&(id, logprob), &(expected_id, logit)) in top.iter().zip(&sorted) {
                assert_eq!(id, expected_id);
                assert!((f64::from(logprob) - (f64::from(logit) - total.ln())).abs() < 1e-5);
            }
        }
    }
}
