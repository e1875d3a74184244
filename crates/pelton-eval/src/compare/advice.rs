//! One plain sentence of what a comparison comes to.
//!
//! Invariant: it says nothing that the error bars do not bear out. A candidate counts as worse where the paired difference
//! of the perplexities is more than two of its standard errors; where the text is too short to see a difference that
//! people would mind, it says so.

use super::{Comparison, Figures};

/// A difference in perplexity that people would mind, in nats: a text must be long enough to see it.
const WORTH_SEEING: f64 = 0.01;

/// The sentence.
pub fn advice(comparison: &Comparison) -> String {
    let [base, others @ ..] = &comparison.candidates[..] else { return String::new() };
    let size = Size::of(comparison);
    let mut by_size: Vec<&Figures> = others.iter().filter(|c| size.bytes(c) < size.bytes(base)).collect();
    by_size.sort_by_key(|c| size.bytes(c));
    let Some(smallest) = by_size.first() else {
        let nearest = others.iter().min_by(|a, b| a.text.mean.value.total_cmp(&b.text.mean.value));
        let nearest = nearest.map_or(String::new(), |c| format!("; nearest to it is {}, {}", c.label, harm(c)));
        return format!("None is smaller than {}: keep it{nearest}.", base.label);
    };
    if let Some(unclear) = by_size.iter().find(|c| !is_worse(c) && 2.0 * c.text.ln_ratio.error > WORTH_SEEING) {
        return format!(
            "The text is too short to tell how much perplexity {} costs ({}): give a longer one with --text; by \
             divergence alone, {} is nearest to {}.",
            unclear.label,
            percent(unclear),
            nearest(&by_size).label,
            base.label
        );
    }
    match by_size.iter().find(|c| !is_worse(c)) {
        Some(pick) => {
            let below: Vec<&&Figures> = by_size.iter().filter(|c| size.bytes(c) < size.bytes(pick)).collect();
            let next = below
                .last()
                .map_or(String::new(), |c| format!("; {}, the next smaller, costs {}", c.label, percent(c)));
            format!(
                "Take {}: it needs {} of {}'s {}{}, its perplexity cannot be told from {}'s ({}), and the likeliest token \
                 is the same in {:.1} % of places{next}.",
                pick.label,
                share(size.bytes(pick), size.bytes(base)),
                base.label,
                size.name(),
                faster(pick, base),
                base.label,
                percent(pick),
                pick.text.same_top.value * 100.0
            )
        }
        None => {
            let best = nearest(&by_size);
            let other = match smallest.label == best.label {
                true => String::new(),
                false => format!("; {}, the smallest, costs {}", smallest.label, percent(smallest)),
            };
            format!(
                "Every smaller one is measurably worse than {}; {} does the least harm: {} perplexity for {} of the {}{}{other}.",
                base.label,
                best.label,
                percent(best),
                share(size.bytes(best), size.bytes(base)),
                size.name(),
                faster(best, base),
            )
        }
    }
}

/// What is saved: files of other sizes, or the same files in less memory.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Size {
    Files,
    Memory,
}

impl Size {
    pub(super) fn of(comparison: &Comparison) -> Size {
        let mut bytes = comparison.candidates.iter().map(|c| c.file_bytes);
        let first = bytes.next();
        if bytes.all(|b| Some(b) == first) { Size::Memory } else { Size::Files }
    }

    pub(super) fn bytes(self, c: &Figures) -> u64 {
        match self {
            Size::Files => c.file_bytes,
            Size::Memory => c.memory_bytes,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Size::Files => "bytes",
            Size::Memory => "memory",
        }
    }
}

fn nearest<'a>(all: &[&'a Figures]) -> &'a Figures {
    let nearest = all.iter().min_by(|a, b| a.text.mean.value.total_cmp(&b.text.mean.value));
    nearest.expect("the caller has one")
}

fn is_worse(c: &Figures) -> bool {
    c.text.ln_ratio.value > 2.0 * c.text.ln_ratio.error
}

/// The change of the perplexity.
pub fn percent(c: &Figures) -> String {
    let ratio = c.text.ln_ratio;
    format!("{:+.2} ± {:.2} %", (ratio.value.exp() - 1.0) * 100.0, ratio.error * ratio.value.exp() * 100.0)
}

fn harm(c: &Figures) -> String {
    format!("with {} perplexity", percent(c))
}

fn share(bytes: u64, of: u64) -> String {
    format!("{:.0} %", bytes as f64 / of.max(1) as f64 * 100.0)
}

