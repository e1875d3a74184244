//! How many drafts, of which drafter, for whom: the choice of each step, a pure function of what was measured.
//!
//! ```text
//! a plain step of n sequences              n tokens          in  T(n)
//! the same with x drafts behind them       n + Σ survival    in  T(n + x) + what drafting takes
//! ```
//!
//! `survival` of a draft is the probability that it and all before it are accepted; `T` is what steps took on this
//! machine. The drafts most likely to survive are added as long as tokens per second rise.
//!
//! What makes it unable to lose is the [`Bank`]: the seconds that speculation has saved so far, by measurement, and a
//! small allowance for trying. A step with drafts must be covered by it in the worst case, that none is accepted; and
//! looking for drafts, choosing among them and learning from them is paid from it, too: small models' steps are short
//! enough for that to be felt. While it is empty nobody looks. So at any moment all that speculation has ever cost is at
//! most what it has brought, plus that allowance (and the last look), whatever drafts do next. Where nothing is ever
//! accepted, that is [`ALLOWANCE`] of the time.
//!
//! Invariant: no clock here, and no randomness; the same measurements give the same choices.

mod beside;

use super::MAX_DRAFT;
use super::cost::StepCost;

/// Share of the time of decode steps that may be spent on trying.
pub(crate) const ALLOWANCE: f64 = 0.006;

/// While there is less than a plain step in the bank, no more than this share of the time goes into looking: so the rest
/// of the allowance gathers until it covers a trial.
const LOOKS: f64 = ALLOWANCE / 3.0;

/// Share of a new look in the running mean.
const LOOK_WEIGHT: f64 = 0.2;

/// Speculation pays where it is expected to be this much faster than plain decoding.
const MARGIN: f64 = 1.04;

/// What is credited of the seconds that were saved: what plain steps take is known no better than this.
const CREDIT: f64 = 0.98;

/// What was saved counts up to so many plain steps: a change for the worse costs no more.
const MAX_SAVED_STEPS: f64 = 96.0;

/// After so many steps with drafts a plain one is measured anew.
const PLAIN_EVERY: u32 = 64;

/// Steps between two trials, while they bring nothing: at first, and in the end.
const FIRST_WAIT: u32 = 8;
const LAST_WAIT: u32 = 256;

/// Rows of the largest steps that drafts are weighed for; beyond, other kernels may run.
const LARGEST_STEP: usize = 96;

/// Depths of drafting that are compared.
const DEPTHS: [usize; 9] = [1, 2, 3, 4, 5, 6, 8, 12, MAX_DRAFT];

/// Drafts of a trial.
const TRIAL: usize = 4;

/// What one drafter could do for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prospect {
    /// The probability that the drafts up to each are all accepted.
    pub(crate) survival: Vec<f64>,
    /// Tokens that the drafter must run before.
    pub(crate) behind: usize,
}

/// What can be expected of one sequence that decodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outlook {
    /// By drafter.
    pub(crate) prospects: Vec<Option<Prospect>>,
    /// Tokens that it will probably get yet.
    pub(crate) remaining: f64,
}

/// What things cost.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    /// A step of the target.
    pub(crate) target: StepCost,
    /// A pass of each drafter's model; `None` where it has none.
    pub(crate) drafters: Vec<Option<PassCost>>,
}

/// What a pass of a draft model costs.
#[derive(Clone, Debug)]
pub(crate) struct PassCost {
    pub(crate) measured: StepCost,
    /// Its size, the target's being 1: what is assumed before it was run.
    pub(crate) size: f64,
}

/// What is to be drafted for one sequence: which drafter, and how many tokens at most.
pub(crate) type Pick = Option<(usize, usize)>;

/// A way to make the next step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    /// By sequence.
    pub(crate) picks: Vec<Pick>,
    /// Tokens a second that are expected of it, over those of a plain step.
    pub(crate) gain: f64,
    /// Seconds more than a plain step, where nothing is accepted.
    pub(crate) risk: f64,
}

