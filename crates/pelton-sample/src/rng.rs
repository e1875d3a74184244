//! Counter-based random numbers: the `i`-th number of a seed, without the ones before it.
//!
//! SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) is a
//! counter passed through a mixing function, so its `i`-th output can be had directly. The seed is mixed
//! once before, so that neighbouring seeds give unrelated streams and not shifted ones.
//!
//! Invariant: integers only, up to the last exact conversion: the same number on every platform.

/// 2^64 / φ, the increment of SplitMix64.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (variant 13 of David Stafford's mixers).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The `i`-th output of SplitMix64 started at `state`, from 0.
fn split_mix(state: u64, i: u64) -> u64 {
    mix(state.wrapping_add(GAMMA.wrapping_mul(i.wrapping_add(1))))
}

/// Random bits for position `i` of `seed`.
pub fn bits(seed: u64, i: u64) -> u64 {
    split_mix(mix(seed.wrapping_add(GAMMA)), i)
}

/// A number in `[0, 1)`, a multiple of 2^-53, for position `i` of `seed`.
pub fn uniform(seed: u64, i: u64) -> f64 {
    (bits(seed, i) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published first outputs of SplitMix64 for the seed 1234567.
    #[test]
    fn split_mix_is_the_published_one() {
        let outputs: Vec<u64> = (0..5).map(|i| split_mix(1_234_567, i)).collect();
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(outputs, published);
    }

    #[test]
    fn uniform_numbers_are_in_range_and_evenly_spread() {
        let n = 100_000;
        for seed in [0, 1, u64::MAX] {
            let mut bins = [0u32; 16];
            for i in 0..n {
                let x = uniform(seed, i);
                assert!((0.0..1.0).contains(&x));
                bins[(x * 16.0) as usize] += 1;
            }
            let expected = n as f64 / 16.0;
            let chi_square: f64 = bins.iter().map(|&b| (f64::from(b) - expected).powi(2) / expected).sum();
            assert!(chi_square < 37.7, "seed {seed}: chi square {chi_square} with 15 degrees of freedom (p < 0.001)");
        }
    }

    #[test]
    fn streams_of_neighbouring_seeds_do_not_overlap() {
        let stream = |seed| (0..1000).map(|i| bits(seed, i)).collect::<std::collections::BTreeSet<u64>>();
        let base = stream(7);
        for seed in [6, 8, 7u64.wrapping_add(GAMMA), 7u64.wrapping_sub(GAMMA)] {
            assert!(base.is_disjoint(&stream(seed)), "seed {seed}");
        }
    }
}
