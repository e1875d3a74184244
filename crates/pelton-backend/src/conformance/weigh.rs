//! Weighing logits: what [`Backend::weigh`] has to find, to the bit.

use super::{Failure, Random, upload};
use crate::{Ask, Backend, Weighed};

/// Terms of a block of a row's sum.
const BLOCK: usize = 1024;
/// Likeliest tokens that a backend has room for at least.
const ROOM: usize = 256;

/// `e^x` for `x <= 0`, 0 below -87: `x = n ln 2 + r`, and `e^r` by its series. As `pelton-sample` computes it.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.max(-87.0);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { series * power }
}

/// The sum of a block's weights: 16 lanes in f32, then added up.
fn sum_of(weights: &[f32]) -> f64 {
    let lane = |l: usize| weights.iter().skip(l).step_by(16).fold(0.0f32, |sum, w| sum + w);
    (0..16).map(|l| f64::from(lane(l))).fold(0.0, |sum, lane| sum + lane)
}

/// The token in whose share of the sum of blocks `point` falls: blocks in order, then the tokens of the one that is hit.
fn draw(weights: &[f32], point: f64, total: f64) -> Option<u32> {
    let target = point * total;
    let (mut passed, mut chosen) = (0.0, None);
    for (b, block) in weights.chunks(BLOCK).enumerate() {
        let sum = sum_of(block);
        let is_hit = passed + sum > target;
        if !is_hit && (b + 1) * BLOCK < weights.len() {
            passed += sum;
            continue;
        }
        for (i, &weight) in block.iter().enumerate() {
            passed += f64::from(weight);
            if weight > 0.0 {
                chosen = Some((b * BLOCK + i) as u32);
                if passed > target {
                    return chosen;
                }
            }
        }
        break;
    }
    chosen
}

/// What there is to be found out about a row: the truth. Its likeliest tokens are all of them.
pub fn weigh_row(logits: &[f32], ask: &Ask) -> Weighed {
    let is_odd = |v: &&f32| v.is_nan() || **v == f32::INFINITY;
    if let Some(value) = logits.iter().find(is_odd) {
        let id = logits.iter().position(|v| is_odd(&v)).expect("it was found") as u32;
        return Weighed { odd: Some((id, *value)), ..Weighed::default() };
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let best = logits.iter().position(|&v| v == max).unwrap_or(0) as u32;
    let weights = |temperature: f32| logits.iter().map(|v| exp((v - max) / temperature)).collect::<Vec<f32>>();
    let total = |weights: &[f32]| weights.chunks(BLOCK).map(sum_of).fold(0.0, |sum, block| sum + block);
    let (sum, mut sum_at, mut drawn) = (total(&weights(1.0)), 0.0, best);
    if ask.temperature > 0.0 {
        let weights = weights(ask.temperature);
        sum_at = total(&weights);
        drawn = ask.point.and_then(|point| draw(&weights, point, sum_at)).unwrap_or(best);
    }
    let tokens = logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit));
    let likeliest = tokens.filter(|&(_, logit)| ask.likeliest && logit > f32::NEG_INFINITY).collect();
    let drawn = (drawn, logits[drawn as usize]);
    Weighed { max, best, odd: None, sum, sum_at, drawn, likeliest, is_all: ask.likeliest }
}

/// Rows as models make them and as they do not.
fn rows(vocab: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let spread = |random: &mut Random, by: f32| random.normals(vocab).iter().map(|v| v * by).collect::<Vec<f32>>();
    let mut all = vec![spread(random, 3.0), spread(random, 0.01), spread(random, 60.0), vec![-1.5; vocab]];
    // Equals, the best among them; most tokens ruled out; none left; two that are no numbers.
    all.push(spread(random, 2.0).iter().map(|v| v.round()).collect());
    let few = spread(random, 2.0).into_iter().enumerate();
    let few = few.map(|(i, v)| if i % 97 == 5 { v } else { f32::NEG_INFINITY });
    all.push(few.collect());
    all.push(vec![f32::NEG_INFINITY; vocab]);
    for odd in [f32::NAN, f32::INFINITY] {
        let mut row = spread(random, 3.0);
        row[vocab / 2] = odd;
        row[vocab - 1] = odd;
        all.push(row);
    }
    all
}