/// What is to be drafted for a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Order {
    /// By sequence.
    pub(crate) picks: Vec<Pick>,
    /// Tokens a second that are expected, over those of a plain step. 0 for a trial: all of it is run, however unlikely.
    pub(crate) gain: f64,
}

impl Order {
    pub(crate) fn nothing(n: usize) -> Order {
        Order { picks: vec![None; n], gain: 1.0 }
    }
}

/// Seconds of a pass of a drafter's model with `rows` rows; where it was never run, a share of the target's.
fn pass_seconds(costs: &Costs, drafter: usize, rows: usize) -> f64 {
    let Some(cost) = &costs.drafters[drafter] else { return 0.0 };
    // Small models are less efficient than their size.
    let assumed = || costs.target.estimate(rows).unwrap_or(0.0) * (1.2 * cost.size + 0.02);
    cost.measured.estimate(rows).unwrap_or_else(assumed)
}

/// Seconds that drafting with the picks takes: what was left behind, and a pass for each further token.
fn draft_seconds(costs: &Costs, outlooks: &[Outlook], picks: &[Pick]) -> (f64, f64) {
    let (mut passes, mut behind) = (0.0, 0.0);
    for drafter in 0..costs.drafters.len() {
        let mine = |pick: &Pick| pick.filter(|&(other, _)| other == drafter).map(|(_, len)| len);
        if costs.drafters[drafter].is_none() {
            continue;
        }
        for depth in 0..MAX_DRAFT {
            match picks.iter().filter(|pick| mine(pick).is_some_and(|len| len > depth)).count() {
                0 => break,
                rows => passes += pass_seconds(costs, drafter, rows),
            }
        }
        let late = picks.iter().zip(outlooks).filter(|(pick, _)| mine(pick).is_some());
        let late: usize = late.filter_map(|(_, o)| o.prospects[drafter].as_ref()).map(|p| p.behind).sum();
        if late > 0 {
            behind += pass_seconds(costs, drafter, late);
        }
    }
    (passes, behind)
}

/// The drafts most likely to survive, as long as they raise the rate. `survivals`: for each sequence, of its drafts.
/// `base` tokens come without any, `sunk` seconds are spent already. Gives how many of each sequence's, and the rate.
pub(crate) fn most_likely(
    cost: &StepCost,
    survivals: &[&[f64]],
    n: usize,
    sunk: f64,
    max_rows: usize,
) -> (Vec<usize>, f64) {
    let mut all: Vec<(f64, usize)> = Vec::new();
    for (index, survival) in survivals.iter().enumerate() {
        all.extend(survival.iter().map(|&s| (s, index)));
    }
    // Stable: of equals those of the first sequence, in order; a survival never rises along a sequence.
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let seconds = |rows: usize| cost.estimate(rows).unwrap_or(f64::INFINITY) + sunk;
    let (mut tokens, mut best) = (n as f64, (n as f64 / seconds(n), 0));
    for (taken, &(survival, _)) in all.iter().enumerate().take(max_rows) {
        tokens += survival;
        let rate = tokens / seconds(n + taken + 1);
        if rate > best.0 {
            best = (rate, taken + 1);
        }
    }
    let mut lens = vec![0; survivals.len()];
    all[..best.1].iter().for_each(|&(_, index)| lens[index] += 1);
    (lens, best.0)
}

