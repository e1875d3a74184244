//! Grammars of one model: the compiler over its vocabulary, and the last grammars it made.
//!
//! Invariant: the vocabulary's trie is built once, when the first grammar is asked for; what is kept is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pelton_sample::{Grammar, GrammarCompiler, GrammarError, GrammarLimits, GrammarSpec};
use pelton_text::Tokenizer;

use crate::Error;

/// Grammars that are kept. Clients ask for the same few again and again.
const KEPT: usize = 32;

pub(crate) struct Grammars {
    tokenizer: Option<Arc<Tokenizer>>,
    eos: Vec<u32>,
    compiler: OnceLock<Result<GrammarCompiler, GrammarError>>,
    /// The last ones used, the oldest first.
    kept: Mutex<VecDeque<(GrammarSpec, Grammar)>>,
}

impl Grammars {
    pub(crate) fn new(tokenizer: Option<Arc<Tokenizer>>, eos: Vec<u32>) -> Grammars {
        Grammars { tokenizer, eos, compiler: OnceLock::new(), kept: Mutex::default() }
    }

    pub(crate) fn compile(&self, spec: &GrammarSpec) -> Result<Grammar, Error> {
        if let Some(grammar) = self.find(spec) {
            return Ok(grammar);
        }
        let compiler = self.compiler.get_or_init(|| self.make_compiler()).as_ref().map_err(Clone::clone)?;
        let grammar = compiler.compile(spec)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((spec.clone(), grammar.clone()));
        Ok(grammar)
    }

    fn find(&self, spec: &GrammarSpec) -> Option<Grammar> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == spec)?;
        let entry = kept.remove(at)?;
        let grammar = entry.1.clone();
        kept.push_back(entry);
        Some(grammar)
    }

    fn make_compiler(&self) -> Result<GrammarCompiler, GrammarError> {
        let tokenizer = self.tokenizer.as_ref();
        let tokenizer = tokenizer.ok_or_else(|| GrammarError::Vocabulary("the model has no tokenizer".into()))?;
        grammar_compiler(tokenizer, &self.eos)
    }
}

/// A compiler of grammars over a tokenizer's vocabulary; `eos` are the ids that end an answer.
///
/// # Errors
/// Where none of them is an id of the vocabulary.
pub fn grammar_compiler(tokenizer: &Tokenizer, eos: &[u32]) -> Result<GrammarCompiler, GrammarError> {
    let bytes = |id: u32| match tokenizer.is_special(id) {
        true => None,
        false => tokenizer.token_bytes(id).map(|bytes| bytes.into_owned()),
    };
    let tokens = (0..tokenizer.vocab_size() as u32).map(bytes).collect();
    GrammarCompiler::new(tokens, eos, GrammarLimits::default())
}
