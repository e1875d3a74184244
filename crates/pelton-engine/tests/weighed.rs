//! Tokens chosen from what was found out about logits are those chosen from the logits themselves, to the bit.

use pelton_backend::conformance::weigh_row;
use pelton_backend::{Ask, Weighed};
use pelton_sample::{SampleError, Sampler, SamplingParams, Shortlist, rng};

/// Likeliest tokens that a device has room for.
const ROOM: usize = 512;

/// Logits as models make them: a few likely tokens, many unlikely ones, some alike.
fn logits(n: usize, seed: u64) -> Vec<f32> {
    let spread = [1.0, 4.0, 12.0, 0.05][seed as usize % 4];
    let step = if seed.is_multiple_of(3) { 0.25 } else { 1e-4 };
    let uniform = |i: usize| rng::uniform(seed, i as u64) as f32;
    (0..n).map(|i| ((uniform(i) + uniform(i + n) - uniform(i + 2 * n)) * spread / step).round() * step).collect()
}

/// What a device says that has room for so many: those above some logit.
fn on_device(logits: &[f32], ask: &Ask, room: usize) -> Weighed {
    let mut weighed = weigh_row(logits, ask);
    weighed.likeliest.sort_by(|a, b| b.1.total_cmp(&a.1));
    if weighed.likeliest.len() > room {
        let edge = weighed.likeliest[room].1;
        weighed.likeliest.retain(|token| token.1 > edge);
        weighed.is_all = false;
    }
    weighed.likeliest.reverse();
    weighed
}

fn short(weighed: &Weighed, vocab_size: usize) -> Shortlist<'_> {
    let Weighed { max, best, odd, sum, sum_at, drawn, is_all, .. } = *weighed;
    Shortlist { vocab_size, max, best, odd, sum, sum_at, drawn, likeliest: &weighed.likeliest, is_all }
}

fn params(case: u64) -> SamplingParams {
    let pick = |i: u64, n: u64| (rng::bits(case, i) % n) as usize;
    SamplingParams {
        temperature: [0.0, 1.0, 0.7, 0.2, 1.5, 30.0][pick(0, 6)],
        top_k: [0, 0, 1, 40, 400, 100_000][pick(1, 6)],
        top_p: [1.0, 1.0, 0.9, 0.3, 0.999][pick(2, 5)],
        min_p: [0.0, 0.0, 0.05, 0.5, 1e-6][pick(3, 5)],
        seed: Some(case),
        ..SamplingParams::default()
    }
}

#[test]
fn thousands_of_draws_are_the_same_both_ways() {
    let (mut decided, mut undecided) = (0, 0);
    for case in 0..6000u64 {
        let vocab = [7, 300, 1024, 2500][case as usize % 4];
        let (position, n_top) = (case as usize % 50, [0, 0, 3, 20][(case / 4) as usize % 4]);
        let row = logits(vocab, case);
        let mut sampler = Sampler::new(params(case), 0).unwrap();
        let generated = vec![0; position];
        let whole = sampler.sample_beside(&mut row.clone(), &[], &generated, None, n_top).unwrap();
        let wanted = sampler.wanted(vocab, position, n_top).expect("nothing changes the logits");
        let ask = Ask { temperature: wanted.temperature, point: wanted.point, likeliest: wanted.likeliest };
        let weighed = on_device(&row, &ask, ROOM);
        match sampler.sample_short(&short(&weighed, vocab), position, n_top).unwrap() {
            Some((sampled, top)) => {
                assert_eq!((sampled.id, sampled.logprob.to_bits()), (whole.0.id, whole.0.logprob.to_bits()), "{case}");
                assert_eq!(top, whole.1, "{case}");
                decided += 1;
            }
            None => undecided += 1,
        }
    }
    println!("{decided} decided, {undecided} need the logits");
    assert!(decided > 4000 && undecided > 100, "{decided} decided, {undecided} not: both ways are to be seen");
}

#[test]
fn what_changes_logits_needs_them() {
    let changed = [
        SamplingParams { repetition_penalty: 1.1, ..SamplingParams::default() },
        SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() },
        SamplingParams { frequency_penalty: 0.5, ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(3, 1.0)], ..SamplingParams::default() },
    ];
    let row = logits(100, 1);
    let weighed = weigh_row(&row, &Ask { likeliest: true, ..Ask::default() });
    for params in changed {
        let mut sampler = Sampler::new(params, 0).unwrap();
        assert_eq!(sampler.wanted(100, 0, 0), None);
        assert_eq!(sampler.sample_short(&short(&weighed, 100), 0, 0), Ok(None));
    }
}

#[test]
fn broken_logits_are_the_same_errors() {
    let mut sampler = Sampler::new(SamplingParams::default(), 0).unwrap();
    for (at, value) in [(3, f32::NAN), (70, f32::INFINITY)] {
        let mut row = logits(100, 2);
        row[at] = value;
        let weighed = weigh_row(&row, &Ask::default());
        let whole = sampler.sample(&mut row, &[], &[]).unwrap_err();
        let error = sampler.sample_short(&short(&weighed, 100), 0, 0).unwrap_err();
        assert_eq!(whole.to_string(), error.to_string());
    }
    let nothing = weigh_row(&[f32::NEG_INFINITY; 9], &Ask::default());
    let error = sampler.sample_short(&short(&nothing, 9), 0, 0).unwrap_err();
    assert_eq!(error, SampleError::NothingAllowed { vocab_size: 9 });
}
