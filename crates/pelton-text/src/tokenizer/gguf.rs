//! Tokenizers from GGUF metadata. Invariant: every length and id of the file is checked here, so that
//! the engines can index freely.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Library};

use super::partition::Partition;
use super::pipeline::Pipeline;
use super::pre::{self, Family};
use super::spm::Spm;
use super::vocab::{Kind, Spelling, Vocab, byte_token};
use super::{Engine, Marks, RawEngine, Tokenizer};
use crate::TextError;

/// A vocabulary as GGUF metadata holds it (`tokenizer.ggml.*`); nothing in it is trusted.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`: the pre-tokenizer of a `gpt2` vocabulary.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: the text of each id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, one per token; may be empty for `gpt2`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, one per token, or empty where all are normal: 1 normal,
    /// 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: `left right`, best first; for `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`: SentencePiece's space before the first word.
    pub add_space_prefix: Option<bool>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

pub(super) fn load(mut file: GgufVocab) -> Result<Tokenizer, TextError> {
    check(&file)?;
    let (spelling, space_prefix) = match file.model.as_str() {
        "gpt2" => (Spelling::ByteLevel, false),
        "llama" => (Spelling::Sentence, file.add_space_prefix.unwrap_or(true)),
        other => {
            return Err(TextError::Unsupported {
                what: "tokenizer model (tokenizer.ggml.model)",
                name: other.to_owned(),
                supported: "gpt2, llama".to_owned(),
            });
        }
    };
    let tokens = std::mem::take(&mut file.tokens);
    let vocab = Vocab::new(with_kinds(tokens, &file.token_types)?, spelling);
    let (raw, marks) = match spelling {
        Spelling::ByteLevel => {
            let family = pre::family(file.pre.as_deref())?;
            let bpe = Pipeline::new(byte_level_bpe(&vocab, &file.merges, family)?);
            (RawEngine::Bpe(Box::new(bpe)), marks(&file, family.add_bos, &vocab)?)
        }
        Spelling::Sentence => {
            apply_sentence_defaults(&mut file, &vocab);
            let spm = sentence_pieces(&vocab, &file);
            (RawEngine::Spm(spm), marks(&file, true, &vocab)?)
        }
    };
    let engine = Engine::Parts {
        raw,
        all: Partition::new(&vocab, |kind| matches!(kind, Kind::Special | Kind::User))?,
        user: Partition::new(&vocab, |kind| kind == Kind::User)?,
    };
    Ok(Tokenizer {
        controls: Partition::new(&vocab, |kind| kind == Kind::Special)?,
        vocab,
        engine,
        marks,
        space_prefix,
    })
}

/// Lengths and scores.
fn check(file: &GgufVocab) -> Result<(), TextError> {
    let n_tokens = file.tokens.len();
    if n_tokens == 0 {
        let detail = "the vocabulary has no tokens; this file cannot turn text into tokens";
        return Err(TextError::vocab("tokenizer.ggml.tokens", detail));
    }
    if u32::try_from(n_tokens).is_err() {
        let detail = format!("{n_tokens} tokens do not fit 32-bit ids");
        return Err(TextError::vocab("tokenizer.ggml.tokens", detail));
    }
    let n_types = file.token_types.len();
    if n_types != 0 && n_types != n_tokens {
        let detail = format!("{n_types} entries for {n_tokens} tokens; expected one each");
        return Err(TextError::vocab("tokenizer.ggml.token_type", detail));
    }
    let n_scores = file.scores.len();
    if (n_scores != 0 || file.model == "llama") && n_scores != n_tokens {
        let detail = format!("{n_scores} entries for {n_tokens} tokens; expected one each");
        return Err(TextError::vocab("tokenizer.ggml.scores", detail));
    }
    if let Some(id) = file.scores.iter().position(|score| score.is_nan()) {
        let detail = format!("the score of token {id} is not a number");
        return Err(TextError::vocab("tokenizer.ggml.scores", detail));
    }
    Ok(())
}

fn with_kinds(tokens: Vec<String>, types: &[i32]) -> Result<Vec<(String, Kind)>, TextError> {
    let kinds = types.iter().copied().chain(std::iter::repeat(1));
    let pairs = tokens.into_iter().zip(kinds).enumerate();
    pairs
        .map(|(id, (text, kind))| {
            let kind = match kind {
                UNKNOWN | CONTROL => Kind::Special,
                USER_DEFINED => Kind::User,
                BYTE => Kind::Byte(byte_token(&text).ok_or_else(|| {
                    let detail =
                        format!("token {id} is marked as a byte but reads {text:?}; expected <0x00> to <0xFF>");
                    TextError::vocab("tokenizer.ggml.tokens", detail)
                })?),
                _ => Kind::Normal,
            };
            Ok((text, kind))
        })
        .collect()
}

