//! From a specification to a [`Grammar`], over one vocabulary.
//!
//! Invariant: compiling happens on a thread of its own with a large stack, and whoever waits for it waits for a
//! bounded time. A thread whose time is up is told to stop, and until it does it counts against the number that may
//! run at once: the recognizer looks while it computes the first mask; before that its own bounds end it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, Once, PoisonError};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{CancellationHandle, Matcher, ParserFactory};
use serde_json::{Map, Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use super::limits::{first_line, parser_limits};
use super::{Grammar, GrammarError, GrammarLimits, GrammarSpec};

/// Stack of a compiling thread; only what is touched costs memory.
const STACK_BYTES: usize = 64 << 20;

/// Longest token, in bytes, that the trie holds; longer ones are never allowed.
const MAX_TOKEN_BYTES: usize = 1000;

/// Largest vocabulary, by the width of the trie's ids.
const MAX_VOCAB: usize = (1 << 24) - 2;

/// Whitespace between the parts of JSON: a space or a line's end with its indentation, not without end. A model
/// that does not know where to go would otherwise write spaces until it is stopped.
const JSON_WHITESPACE: &str = r"( |\n[ ]{0,20})?";

/// Compiles grammars for one vocabulary.
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    eos: Arc<[u32]>,
    vocab_size: usize,
    limits: GrammarLimits,
    compiling: Arc<AtomicUsize>,
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

/// Tells a compiling thread that nobody waits for it any more.
#[derive(Clone, Default)]
struct Recall(Arc<Mutex<Recalled>>);

#[derive(Default)]
struct Recalled {
    over: bool,
    /// How to stop the recognizer, once there is one.
    handle: Option<CancellationHandle>,
}

impl Recall {
    fn cancel(&self) {
        let mut recalled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recalled.over = true;
        if let Some(handle) = &recalled.handle {
            handle.cancel();
        }
    }

    /// Makes a recognizer listen; `false` where it is too late already.
    fn reaches(&self, handle: Option<CancellationHandle>) -> bool {
        let mut recalled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recalled.handle = handle;
        !recalled.over
    }
}

/// The recognizer puts a panic hook of its own over the process's at its first call. Lets it do so once, beforehand,
/// and puts the process's own back: a library does not choose what is printed when a program panics.
fn keep_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let own = std::panic::take_hook();
        // What it runs is nothing; what matters is the hook that it sets before.
        let _ = llguidance::panic_utils::catch_unwind(|| Ok(()));
        std::panic::set_hook(own);
    });
}

/// Counts a compiling thread for as long as it runs.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl GrammarCompiler {
    /// A compiler over `tokens`, the bytes of each id (`None` for control tokens and holes, which no grammar
    /// allows); `eos` are the ids that end an answer.
    ///
    /// # Errors
    /// [`GrammarError::Vocabulary`] where there are no tokens, too many, or no end of text among them.
    pub fn new(tokens: Vec<Option<Vec<u8>>>, eos: &[u32], limits: GrammarLimits) -> Result<Self, GrammarError> {
        keep_panic_hook();
        let vocab_size = tokens.len();
        let eos: Arc<[u32]> = eos.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
        let Some(&first_eos) = eos.first() else {
            return Err(GrammarError::Vocabulary("it has no end-of-text token".into()));
        };
        if vocab_size > MAX_VOCAB {
            return Err(GrammarError::Vocabulary(format!("it has {vocab_size} tokens; at most {MAX_VOCAB} are taken")));
        }
        let marker = TokTrie::SPECIAL_TOKEN_MARKER;
        let words: Vec<Vec<u8>> = tokens
            .into_iter()
            .zip(0u32..)
            .map(|(bytes, id)| match bytes {
                // Named by number behind a byte that no text has: grammars may speak of them, text never matches.
                None => [&[marker][..], format!("[{id}]").as_bytes()].concat(),
                Some(bytes) if bytes.len() > MAX_TOKEN_BYTES || bytes.contains(&marker) => Vec::new(),
                Some(bytes) => bytes,
            })
            .collect();
        let build = || {
            let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, first_eos), &words).with_eos_tokens(&eos);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new(
                &env,
                InferenceCapabilities::default(),
                &llguidance::earley::SlicedBiasComputer::general_slices(),
            )
            .map_err(|e| e.to_string())?;
            factory.quiet();
            *factory.limits_mut() = parser_limits();
            Ok::<_, String>(factory)
        };
        let built = catch_unwind(AssertUnwindSafe(build));
        let factory = match built {
            Ok(Ok(factory)) => Arc::new(factory),
            Ok(Err(e)) => return Err(GrammarError::Vocabulary(first_line(&e))),
            Err(_) => return Err(GrammarError::Vocabulary("its tokens do not form a trie".into())),
        };
        Ok(Self { factory, eos, vocab_size, limits, compiling: Arc::default() })
    }

    /// Compiles a specification. Takes milliseconds, for large schemas more; never much longer than the limit.
    ///
    /// # Errors
    /// [`GrammarError`] says what is wrong with it, or which limit it meets.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar, GrammarError> {
        self.limits.check(spec)?;
        let running = self.start()?;
        let (factory, spec) = (Arc::clone(&self.factory), spec.clone());
        let (sender, compiled) = channel();
        let recall = Recall::default();
        let recalled = recall.clone();
        let work = move || {
            let _running = running;
            // A receiver whose time is up has gone.
            let _ = sender.send(first_state(&factory, spec, &recalled));
        };
        std::thread::Builder::new()
            .name("pelton-grammar".into())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .map_err(|_| GrammarError::Busy)?;
        let matcher = match compiled.recv_timeout(self.limits.time) {
            Ok(matcher) => matcher?,
            Err(RecvTimeoutError::Timeout) => {
                recall.cancel();
                return Err(GrammarError::TooSlow { seconds: self.limits.time.as_secs() });
            }
            Err(RecvTimeoutError::Disconnected) => return Err(GrammarError::Invalid("it cannot be compiled".into())),
        };
        let start = Arc::new(Mutex::new(matcher));
        Ok(Grammar { start, eos: Arc::clone(&self.eos), vocab_size: self.vocab_size })
    }

    /// Takes one of the places of compiling threads.
    fn start(&self) -> Result<Running, GrammarError> {
        let before = self.compiling.fetch_add(1, Ordering::AcqRel);
        let running = Running(Arc::clone(&self.compiling));
        if before >= self.limits.at_once { Err(GrammarError::Busy) } else { Ok(running) }
    }
}

