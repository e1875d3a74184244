//! Drafts in steps that read prompts, too.
//!
//! ```text
//! a row among many        row   = T(p + n) / (p + n)                 p tokens of prompts, n sequences that decode
//! a token that came early token = a · T(n) / n  +  (1 − a) · row
//! ```
//!
//! There a further row costs little: it shares the weights with the prompts. What an accepted draft is worth depends on
//! the steps that follow: a share `a` of all tokens come in steps without prompts, and one that is there already saves its
//! part of such a step; the others would have come beside prompts, for the price of a row, and a draft that costs a row to
//! save a row cannot pay. So where prompts never end (a machine that is bound by arithmetic) nothing is drafted, and where
//! they come in bursts the steps in which they are read bring more tokens.
//!
//! Only drafters that have no model are asked: a pass of another model would hold up the prompts.
//!
//! Invariant: as in steps without prompts, drafts must be covered by the bank as if none were accepted; what they brought
//! and cost is put on the same account, by the learned costs, since such a step has none like it to be compared with.

use super::{CREDIT, Controller, MARGIN, Order, Outlook, Pick};

/// Share of a new token in the running share of tokens that come in steps without prompts.
const TOKEN_WEIGHT: f64 = 1.0 / 64.0;

/// What rows and tokens are worth in a step with prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Prices {
    row: f64,
    token: f64,
}

impl Controller {
    /// Whether a step of `n` sequences beside `prompts` tokens of prompts may have drafts.
    pub(crate) fn may_look_beside(&mut self, n: usize, prompts: usize) -> bool {
        if n == 0 || !self.costs.target.is_known_near(n) {
            return false;
        }
        let pays = self.prices(n, prompts).is_some_and(|prices| prices.token > MARGIN * prices.row);
        pays && self.affords_look(n)
    }

    /// What to draft beside `prompts` tokens of prompts: all drafts that are worth their row, the likeliest first, as far
    /// as the bank covers them.
    pub(crate) fn choose_beside(&self, outlooks: &[Outlook], prompts: usize, most: usize) -> Order {
        let n = outlooks.len();
        let nothing = Order::nothing(n);
        let Some(prices) = self.prices(n, prompts) else { return nothing };
        let is_worth = |survival: f64| survival * prices.token > MARGIN * prices.row;
        // Of each sequence, the drafter whose drafts are worth most.
        let best = |outlook: &Outlook| -> Option<(usize, Vec<f64>)> {
            let mut best = (0.0, None);
            for (drafter, prospect) in outlook.prospects.iter().enumerate() {
                let (Some(prospect), None) = (prospect, &self.costs.drafters[drafter]) else { continue };
                let drafts = prospect.survival.iter().copied().take(most).take_while(|&s| is_worth(s));
                let drafts: Vec<f64> = drafts.collect();
                let worth: f64 = drafts.iter().map(|s| s * prices.token - prices.row).sum();
                if worth > best.0 {
                    best = (worth, Some((drafter, drafts)));
                }
            }
            best.1
        };
        let best: Vec<_> = outlooks.iter().map(best).collect();
        let drafts = best.iter().enumerate().filter_map(|(i, best)| Some((i, &best.as_ref()?.1)));
        let mut all: Vec<(f64, usize)> = drafts.flat_map(|(i, drafts)| drafts.iter().map(move |&s| (s, i))).collect();
        // Stable, and a survival never rises along a sequence: whatever is taken of it is its beginning.
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.truncate(self.max_rows);
        while !all.is_empty() && self.risk_beside(n, all.len(), prices) > self.bank.seconds {
            all.truncate(all.len() / 2);
        }
        let mut picks: Vec<Pick> = vec![None; n];
        for (_, i) in all {
            let drafter = best[i].as_ref().map_or(0, |best| best.0);
            picks[i] = Some((drafter, picks[i].map_or(1, |(_, len)| len + 1)));
        }
        // All that is picked is run: how sure the drafters are was known before.
        Order { picks, gain: 0.0 }
    }

    /// Takes note of a step of `n` sequences beside `prompts` tokens of prompts, with `x` drafts of which `accepted` were
    /// accepted, that took `seconds`. Gives the seconds that the drafts took of it.
    pub(crate) fn note_beside(&mut self, n: usize, prompts: usize, (x, accepted): (usize, usize), seconds: f64) -> f64 {
        let prices = self.prices(n, prompts);
        self.costs.target.note_like(n + prompts + x, seconds);
        self.note_tokens(n, 0.0);
        let Some(Prices { row, token }) = prices else { return 0.0 };
        self.bank.seconds += CREDIT * token * accepted as f64 - row * x as f64;
        self.allow(n as f64 * row);
        row * x as f64
    }

    /// Takes note of `n` tokens, of which a share of `apart` came without prompts beside them.
    pub(super) fn note_tokens(&mut self, n: usize, apart: f64) {
        let weight = 1.0 - (1.0 - TOKEN_WEIGHT).powi(n.min(1024) as i32);
        self.apart += weight * (apart - self.apart);
    }