/// The best way to make the next step with drafts of these drafters alone, none longer than `most`.
fn best_with(
    costs: &Costs,
    outlooks: &[Outlook],
    allowed: &dyn Fn(usize) -> bool,
    most: usize,
    max_rows: usize,
) -> Option<Choice> {
    let n = outlooks.len();
    let plain = costs.target.estimate(n)?;
    let row = ((costs.target.estimate(n + 8)? - plain) / 8.0).max(0.0);
    let token = plain / n as f64;
    // Each sequence's better drafter, as if it were alone.
    let worth = |o: &Outlook, drafter: usize| {
        let prospect = o.prospects[drafter].as_ref()?;
        let pass = pass_seconds(costs, drafter, n) / n as f64;
        let (mut value, mut best) = (0.0, 0.0);
        for survival in prospect.survival.iter().take(most) {
            value += survival * token - row - pass;
            best = f64::max(best, value);
        }
        Some(best)
    };
    let drafter_of = |o: &Outlook| {
        let all = (0..o.prospects.len()).filter(|&d| allowed(d)).filter_map(|d| Some((worth(o, d)?, d)));
        all.fold(
            None,
            |best: Option<(f64, usize)>, new| if best.is_some_and(|b| b.0 >= new.0) { best } else { Some(new) },
        )
    };
    let drafters: Vec<Option<usize>> = outlooks.iter().map(|o| drafter_of(o).map(|(_, d)| d)).collect();
    let mut best: Option<Choice> = None;
    let runs_model = drafters.iter().flatten().any(|&d| costs.drafters[d].is_some());
    let depths: &[usize] = if runs_model { &DEPTHS } else { &[MAX_DRAFT] };
    let mut worse = 0;
    for depth in depths.iter().map(|&depth| depth.min(most)) {
        let survivals: Vec<&[f64]> = outlooks
            .iter()
            .zip(&drafters)
            .map(|(o, d)| match d {
                Some(d) => {
                    let survival = o.prospects[*d].as_ref().expect("it has a worth").survival.as_slice();
                    let most = if costs.drafters[*d].is_some() { depth } else { most };
                    &survival[..survival.len().min(most)]
                }
                None => &[],
            })
            .collect();
        let (lens, _) = most_likely(&costs.target, &survivals, n, 0.0, max_rows);
        let picks: Vec<Pick> =
            drafters.iter().zip(&lens).map(|(d, &len)| d.filter(|_| len > 0).map(|d| (d, len))).collect();
        let tokens: f64 = survivals.iter().zip(&lens).map(|(s, &len)| s[..len].iter().sum::<f64>()).sum();
        let choice = weigh(costs, outlooks, picks, n as f64 + tokens)?;
        if best.as_ref().is_none_or(|b| choice.gain > b.gain) {
            (best, worse) = (Some(choice), 0);
        } else {
            worse += 1;
        }
        if worse == 2 || depth == most {
            break;
        }
    }
    best.filter(|b| b.picks.iter().any(Option::is_some))
}

/// What a step with these picks brings and risks, if `tokens` tokens are expected of it.
fn weigh(costs: &Costs, outlooks: &[Outlook], picks: Vec<Pick>, tokens: f64) -> Option<Choice> {
    let n = outlooks.len();
    let plain = costs.target.estimate(n)?;
    let x: usize = picks.iter().flatten().map(|&(_, len)| len).sum();
    let step = costs.target.estimate(n + x)?;
    let (passes, behind) = draft_seconds(costs, outlooks, &picks);
    // What must be run once is spread over the tokens that it is good for.
    let remaining = outlooks.iter().zip(&picks).filter(|(_, pick)| pick.is_some()).map(|(o, _)| o.remaining);
    let remaining = remaining.sum::<f64>().max(1.0);
    let spread = behind * (tokens / remaining).min(1.0);
    let gain = (tokens / (step + passes + spread)) / (n as f64 / plain);
    Some(Choice { picks, gain, risk: step + passes + behind - plain })
}

/// What speculation may still cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bank {
    seconds: f64,
}

/// What is known of the trials of one drafter.
#[derive(Clone, Copy, Debug)]
struct Trials {
    since: u32,
    wait: u32,
}

