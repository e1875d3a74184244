//! What fits: weights, KV pages and activations against the memory that is free.
//!
//! Invariant: what a caller asked for in so many words (a context) is granted whole or refused with numbers; what
//! is only an upper bound (a default context, the sequences at once) shrinks, and the plan says from what. Bytes are
//! those that will be allocated: the packed weights' own sizes, whole pages, the activations' rows. Where a model is
//! shared with cards, a page is paid for on each of them and here; the tightest decides how many there are.

use pelton_backend::{KvType, PAGE_LEN};
use pelton_engine::MAX_DRAFT;

use crate::gpu::CardNeeds;
use crate::{Error, Require};

/// The shortest share of the pool that a sequence is worth running with, and the shortest default context.
pub(crate) const LEAST_PAGES: usize = 8;

/// How the memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Longest sequence, in tokens.
    pub context: usize,
    /// The same, had there been memory enough.
    pub wanted_context: usize,
    /// Sequences that run at once.
    pub max_seqs: usize,
    /// The same, had there been memory enough.
    pub wanted_seqs: usize,
    /// Pages of the KV pool.
    pub n_pages: usize,
    /// Sequences of the full context that the pool holds at once.
    pub full_sequences: usize,
    /// Bytes of packed weights.
    pub weight_bytes: usize,
    /// Bytes of the KV pool.
    pub kv_bytes: usize,
    /// Bytes of activations.
    pub activation_bytes: usize,
    /// Bytes that all of these may take together; `None` where the system does not say what is free and no limit was
    /// given.
    pub budget_bytes: Option<usize>,
    /// Bytes of keys and values of one token.
    pub kv_bytes_per_token: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
}

impl MemoryPlan {
    /// All that is planned, in bytes.
    pub fn total_bytes(&self) -> usize {
        self.weight_bytes.saturating_add(self.activation_bytes).saturating_add(self.kv_bytes)
    }

    /// The plan for people, a line for each part.
    pub fn lines(&self) -> Vec<String> {
        let total = self.total_bytes();
        let budget = match self.budget_bytes {
            Some(budget) => format!("{} of {} that may be used", amount(total), amount(budget)),
            None => format!("{} (what is free is not known)", amount(total)),
        };
        let (seqs, tokens) = (self.max_seqs, self.n_pages.saturating_mul(PAGE_LEN));
        vec![
            format!("memory       {budget}"),
            format!("weights      {}", amount(self.weight_bytes)),
            format!("activations  {}", amount(self.activation_bytes)),
            format!(
                "KV pages     {}: {} pages of {PAGE_LEN} tokens, {} bytes a token ({}), prefix cache among them",
                amount(self.kv_bytes),
                self.n_pages,
                self.kv_bytes_per_token,
                self.kv_type.name(),
            ),
            format!(
                "sequences    {seqs} at once, {} of them at the full context of {} ({tokens} tokens in all)",
                self.full_sequences.min(seqs),
                self.context,
            ),
        ]
    }
}

/// Bytes for people, and exactly.
fn amount(bytes: usize) -> String {
    format!("{:.1} MiB ({bytes} bytes)", mib(bytes))
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// What a plan has to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryNeeds {
    pub(crate) weight_bytes: usize,
    pub(crate) kv_bytes_per_token: usize,
    /// Activations of one row of a step.
    pub(crate) row_bytes: usize,
    /// One row of logits.
    pub(crate) logit_row_bytes: usize,
    /// Rows of a step; at least one for each sequence.
    pub(crate) batch_rows: usize,
    /// Rows of a step that are drafts and have logits, too; at most [`MAX_DRAFT`] for each sequence.
    pub(crate) draft_rows: usize,
    /// Asked for by the caller: then it is this or an error.
    pub(crate) context: Option<usize>,
    /// Used where the caller asked for nothing.
    pub(crate) default_context: usize,
    pub(crate) max_seqs: usize,
    pub(crate) kv_type: KvType,
    /// What must be granted, or the model is not run.
    pub(crate) require: Require,
    /// Bytes that may be used, where fewer than are free.
    pub(crate) limit: Option<u64>,
}

impl MemoryNeeds {
    /// The same with a draft model beside it: its weights, its keys and values for each token, its activations.
    pub(crate) fn beside(&self, draft: &MemoryNeeds) -> MemoryNeeds {
        MemoryNeeds {
            weight_bytes: self.weight_bytes.saturating_add(draft.weight_bytes),
            kv_bytes_per_token: self.kv_bytes_per_token.saturating_add(draft.kv_bytes_per_token),
            row_bytes: self.row_bytes.saturating_add(draft.row_bytes),
            logit_row_bytes: self.logit_row_bytes.saturating_add(draft.logit_row_bytes),
            ..*self
        }
    }

