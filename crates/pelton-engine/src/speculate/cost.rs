//! What a step of so many rows costs on this machine: learned from the steps that run anyway.
//!
//! ```text
//! seconds(rows) = base * shape(rows)
//! ```
//!
//! `shape` is a table of row counts that were seen, with straight lines between them; it changes slowly. `base` follows
//! each step, whatever its rows, so that a growing context or a busy machine moves the whole curve at once and the
//! comparison of two row counts stays fair.
//!
//! Invariant: an estimate is positive and finite, and never falls with the number of rows.

/// Row counts with an entry of their own; larger counts go to the last one that is not larger.
const FINE: usize = 32;
const COARSE: [usize; 9] = [48, 64, 96, 128, 192, 256, 384, 512, 1024];

/// Share of a new measurement in the base, and the least one in the shape.
const BASE_WEIGHT: f64 = 0.15;
const SHAPE_WEIGHT: f64 = 0.03;

/// A step that took more than so many times what was expected was held up by something else.
const OUTLIER: f64 = 2.0;

/// A row costs this part of a one-row step more, as long as nothing else is known.
const ASSUMED_ROW: f64 = 0.2;
/// And no less than this, wherever no larger step was seen.
const LEAST_ROW: f64 = 0.02;

#[derive(Clone, Copy, Debug)]
struct Entry {
    rows: usize,
    /// In units of the base.
    shape: f64,
    seen: u32,
}

/// The learned costs of one model's steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepCost {
    base: f64,
    /// Ascending by rows.
    entries: Vec<Entry>,
}

/// The count that stands for `rows` in the table.
fn entry_of(rows: usize) -> usize {
    let rows = rows.max(1);
    if rows <= FINE {
        return rows;
    }
    COARSE.iter().copied().filter(|&coarse| coarse <= rows).max().unwrap_or(FINE)
}

impl StepCost {
    /// Steps after which a row count is known.
    pub(crate) const ENOUGH: u32 = 3;

    /// Takes note of a step.
    pub(crate) fn note(&mut self, rows: usize, seconds: f64) {
        if !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        let entry = entry_of(rows);
        // A step of more rows than its entry has counts in proportion.
        let seconds = seconds * entry as f64 / rows.max(1) as f64;
        let found = self.entries.binary_search_by_key(&entry, |e| e.rows);
        if self.entries.is_empty() {
            self.base = seconds;
            self.entries.push(Entry { rows: entry, shape: 1.0, seen: 1 });
            return;
        }
        let expected = self.estimate(entry).expect("there is an entry");
        let known = self.seen(rows) >= StepCost::ENOUGH;
        // What is measured the first time may be anything up to running the rows one by one.
        let seconds = if known { seconds.min(OUTLIER * expected) } else { seconds.min(self.most(entry)) };
        let shape = seconds / self.base;
        match found {
            Ok(index) => {
                let e = &mut self.entries[index];
                e.seen = e.seen.saturating_add(1);
                // The first steps of a kind are slow, if anything: caches are cold.
                let is_better = e.seen == 1 || shape < e.shape;
                let weight = if known { SHAPE_WEIGHT } else { f64::from(u8::from(is_better)) };
                e.shape += (shape - e.shape) * weight;
            }
            Err(index) => self.entries.insert(index, Entry { rows: entry, shape, seen: 1 }),
        }
        if known {
            self.base *= 1.0 + BASE_WEIGHT * (seconds / expected - 1.0);
        }
    }

    /// Takes note that a step of `rows` rows would hardly take longer than `seconds`: those of a step with as many rows of
    /// another kind. It counts until such a step is seen.
    pub(crate) fn note_like(&mut self, rows: usize, seconds: f64) {
        if self.entries.is_empty() || !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        let entry = entry_of(rows);
        let shape = seconds * entry as f64 / rows.max(1) as f64 / self.base;
        match self.entries.binary_search_by_key(&entry, |e| e.rows) {
            Ok(index) if self.entries[index].seen > 0 => {}
            Ok(index) => self.entries[index].shape = self.entries[index].shape.min(shape),
            // What is less than the first entry says nothing of what a step takes at least.
            Err(0) => {}
            Err(index) => self.entries.insert(index, Entry { rows: entry, shape, seen: 0 }),
        }
    }

    /// How often steps of exactly so many rows were seen.
    pub(crate) fn seen(&self, rows: usize) -> u32 {
        let found = self.entries.binary_search_by_key(&entry_of(rows), |e| e.rows);
        found.map_or(0, |index| self.entries[index].seen)
    }

    /// Whether steps of about so many rows are known: a half to twice as many.
    pub(crate) fn is_known_near(&self, rows: usize) -> bool {
        let is_near = |e: &Entry| 2 * e.rows >= rows && e.rows <= 2 * rows && e.seen >= StepCost::ENOUGH;
        self.entries.iter().any(is_near)
    }