/// Chooses, and keeps account.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    pub(crate) costs: Costs,
    bank: Bank,
    /// Plain steps' worth that is lent before anything is known; 0 once it is.
    trust: f64,
    trials: Vec<Trials>,
    /// Steps with drafts since the last plain one.
    since_plain: u32,
    /// Steps since the last look, and seconds that one takes.
    since_look: u32,
    look: f64,
    /// Share of tokens that come in steps without prompts.
    apart: f64,
    max_rows: usize,
}

impl Controller {
    /// `sizes`: of each drafter's model, the target's being 1; `None` where it has none.
    pub(crate) fn new(sizes: &[Option<f64>], trust: f64, max_rows: usize) -> Controller {
        let cost = |size: &Option<f64>| size.map(|size| PassCost { measured: StepCost::default(), size });
        let drafters = sizes.iter().map(cost).collect();
        Controller {
            costs: Costs { target: StepCost::default(), drafters },
            bank: Bank::default(),
            trust,
            trials: vec![Trials { since: FIRST_WAIT, wait: FIRST_WAIT }; sizes.len()],
            since_plain: 0,
            since_look: 0,
            look: 0.0,
            apart: 0.5,
            max_rows,
        }
    }

    /// Whether a step of `n` sequences may have drafts: if not, drafters need not even be asked what they have.
    pub(crate) fn may_look(&mut self, n: usize) -> bool {
        self.trials.iter_mut().for_each(|trials| trials.since = trials.since.saturating_add(1));
        if n == 0 || self.since_plain >= PLAIN_EVERY || self.costs.target.seen(n) < StepCost::ENOUGH {
            return false;
        }
        if self.trust > 0.0 {
            self.bank.seconds += self.trust * self.costs.target.estimate(n).unwrap_or(0.0);
            self.trust = 0.0;
        }
        self.affords_look(n)
    }

    /// Whether looking, for `n` sequences, is paid for.
    fn affords_look(&mut self, n: usize) -> bool {
        self.since_look = self.since_look.saturating_add(1);
        let plain = self.costs.target.estimate(n).unwrap_or(0.0);
        let is_rich = self.bank.seconds >= plain;
        let may = is_rich || (self.bank.seconds > 0.0 && f64::from(self.since_look) * LOOKS * plain >= self.look);
        if may {
            self.since_look = 0;
        }
        may
    }

    /// Whether a drafter is worth asking: its trial is due, or it would pay if it had nothing to catch up with. What
    /// needs no model is always asked. `survival`: what is known of its drafts for all sequences.
    pub(crate) fn is_worth_asking(&self, drafter: usize, survival: impl FnOnce() -> Vec<f64>, n: usize) -> bool {
        let trials = self.trials[drafter];
        let is_free = self.costs.drafters[drafter].is_none();
        is_free || trials.since >= trials.wait || self.promises(drafter, &survival(), n)
    }

    /// Whether drafts of one drafter for `n` sequences would pay at some depth, with nothing to catch up.
    fn promises(&self, drafter: usize, survival: &[f64], n: usize) -> bool {
        if self.costs.drafters[drafter].is_none() {
            return true;
        }
        let (Some(plain), pass) = (self.costs.target.estimate(n), pass_seconds(&self.costs, drafter, n)) else {
            return false;
        };
        let mut tokens = 1.0;
        let pays = |(depth, survival): (usize, &f64)| {
            tokens += survival;
            let step = self.costs.target.estimate(n + n * depth).unwrap_or(f64::INFINITY);
            tokens * plain > step + pass * depth as f64
        };
        (1..).zip(survival).any(pays)
    }

