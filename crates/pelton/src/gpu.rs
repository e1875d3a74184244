//! GPUs: how many layers they get, which they got, and why not more.
//!
//! [`GpuLayers`] is what a caller typed; `open.rs` finds cards and fills them, by the rules of `plan.rs`; [`GpuReport`]
//! says what became of it. Invariant: what was asked for in so many words is granted or an error that says what is
//! missing; `auto` never fails for want of a GPU, and never leaves one out in silence.

mod open;
mod plan;

use std::ops::Range;

pub(crate) use open::{Chosen, Missing, Wanted, attempt, choose, refuse_beside_reference};
pub(crate) use plan::{CardNeeds, Placed, least_tokens};

use crate::Error;

/// How many layers of a model go to GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as fit, none where there is no GPU.
    #[default]
    Auto,
    /// All of them, and the head.
    All,
    /// The first so many; with the number of the model's layers, the head too. 0: no GPU is looked for.
    Count(usize),
}

impl GpuLayers {
    /// Reads `auto`, `all` or a number.
    ///
    /// # Errors
    /// [`Error::Usage`] for anything else.
    pub fn parse(text: &str) -> Result<GpuLayers, Error> {
        match text.trim() {
            "auto" => Ok(GpuLayers::Auto),
            "all" => Ok(GpuLayers::All),
            number => number.parse().map(GpuLayers::Count).map_err(|_| {
                Error::Usage(format!("--gpu-layers {text}: expected a number of layers, `auto` or `all`"))
            }),
        }
    }
}

impl std::fmt::Display for GpuLayers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GpuLayers::Auto => f.write_str("auto"),
            GpuLayers::All => f.write_str("all"),
            GpuLayers::Count(n) => write!(f, "{n}"),
        }
    }
}

/// A card that has layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardReport {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What its kernels were compiled for, and where they came from.
    pub kernels: String,
    /// Its layers.
    pub layers: Range<usize>,
    /// Bytes of weights on it.
    pub weight_bytes: usize,
    /// Bytes of keys and values on it.
    pub kv_bytes: usize,
    /// Bytes that weights, keys and values, and activations may take.
    pub budget_bytes: usize,
}

/// What became of the GPUs: shown to the user, never silent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuReport {
    /// The cards that have layers; the first has the first ones.
    pub cards: Vec<CardReport>,
    /// Layers of the model.
    pub n_layers: usize,
    /// The head is on the last card, too.
    pub head_on_card: bool,
    /// Why nothing, or not everything, is on a GPU. Empty where everything is, or none was asked for.
    pub reason: Option<String>,
}

impl GpuReport {
    /// Nothing is on a GPU.
    pub(crate) fn none(n_layers: usize, reason: Option<String>) -> GpuReport {
        GpuReport { n_layers, reason, ..GpuReport::default() }
    }

    /// Where the layers are, for people: `layers 0–20 on NVIDIA …, 21–27 and the head on the CPU: 512 MiB short`. `None`
    /// where no GPU was asked for.
    pub fn line(&self) -> Option<String> {
        let Some(last) = self.cards.last() else {
            return self.reason.as_ref().map(|reason| format!("no GPU: {reason}"));
        };
        let range =
            |r: &Range<usize>| if r.len() == 1 { r.start.to_string() } else { format!("{}–{}", r.start, r.end - 1) };
        let on_cards: Vec<String> = self.cards.iter().map(|c| format!("{} on {}", range(&c.layers), c.name)).collect();
        let rest = last.layers.end..self.n_layers;
        let rest = match (rest.is_empty(), self.head_on_card) {
            (true, true) => String::new(),
            (true, false) => ", the head on the CPU".into(),
            (false, _) => format!(", {} and the head on the CPU", range(&rest)),
        };
        let all = if rest.is_empty() { "all layers and the head: " } else { "layers " };
        let reason = self.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        Some(format!("{all}{}{rest}{reason}", on_cards.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(name: &str, layers: Range<usize>) -> CardReport {
        let kernels = "sm_86, embedded".into();
        CardReport { index: 0, name: name.into(), kernels, layers, weight_bytes: 1, kv_bytes: 0, budget_bytes: 2 }
    }

    #[test]
    fn numbers_of_layers_are_read_or_refused() {
        let read = |text| GpuLayers::parse(text).unwrap();
        assert_eq!(
            [read("auto"), read("all"), read("0"), read(" 28 ")].map(|l| l.to_string()),
            ["auto", "all", "0", "28"]
        );
        for bad in ["", "-1", "some", "1.5", "99999999999999999999999"] {
            assert!(GpuLayers::parse(bad).unwrap_err().to_string().contains("auto"), "{bad}");
        }
    }

    #[test]
    fn a_line_says_where_every_layer_is_and_why() {
        let mut report = GpuReport::none(28, None);
        assert_eq!(report.line(), None);
        report.reason = Some("no NVIDIA driver".into());
        assert_eq!(report.line().unwrap(), "no GPU: no NVIDIA driver");
        report.cards = vec![card("NVIDIA A", 0..21)];
        report.reason = Some("512 MiB short".into());
        assert_eq!(report.line().unwrap(), "layers 0–20 on NVIDIA A, 21–27 and the head on the CPU: 512 MiB short");
        report.cards = vec![card("A", 0..1), card("B", 1..28)];
        assert_eq!(report.line().unwrap(), "layers 0 on A, 1–27 on B, the head on the CPU: 512 MiB short");
        (report.head_on_card, report.reason) = (true, None);
        assert_eq!(report.line().unwrap(), "all layers and the head: 0 on A, 1–27 on B");
    }
}