    fn activation_bytes(&self, seqs: usize) -> usize {
        let rows = self.row_bytes.saturating_mul(self.batch_rows.max(seqs));
        let drafts = self.draft_rows.min(seqs.saturating_mul(MAX_DRAFT));
        rows.saturating_add(self.logit_row_bytes.saturating_mul(seqs.saturating_add(drafts)))
    }

    /// All but the KV pool.
    fn fixed_bytes(&self, seqs: usize) -> usize {
        self.weight_bytes.saturating_add(self.activation_bytes(seqs))
    }

    fn page_bytes(&self) -> usize {
        self.kv_bytes_per_token.saturating_mul(PAGE_LEN).max(1)
    }
}

impl MemoryPlan {
    /// The plan of a model that is in this machine's memory.
    #[cfg(test)]
    fn new(needs: MemoryNeeds, free: Option<u64>) -> Result<MemoryPlan, Error> {
        MemoryPlan::beside_cards(needs, free, &[])
    }

    /// Divides `free` bytes, the weights' among them, where the rest of the model is on cards. A context that the caller
    /// asked for must fit whole, once; a default one shrinks. The pool holds `max_seqs` full sequences where there is
    /// room, fewer where not; and no more sequences run at once than have their activations and a few pages each.
    pub(crate) fn beside_cards(
        needs: MemoryNeeds,
        free: Option<u64>,
        cards: &[CardNeeds],
    ) -> Result<MemoryPlan, Error> {
        // A tenth stays free for the rest of the process and the rest of the machine.
        let budget_bytes = match (free.map(|free| free / 10 * 9), needs.limit) {
            (Some(free), Some(limit)) => Some(free.min(limit)),
            (free, limit) => free.or(limit),
        };
        let budget_bytes = budget_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let budget = budget_bytes.unwrap_or(usize::MAX);
        let needs = MemoryNeeds {
            context: needs.context.max(needs.require.context),
            max_seqs: needs.max_seqs.max(needs.require.seqs.unwrap_or(1)),
            ..needs
        };
        let page_bytes = needs.page_bytes();
        let here = |seqs| budget.saturating_sub(needs.fixed_bytes(seqs)) / page_bytes;
        let on_cards = |seqs| cards.iter().map(|card| card.affordable(&needs, seqs)).min().unwrap_or(usize::MAX);
        let affordable = |seqs: usize| here(seqs).min(on_cards(seqs));
        let wanted_context = needs.context.unwrap_or(needs.default_context).max(1);
        let wanted_pages = wanted_context.div_ceil(PAGE_LEN);
        let least_pages = if needs.context.is_some() { wanted_pages } else { wanted_pages.min(LEAST_PAGES) };
        if affordable(1) < least_pages {
            let tightest = cards.iter().min_by_key(|card| card.affordable(&needs, 1));
            return Err(match tightest.filter(|_| here(1) >= least_pages) {
                Some(card) => card.shortfall(&needs, wanted_context),
                None => shortfall(&needs, budget, here(1), wanted_context),
            });
        }
        let context = wanted_context.min(affordable(1).saturating_mul(PAGE_LEN));
        let pages_per_sequence = context.div_ceil(PAGE_LEN);
        let share = pages_per_sequence.min(LEAST_PAGES);
        let fits = |seqs: usize| affordable(seqs) >= pages_per_sequence.saturating_add(share.saturating_mul(seqs - 1));
        let wanted_seqs = needs.max_seqs.max(1);
        // Page numbers and counts of sequences are 32 bits wide in the scheduler.
        let countable = u32::MAX as usize;
        let max_seqs = largest(wanted_seqs.min(countable / pages_per_sequence).max(1), fits);
        let n_pages = pages_per_sequence.saturating_mul(max_seqs).min(affordable(max_seqs));
        let full_sequences = n_pages / pages_per_sequence;
        if let Some(required) = needs.require.seqs
            && full_sequences.min(max_seqs) < required
        {
            return Err(too_many(&needs, budget, (context, required), affordable));
        }
        Ok(MemoryPlan {
            budget_bytes,
            kv_bytes_per_token: needs.kv_bytes_per_token,
            kv_type: needs.kv_type,
            context,
            wanted_context,
            max_seqs,
            wanted_seqs,
            n_pages,
            full_sequences,
            weight_bytes: needs.weight_bytes,
            kv_bytes: n_pages.saturating_mul(page_bytes),
            activation_bytes: needs.activation_bytes(max_seqs),
        })
    }
}