    /// What to draft for the next step. `most`: drafts behind one token.
    pub(crate) fn choose(&mut self, outlooks: &[Outlook], most: usize) -> Order {
        let n = outlooks.len();
        let offered = |drafter: usize| outlooks.iter().any(|o| o.prospects[drafter].is_some());
        let models = self.costs.drafters.iter().enumerate().any(|(d, cost)| cost.is_some() && offered(d));
        // The most that the bank covers.
        let mut len = if (0..self.costs.drafters.len()).any(offered) { most } else { 0 };
        while len > 0 {
            let free = best_with(&self.costs, outlooks, &|d| self.costs.drafters[d].is_none(), len, self.max_rows);
            let any = models.then(|| best_with(&self.costs, outlooks, &|_| true, len, self.max_rows)).flatten();
            let pays = [free, any].into_iter().flatten().filter(|choice| choice.gain > MARGIN);
            let pays: Vec<Choice> = pays.collect();
            if pays.is_empty() {
                break;
            }
            let covered = pays.into_iter().filter(|choice| choice.risk <= self.bank.seconds);
            if let Some(best) = covered.max_by(|a, b| a.gain.total_cmp(&b.gain)) {
                return self.order(best, most);
            }
            len /= 2;
        }
        self.trial(outlooks, most).unwrap_or_else(|| Order::nothing(n))
    }

    /// Lets drafters that turn out to be surer than expected go on for longer, where the bank covers that, too.
    fn order(&self, choice: Choice, most: usize) -> Order {
        let longest = choice.picks.iter().flatten().map(|&(_, len)| len).max().unwrap_or(most);
        let stretch = (most / longest.max(1)).max(1);
        let covered = choice.risk * stretch as f64 <= self.bank.seconds;
        let stretched = |&(drafter, len): &(usize, usize)| match covered && self.costs.drafters[drafter].is_some() {
            true => (drafter, (len * stretch).min(most)),
            false => (drafter, len),
        };
        Order { picks: choice.picks.iter().map(|pick| pick.as_ref().map(stretched)).collect(), gain: choice.gain }
    }

    /// A few drafts for one sequence, to see whether they are accepted: where a drafter's time has come again, and the
    /// bank covers it.
    fn trial(&mut self, outlooks: &[Outlook], most: usize) -> Option<Order> {
        let mut best: Option<(f64, usize, Vec<Pick>)> = None;
        for (drafter, trials) in self.trials.iter().enumerate() {
            if trials.since < trials.wait {
                continue;
            }
            for (index, outlook) in outlooks.iter().enumerate() {
                let Some(prospect) = &outlook.prospects[drafter] else { continue };
                let len = prospect.survival.len().min(TRIAL).min(most).min(self.max_rows);
                for len in [len, len / 2, 1] {
                    let mut picks = vec![None; outlooks.len()];
                    picks[index] = Some((drafter, len)).filter(|_| len > 0);
                    let choice = weigh(&self.costs, outlooks, picks, outlooks.len() as f64)?;
                    let is_better = best.as_ref().is_none_or(|b| choice.risk < b.0);
                    if len > 0 && choice.risk <= self.bank.seconds && is_better {
                        best = Some((choice.risk, drafter, choice.picks));
                        break;
                    }
                }
            }
        }
        let Some((_, drafter, picks)) = best else {
            // Too dear yet: it is not asked what it has at every step until then.
            let due = self.trials.iter_mut().filter(|trials| trials.since >= trials.wait);
            due.for_each(|trials| trials.since = trials.wait - trials.wait.min(FIRST_WAIT));
            return None;
        };
        self.trials[drafter].since = 0;
        Some(Order { picks, gain: 0.0 })
    }

    /// How unlikely a draft may be before its own pass and row are not worth it, for drafts of `n` sequences in a step
    /// that is expected to bring `gain` times the tokens a second of a plain one.
    pub(crate) fn floor(&self, drafter: usize, n: usize, gain: f64) -> f64 {
        let Some(plain) = self.costs.target.estimate(n) else { return 0.0 };
        let row = self.costs.target.estimate(n + 8).map_or(0.0, |more| (more - plain) / 8.0);
        let pass = pass_seconds(&self.costs, drafter, n) / n as f64;
        ((row + pass) * n as f64 / plain * gain).clamp(0.0, 0.9)
    }