fn byte_level_bpe(vocab: &Vocab, merges: &[String], family: &Family) -> Result<Library, TextError> {
    let wrong = |error: tokenizers::Error| TextError::vocab("tokenizer.ggml.merges", error.to_string());
    // Control tokens stay out of the model, so that no text can become one.
    let pieces: BpeVocab = vocab
        .of_kind(|kind| kind != Kind::Special)
        .filter(|(id, text)| vocab.id_of(text) == Some(*id))
        .map(|(id, text)| (text.to_owned(), id))
        .collect();
    let (mut pairs, mut made) = (Vec::with_capacity(merges.len()), String::new());
    for (rank, merge) in merges.iter().enumerate() {
        let (left, right) = split_merge(merge).ok_or_else(|| {
            let detail = format!("merge {rank} reads {merge:?}; expected `left right`");
            TextError::vocab("tokenizer.ggml.merges", detail)
        })?;
        made.clear();
        made.extend([left, right]);
        let parts = [left, right, made.as_str()];
        if parts.iter().all(|part| pieces.contains_key(*part)) {
            pairs.push((left.to_owned(), right.to_owned()));
        } else if let Some(part) = parts.iter().find(|part| vocab.id_of(part).is_none()) {
            let detail = format!("merge {rank} needs {part:?}, which is not a token");
            return Err(TextError::vocab("tokenizer.ggml.merges", detail));
        }
    }
    let bpe =
        BPE::builder().vocab_and_merges(pieces, pairs).ignore_merges(family.ignore_merges).build().map_err(wrong)?;
    let mut steps = Vec::with_capacity(family.expressions.len() + 1);
    for expression in family.expressions {
        let pattern = SplitPattern::Regex((*expression).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(wrong)?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    steps.push(ByteLevel::new(false, false, false).into());
    let mut library = Library::new(bpe);
    library.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(library)
}

/// A merge is two tokens with a space between; a token never begins the right part's space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge[first..].find(' ')?;
    Some((&merge[..space], &merge[space + 1..]))
}

/// SentencePiece's usual ids, where the file does not say.
fn apply_sentence_defaults(file: &mut GgufVocab, vocab: &Vocab) {
    let usual = |id: u32| (vocab.kind(id) == Kind::Special).then_some(id);
    file.unk = file.unk.or_else(|| usual(0));
    file.bos = file.bos.or_else(|| usual(1));
    file.eos = file.eos.or_else(|| usual(2));
}

fn sentence_pieces(vocab: &Vocab, file: &GgufVocab) -> Spm {
    let mut byte_ids = vec![None; 256];
    for (id, _) in vocab.of_kind(|kind| matches!(kind, Kind::Byte(_))) {
        if let Kind::Byte(byte) = vocab.kind(id) {
            byte_ids[usize::from(byte)].get_or_insert(id);
        }
    }
    let pieces: HashMap<String, (u32, f32)> = vocab
        .of_kind(|kind| matches!(kind, Kind::Normal | Kind::User))
        .zip(scores_of(vocab, file))
        .filter(|((id, text), _)| vocab.id_of(text) == Some(*id))
        .map(|((id, text), score)| (text.to_owned(), (id, score)))
        .collect();
    Spm { longest: pieces.keys().map(String::len).max().unwrap_or(0), pieces, byte_ids, unk: file.unk }
}

/// The scores of the normal and user-defined tokens, in order.
fn scores_of<'a>(vocab: &'a Vocab, file: &'a GgufVocab) -> impl Iterator<Item = f32> + 'a {
    (0u32..)
        .zip(&file.scores)
        .filter_map(|(id, score)| matches!(vocab.kind(id), Kind::Normal | Kind::User).then_some(*score))
}

fn marks(file: &GgufVocab, usually_bos: bool, vocab: &Vocab) -> Result<Marks, TextError> {
    let named = [
        ("tokenizer.ggml.bos_token_id", file.bos),
        ("tokenizer.ggml.eos_token_id", file.eos),
        ("tokenizer.ggml.padding_token_id", file.pad),
        ("tokenizer.ggml.unknown_token_id", file.unk),
    ];
    for (field, id) in named {
        if let Some(id) = id.filter(|&id| vocab.text(id).is_none()) {
            let detail = format!("id {id} is outside of the {} tokens", vocab.len());
            return Err(TextError::vocab(field, detail));
        }
    }
    let wants = [
        ("tokenizer.ggml.add_bos_token", file.add_bos, file.bos),
        ("tokenizer.ggml.add_eos_token", file.add_eos, file.eos),
    ];
    for (field, add, id) in wants {
        if add == Some(true) && id.is_none() {
            return Err(TextError::vocab(field, "is true, but the token's id is not given"));
        }
    }
    Ok(Marks {
        bos: file.bos,
        eos: file.eos,
        pad: file.pad,
        unk: file.unk,
        add_bos: file.add_bos.unwrap_or(usually_bos && file.bos.is_some()),
        add_eos: file.add_eos.unwrap_or(false),
    })
}
