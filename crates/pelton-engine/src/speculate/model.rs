//! A smaller model as the drafter: one pass for each token, batched over the sequences.
//!
//! Its keys and values lie in a pool of its own that mirrors the target's pages (see `mirror`). Each proposal begins
//! with one pass over what it has not seen of the sequences (usually the two or three tokens of the last step, the whole
//! prompt at first, nothing of a prefix that another sequence shares); then one row a sequence for each further draft.
//!
//! Invariants: it writes only pages of the sequences that it drafts for, and in shared ones only what all who share
//! them would write there; ids outside its vocabulary are never run and never proposed.

use std::time::Instant;

use pelton_backend::{Backend, BackendError, BatchBuilder, KvType};
use pelton_model::{Decoder, Workspace};
use pelton_sched::SeqId;
use pelton_text::Tokenizer;

use super::mirror::Mirror;
use super::{Asks, Drafter, MAX_DRAFT, Offer};

/// Rows of one pass over tokens that were left behind; a longer prompt takes several steps.
const MAX_PASS: usize = 512;

/// A draft model on the target's backend.
pub struct DraftModel<B: Backend> {
    name: String,
    model: Decoder<B>,
    kv: B::Kv,
    work: Workspace<B>,
    logits: Vec<f32>,
    mirror: Mirror,
    n_pages: usize,
    /// Ids below this are in both vocabularies.
    vocab: usize,
    /// Longest text that it can follow.
    context: usize,
}

impl<B: Backend> DraftModel<B> {
    /// `n_pages` is the size of the target's pool, `vocab` that of its vocabulary, `context` the longest text that the
    /// draft can follow.
    ///
    /// # Errors
    /// Where its keys and values do not fit memory.
    pub fn new(
        backend: &mut B,
        name: String,
        model: Decoder<B>,
        (n_pages, kv_type): (usize, KvType),
        vocab: usize,
        context: usize,
    ) -> Result<DraftModel<B>, BackendError> {
        let kv = backend.kv_pool(&model.kv_layout(n_pages, kv_type))?;
        let work = model.workspace(backend);
        let vocab = vocab.min(model.vocab_size());
        Ok(DraftModel {
            name,
            model,
            kv,
            work,
            logits: Vec::new(),
            mirror: Mirror::new(n_pages),
            n_pages,
            vocab,
            context,
        })
    }

    /// Runs `rows`, tokens from a position on of sequences of `asks`, and takes note of them. Those marked give logits.
    fn run(&mut self, backend: &mut B, asks: &mut Asks<'_>, rows: &mut [Row]) {
        let start = Instant::now();
        let mut batch = BatchBuilder::new(self.n_pages);
        let mut n_rows = 0;
        for row in rows {
            let tokens = &asks.text(row.ask)[row.start..row.end];
            let pages = asks.pages(row.ask);
            batch.push(tokens, row.start, pages, usize::from(row.wants_logits)).expect("pages were reserved");
            row.hash = self.mirror.fill(pages, row.start, row.hash, tokens);
            n_rows += tokens.len();
        }
        self.model.step(backend, &batch.finish(), &mut self.kv, &mut self.work);
        asks.note_pass(n_rows, start);
    }

    /// What is to be run first: of each sequence what the pool does not hold, the last token always.
    fn catch_up(&self, asks: &Asks<'_>) -> Vec<Row> {
        let mut left = MAX_PASS;
        let mut rows = Vec::new();
        for ask in 0..asks.len() {
            let known = asks.known(ask);
            let (start, hash) = self.mirror.filled(asks.pages(ask), &asks.text(ask)[..known - 1]);
            let end = known.min(start + left);
            if end > start {
                rows.push(Row { ask, start, end, hash, wants_logits: end == known });
                left -= end - start;
            }
        }
        rows
    }
}

/// Tokens of one sequence in a pass.
struct Row {
    ask: usize,
    start: usize,
    end: usize,
    /// Of the text before; once it was run, of that and its tokens.
    hash: u64,
    wants_logits: bool,
}

