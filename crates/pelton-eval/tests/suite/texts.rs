//! Perplexity and divergence.

use pelton::{Logits, Options};
use pelton_eval::{Base, BaseFile, divergence, keep_base, perplexity};

use crate::support::{all, cpu, log_softmax, mean_and_error, near, open, reference, scorer, transformers, windows};

const VOCAB: usize = 512;

#[test]
fn perplexity_is_that_of_transformers_logits() {
    for name in ["qwen3", "gemma2", "llama3-rope", "qwen3-moe"] {
        let (ids, logits) = transformers(name);
        // One window over all of it: its second half counts, but for the last token's.
        let (from, end) = (ids.len() / 2, ids.len() - 1);
        let surprises: Vec<f64> =
            (from..end).map(|r| -log_softmax(&logits[r * VOCAB..(r + 1) * VOCAB])[ids[r + 1] as usize]).collect();
        let (mean, error) = mean_and_error(&surprises);
        let model = open(name);
        let stretches = windows(&ids, ids.len(), None);
        for (options, within) in [(reference(), 2e-4), (cpu(), 1e-2)] {
            let mut scorer = scorer(&model, &options, ids.len(), 1);
            let found = perplexity(&mut scorer, &stretches, 1, &mut |_, _| ()).unwrap();
            assert_eq!((found.tokens, found.windows), (end - from, 1));
            near(found.surprise.value, mean, within);
            near(found.surprise.error, error, within);
            near(found.perplexity.value / mean.exp(), 1.0, 2.0 * within);
            near(found.perplexity.error, found.perplexity.value * found.surprise.error, 1e-9);
        }
    }
}

#[test]
fn windows_of_awkward_lengths_are_computed_each_from_its_beginning() {
    let (ids, _) = transformers("qwen3");
    let model = open("qwen3");
    for (window, stride, together) in
        [(37, None, 3), (64, None, 1), (41, Some(17), 2), (33, Some(32), 5), (5, Some(1), 4)]
    {
        let stretches = windows(&ids, window, stride);
        let mut surprises = Vec::new();
        for s in all(&stretches) {
            let logits = Logits::compute(&model, &s.ids, &reference(), false).unwrap();
            surprises.extend((s.from..window - 1).map(|r| -log_softmax(logits.row(r))[s.ids[r + 1] as usize]));
            // Enough to see a mistake; the reference is slow.
            if surprises.len() > 300 {
                break;
            }
        }
        let mut scorer = scorer(&model, &reference(), window, together);
        let mut seen = Vec::new();
        let found = perplexity(&mut scorer, &stretches, together, &mut |done, total| seen.push((done, total))).unwrap();
        assert_eq!(seen.last(), Some(&(stretches.len(), stretches.len())));
        assert_eq!(found.tokens, stretches.counted());
        if surprises.len() == found.tokens {
            let (mean, error) = mean_and_error(&surprises);
            near(found.surprise.value, mean, 1e-5);
            near(found.surprise.error, error, 1e-5);
        }
    }
}

