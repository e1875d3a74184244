//! An answer's bits never depend on company, threads, chunks or the prefix cache: the embedded model, alone and
//! with forty prompts at once.

use pelton::{Llm, Options, Request, SamplingParams, Special};

use crate::support::{Answer, ask, ask_together, embedded, has, load};

const SUBJECTS: [&str; 8] = [
    "fn area(width: f64, height: f64) -> f64 { width * height }",
    "def greet(name):\n    return f\"Hello, {name}!\"",
    "public int count(List<String> names) { return names.size(); }",
    "function last(list) { return list[list.length - 1]; }",
    "func Max(a, b int) int { if a > b { return a }; return b }",
    "static int clamp(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }",
    "impl Drop for Guard { fn drop(&mut self) { self.lock.release(); } }",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n",
];

/// A common beginning of more than one page, so that the prefix cache has something to share.
const PREFACE: &str = "You write short, exact documentation comments. Say what the item does, what it takes and what \
                       it gives back; name units and errors; say nothing that the code does not say.\n\n";

/// Forty requests: every other one with the common beginning, lengths from a few tokens to several pages, every
/// third one sampled.
fn requests(llm: &Llm) -> Vec<Request> {
    let tokenizer = llm.tokenizer().unwrap();
    let request = |i: usize| {
        let body = (0..=i % 3).map(|k| SUBJECTS[(i + k) % SUBJECTS.len()]).collect::<Vec<_>>().join("\n\n");
        let preface = if i.is_multiple_of(2) { PREFACE } else { "" };
        let prompt = tokenizer.encode(&format!("{preface}// {i}\n{body}\n"), Special::AsText);
        let sampling = match i % 3 {
            0 => SamplingParams { temperature: 0.9, top_p: 0.95, seed: Some(i as u64), ..SamplingParams::default() },
            _ => SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        };
        Request { ignore_eos: true, ..Request::new(prompt, sampling, 6 + i % 20) }
    };
    (0..40).map(request).collect()
}

fn assert_same(got: &[Answer], want: &[Answer], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.bits(), want.bits(), "request {i}, {what}");
        assert_eq!(got.end.reason, want.end.reason, "request {i}, {what}");
    }
}

fn check(isa: Option<&str>) {
    let model = embedded();
    let base = Options { isa: isa.map(Into::into), threads: Some(1), context: Some(256), ..Options::default() };
    let single = load(&model, &Options { prefix_cache: false, ..base.clone() });
    let requests = requests(&single);
    let alone: Vec<Answer> = requests.iter().map(|r| ask(&single, r.clone())).collect();
    assert!(alone.iter().all(|a| a.end.timing.cached_tokens == 0));
    let crowded = Options { max_seqs: 8, batch_rows: 64, ..base.clone() };
    for (threads, prefix_cache) in [(1, false), (2, true)] {
        let llm = load(&model, &Options { threads: Some(threads), prefix_cache, ..crowded.clone() });
        assert_eq!(llm.report().memory.max_seqs, 8);
        let what = format!("{} with a prefix cache: {prefix_cache}", llm.report().backend);
        assert_same(&ask_together(&llm, &requests), &alone, &what);
        let again = ask_together(&llm, &requests);
        assert_same(&again, &alone, &format!("{what}, again"));
        let cached = again.iter().filter(|a| a.end.timing.cached_tokens > 0).count();
        println!("{what}: {cached} of 40 prompts began in the cache");
        assert_eq!(cached > 10, prefix_cache, "{cached} prompts in the cache");
    }
    // Chunks that end within pages, on a pool that holds two of the sequences.
    let llm = load(&model, &Options { max_seqs: 2, batch_rows: 7, threads: Some(2), ..base });
    assert_same(&ask_together(&llm, &requests), &alone, "two at once, in chunks of 7 rows");
}

#[test]
fn alone_or_among_forty_on_the_best_kernels() {
    check(None);
}

#[test]
fn alone_or_among_forty_on_avx2() {
    match has("avx2") {
        true => check(Some("avx2")),
        false => println!("this machine has no AVX2; skipped"),
    }
}