    /// Seconds of a step of `rows` rows; `None` before the first measurement.
    pub(crate) fn estimate(&self, rows: usize) -> Option<f64> {
        self.shape_at(rows).map(|shape| shape * self.base)
    }

    /// The most that a step of `rows` rows can cost: its rows in several steps of a size that was seen.
    fn most(&self, rows: usize) -> f64 {
        let shape = |e: &Entry| e.shape * (rows as f64 / e.rows as f64).ceil();
        self.base * self.entries.iter().map(shape).fold(f64::INFINITY, f64::min) * OUTLIER
    }

    fn shape_at(&self, rows: usize) -> Option<f64> {
        let first = self.entries.first()?;
        let rows = rows.max(1) as f64;
        if rows <= first.rows as f64 {
            // Between a step that costs the same and one that costs in proportion.
            return Some(first.shape * (0.5 + 0.5 * rows / first.rows as f64));
        }
        // Noise may make more rows look cheaper: they are not.
        let mut before = (first.rows as f64, first.shape);
        let mut slope = ASSUMED_ROW * first.shape / first.rows as f64;
        for e in &self.entries[1..] {
            let here = (e.rows as f64, e.shape.max(before.1));
            slope = (here.1 - before.1) / (here.0 - before.0);
            if rows <= here.0 {
                return Some(before.1 + slope * (rows - before.0));
            }
            before = here;
        }
        let slope = slope.max(LEAST_ROW * first.shape / first.rows as f64);
        Some(before.1 + slope * (rows - before.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_learned_and_filled_in() {
        let mut cost = StepCost::default();
        assert_eq!(cost.estimate(1), None);
        let real = |rows: usize| 0.010 + 0.001 * rows as f64;
        for _ in 0..40 {
            for rows in [1, 4, 16] {
                cost.note(rows, real(rows));
            }
        }
        for rows in [1, 2, 4, 9, 16, 20] {
            let estimate = cost.estimate(rows).unwrap();
            assert!((estimate / real(rows) - 1.0).abs() < 0.05, "{rows}: {estimate}");
        }
        assert_eq!((cost.seen(4), cost.seen(5)), (40, 0));
        assert_eq!([1, 2, 8, 9, 32, 33].map(|rows| cost.is_known_near(rows)), [true, true, true, true, true, false]);
    }

    #[test]
    fn rows_of_another_kind_tell_until_there_are_some_of_this() {
        let mut cost = StepCost::default();
        cost.note_like(40, 0.1);
        assert_eq!(cost.estimate(40), None, "they are no measurement");
        for rows in [2, 2, 2, 2, 4, 4, 4] {
            cost.note(rows, 0.010 + 0.010 * rows as f64);
        }
        let guessed = cost.estimate(20).unwrap();
        assert!(guessed > 0.2, "ten milliseconds a row: {guessed}");
        cost.note_like(1, 0.001);
        cost.note_like(32, 0.075);
        cost.note_like(32, 0.070);
        cost.note_like(32, 0.090);
        assert!((cost.estimate(32).unwrap() - 0.070).abs() < 1e-9 && cost.estimate(20).unwrap() < 0.07);
        assert_eq!((cost.seen(32), cost.seen(1), cost.is_known_near(32)), (0, 0, false));
        assert!((cost.estimate(2).unwrap() - 0.030).abs() < 1e-6, "smaller steps are not touched");
        cost.note(32, 0.080);
        cost.note_like(32, 0.010);
        assert!((cost.estimate(32).unwrap() - 0.080).abs() < 1e-3, "one of its own counts alone");
    }

    #[test]
    fn the_whole_curve_moves_with_the_machine() {
        let mut cost = StepCost::default();
        for _ in 0..30 {
            cost.note(1, 0.010);
            cost.note(8, 0.020);
        }
        // Twice as slow, and only single rows are run.
        for _ in 0..30 {
            cost.note(1, 0.019);
        }
        let ratio = cost.estimate(8).unwrap() / cost.estimate(1).unwrap();
        assert!(cost.estimate(1).unwrap() > 0.018 && ratio > 1.4, "{cost:?}");
        // One step that was held up changes little.
        let before = cost.estimate(1).unwrap();
        cost.note(1, 60.0);
        assert!(cost.estimate(1).unwrap() < 1.3 * before);
    }

    #[test]
    fn estimates_never_fall_and_absurd_times_are_passed_over() {
        let mut cost = StepCost::default();
        for (rows, seconds) in [(1, 0.01), (3, 0.05), (5, 0.002), (40, 0.03), (900, 0.1), (2, f64::NAN), (2, -1.0)] {
            cost.note(rows, seconds);
        }
        let estimates: Vec<f64> = (1..1200).map(|rows| cost.estimate(rows).unwrap()).collect();
        assert!(estimates.iter().all(|e| e.is_finite() && *e > 0.0));
        assert!(estimates.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12), "{estimates:?}");
        assert_eq!([entry_of(0), entry_of(33), entry_of(48), entry_of(5000)], [1, 32, 48, 1024]);
    }
}
