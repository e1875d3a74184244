//! Pre-tokenizers: the expressions that cut text into words before byte-level BPE, by the names that
//! GGUF files give them (`tokenizer.ggml.pre`). Invariant: a name that is not in [`FAMILIES`] is refused,
//! never guessed.
//!
//! Source: the names are those of llama.cpp's vocabulary reader; the expressions are the models' own,
//! from their `tokenizer.json`, with contractions limited to ASCII letters as llama.cpp does.

use crate::TextError;

/// How one family of models cuts text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    names: &'static [&'static str],
    /// Applied one after the other: each cuts the pieces that the last one left, and both the matches
    /// and the text between them are pieces.
    pub(super) expressions: &'static [&'static str],
    /// Whether a whole word that is a token is taken as it is, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether BOS is expected where the file does not say.
    pub(super) add_bos: bool,
}

impl Family {
    const fn new(names: &'static [&'static str], expressions: &'static [&'static str]) -> Self {
        Self { names, expressions, ignore_merges: false, add_bos: false }
    }
}

/// The family of a name; no name means `default`.
pub(super) fn family(name: Option<&str>) -> Result<&'static Family, TextError> {
    let name = name.unwrap_or("default");
    FAMILIES.iter().find(|family| family.names.contains(&name)).ok_or_else(|| TextError::Unsupported {
        what: "pre-tokenizer (tokenizer.ggml.pre)",
        name: name.to_owned(),
        supported: supported().join(", "),
    })
}

/// The names of all pre-tokenizers that GGUF vocabularies may ask for.
pub fn supported() -> Vec<&'static str> {
    let names = FAMILIES.iter().flat_map(|family| family.names);
    names.copied().collect()
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN2: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen2's with combining marks counted as letters.
const QWEN35: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const DEEPSEEK3_WORDS: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const SEED_CODER: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const BAILING: &str = concat!(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
);
/// Letters with case (and no others), as DeepSeek LLM lists them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}",
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}",
    r"\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}",
    r"\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}",
    r"\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}",
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}",
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}",
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}",
    r"\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}",
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}",
    r"\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}",
    r"\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}",
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}",
    r"\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}",
    r"\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}",
    r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
    r"]+",
);
const DEEPSEEK_MARKS: &str = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const DEEPSEEK_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const CJK_KANA: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const BLOOM: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";

/// Every family that is supported.
static FAMILIES: &[Family] = &[
    Family::new(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    Family::new(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    Family {
        ignore_merges: true,
        add_bos: true,
        ..Family::new(
            &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
            &[LLAMA3],
        )
    },
    Family::new(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    Family::new(
        &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open", "kormo", "f2llmv2", "grok-2"],
        &[QWEN2],
    ),
    Family::new(&["qwen35"], &[QWEN35]),
    Family { ignore_merges: true, add_bos: true, ..Family::new(&["tekken"], &[TEKKEN]) },
    Family::new(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], &[GPT4O]),
    Family::new(
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    Family::new(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Family::new(&["deepseek-llm"], &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_CJK, r"\p{N}+"]),
    Family::new(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"]),
    Family::new(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], &[r"\p{N}{1,3}", CJK_KANA, DEEPSEEK3_WORDS]),
    Family::new(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    Family::new(&["seed-coder"], &[SEED_CODER]),
    Family::new(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    Family::new(&["viking"], &[BLOOM, r"\p{N}"]),
];

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        for expression in family(Some(name)).unwrap().expressions {
            let pattern = SplitPattern::Regex((*expression).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
            split.pre_tokenize(&mut pieces).unwrap();
        }
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.iter().map(|(piece, _, _)| (*piece).to_owned()).collect()
    }

    #[test]
    fn no_family_loses_or_doubles_text() {
        let text = "Don't STOP the Änderung，数字 123456 ٣٤٥!?\r\n\n  x = [1, 2];\t// “ok” 한글 かな 🚀\n \n";
        for family in FAMILIES {
            let pieces = cut(family.names[0], text);
            assert_eq!(pieces.concat(), text, "{}", family.names[0]);
            assert!(pieces.len() > 10, "{pieces:?}");
        }
    }

    #[test]
    fn families_differ_where_their_models_do() {
        // Numbers: whole, in threes, digit by digit.
        assert_eq!(cut("gpt-2", "in 12345"), ["in", " 12345"]);
        assert_eq!(cut("llama-bpe", "in 12345"), ["in", " ", "123", "45"]);
        assert_eq!(cut("qwen2", "in 123"), ["in", " ", "1", "2", "3"]);
        assert_eq!(cut("starcoder", "in 123"), ["in", " ", "1", "2", "3"]);
        assert_eq!(cut("falcon", "1234567"), ["123", "456", "7"]);
        assert_eq!(cut("deepseek-llm", "12345"), ["12345"]);
        assert_eq!(cut("deepseek-coder", "123"), ["1", "2", "3"]);
        assert_eq!(cut("deepseek-v3", "12345"), ["123", "45"]);
        // Contractions: capital letters, or none at all.
        assert_eq!(cut("gpt-2", "I'LL we'll"), ["I", "'", "LL", " we", "'ll"]);
        assert_eq!(cut("qwen2", "I'LL we'll"), ["I", "'LL", " we", "'ll"]);
        assert_eq!(cut("tekken", "we'll"), ["we", "'ll"]);
        assert_eq!(cut("gpt-4o", "we'll"), ["we'll"]);
        // Case, marks, scripts, ends of lines.
        assert_eq!(cut("tekken", "HelloWorld"), ["Hello", "World"]);
        assert_eq!(cut("llama-bpe", "HelloWorld"), ["HelloWorld"]);
        assert_eq!(cut("qwen2", "ca\u{301}r"), ["ca", "\u{301}r"]);
        assert_eq!(cut("qwen35", "ca\u{301}r"), ["ca\u{301}r"]);
        assert_eq!(cut("deepseek-llm", "ab漢字 é"), ["ab", "漢字", " é"]);
        assert_eq!(cut("qwen2", "a;\n\nb"), ["a", ";\n\n", "b"]);
        assert_eq!(cut("seed-coder", "a;\n\nb"), ["a", ";", "\n\n", "b"]);
        assert_eq!(cut("default", "a+b=c"), ["a", "+", "b", "=", "c"]);
        assert_eq!(cut("gpt-2", "a   b"), ["a", "  ", " b"]);
    }

    #[test]
    fn names_are_unique() {
        let mut names = supported();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
