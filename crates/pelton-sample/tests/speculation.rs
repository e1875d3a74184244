//! What comes of sampling behind drafts: the target's distribution, by a chi-square over seeds.
//!
//! The scheme of the engine, on a vocabulary of six and a model that is a formula: the target's token is drawn at each
//! drafted position, and the next one stands as long as it equals the draft.

use std::collections::BTreeMap;

use pelton_sample::{Sampler, SamplingParams};

const VOCAB: usize = 6;
const PROMPT: [u32; 2] = [1, 3];
const LEN: usize = 3;

/// A model: logits that depend on all of the text.
fn logits_of(text: &[u32]) -> Vec<f32> {
    let hash = |salt: usize| {
        text.iter().fold(salt as u64, |h, &t| (h ^ u64::from(t)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23))
    };
    (0..VOCAB).map(|id| (hash(id + 1) % 1000) as f32 / 300.0).collect()
}

/// `LEN` tokens with drafts of `draft`, each step of which runs as many positions as were drafted and one more.
fn decode(params: &SamplingParams, seed: u64, draft: &[u32], tried: &mut [(u32, u32); LEN]) -> Vec<u32> {
    let mut sampler = Sampler::new(SamplingParams { seed: Some(seed), ..params.clone() }, 0).unwrap();
    let mut generated: Vec<u32> = Vec::new();
    while generated.len() < LEN {
        let drafts = &draft[generated.len().min(draft.len())..];
        let text: Vec<u32> = PROMPT.iter().chain(&generated).chain(drafts).copied().collect();
        let known = PROMPT.len() + generated.len();
        for step in 0..=drafts.len() {
            // The row's logits are those of the text with the drafts, whatever was drawn meanwhile.
            let mut logits = logits_of(&text[..known + step]);
            let token = sampler.sample(&mut logits, &PROMPT, &generated).unwrap().id;
            if let (Some(&draft), Some(tried)) = (drafts.get(step), tried.get_mut(generated.len())) {
                tried.0 += u32::from(token == draft);
                tried.1 += 1;
            }
            generated.push(token);
            if drafts.get(step) != Some(&token) || generated.len() == LEN {
                break;
            }
        }
    }
    generated
}

/// The probability of each text of `LEN` tokens.
fn exact(params: &SamplingParams) -> BTreeMap<Vec<u32>, f64> {
    let mut sampler = Sampler::new(params.clone(), 0).unwrap();
    let mut all = BTreeMap::from([(Vec::new(), 1.0)]);
    for _ in 0..LEN {
        let mut longer = BTreeMap::new();
        for (generated, p) in &all {
            let text: Vec<u32> = PROMPT.iter().chain(generated).copied().collect();
            let next = sampler.distribution(&mut logits_of(&text), &PROMPT, generated, None).unwrap();
            for (id, q) in next {
                let mut text: Vec<u32> = generated.clone();
                text.push(id);
                longer.insert(text, p * q);
            }
        }
        all = longer;
    }
    all
}

fn all_params() -> Vec<SamplingParams> {
    let plain = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    vec![
        SamplingParams { top_p: 0.85, ..plain.clone() },
        SamplingParams { top_k: 4, min_p: 0.05, ..plain.clone() },
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.7, presence_penalty: 0.2, ..plain.clone() },
        SamplingParams { temperature: 1.2, top_p: 0.9, frequency_penalty: 0.5, ..plain },
    ]
}

#[test]
fn sampled_texts_follow_the_targets_distribution() {
    const SEEDS: u64 = 20_000;
    for params in all_params() {
        let exact = exact(&params);
        let likely: Vec<u32> = exact.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0.clone();
        // The likeliest text as the draft, and one that is often wrong.
        for draft in [likely, vec![0, 0, 5]] {
            let mut counts: BTreeMap<Vec<u32>, f64> = BTreeMap::new();
            let mut tried = [(0, 0); LEN];
            for seed in 0..SEEDS {
                let text = decode(&params, seed, &draft, &mut tried);
                assert_eq!(text, decode(&params, seed, &[], &mut [(0, 0); LEN]), "the same seed gives the same text");
                *counts.entry(text).or_default() += 1.0;
            }
            assert!(counts.keys().all(|text| exact.contains_key(text)), "a text that cannot be");
            // Rare texts are counted together.
            let (mut chi_square, mut cells, mut rare) = (0.0, 0, (0.0, 0.0));
            for (text, p) in &exact {
                let (expected, counted) = (p * SEEDS as f64, counts.get(text).copied().unwrap_or(0.0));
                if expected < 10.0 {
                    rare = (rare.0 + expected, rare.1 + counted);
                } else {
                    chi_square += (counted - expected).powi(2) / expected;
                    cells += 1;
                }
            }
            if rare.0 >= 10.0 {
                chi_square += (rare.1 - rare.0).powi(2) / rare.0;
                cells += 1;
            }
            // Wilson and Hilferty (1931): the 99.99 % point of chi-square.
            let degrees = f64::from(cells - 1);
            let limit = degrees * (1.0 - 2.0 / (9.0 * degrees) + 3.72 * (2.0 / (9.0 * degrees)).sqrt()).powi(3);
            assert!(
                chi_square < limit,
                "{params:?}: chi-square {chi_square:.1}, at most {limit:.1} with {cells} texts"
            );
            // A draft is accepted as often as the target says it: the rule of Leviathan et al. for a point mass.
            let first = exact.iter().filter(|(text, _)| text[0] == draft[0]).map(|(_, p)| p).sum::<f64>();
            let share = f64::from(tried[0].0) / f64::from(tried[0].1);
            assert!(
                (share - first).abs() < 0.015,
                "accepted {share:.3} of the drafts that have probability {first:.3}"
            );
        }
    }
}