/// Weighs rows of logits on a backend and here; empty where each figure has the same bits, or where the backend does not
/// weigh.
pub fn weighing<B: Backend>(b: &mut B) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut random = Random(0x10_61_75);
    for vocab in [1, 100, 1024, 1500, 5003] {
        let rows = rows(vocab, &mut random);
        let ask = |i: usize, random: &mut Random| {
            let point = i.is_multiple_of(3).then(|| random.bits() as f64 / 2f64.powi(64));
            Ask { temperature: [1.0, 0.0, 0.7, 0.05, 8.0][i % 5], point, likeliest: i % 3 != 1 }
        };
        // Each row once with each kind of ask, all together; then some alone.
        let picks: Vec<(usize, Ask)> = (0..15 * rows.len()).map(|i| (i / 15, ask(i % 15, &mut random))).collect();
        for picks in picks.chunks(40).chain(picks.chunks(1).step_by(29)) {
            let values: Vec<f32> = picks.iter().flat_map(|(row, _)| rows[*row].clone()).collect();
            let logits = upload(b, picks.len(), vocab, &values);
            let asks: Vec<Ask> = picks.iter().map(|(_, ask)| *ask).collect();
            let mut got = Vec::new();
            if !b.weigh(&logits, &asks, &mut got) {
                return failures;
            }
            assert_eq!(got.len(), picks.len(), "one answer a row");
            for ((row, ask), got) in picks.iter().zip(&got) {
                if let Some(problem) = compare(got, &weigh_row(&rows[*row], ask)) {
                    failures.push(Failure {
                        op: "weigh",
                        case: format!("{vocab} tokens, row {row}, {ask:?}"),
                        problem,
                    });
                }
            }
        }
    }
    failures
}

/// What differs, if anything.
fn compare(got: &Weighed, truth: &Weighed) -> Option<String> {
    let odd = |w: &Weighed| w.odd.map(|(id, value)| (id, value.is_nan()));
    if odd(got) != odd(truth) {
        return Some(format!("odd is {:?}, not {:?}", got.odd, truth.odd));
    }
    if truth.odd.is_some() {
        return None;
    }
    let heads = |w: &Weighed| (w.max.to_bits(), w.best);
    let nothing = truth.max == f32::NEG_INFINITY;
    let sums = |w: &Weighed| (w.sum.to_bits(), w.sum_at.to_bits(), w.drawn.0, w.drawn.1.to_bits());
    if heads(got) != heads(truth) || (!nothing && sums(got) != sums(truth)) {
        let likeliest = Vec::new();
        return Some(format!(
            "{:?}, not {:?}",
            Weighed { likeliest, ..got.clone() },
            Weighed { likeliest: Vec::new(), ..truth.clone() }
        ));
    }
    likeliest_problem(got, truth)
}

fn likeliest_problem(got: &Weighed, truth: &Weighed) -> Option<String> {
    let mut found = got.likeliest.clone();
    found.sort_by_key(|token| token.0);
    let least = found.iter().map(|token| token.1).fold(f32::INFINITY, f32::min);
    let should: Vec<(u32, f32)> = truth.likeliest.iter().copied().filter(|token| token.1 >= least).collect();
    let (n, all) = (found.len(), truth.likeliest.len());
    if found != should {
        return Some(format!("{n} likeliest tokens are not the {} that are at least {least}", should.len()));
    }
    if got.is_all && n != all {
        return Some(format!("{n} tokens are said to be all {all}"));
    }
    (all <= ROOM && n != all).then(|| format!("{n} likeliest tokens of {all}, which there must be room for"))
}
