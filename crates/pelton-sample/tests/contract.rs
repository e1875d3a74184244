//! What users may rely on: the right frequencies, the same output for the same seed, masks, and an error
//! (never a panic, never a wrong token) for whatever cannot be sampled from.

use pelton_sample::{SampleError, Sampler, SamplingParams, rng, top_logprobs};

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params, 1).expect("parameters are valid")
}

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::default() }
}

/// `n` generated tokens of any kind, to sample position `n`.
fn position(n: usize) -> Vec<u32> {
    vec![0; n]
}

fn chi_square(counts: &[u32], probabilities: &[f64]) -> f64 {
    let n: u32 = counts.iter().sum();
    counts
        .iter()
        .zip(probabilities)
        .map(|(&count, &p)| (f64::from(count) - p * f64::from(n)).powi(2) / (p * f64::from(n)))
        .sum()
}

#[test]
fn frequencies_are_the_probabilities_over_seeds_and_over_positions() {
    let logits = [0.3f32, -1.0, 1.2, 0.0, 2.0, -0.5, 0.9, 1.6];
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) / 0.7).exp()).collect();
    let total: f64 = weights.iter().sum();
    let probabilities: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
    let history = position(20_000);
    let (mut over_seeds, mut over_positions) = ([0u32; 8], [0u32; 8]);
    let mut fixed = sampler(SamplingParams { temperature: 0.7, seed: Some(11), ..warm() });
    for i in 0..20_000 {
        let params = SamplingParams { temperature: 0.7, seed: Some(i as u64), ..warm() };
        let one = sampler(params).sample(&mut logits.clone(), &[], &[]).expect("logits are numbers");
        over_seeds[one.id as usize] += 1;
        let one = fixed.sample(&mut logits.clone(), &[], &history[..i]).expect("logits are numbers");
        over_positions[one.id as usize] += 1;
    }
    // 7 degrees of freedom: above 24.32 with probability 0.001.
    for counts in [over_seeds, over_positions] {
        let distance = chi_square(&counts, &probabilities);
        assert!(distance < 24.32, "chi square {distance}: {counts:?}");
    }
}

#[test]
fn frequencies_are_right_across_blocks_of_a_large_vocabulary() {
    // 2500 equal tokens in three blocks, and ten equal shares of them.
    let logits = vec![1.5f32; 2500];
    let mut sampler = sampler(warm());
    let history = position(3000);
    let mut counts = [0u32; 10];
    for i in 0..3000 {
        let token = sampler.sample(&mut logits.clone(), &[], &history[..i]).expect("logits are numbers");
        counts[token.id as usize / 250] += 1;
    }
    let distance = chi_square(&counts, &[0.1; 10]);
    assert!(distance < 27.88, "chi square {distance} with 9 degrees of freedom (p < 0.001): {counts:?}");
}

fn golden_run(params: SamplingParams) -> Vec<u32> {
    let mut sampler = sampler(params);
    let mut generated = Vec::new();
    for step in 0..12u64 {
        let mut logits: Vec<f32> = (0..2000).map(|i| (rng::uniform(step + 77, i) * 16.0 - 8.0) as f32).collect();
        let token = sampler.sample(&mut logits, &[1, 2, 3], &generated).expect("logits are numbers");
        generated.push(token.id);
    }
    generated
}

/// Recorded once; integers and plain arithmetic make it the same on every platform and in every version.
#[test]
fn the_same_seed_gives_the_same_tokens_for_ever() {
    let params = SamplingParams { temperature: 0.9, seed: Some(2026), ..warm() };
    assert_eq!(golden_run(params.clone()), GOLDEN_PLAIN);
    let params = SamplingParams { top_k: 50, top_p: 0.9, min_p: 0.02, repetition_penalty: 1.1, ..params };
    assert_eq!(golden_run(params.clone()), GOLDEN_TRUNCATED);
    assert_ne!(golden_run(SamplingParams { seed: Some(2027), ..params }), GOLDEN_TRUNCATED);
}