/// The recognizer before the first token, after a first mask: what is empty or too much work shows here.
fn first_state(factory: &ParserFactory, spec: GrammarSpec, recall: &Recall) -> Result<Matcher, GrammarError> {
    let grammar = top_level(spec);
    let make = || Matcher::new(factory.create_parser(grammar)).into_cancellable();
    let Ok(mut matcher) = catch_unwind(AssertUnwindSafe(make)) else {
        return Err(GrammarError::Invalid("it cannot be compiled".into()));
    };
    let invalid = |message: &str| match first_line(message) {
        // The recognizer's word for a start from which no token leads on.
        reason if reason.contains("NoExtension") => GrammarError::Invalid("no text matches it".into()),
        reason => GrammarError::Invalid(reason),
    };
    if let Some(message) = matcher.get_error() {
        return Err(invalid(&message));
    }
    if !recall.reaches(matcher.cancellation_handle()) {
        return Err(GrammarError::Invalid("its time is up".into()));
    }
    let mask = matcher.compute_mask_or_eos().map_err(|e| invalid(&e.to_string()))?;
    if mask.is_zero() {
        return Err(GrammarError::Invalid("no text of this vocabulary matches it".into()));
    }
    Ok(matcher)
}

fn top_level(spec: GrammarSpec) -> TopLevelGrammar {
    let grammar = match spec {
        GrammarSpec::JsonObject => GrammarWithLexer::from_json_schema(with_whitespace(json!({ "type": "object" }))),
        GrammarSpec::JsonSchema(schema) => GrammarWithLexer::from_json_schema(with_whitespace(schema)),
        GrammarSpec::Regex(regex) => GrammarWithLexer::from_regex(&regex),
        GrammarSpec::Lark(text) => GrammarWithLexer::from_lark(text),
    };
    TopLevelGrammar::from_grammar(grammar)
}

/// The schema with our whitespace, and no options of its own.
fn with_whitespace(schema: Value) -> Value {
    let mut object = match schema {
        Value::Object(object) => object,
        // `true` allows everything, `false` nothing.
        Value::Bool(true) => Map::new(),
        other => return other,
    };
    let options = json!({ "whitespace_flexible": true, "whitespace_pattern": JSON_WHITESPACE });
    object.insert("x-guidance".into(), options);
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_keeps_its_panic_hook() {
        keep_panic_hook();
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>() == Some(&"part of the test") {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
        // The recognizer's own hook would say nothing of a panic that the recognizer catches.
        let caught = llguidance::panic_utils::catch_unwind::<_, ()>(|| panic!("part of the test"));
        std::panic::set_hook(before);
        assert!(caught.is_err());
        assert_eq!(seen.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_thread_that_nobody_waits_for_is_recalled() {
        let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None]).collect();
        let compiler = GrammarCompiler::new(tokens, &[256], GrammarLimits::default()).unwrap();
        let recall = Recall::default();
        recall.cancel();
        let spec = GrammarSpec::Regex("a*".into());
        assert!(matches!(first_state(&compiler.factory, spec.clone(), &recall), Err(GrammarError::Invalid(_))));
        let recall = Recall::default();
        let matcher = first_state(&compiler.factory, spec, &recall).unwrap();
        recall.cancel();
        assert!(matcher.is_cancelled(), "it would have been stopped at work");
    }
}