#[test]
fn figures_do_not_depend_on_batches_and_threads() {
    let (ids, _) = transformers("qwen3");
    let model = open("qwen3");
    let stretches = windows(&ids, 40, None);
    let figure = |threads, batch_rows, together| {
        let options = Options { threads: Some(threads), batch_rows, ..Options::default() };
        let mut scorer = scorer(&model, &options, 40, together);
        perplexity(&mut scorer, &stretches, together, &mut |_, _| ()).unwrap()
    };
    let one = figure(1, 512, 1);
    for (threads, batch_rows, together) in [(2, 7, 1), (2, 512, 5), (1, 64, 2)] {
        assert_eq!(figure(threads, batch_rows, together), one);
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let (ids, _) = transformers("qwen3");
    let model = open("qwen3");
    let stretches = windows(&ids, 50, None);
    let mut scorer = scorer(&model, &cpu(), 50, 2);
    let folder = tempfile::tempdir().unwrap();
    for most_memory in [u64::MAX, 0] {
        let mut base = Base::new(stretches.counted(), VOCAB, most_memory, folder.path()).unwrap();
        let kept = keep_base(&mut scorer, &stretches, 2, &mut base, &mut |_, _| ()).unwrap();
        let d = divergence(&mut scorer, &stretches, 1, &base, &mut |_, _| ()).unwrap();
        assert_eq!((d.same_top.value, d.perplexity.tokens), (1.0, kept.tokens));
        near(d.perplexity.perplexity.value, kept.perplexity.value, 1e-4);
        match most_memory {
            0 => near(d.mean.value, 0.0, 1e-5),
            _ => assert_eq!((d.mean.value, d.most, d.rms_dp.value, d.ln_ratio.value), (0.0, 0.0, 0.0, 0.0)),
        }
    }
}

#[test]
fn differences_are_found_as_a_plain_loop_finds_them() {
    let (ids, _) = transformers("qwen2-tied");
    let (one, other) = (open("qwen2-tied"), open("qwen2-untied"));
    let stretches = windows(&ids, 60, None);
    let (mut divergences, mut same, mut changes, mut ratio) = (Vec::new(), 0, Vec::new(), Vec::new());
    for s in all(&stretches) {
        let [p, q] = [&one, &other].map(|m| Logits::compute(m, &s.ids, &reference(), false).unwrap());
        for r in s.from..59 {
            let (p, q, target) = (log_softmax(p.row(r)), log_softmax(q.row(r)), s.ids[r + 1] as usize);
            divergences.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            let top = |l: &[f64]| (0..VOCAB).fold(0, |best, i| if l[i] > l[best] { i } else { best });
            same += usize::from(top(&p) == top(&q));
            changes.push((q[target].exp() - p[target].exp()).powi(2));
            ratio.push(p[target] - q[target]);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    for (most_memory, within) in [(u64::MAX, 1e-4), (0, 2e-2)] {
        let mut base = Base::new(stretches.counted(), VOCAB, most_memory, folder.path()).unwrap();
        keep_base(&mut scorer(&one, &reference(), 60, 1), &stretches, 1, &mut base, &mut |_, _| ()).unwrap();
        let found = &mut scorer(&other, &reference(), 60, 3);
        let d = divergence(found, &stretches, 3, &base, &mut |_, _| ()).unwrap();
        let (mean, error) = mean_and_error(&divergences);
        assert!(mean > 0.1, "two models differ");
        near(d.mean.value / mean, 1.0, within);
        near(d.mean.error / error, 1.0, within);
        near(d.most / divergences.iter().copied().fold(0.0, f64::max), 1.0, within);
        near(d.same_top.value, same as f64 / divergences.len() as f64, 1e-9);
        near(d.rms_dp.value, mean_and_error(&changes).0.sqrt(), 1e-4);
        let (mean, error) = mean_and_error(&ratio);
        near(d.ln_ratio.value, mean, 1e-3);
        near(d.ln_ratio.error, error, 1e-3);
    }
}

#[test]
fn a_base_of_something_else_is_refused() {
    let (ids, _) = transformers("qwen3");
    let model = open("qwen3");
    let mut scorer = scorer(&model, &cpu(), 50, 1);
    let folder = tempfile::tempdir().unwrap();
    let stretches = windows(&ids, 50, None);
    let mut refused = |rows, vocab, words: &str| {
        let mut base = Base::new(rows, vocab, u64::MAX, folder.path()).unwrap();
        let error = divergence(&mut scorer, &stretches, 1, &base, &mut |_, _| ()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let error = keep_base(&mut scorer, &stretches, 1, &mut base, &mut |_, _| ()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(stretches.counted(), 511, "the base's has 511");
    refused(3, VOCAB, "the base has 3");
}

#[test]
fn a_written_base_serves_another_process() {
    let (ids, _) = transformers("qwen3");
    let model = open("qwen3");
    let stretches = windows(&ids, 45, None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base");
    let mut scorer = scorer(&model, &cpu(), 45, 1);
    let mut base = BaseFile::create(&path, &stretches, VOCAB).unwrap();
    let written = keep_base(&mut scorer, &stretches, 1, &mut base, &mut |_, _| ()).unwrap();
    base.finish().unwrap();
    let file = BaseFile::open(&path).unwrap();
    let d = divergence(&mut scorer, &file.stretches(None).unwrap(), 1, &file.base, &mut |_, _| ()).unwrap();
    near(d.mean.value, 0.0, 1e-5);
    near(d.base_perplexity.perplexity.value / written.perplexity.value, 1.0, 1e-3);
}