impl<B: Backend> Drafter<B> for DraftModel<B>
where
    Decoder<B>: Send,
    Workspace<B>: Send,
    B::Kv: Send,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn model_bytes(&self) -> Option<usize> {
        Some(self.model.placements().iter().map(|p| p.bytes).sum())
    }

    fn offer(&mut self, _seq: SeqId, text: &[u32], pages: &[u32]) -> Offer {
        let len = MAX_DRAFT.min(self.context.saturating_sub(text.len()));
        // Ids of the target alone (an image's, say) end what the draft can follow.
        if len == 0 || text.iter().any(|&id| id as usize >= self.vocab) {
            return Offer::default();
        }
        let (filled, _) = self.mirror.filled(pages, &text[..text.len() - 1]);
        // Up to two tokens are what every step leaves behind.
        Offer { len, class: None, behind: (text.len() - filled).saturating_sub(2) }
    }

    fn draft(&mut self, backend: &mut B, asks: &mut Asks<'_>) {
        let mut rows = self.catch_up(asks);
        while !rows.is_empty() {
            self.run(backend, asks, &mut rows);
            let logits = self.work.logits(backend, &mut self.logits);
            let mut of_rows = logits.chunks_exact_mut(self.model.vocab_size());
            let mut next = Vec::new();
            for row in rows.iter().filter(|row| row.wants_logits) {
                let logits = of_rows.next().expect("a row of logits for each that wants some");
                if asks.choose(row.ask, &mut logits[..self.vocab]) {
                    let end = asks.text(row.ask).len();
                    next.push(Row { start: end - 1, end, ..*row });
                }
            }
            rows = next;
        }
    }

    fn forget(&mut self, _seq: SeqId) {}
}

/// Why a model cannot draft for another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyMismatch {
    /// A token differs.
    #[error(
        "token {id} is {draft} in the draft's vocabulary and {target} in the target's: a draft must have the same tokens"
    )]
    Token {
        /// The first id that differs.
        id: u32,
        /// How the draft spells it.
        draft: String,
        /// How the target does.
        target: String,
    },
    /// One has a tokenizer, the other has none, or neither has and their sizes differ.
    #[error("the vocabularies of {draft} and {target} tokens cannot be compared: {reason}")]
    Unknown {
        /// Tokens of the draft.
        draft: usize,
        /// Tokens of the target.
        target: usize,
        /// Why not.
        reason: &'static str,
    },
}

/// Whether all ids that both models have are the same tokens; the sizes (`(draft, target)`, widths of their logits)
/// may differ, as padding does.
///
/// # Errors
/// The first token that differs.
pub fn check_vocabularies(
    draft: Option<&Tokenizer>,
    target: Option<&Tokenizer>,
    sizes: (usize, usize),
) -> Result<(), VocabularyMismatch> {
    let unknown = |reason| Err(VocabularyMismatch::Unknown { draft: sizes.0, target: sizes.1, reason });
    let (draft, target) = match (draft, target) {
        (Some(draft), Some(target)) => (draft, target),
        (None, None) if sizes.0 == sizes.1 => return Ok(()),
        (None, None) => return unknown("neither model has a tokenizer"),
        _ => return unknown("one of the models has no tokenizer"),
    };
    let both = sizes.0.min(sizes.1);
    let spell = |tokenizer: &Tokenizer, id: u32| match tokenizer.token_text(id) {
        Some(text) => format!("{text:?}"),
        None => "nothing".to_string(),
    };
    // Padding is spelled in many ways, and never said: what one of the two lacks at its end does not matter.
    let compared = both.min(draft.vocab_size()).min(target.vocab_size());
    for id in 0..compared as u32 {
        if draft.token_text(id) != target.token_text(id) {
            return Err(VocabularyMismatch::Token { id, draft: spell(draft, id), target: spell(target, id) });
        }
    }
    Ok(())
}
