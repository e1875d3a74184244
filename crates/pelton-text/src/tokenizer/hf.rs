//! Tokenizers from Hugging Face files. Invariant: a model or decoder whose bytes we could not give back
//! exactly is refused by name.

use serde_json::Value;
use tokenizers::Tokenizer as Library;

use super::partition::Partition;
use super::pipeline::Pipeline;
use super::vocab::{Kind, Spelling, Vocab, byte_token};
use super::{Engine, Marks, Tokenizer};
use crate::TextError;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

pub(super) fn load(json: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TextError> {
    let mut file: Value = serde_json::from_slice(json).map_err(|error| TextError::file(TOKENIZER, error))?;
    if !file.is_object() {
        return Err(TextError::file(TOKENIZER, "expected a JSON object"));
    }
    let config: Value = match config {
        None => Value::Null,
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| TextError::file(CONFIG, error))?,
    };
    check_model(&file["model"])?;
    let (spelling, space_prefix) = spelling(&file["decoder"])?;
    let unk = file["model"]["unk_token"].as_str().map(str::to_owned);
    // The library's post-processor, padding and truncation are not used, so they are not built.
    let post_processor = file["post_processor"].take();
    file["padding"] = Value::Null;
    file["truncation"] = Value::Null;
    let library: Library = serde_json::from_value(file).map_err(|error| TextError::file(TOKENIZER, error))?;
    let vocab = vocabulary(&library, spelling)?;
    let marks = marks(&vocab, unk.as_deref(), &post_processor, &config);
    Ok(Tokenizer {
        controls: Partition::new(&vocab, |kind| kind == Kind::Special)?,
        vocab,
        engine: Engine::Whole(Box::new(Pipeline::new(library))),
        marks,
        space_prefix,
    })
}

/// Models of which the encoder cannot fail on any text.
fn check_model(model: &Value) -> Result<(), TextError> {
    // Old files leave the type out; what has merges is BPE.
    let kind = match model["type"].as_str() {
        Some(kind) => kind,
        None if model["merges"].is_array() => "BPE",
        None => "(none)",
    };
    if !matches!(kind, "BPE" | "Unigram") {
        return Err(TextError::Unsupported {
            what: "tokenizer model",
            name: kind.to_owned(),
            supported: "BPE, Unigram".to_owned(),
        });
    }
    if let Some(unk) = model["unk_token"].as_str()
        && model["vocab"].get(unk).is_none()
    {
        let detail = format!("model.unk_token {unk:?} is not in model.vocab");
        return Err(TextError::file(TOKENIZER, detail));
    }
    Ok(())
}

/// How tokens spell text, and whether decoding drops the first space, from the decoder's description.
fn spelling(decoder: &Value) -> Result<(Spelling, bool), TextError> {
    let steps: Vec<&Value> = match decoder["decoders"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![decoder],
    };
    let mut spelling = None;
    let mut drops_space = false;
    for step in steps {
        match step["type"].as_str().unwrap_or("(none)") {
            "ByteLevel" => spelling = Some(Spelling::ByteLevel),
            "Replace" if step["content"] == " " => spelling = Some(Spelling::Sentence),
            "Metaspace" => {
                spelling = Some(Spelling::Sentence);
                let scheme = step["prepend_scheme"].as_str().unwrap_or("always");
                drops_space = scheme != "never" && step["add_prefix_space"] != Value::Bool(false);
            }
            "Strip" if step["content"] == " " && step["stop"] == 0 => {
                drops_space = step["start"] == 1;
            }
            "ByteFallback" | "Fuse" => {}
            other => return Err(unsupported_decoder(other)),
        }
    }
    let spelling = spelling.ok_or_else(|| unsupported_decoder("(none)"))?;
    Ok((spelling, drops_space))
}

fn unsupported_decoder(name: &str) -> TextError {
    TextError::Unsupported {
        what: "tokenizer decoder",
        name: name.to_owned(),
        supported: "ByteLevel; Metaspace; a Sequence of Replace (to a space), ByteFallback, Fuse and \
                    Strip (of one space at the start)"
            .to_owned(),
    }
}

fn vocabulary(library: &Library, spelling: Spelling) -> Result<Vocab, TextError> {
    let by_text = library.get_vocab(true);
    let Some(&highest) = by_text.values().max() else {
        return Err(TextError::file(TOKENIZER, "the vocabulary has no tokens"));
    };
    let len = usize::try_from(highest).unwrap_or(usize::MAX).saturating_add(1);
    // Real vocabularies have few unused ids; a huge id must not become a huge table.
    if len > by_text.len().saturating_mul(4).saturating_add(65_536) {
        let detail = format!("the highest id is {highest}, with only {} tokens", by_text.len());
        return Err(TextError::file(TOKENIZER, detail));
    }
    let added = library.get_added_vocabulary().get_added_tokens_decoder();
    let mut tokens = vec![(String::new(), Kind::Hole); len];
    for (text, id) in by_text {
        let kind = match (added.get(&id), spelling) {
            (Some(token), _) if token.special => Kind::Special,
            (Some(_), Spelling::ByteLevel) => Kind::User,
            (_, Spelling::Sentence) => byte_token(&text).map_or(Kind::Normal, Kind::Byte),
            (None, Spelling::ByteLevel) => Kind::Normal,
        };
        if let Some(slot) = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id)) {
            *slot = (text, kind);
        }
    }
    Ok(Vocab::new(tokens, spelling))
}

fn marks(vocab: &Vocab, unk: Option<&str>, post_processor: &Value, config: &Value) -> Marks {
    // A special token is a string, or an object with its text under `content`.
    let named = |key: &str| {
        let token = &config[key];
        let text = token.as_str().or_else(|| token["content"].as_str())?;
        vocab.id_of(text)
    };
    let (bos, eos) = (named("bos_token"), named("eos_token"));
    let (before, after) = around(post_processor);
    let adds = |key: &str, id: Option<u32>, written: Option<&str>| {
        let by_processor = written.and_then(|text| vocab.id_of(text)) == id;
        id.is_some() && config[key].as_bool().unwrap_or(by_processor)
    };
    Marks {
        bos,
        eos,
        pad: named("pad_token"),
        unk: named("unk_token").or_else(|| vocab.id_of(unk?)),
        add_bos: adds("add_bos_token", bos, before),
        add_eos: adds("add_eos_token", eos, after),
    }
}

/// The tokens that a post-processor writes before and after a text.
fn around(processor: &Value) -> (Option<&str>, Option<&str>) {
    match processor["type"].as_str().unwrap_or("") {
        "TemplateProcessing" => {
            let parts = processor["single"].as_array().map_or(&[][..], Vec::as_slice);
            (special_of(parts.first()), special_of(parts.last()))
        }
        "BertProcessing" | "RobertaProcessing" => (processor["cls"][0].as_str(), processor["sep"][0].as_str()),
        "Sequence" => {
            let steps = processor["processors"].as_array().into_iter().flatten();
            steps.map(around).fold((None, None), |found, step| (found.0.or(step.0), found.1.or(step.1)))
        }
        _ => (None, None),
    }
}

/// The token that a part of a template writes, if it is not the text itself.
fn special_of(part: Option<&Value>) -> Option<&str> {
    part?["SpecialToken"]["id"].as_str()
}
