//! Prompts of a wanted length for a server whose tokenizer is unknown.
//!
//! Two short requests tell how many tokens a word takes there, and what the chat template adds; all prompts are made of
//! the same words, so lengths hold on average. Invariant: a prompt depends on the seed and its number alone.

/// Everyday words, most of them one token in most vocabularies.
const WORDS: [&str; 96] = [
    "time", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family",
    "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system", "program",
    "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story",
    "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side", "kind",
    "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member", "law", "car",
    "city", "name", "team", "minute", "idea", "body", "back", "parent", "face", "level", "office", "door", "health",
    "person", "art", "war", "history", "party", "result", "change", "morning", "reason", "research", "girl", "moment",
    "air", "teacher", "force", "light", "paper", "music", "voice", "plan",
];

/// SplitMix64 (Steele, Lea and Flood 2014): small, and good enough to draw words and arrivals.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Another sequence for each pair.
    pub(super) fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Seconds to the next of `rate` arrivals a second.
    pub(super) fn until_next(&mut self, rate: f64) -> f64 {
        -self.unit().ln() / rate
    }

    /// `n` words.
    pub(super) fn words(&mut self, n: usize) -> String {
        let mut text = String::with_capacity(n * 6);
        for i in 0..n {
            text.push_str(if i > 0 { " " } else { "" });
            text.push_str(WORDS[(self.next() % WORDS.len() as u64) as usize]);
        }
        text
    }
}

/// How words become tokens at the address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ruler {
    pub(super) tokens_per_word: f64,
    /// Tokens of a prompt without a word: the template's.
    pub(super) overhead: f64,
}

impl Ruler {
    /// For an address that does not count.
    pub(super) const UNKNOWN: Ruler = Ruler { tokens_per_word: 1.0, overhead: 0.0 };

    /// From two prompts: words and tokens of a short and a longer one.
    pub(super) fn from_two(short: (usize, u64), long: (usize, u64)) -> Option<Ruler> {
        let tokens_per_word = (long.1 as f64 - short.1 as f64) / (long.0 as f64 - short.0 as f64);
        let overhead = (short.1 as f64 - tokens_per_word * short.0 as f64).max(0.0);
        (tokens_per_word.is_finite() && tokens_per_word > 0.0).then_some(Ruler { tokens_per_word, overhead })
    }

    /// Words that make `tokens` tokens without the overhead.
    fn words(&self, tokens: f64) -> usize {
        (tokens / self.tokens_per_word).round().max(0.0) as usize
    }
}

/// Makes the prompts.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    seed: u64,
    shared: String,
    own_words: usize,
    long_words: usize,
}

/// Streams of random numbers; requests use their number above these.
const SHARED: u64 = 0;
const LONG: u64 = 1;
const RULER: u64 = 2;
pub(super) const ARRIVALS: u64 = 3;
const FIRST_REQUEST: u64 = 16;

impl Texts {
    /// `prompt` tokens of which the first `shared` are the same in all; `long` in the one long prompt.
    pub(super) fn new(seed: u64, ruler: Ruler, prompt: usize, shared: usize, long: usize) -> Texts {
        let in_shared = ruler.words(shared as f64 - ruler.overhead);
        let in_prompt = ruler.words(prompt as f64 - ruler.overhead).max(1);
        // Where all is shared, the last word is still there; where nothing is, the template is the only common part.
        let in_shared = if shared == 0 { 0 } else { in_shared.min(in_prompt) };
        let shared = Random::new(seed, SHARED).words(in_shared);
        let long_words = ruler.words(long as f64 - ruler.overhead).max(1);
        Texts { seed, shared, own_words: in_prompt - in_shared, long_words }
    }

    /// The prompt of one request.
    pub(super) fn prompt(&self, number: usize) -> String {
        let own = Random::new(self.seed, FIRST_REQUEST + number as u64).words(self.own_words);
        match (self.shared.is_empty(), own.is_empty()) {
            (true, _) => own,
            (_, true) => self.shared.clone(),
            _ => format!("{} {own}", self.shared),
        }
    }

    /// The long prompt, which begins like no other; another one for each level.
    pub(super) fn long(&self, level: usize) -> String {
        Random::new(self.seed, LONG + (level as u64 + 1) * (1 << 32)).words(self.long_words)
    }

    /// A text to measure with.
    pub(super) fn ruler(seed: u64, words: usize) -> String {
        Random::new(seed, RULER + words as u64 * (1 << 32)).words(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn two_prompts_make_a_ruler() {
        let ruler = Ruler::from_two((32, 10 + 48), (160, 10 + 240)).unwrap();
        assert_eq!(ruler, Ruler { tokens_per_word: 1.5, overhead: 10.0 });
        assert_eq!(Ruler::from_two((32, 40), (160, 40)), None, "a server that always says the same does not count");
        assert_eq!(Ruler::from_two((32, 40), (160, 20)), None);
    }

    #[test]
    fn prompts_share_their_beginning_alone() {
        let ruler = Ruler { tokens_per_word: 2.0, overhead: 10.0 };
        let texts = Texts::new(7, ruler, 110, 70, 1010);
        let (a, b) = (texts.prompt(0), texts.prompt(1));
        assert_eq!((n_words(&a), n_words(&b), n_words(&texts.long(0))), (50, 50, 500));
        let shared: Vec<_> = a.split(' ').zip(b.split(' ')).take(30).collect();
        assert!(shared.iter().all(|(a, b)| a == b));
        assert_ne!(a.split(' ').nth(30), b.split(' ').nth(30));
        assert_ne!(texts.long(0), texts.long(1));
        assert_eq!(Texts::new(7, ruler, 110, 70, 1).prompt(1), b, "the same seed gives the same prompt");
        assert_ne!(Texts::new(8, ruler, 110, 70, 1).prompt(1), b);
    }

    #[test]
    fn extremes_still_are_prompts() {
        let ruler = Ruler { tokens_per_word: 1.0, overhead: 20.0 };
        assert_eq!(n_words(&Texts::new(0, ruler, 1, 1, 1).prompt(3)), 1);
        let all_shared = Texts::new(0, ruler, 64, 64, 1);
        assert_eq!(all_shared.prompt(0), all_shared.prompt(1));
        let none_shared = Texts::new(0, ruler, 64, 0, 1);
        assert_eq!(n_words(&none_shared.prompt(0)), 44);
    }

    #[test]
    fn arrivals_have_the_rate_that_was_asked_for() {
        let mut random = Random::new(1, ARRIVALS);
        let n = 20_000;
        let gaps: Vec<f64> = (0..n).map(|_| random.until_next(50.0)).collect();
        let mean = gaps.iter().sum::<f64>() / n as f64;
        let spread = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        assert!((mean * 50.0 - 1.0).abs() < 0.03 && (spread / mean - 1.0).abs() < 0.05, "{mean} {spread}");
        assert!(gaps.iter().all(|g| g.is_finite() && *g >= 0.0));
    }
}