impl CardNeeds {
    /// All but keys and values.
    fn fixed_bytes(&self, needs: &MemoryNeeds, seqs: usize) -> usize {
        let own = MemoryNeeds { row_bytes: self.row_bytes, logit_row_bytes: self.logit_row_bytes, ..*needs };
        self.weight_bytes.saturating_add(self.fixed_bytes).saturating_add(own.activation_bytes(seqs))
    }

    fn page_bytes(&self) -> usize {
        self.kv_bytes_per_token.saturating_mul(PAGE_LEN).max(1)
    }

    /// Pages that the card has room for beside `seqs` sequences.
    fn affordable(&self, needs: &MemoryNeeds, seqs: usize) -> usize {
        self.budget.saturating_sub(self.fixed_bytes(needs, seqs)) / self.page_bytes()
    }

    fn shortfall(&self, needs: &MemoryNeeds, wanted: usize) -> Error {
        let kv = wanted.div_ceil(PAGE_LEN).saturating_mul(self.page_bytes());
        let advice = match self.affordable(needs, 1).saturating_mul(PAGE_LEN) {
            0 => "use fewer --gpu-layers or fewer --batch-rows".to_string(),
            fits => format!("the longest context that fits is --context {fits}; fewer --gpu-layers leave more room"),
        };
        let fixed = self.fixed_bytes(needs, 1);
        Error::Usage(format!(
            "a context of {wanted} tokens does not fit on {}: weights {:.0} MiB + activations {:.0} MiB + KV {:.0} MiB = \
             {:.0} MiB, of {:.0} MiB that may be used; {advice}",
            self.name,
            mib(self.weight_bytes),
            mib(fixed.saturating_sub(self.weight_bytes)),
            mib(kv),
            mib(fixed.saturating_add(kv)),
            mib(self.budget),
        ))
    }
}

/// The largest of `1..=most` that fits, where 1 does and nothing fits above what does not.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut beyond) = (1, most.saturating_add(1));
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        match fits(middle) {
            true => fitting = middle,
            false => beyond = middle,
        }
    }
    fitting
}

/// Refuses a number of full sequences, with the numbers and what would fit.
fn too_many(
    needs: &MemoryNeeds,
    budget: usize,
    (context, required): (usize, usize),
    affordable: impl Fn(usize) -> usize,
) -> Error {
    let pages = |context: usize, seqs: usize| context.div_ceil(PAGE_LEN).saturating_mul(seqs);
    let kv = pages(context, required).saturating_mul(needs.page_bytes());
    let fewer = largest(required, |seqs| affordable(seqs) >= pages(context, seqs));
    let shorter = affordable(required) / required * PAGE_LEN;
    let advice = match shorter {
        0 => format!("--require ctx={context},seqs={fewer} fits"),
        shorter => format!("--require ctx={context},seqs={fewer} fits, and so does ctx={shorter},seqs={required}"),
    };
    Error::Memory(format!(
        "{required} sequences of {context} tokens do not fit: weights {:.0} MiB + activations {:.0} MiB + KV {:.0} MiB \
         ({}) = {:.0} MiB, of {:.0} MiB that may be used; {advice}",
        mib(needs.weight_bytes),
        mib(needs.activation_bytes(required)),
        mib(kv),
        needs.kv_type.name(),
        mib(needs.fixed_bytes(required).saturating_add(kv)),
        mib(budget),
    ))
}

