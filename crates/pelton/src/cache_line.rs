//! One line that explains a miss of the prefix cache.
//!
//! It holds text of prompts, so it is for those who asked for it. Invariant: it is one line, whatever the text.

use pelton_engine::{Miss, MissCause, Timing};
use pelton_text::Tokenizer;

/// Why not more of a prompt was cached, and where the two part.
pub(crate) fn cache_line(timing: &Timing, miss: &Miss, tokenizer: Option<&Tokenizer>) -> String {
    let text = |ids: &[u32]| match tokenizer {
        // Quoted and escaped: no text breaks the line.
        Some(tokenizer) => format!("{:?}", tokenizer.decode(ids, false)),
        None => format!("{ids:?}"),
    };
    let (cached, prompt) = (timing.cached_tokens, timing.prompt_tokens);
    let mut line = format!("prompt {prompt} tokens, {cached} cached; token {} on: {}", miss.at, miss.cause);
    if miss.cause != MissCause::TooShort {
        if !miss.before.is_empty() {
            line += &format!("; after {}", text(&miss.before));
        }
        line += &format!(" the prompt has {}", text(&miss.here));
        if !miss.cached.is_empty() {
            line += &format!(", the cache {}", text(&miss.cached));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_where_and_why() {
        let timing = Timing { prompt_tokens: 130, cached_tokens: 96, ..Timing::default() };
        let miss =
            Miss { cause: MissCause::Different, at: 101, before: vec![7, 8], here: vec![9], cached: vec![10, 11] };
        let line = cache_line(&timing, &miss, None);
        let expected = "prompt 130 tokens, 96 cached; token 101 on: different text; after [7, 8] the prompt has [9], \
                        the cache [10, 11]";
        assert_eq!(line, expected);
    }
}
