//! How much two answers say the same: the share of words that they have in common.

use std::collections::HashMap;

/// The F1 score of the words of two answers, 0 to 1: the measure of reading-comprehension benchmarks (Rajpurkar et al.,
/// 2016, SQuAD), without its list of articles. Two empty answers agree.
pub fn agreement(a: &str, b: &str) -> f64 {
    let (a, b) = (counts(a), counts(b));
    let (n_a, n_b): (usize, usize) = (a.values().sum(), b.values().sum());
    if n_a + n_b == 0 {
        return 1.0;
    }
    let common: usize = a.iter().map(|(word, n)| (*n).min(b.get(word).copied().unwrap_or(0))).sum();
    2.0 * common as f64 / (n_a + n_b) as f64
}

fn counts(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        *counts.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_words_count() {
        assert_eq!(agreement("Yes, it is.", "yes it IS"), 1.0);
        assert_eq!(agreement("a b c d", "a b x y"), 0.5);
        assert_eq!(agreement("a a a", "a"), 0.5);
        assert_eq!((agreement("", ""), agreement("", "a"), agreement("a", "b")), (1.0, 0.0, 0.0));
    }
}