const GOLDEN_PLAIN: [u32; 12] = [887, 49, 269, 557, 1090, 1140, 1190, 1388, 1437, 445, 285, 1247];
const GOLDEN_TRUNCATED: [u32; 12] = [1068, 63, 262, 501, 839, 1075, 1160, 1247, 1534, 428, 258, 1188];

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let logits: Vec<f32> = (0..500).map(|i| (rng::uniform(4, i) * 8.0) as f32).collect();
    let tokens = |order: &[usize]| {
        let mut sampler = sampler(SamplingParams { seed: Some(9), ..warm() });
        let mut tokens = vec![0; 8];
        for &i in order {
            tokens[i] = sampler.sample(&mut logits.clone(), &[5], &position(i)).expect("logits are numbers").id;
        }
        tokens
    };
    // Going back, as after a rejected draft or a preemption, changes nothing.
    assert_eq!(tokens(&[0, 1, 2, 3, 4, 5, 6, 7]), tokens(&[3, 2, 7, 7, 0, 6, 1, 5, 4, 3, 0]));
}

#[test]
fn the_fallback_seed_counts_only_without_a_seed() {
    assert_eq!(Sampler::new(SamplingParams { seed: Some(3), ..warm() }, 4).expect("valid").seed(), 3);
    assert_eq!(Sampler::new(warm(), 4).expect("valid").seed(), 4);
}

#[test]
fn a_mask_leaves_exactly_the_allowed_tokens() {
    let n = 100;
    let logits: Vec<f32> = (0..n).map(|i| (rng::uniform(8, i) * 4.0) as f32).collect();
    let mut allowed = vec![0u32; 3]; // the last four tokens are beyond it
    for id in [0usize, 31, 32, 63, 95] {
        allowed[id / 32] |= 1 << (id % 32);
    }
    let mut one = sampler(warm());
    let left = one.distribution(&mut logits.clone(), &[], &[], Some(&allowed)).expect("some are allowed");
    assert_eq!(left.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [0, 31, 32, 63, 95]);
    let total: f64 = left.iter().map(|&(_, p)| p).sum();
    assert!((total - 1.0).abs() < 1e-9);
    for i in 0..200 {
        let token =
            one.sample_masked(&mut logits.clone(), &[], &position(i), Some(&allowed)).expect("some are allowed");
        assert!([0, 31, 32, 63, 95].contains(&token.id));
    }
    let nothing = one.sample_masked(&mut logits.clone(), &[], &[], Some(&[0, 0, 0, 0]));
    assert_eq!(nothing, Err(SampleError::NothingAllowed { vocab_size: 100 }));
    let all = [u32::MAX; 4];
    assert_eq!(one.sample_masked(&mut logits.clone(), &[], &[], Some(&all)), one.sample(&mut logits.clone(), &[], &[]));
}

#[test]
fn broken_logits_are_an_error() {
    for params in
        [SamplingParams::default(), SamplingParams { top_k: 2, ..warm() }, SamplingParams { top_p: 0.5, ..warm() }]
    {
        let mut one = sampler(params);
        assert_eq!(one.sample(&mut [], &[1], &[2]), Err(SampleError::EmptyVocabulary));
        for (bad, at) in [(f32::NAN, 0), (f32::NAN, 39), (f32::INFINITY, 17)] {
            let mut logits = vec![1.0; 40];
            logits[at] = bad;
            let error = one.sample(&mut logits, &[], &[]).expect_err("a logit is broken");
            assert!(matches!(error, SampleError::NotFinite { id, .. } if id == at), "{error}");
        }
        let error = one.sample(&mut [f32::NEG_INFINITY; 5], &[], &[]).expect_err("nothing is possible");
        assert_eq!(error, SampleError::NothingAllowed { vocab_size: 5 });
        let only = [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY];
        assert_eq!(one.sample(&mut only.clone(), &[], &[]).expect("one is possible").id, 1);
    }
    assert_eq!(top_logprobs(&[], 3), Err(SampleError::EmptyVocabulary));
    assert!(matches!(top_logprobs(&[0.0, f32::NAN], 3), Err(SampleError::NotFinite { id: 1, .. })));
    assert_eq!(top_logprobs(&[0.0, f32::NEG_INFINITY], 3), Ok(vec![(0, 0.0)]));
}

