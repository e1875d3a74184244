//! What is predicted: windows of a text, or answers after their prompts.
//!
//! The windows are those of llama.cpp's `llama-perplexity`, so that figures compare:
//!
//! - *without a stride*, windows lie side by side and what is left at the end is not used; the predictions of a window's
//!   second half are counted, all but the last one's (its next token is in no window);
//! - *with a stride* `s`, each window begins `s` tokens after the one before, and its last `s` predictions are counted.
//!
//! Where the model wants BOS before a text, each window's first token is replaced by it.

use pelton::{Error, Special, Tokenizer};
use serde::Serialize;

/// The fewest tokens of a window: two of each half.
const LEAST_WINDOW: usize = 4;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WindowOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from one window's beginning to the next's; `None` lays them side by side.
    pub stride: Option<usize>,
    /// At most so many windows.
    pub most: Option<usize>,
}

impl Default for WindowOptions {
    /// Side by side, 512 tokens each, all of them.
    fn default() -> WindowOptions {
        WindowOptions { window: 512, stride: None, most: None }
    }
}

/// Tokens of which some are predictions that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The predictions of the rows from here on count, all but that of the last row: row `r` predicts `ids[r + 1]`.
    pub from: usize,
}

impl Stretch {
    /// Predictions that count.
    pub fn counted(&self) -> usize {
        (self.ids.len() - 1).saturating_sub(self.from)
    }
}

enum Source {
    Windows { ids: Vec<u32>, bos: Option<u32>, options: WindowOptions },
    List(Vec<Stretch>),
}

/// All stretches of a measurement.
pub struct Stretches {
    source: Source,
    len: usize,
}

impl Stretches {
    /// The windows of tokens that begin with BOS where the model wants it (then `bos`).
    ///
    /// # Errors
    /// [`Error::Usage`] where the window or the stride makes no sense, or the tokens do not fill a window.
    pub fn windows(ids: Vec<u32>, bos: Option<u32>, options: WindowOptions) -> Result<Stretches, Error> {
        let WindowOptions { window, stride, most } = options;
        if window < LEAST_WINDOW {
            return Err(Error::Usage(format!("--window {window}: expected at least {LEAST_WINDOW} tokens")));
        }
        if let Some(stride) = stride.filter(|s| *s == 0 || *s >= window) {
            let most = window - 1;
            return Err(Error::Usage(format!("--stride {stride}: expected 1 to {most}, less than the window")));
        }
        // A last window must be followed by a token, where strides are used.
        let needed = window + usize::from(stride.is_some());
        if ids.len() < needed {
            return Err(Error::Usage(format!(
                "the text has {} tokens, a window of {window} needs {needed}; give a longer text or a smaller --window",
                ids.len()
            )));
        }
        let all = match stride {
            None => ids.len() / window,
            Some(stride) => (ids.len() - window).div_ceil(stride),
        };
        let len = all.min(most.unwrap_or(all));
        if len == 0 {
            return Err(Error::Usage("no windows to measure".into()));
        }
        Ok(Stretches { source: Source::Windows { ids, bos, options }, len })
    }