    /// How many of the drafts at hand to run, by sequence, now that they are made.
    pub(crate) fn trim(&self, survivals: &[&[f64]], n: usize) -> Vec<usize> {
        most_likely(&self.costs.target, survivals, n, 0.0, self.max_rows).0
    }

    /// Takes note of a pass of a drafter's model; gives the seconds that count for it.
    pub(crate) fn note_pass(&mut self, drafter: usize, rows: usize, seconds: f64) -> f64 {
        let Some(cost) = &mut self.costs.drafters[drafter] else { return 0.0 };
        cost.measured.note(rows, seconds);
        // A pass that something else held up is no news of speculation; nor is a step, below.
        cost.measured.estimate(rows).map_or(seconds, |expected| seconds.min(2.0 * expected))
    }

    /// Takes note of drafts of a drafter that were run for one of `n` sequences. `survival`: what is known of them now.
    pub(crate) fn note_drafts(&mut self, drafter: usize, accepted: usize, survival: &[f64], n: usize) {
        let is_good = accepted > 0 && self.promises(drafter, survival, n);
        let trials = &mut self.trials[drafter];
        trials.wait = if is_good { FIRST_WAIT } else { (trials.wait * 2).min(LAST_WAIT) };
    }

    /// Takes note of `seconds` spent on looking for drafts, choosing among them and learning from them.
    pub(crate) fn note_look(&mut self, n: usize, seconds: f64) {
        // Who was put to sleep meanwhile has not looked for so long.
        let seconds = seconds.min(self.costs.target.estimate(n).unwrap_or(0.0));
        self.bank.seconds -= seconds;
        self.look += LOOK_WEIGHT * (seconds - self.look);
    }

    /// Takes note of a step of `n` sequences with `x` drafts, made in `drafting` seconds, that brought `tokens` tokens
    /// in `step` seconds more. Gives the seconds that a plain step takes, where that is known.
    pub(crate) fn note_step(&mut self, n: usize, x: usize, tokens: usize, step: f64, drafting: f64) -> Option<f64> {
        let plain = self.costs.target.estimate(n);
        self.costs.target.note(n + x, step);
        self.note_tokens(tokens, 1.0);
        self.allow(step + drafting);
        if x == 0 && drafting == 0.0 {
            self.since_plain = 0;
            return plain;
        }
        self.since_plain += 1;
        let plain = plain?;
        let expected = self.costs.target.estimate(n + x).unwrap_or(step);
        let saved = CREDIT * plain * tokens as f64 / n as f64 - step.min(2.0 * expected) - drafting;
        self.bank.seconds += saved;
        Some(plain)
    }

    /// Takes note of a step of `rows` rows of prompts alone (a draft model that is behind has such to run), or of one of
    /// which nothing is to be learned, with 0 rows. It allows for nothing: what streams may lose is a share of their own
    /// time.
    pub(crate) fn note_prompts(&mut self, rows: usize, seconds: f64) {
        if rows > LARGEST_STEP && self.costs.target.estimate(1).is_some() {
            self.costs.target.note(rows, seconds);
        }
    }

    /// Takes note of a plain step of `n` sequences none of which may have drafts.
    pub(crate) fn note_others(&mut self, n: usize, seconds: f64) {
        self.costs.target.note(n, seconds);
        self.note_tokens(n, 1.0);
    }

    /// Lets a share of the time that went by be spent on trying.
    fn allow(&mut self, seconds: f64) {
        let plain = self.costs.target.estimate(1).unwrap_or(0.0);
        let added = ALLOWANCE * seconds.min(1000.0 * plain);
        self.bank.seconds = (self.bank.seconds + added).min(MAX_SAVED_STEPS * plain.max(1e-9));
    }

    /// Seconds that may be lost.
    #[cfg(test)]
    pub(crate) fn saved(&self) -> f64 {
        self.bank.seconds
    }
}