fn shortfall(needs: &MemoryNeeds, budget: usize, affordable_pages: usize, wanted: usize) -> Error {
    let kv = wanted.div_ceil(PAGE_LEN).saturating_mul(needs.page_bytes());
    let advice = match affordable_pages.saturating_mul(PAGE_LEN) {
        0 => "choose a smaller model or a smaller quantization".to_string(),
        fits => format!("the longest context that fits is --context {fits}"),
    };
    Error::Memory(format!(
        "a context of {wanted} tokens does not fit: weights {:.0} MiB + activations {:.0} MiB + KV {:.0} MiB = {:.0} MiB, \
         of {:.0} MiB that may be used; {advice}",
        mib(needs.weight_bytes),
        mib(needs.activation_bytes(1)),
        mib(kv),
        mib(needs.fixed_bytes(1).saturating_add(kv)),
        mib(budget),
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One sequence's activations: 10 rows of 40 bytes and 25 of logits for each sequence.
    pub(crate) const NEEDS: MemoryNeeds = MemoryNeeds {
        weight_bytes: 1000,
        kv_bytes_per_token: 10,
        row_bytes: 40,
        logit_row_bytes: 25,
        batch_rows: 10,
        draft_rows: 0,
        context: None,
        default_context: 1024,
        max_seqs: 4,
        kv_type: KvType::Bf16,
        require: Require { context: None, seqs: None, gpu: false },
        limit: None,
    };
    /// Weights, and activations of 4 sequences.
    const FIXED: u64 = 1000 + 400 + 100;

    /// Free memory whose nine tenths are `bytes`.
    fn usable(bytes: u64) -> Option<u64> {
        Some(bytes.div_ceil(9) * 10)
    }

    #[test]
    fn all_sequences_fit_where_there_is_room() {
        let plan = MemoryPlan::new(NEEDS, None).unwrap();
        assert_eq!((plan.context, plan.n_pages, plan.full_sequences, plan.max_seqs), (1024, 128, 4, 4));
        assert_eq!((plan.wanted_context, plan.wanted_seqs), (1024, 4));
        assert_eq!((plan.activation_bytes, plan.kv_bytes), (500, 128 * 320));
    }

    #[test]
    fn fewer_full_sequences_then_a_shorter_default_context() {
        // 2 sequences of 1024 tokens (32 pages of 320 bytes) and a few pages more.
        let plan = MemoryPlan::new(NEEDS, usable(FIXED + 70 * 320)).unwrap();
        assert_eq!((plan.context, plan.full_sequences, plan.max_seqs), (1024, 2, 4));
        let plan = MemoryPlan::new(NEEDS, usable(FIXED + 10 * 320)).unwrap();
        assert_eq!((plan.context, plan.wanted_context, plan.full_sequences), (320, 1024, 1));
        assert_eq!((plan.max_seqs, plan.wanted_seqs), (1, 4));
    }

    #[test]
    fn a_context_that_was_asked_for_is_kept_or_refused_with_the_one_that_fits() {
        let needs = MemoryNeeds { context: Some(1024), ..NEEDS };
        let plan = MemoryPlan::new(needs, usable(FIXED + 32 * 320)).unwrap();
        assert_eq!((plan.context, plan.max_seqs), (1024, 1));
        let error = MemoryPlan::new(needs, usable(FIXED + 10 * 320)).unwrap_err().to_string();
        assert!(error.contains("--context 320"), "{error}");
        let error = MemoryPlan::new(needs, Some(1000)).unwrap_err().to_string();
        assert!(error.contains("smaller model"), "{error}");
        assert!(MemoryPlan::new(needs, Some(0)).is_err());
    }

    #[test]
    fn sequences_shrink_to_what_their_activations_and_a_few_pages_each_allow() {
        let needs = MemoryNeeds { max_seqs: 1_000_000, batch_rows: 1, ..NEEDS };
        // 32 pages for one of them, then 8 pages, a row and its logits for each.
        let one = 1000 + 65 + 32 * 320;
        for n in [1, 2, 5, 100] {
            let free = usable(one + (n - 1) * (8 * 320 + 65));
            let plan = MemoryPlan::new(needs, free).unwrap();
            assert_eq!((plan.max_seqs as u64, plan.wanted_seqs), (n, 1_000_000));
            let used = plan.weight_bytes + plan.activation_bytes + plan.kv_bytes;
            assert!(used as u64 <= free.unwrap() / 10 * 9, "{plan:?}");
        }
    }

    #[test]
    fn what_is_required_is_granted_or_refused_with_what_fits() {
        let require =
            |context, seqs| MemoryNeeds { require: Require { context, seqs, gpu: false }, max_seqs: 1, ..NEEDS };
        // Two sequences of 1024 tokens: 64 pages of 320 bytes, two rows of logits.
        let enough = usable(1000 + 400 + 50 + 64 * 320);
        let plan = MemoryPlan::new(require(Some(1024), Some(2)), enough).unwrap();
        assert_eq!((plan.context, plan.max_seqs, plan.full_sequences), (1024, 2, 2));
        assert!(plan.total_bytes() <= plan.budget_bytes.unwrap(), "{plan:?}");
        let error = MemoryPlan::new(require(Some(1024), Some(4)), enough).unwrap_err().to_string();
        assert!(error.contains("4 sequences of 1024") && error.contains("ctx=1024,seqs=2 fits"), "{error}");
        let shorter: usize = error.split("ctx=").nth(2).unwrap().split(',').next().unwrap().parse().unwrap();
        assert!(MemoryPlan::new(require(Some(shorter), Some(4)), enough).is_ok(), "{error}");
        let error = MemoryPlan::new(require(Some(4096), None), enough).unwrap_err().to_string();
        assert!(error.contains("4096 tokens does not fit"), "{error}");
        assert!(MemoryPlan::new(require(None, Some(usize::MAX)), enough).is_err());
    }

    #[test]
    fn a_limit_is_kept_where_more_is_free() {
        let needs = MemoryNeeds { limit: Some(FIXED + 40 * 320), ..NEEDS };
        for free in [None, Some(1 << 40)] {
            let plan = MemoryPlan::new(needs, free).unwrap();
            assert!(plan.total_bytes() as u64 <= FIXED + 40 * 320, "{plan:?}");
            assert_eq!(plan.budget_bytes, Some((FIXED + 40 * 320) as usize));
            assert!(plan.lines().join("\n").contains("10 bytes a token (bf16)"), "{:?}", plan.lines());
        }
    }

    #[test]
    fn absurd_numbers_neither_panic_nor_pass() {
        const MAX: usize = usize::MAX;
        let zero = MemoryNeeds {
            weight_bytes: 0,
            kv_bytes_per_token: 0,
            row_bytes: 0,
            logit_row_bytes: 0,
            batch_rows: 0,
            context: None,
            default_context: 0,
            max_seqs: 0,
            ..NEEDS
        };
        let plan = MemoryPlan::new(zero, Some(1 << 30)).unwrap();
        assert_eq!((plan.context, plan.max_seqs, plan.n_pages), (1, 1, 1));
        let absurd = [
            MemoryNeeds { weight_bytes: MAX, ..NEEDS },
            MemoryNeeds { kv_bytes_per_token: MAX, ..NEEDS },
            MemoryNeeds { row_bytes: MAX, ..NEEDS },
            MemoryNeeds { logit_row_bytes: MAX, ..NEEDS },
            MemoryNeeds { batch_rows: MAX, ..NEEDS },
            MemoryNeeds { context: Some(MAX), ..NEEDS },
        ];
        for needs in absurd {
            let error = MemoryPlan::new(needs, Some(1 << 40)).unwrap_err();
            assert!(error.to_string().contains("does not fit"), "{error}");
        }
        // Upper bounds shrink, also where the system does not say what is free.
        for free in [Some(1 << 30), None] {
            let plan = MemoryPlan::new(MemoryNeeds { default_context: MAX, max_seqs: MAX, ..NEEDS }, free).unwrap();
            assert!(plan.max_seqs >= 1 && plan.context >= 256, "{plan:?}");
            let plan = MemoryPlan::new(MemoryNeeds { max_seqs: MAX, ..NEEDS }, free).unwrap();
            assert_eq!(plan.context, 1024);
            assert!(plan.max_seqs <= u32::MAX as usize && plan.n_pages <= u32::MAX as usize, "{plan:?}");
        }
    }

    #[test]
    fn a_card_with_less_room_shortens_the_pool_and_is_named_where_nothing_fits() {
        let card = CardNeeds {
            name: "NVIDIA Test".into(),
            weight_bytes: 500,
            kv_bytes_per_token: 20,
            row_bytes: 40,
            logit_row_bytes: 0,
            fixed_bytes: 100,
            // Ten rows and 20 pages.
            budget: 500 + 100 + 400 + 20 * 640,
        };
        let plan = MemoryPlan::beside_cards(NEEDS, None, std::slice::from_ref(&card)).unwrap();
        assert_eq!((plan.context, plan.n_pages, plan.max_seqs), (640, 20, 1));
        let roomy = CardNeeds { budget: usize::MAX, ..card.clone() };
        let plan = MemoryPlan::beside_cards(NEEDS, None, std::slice::from_ref(&roomy)).unwrap();
        assert_eq!((plan.context, plan.n_pages, plan.kv_bytes), (1024, 128, 128 * 320));
        let asked = MemoryNeeds { context: Some(1024), ..NEEDS };
        let error = MemoryPlan::beside_cards(asked, None, &[roomy, card]).unwrap_err().to_string();
        assert!(error.contains("on NVIDIA Test") && error.contains("--context 640"), "{error}");
        let full = MemoryNeeds { require: Require { seqs: Some(4), ..Require::default() }, ..NEEDS };
        let two = CardNeeds { budget: 1000 + 70 * 640, ..two_pages() };
        let error = MemoryPlan::beside_cards(full, None, &[two]).unwrap_err().to_string();
        assert!(error.contains("seqs=2 fits"), "{error}");
    }

    fn two_pages() -> CardNeeds {
        CardNeeds {
            name: "small".into(),
            weight_bytes: 500,
            kv_bytes_per_token: 20,
            row_bytes: 40,
            logit_row_bytes: 0,
            fixed_bytes: 100,
            budget: 0,
        }
    }
}