#[test]
fn extreme_but_valid_parameters_give_a_token() {
    let extremes = [
        SamplingParams { temperature: f32::MIN_POSITIVE, ..warm() },
        SamplingParams { temperature: f32::MAX, ..warm() },
        SamplingParams { top_k: usize::MAX, ..warm() },
        SamplingParams { top_k: usize::MAX - 1, top_p: f32::MIN_POSITIVE, ..warm() },
        SamplingParams { min_p: 1.0, top_p: 1.0 - f32::EPSILON, ..warm() },
        SamplingParams { repetition_penalty: f32::MIN_POSITIVE, ..warm() },
        SamplingParams { repetition_penalty: f32::MAX, ..warm() },
        SamplingParams { presence_penalty: f32::MAX, frequency_penalty: f32::MAX, ..warm() },
        SamplingParams { presence_penalty: f32::MIN, frequency_penalty: f32::MIN, ..warm() },
        SamplingParams { logit_bias: vec![(0, f32::MAX), (0, f32::MAX), (1, f32::NEG_INFINITY)], ..warm() },
        SamplingParams { penalty_window: usize::MAX, frequency_penalty: 1.0, repetition_penalty: 2.0, ..warm() },
    ];
    let extreme_logits = [
        vec![f32::MAX, f32::MIN, 0.0, -0.0],
        vec![f32::MAX, f32::NEG_INFINITY, f32::MAX, 1.0],
        vec![f32::MIN; 4],
        vec![0.0, -0.0, 0.0, -0.0],
    ];
    for params in extremes {
        let mut one = sampler(params.clone());
        for logits in &extreme_logits {
            // Tokens beyond the vocabulary in the history are passed over.
            let token = one.sample(&mut logits.clone(), &[0, 1, u32::MAX], &[2, 2, 3, 7]).expect("a token is left");
            assert!(token.id < 4 && !token.logprob.is_nan(), "{params:?} on {logits:?}: {token:?}");
            assert!(logits[token.id as usize] > f32::NEG_INFINITY, "{params:?} on {logits:?}: a banned token");
        }
    }
}

#[test]
fn bad_parameters_are_named_with_their_range() {
    let nan = f32::NAN;
    let bad = [
        ("temperature", SamplingParams { temperature: -0.1, ..warm() }),
        ("temperature", SamplingParams { temperature: nan, ..warm() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..warm() }),
        ("top_p", SamplingParams { top_p: 0.0, ..warm() }),
        ("top_p", SamplingParams { top_p: 1.01, ..warm() }),
        ("top_p", SamplingParams { top_p: nan, ..warm() }),
        ("min_p", SamplingParams { min_p: -0.01, ..warm() }),
        ("min_p", SamplingParams { min_p: 1.01, ..warm() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..warm() }),
        ("presence_penalty", SamplingParams { presence_penalty: nan, ..warm() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: f32::NEG_INFINITY, ..warm() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(1, nan)], ..warm() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(1, f32::INFINITY)], ..warm() }),
    ];
    for (name, params) in bad {
        let error = Sampler::new(params, 0).expect_err(name);
        assert!(matches!(error, SampleError::BadParam { field, .. } if field == name), "{name}: {error}");
    }
    let error = SamplingParams { top_p: 1.5, ..warm() }.validate().expect_err("top_p");
    assert_eq!(error.to_string(), "sampling parameter `top_p` is 1.5; it must be above 0 and at most 1 (1 is off)");
    let mut one = sampler(SamplingParams { logit_bias: vec![(9, 1.0)], ..warm() });
    let error = one.sample(&mut [0.0, 1.0], &[], &[]).expect_err("token 9 does not exist");
    assert_eq!(error.to_string(), "`logit_bias` names token 9; the model has 2 tokens (0 to 1)");
}