    fn prices(&self, n: usize, prompts: usize) -> Option<Prices> {
        let rows = n + prompts;
        let row = self.costs.target.estimate(rows)? / rows as f64;
        let apart = self.costs.target.estimate(n)? / n.max(1) as f64;
        Some(Prices { row, token: self.apart * apart + (1.0 - self.apart) * row })
    }

    /// Seconds that `x` drafts may cost: should no prompt come after all, they cost more.
    fn risk_beside(&self, n: usize, x: usize, prices: Prices) -> f64 {
        let seconds = |rows: usize| self.costs.target.estimate(rows).unwrap_or(f64::INFINITY);
        (prices.row * x as f64).max(seconds(n + x) - seconds(n))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ALLOWANCE, Prospect};
    use super::*;

    /// A target whose steps take 10 ms and a tenth of a millisecond a row, and that was measured well.
    fn controller() -> Controller {
        let mut controller = Controller::new(&[None, Some(0.1)], 0.0, 64);
        let seconds = |rows: usize| 0.010 + 0.0001 * rows as f64;
        for _ in 0..400 {
            for n in [1, 2, 4] {
                controller.note_step(n, 0, n, seconds(n), 0.0);
            }
            controller.note_prompts(256, seconds(256));
        }
        controller
    }

    fn outlook(free: &[f64], model: &[f64]) -> Outlook {
        let prospect = |s: &[f64]| (!s.is_empty()).then(|| Prospect { survival: s.to_vec(), behind: 0 });
        Outlook { prospects: vec![prospect(free), prospect(model)], remaining: 50.0 }
    }

    #[test]
    fn drafts_beside_prompts_are_those_worth_their_row() {
        let mut controller = controller();
        assert!(controller.may_look_beside(1, 255), "tokens come without prompts, so far");
        // A row costs 36 ms / 256 = 0.14 ms, a token that comes early saves 10.1 ms: anything above 1.4 % pays.
        let picks = |c: &Controller, free: &[f64]| c.choose_beside(&[outlook(free, &[0.99; 8])], 255, 16).picks;
        assert_eq!(picks(&controller, &[0.5, 0.2, 0.03, 0.001]), [Some((0, 3))], "no model is asked");
        assert_eq!(picks(&controller, &[0.01]), [None]);
        assert_eq!(picks(&controller, &[]), [None]);
        let two = [outlook(&[0.5, 0.4], &[]), outlook(&[0.9, 0.1], &[])];
        let total = |order: &Order| order.picks.iter().flatten().map(|&(_, len)| len).sum::<usize>();
        assert_eq!(total(&controller.choose_beside(&two, 254, 16)), 4);
        controller.max_rows = 3;
        assert_eq!(controller.choose_beside(&two, 254, 16).picks, [Some((0, 2)), Some((0, 1))], "the likeliest");
        controller.max_rows = 0;
        assert_eq!(total(&controller.choose_beside(&two, 254, 16)), 0);
    }

    #[test]
    fn where_prompts_never_end_no_draft_pays() {
        let mut controller = controller();
        for _ in 0..400 {
            controller.note_beside(4, 252, (0, 0), 0.0356);
        }
        assert!(!controller.may_look_beside(4, 252));
        assert_eq!(controller.choose_beside(&[outlook(&[0.99; 4], &[])], 255, 16).picks, [None]);
        for _ in 0..40 {
            controller.note_step(4, 0, 4, 0.0104, 0.0);
        }
        assert!(controller.may_look_beside(4, 252), "steps without prompts are back");
    }

    #[test]
    fn the_account_is_the_same() {
        let mut controller = controller();
        let before = controller.saved();
        let cost = controller.note_beside(1, 255, (8, 0), 0.0364);
        assert!(cost > 0.0008, "eight rows: {cost}");
        let allowed = ALLOWANCE * cost / 8.0;
        assert!((before - controller.saved() - cost + allowed).abs() < 1e-9);
        let before = controller.saved();
        controller.note_beside(1, 255, (8, 8), 0.0364);
        assert!(controller.saved() > before + 0.01, "eight tokens that need no step of their own");
        // Nothing in it: nothing is drafted, and nobody looks.
        while controller.saved() > 0.0 {
            controller.note_beside(1, 255, (64, 0), 0.042);
        }
        assert!(!controller.may_look_beside(1, 255));
        assert_eq!(controller.choose_beside(&[outlook(&[0.99; 4], &[])], 255, 16).picks, [None]);
    }

    #[test]
    fn nothing_is_known_at_first() {
        let mut controller = Controller::new(&[None], 0.5, 64);
        assert!(!controller.may_look_beside(1, 100) && !controller.may_look_beside(0, 100));
        assert_eq!(controller.choose_beside(&[outlook(&[0.9], &[])], 100, 16).picks, [None]);
        assert_eq!(controller.note_beside(1, 100, (0, 0), 0.02), 0.0);
    }
}
