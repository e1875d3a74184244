//! The CPU's kernels and the scalar reference tell the same story about the embedded model.

use pelton::{BackendChoice, Chat, Logits, Options};

use crate::support::{ask, embedded, greedy, load, max_error, options};

const CODE: [&str; 5] = [
    "fn add(a: i32, b: i32) -> i32 {\n    a + b\n}",
    "def read_lines(path):\n    with open(path) as f:\n        return f.read().splitlines()",
    "public boolean isEmpty() { return size == 0; }",
    "export function clamp(v, lo, hi) { return Math.min(hi, Math.max(lo, v)); }",
    "func (s *Server) Close() error { return s.listener.Close() }",
];

/// Tokens of each answer.
const TOKENS: usize = 32;

#[test]
fn logits_are_close_and_greedy_answers_part_only_at_near_ties() {
    let model = embedded();
    let chat = Chat::new(model.text().unwrap()).unwrap();
    let llm = load(&model, &options());
    let reference = Options { backend: BackendChoice::Reference, ..options() };
    let mut identical = 0;
    for code in CODE {
        let prompt = chat.user_ids(code).unwrap();
        let answer = ask(&llm, greedy(&prompt, TOKENS));
        // One pass over prompt and answer: the reference's choice at each position, given the same past.
        let ids = [&prompt[..], &answer.ids[..TOKENS - 1]].concat();
        let exact = Logits::compute(&model, &ids, &reference, false).unwrap();
        let ours = Logits::compute(&model, &ids, &options(), false).unwrap();
        let error = max_error(&exact.data, &ours.data);
        let largest = exact.data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let gap = |i: usize| {
            let row = exact.row(prompt.len() - 1 + i);
            row.iter().fold(f32::MIN, |m, &v| m.max(v)) - row[answer.ids[i] as usize]
        };
        let gaps: Vec<f32> = (0..TOKENS).map(gap).collect();
        let parted = gaps.iter().filter(|&&g| g > 0.0).count();
        identical += usize::from(parted == 0);
        println!(
            "error {error:.3} of logits up to {largest:.1}; {parted} of {TOKENS} tokens differ: {:?}",
            answer.text
        );
        assert!(error < 0.5, "logits differ by {error}");
        // Two logits that each err by `error` can change places.
        assert!(gaps.iter().all(|&g| g <= 2.0 * error), "{gaps:?} with an error of {error}");
    }
    assert!(identical >= 3, "only {identical} of {} answers are the reference's", CODE.len());
}