    /// The windows of a text. One newline at its end is left out, as llama.cpp leaves it out of a file.
    ///
    /// # Errors
    /// As [`Stretches::windows`].
    pub fn of_text(text: &str, tokenizer: &Tokenizer, options: WindowOptions) -> Result<Stretches, Error> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        if text.is_empty() {
            return Err(Error::Usage("the text is empty".into()));
        }
        let bos = if tokenizer.add_bos() { tokenizer.bos() } else { None };
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode(text, Special::AsText));
        Stretches::windows(ids, bos, options)
    }

    /// Stretches one by one; those without a prediction that counts are left out.
    pub fn list(stretches: Vec<Stretch>) -> Stretches {
        let list: Vec<Stretch> = stretches.into_iter().filter(|s| s.ids.len() > 1 && s.counted() > 0).collect();
        Stretches { len: list.len(), source: Source::List(list) }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The longest, in tokens.
    pub fn longest(&self) -> usize {
        match &self.source {
            Source::Windows { options, .. } => options.window,
            Source::List(list) => list.iter().map(|s| s.ids.len()).max().unwrap_or(0),
        }
    }

    /// One of them, counted from 0.
    ///
    /// # Panics
    /// Where there is none.
    pub fn get(&self, nth: usize) -> Stretch {
        assert!(nth < self.len, "stretch {nth} of {}", self.len);
        match &self.source {
            Source::List(list) => list[nth].clone(),
            Source::Windows { ids, bos, options } => {
                let (window, step) = (options.window, options.stride.unwrap_or(options.window));
                let start = nth * step;
                let mut ids = ids[start..start + window].to_vec();
                if let Some(bos) = bos {
                    ids[0] = *bos;
                }
                let from = options.stride.map_or(window / 2, |stride| window - stride - 1);
                Stretch { ids, from }
            }
        }
    }

    /// The window and all windows' tokens, where they lie side by side.
    pub(crate) fn side_by_side(&self) -> Option<(usize, &[u32])> {
        match &self.source {
            Source::Windows { ids, options, .. } if options.stride.is_none() => {
                Some((options.window, &ids[..self.len * options.window]))
            }
            _ => None,
        }
    }

    /// Predictions that count.
    pub fn counted(&self) -> usize {
        match &self.source {
            Source::List(list) => list.iter().map(Stretch::counted).sum(),
            Source::Windows { .. } => self.len * self.get(0).counted(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(n: u32, bos: Option<u32>, window: usize, stride: Option<usize>) -> Result<Vec<Stretch>, Error> {
        let options = WindowOptions { window, stride, most: None };
        let all = Stretches::windows((0..n).collect(), bos, options)?;
        assert_eq!(all.longest(), window);
        let list: Vec<Stretch> = (0..all.len()).map(|i| all.get(i)).collect();
        assert_eq!(all.counted(), list.iter().map(Stretch::counted).sum::<usize>());
        Ok(list)
    }

    #[test]
    fn side_by_side_the_second_half_counts() {
        let all = windows(23, Some(99), 8, None).unwrap();
        assert_eq!(all.len(), 2, "the rest is not used");
        assert_eq!(all[1], Stretch { ids: vec![99, 9, 10, 11, 12, 13, 14, 15], from: 4 });
        assert_eq!(all[1].counted(), 3, "8 - 8/2 - 1, as the field counts");
        // Odd windows have the larger half counted.
        let odd = windows(9, None, 9, None).unwrap();
        assert_eq!((odd.len(), odd[0].from, odd[0].counted()), (1, 4, 4));
        assert_eq!(odd[0].ids[0], 0, "no BOS, no replacement");
    }

    #[test]
    fn with_a_stride_the_last_predictions_count_each_once() {
        let all = windows(23, None, 8, Some(3)).unwrap();
        assert_eq!(all.len(), 5);
        let predicted: Vec<u32> = all.iter().flat_map(|s| s.ids[s.from + 1..].to_vec()).collect();
        assert_eq!(predicted, (5..20).collect::<Vec<u32>>());
        assert_eq!(windows(9, None, 8, Some(7)).unwrap()[0].from, 0);
        assert_eq!(windows(10, None, 8, Some(1)).unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_cut_is_refused_with_what_would_do() {
        let refused = |n, window, stride, words: &str| {
            let error = windows(n, None, window, stride).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(0, 8, None, "0 tokens");
        refused(7, 8, None, "7 tokens, a window of 8 needs 8");
        refused(8, 8, Some(2), "needs 9");
        refused(100, 3, None, "--window 3");
        refused(100, 8, Some(0), "--stride 0");
        refused(100, 8, Some(8), "1 to 7");
        let none = Stretches::windows((0..9).collect(), None, WindowOptions { window: 8, stride: None, most: Some(0) });
        assert!(none.is_err());
    }

    #[test]
    fn stretches_without_predictions_are_left_out() {
        let of = |ids: &[u32], from| Stretch { ids: ids.to_vec(), from };
        let all = Stretches::list(vec![of(&[1], 0), of(&[1, 2], 1), of(&[1, 2, 3], 1), of(&[], 0)]);
        assert_eq!((all.len(), all.counted(), all.longest()), (1, 1, 3));
    }
}