/// How much faster it writes, where that is more than the repetitions differ.
fn faster(c: &Figures, base: &Figures) -> String {
    let (Some(own), Some(theirs)) = (c.speed, base.speed) else { return String::new() };
    let (own, theirs) = (own.decode, theirs.decode);
    let times = own.value / theirs.value.max(1e-9);
    if (own.value - theirs.value).abs() <= own.error + theirs.error {
        return " at the same speed".into();
    }
    format!(" and writes {times:.1} times as fast")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compare::Speed;
    use crate::divergence::{Parted, summary};
    use crate::statistics::Estimate;

    /// A candidate of so many bytes, so much worse.
    pub(crate) fn figures(label: &str, bytes: u64, ln_ratio: f64, error: f64, divergence: f64) -> Figures {
        let mut text = summary(&[Parted::none(1.0), Parted::none(2.0)], 1);
        text.ln_ratio = Estimate { value: ln_ratio, error };
        text.mean = Estimate { value: divergence, error: divergence / 20.0 };
        text.same_top = Estimate { value: 0.95, error: 0.01 };
        let decode = Estimate { value: 1e9 / bytes as f64, error: 0.1 };
        Figures {
            label: label.into(),
            backend: "cpu".into(),
            kv_type: "bf16".into(),
            file_bytes: bytes,
            bits_per_weight: 4.5,
            weight_bytes: bytes,
            kv_bytes_per_token: 1000,
            memory_bytes: bytes + 1000,
            text,
            answers: None,
            parting: None,
            speed: Some(Speed { prefill: decode, decode }),
        }
    }

    pub(crate) fn comparison(candidates: Vec<Figures>) -> Comparison {
        let windows = crate::WindowOptions::default();
        let (prompts, prompts_left_out, context, tokens) = (0, 0, 4096, 1000);
        let (text, advice) = ("a text".into(), String::new());
        Comparison { text, windows, tokens, prompts, prompts_left_out, context, candidates, advice }
    }

    fn advise(others: &[Figures]) -> String {
        let base = figures("base", 1_000_000, 0.0, 0.0, 0.0);
        let text = advice(&comparison([&[base][..], others].concat()));
        assert!(text.ends_with('.') && !text.contains("NaN"), "{text}");
        text
    }

    #[test]
    fn the_smallest_that_is_not_measurably_worse_is_taken() {
        let all = [
            figures("Q8", 530_000, 0.0004, 0.0003, 0.001),
            figures("Q6", 410_000, 0.001, 0.0008, 0.004),
            figures("Q4", 300_000, 0.05, 0.004, 0.05),
            figures("Q2", 200_000, 0.5, 0.01, 0.4),
        ];
        let text = advise(&all);
        assert!(text.starts_with("Take Q6: it needs 41 % of base's bytes and writes 2.4 times"), "{text}");
        assert!(text.contains("+0.10 ± 0.08 %") && text.contains("Q4, the next smaller, costs +5.13 ±"), "{text}");
    }

    #[test]
    fn harm_that_is_measured_is_said() {
        let text = advise(&[figures("Q2", 200_000, 0.5, 0.01, 0.4), figures("Q4", 300_000, 0.05, 0.004, 0.05)]);
        assert!(text.contains("measurably worse") && text.contains("Q4 does the least harm: +5.13"), "{text}");
        assert!(text.contains("Q2, the smallest, costs +64.87"), "{text}");
        // What is far off is seen in a short text, too.
        let text = advise(&[figures("Q2", 200_000, 0.5, 0.1, 0.4)]);
        assert!(text.contains("measurably worse") && text.contains("Q2 does the least harm"), "{text}");
    }

    #[test]
    fn a_short_text_allows_no_advice() {
        let text = advise(&[figures("Q4", 300_000, 0.03, 0.02, 0.05), figures("Q8", 500_000, 0.0, 0.001, 0.01)]);
        assert!(text.contains("too short") && text.contains("--text") && text.contains("Q8 is nearest"), "{text}");
    }

    #[test]
    fn larger_ones_are_no_choice() {
        let text = advise(&[figures("F32", 2_000_000, 0.0, 0.001, 0.001)]);
        assert!(text.starts_with("None is smaller than base: keep it"), "{text}");
    }

    #[test]
    fn the_same_files_are_told_apart_by_memory() {
        let mut int8 = figures("int8", 1_000_000, 0.0001, 0.001, 0.001);
        int8.memory_bytes = 500_500;
        int8.speed = None;
        let text = advise(&[int8]);
        assert!(text.contains("50 % of base's memory, its perplexity"), "{text}");
    }
}
