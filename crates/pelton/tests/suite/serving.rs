//! What a server builds on: vectors, explanations of misses, pages that outlive the process, requirements.

use pelton::{ErrorKind, Llm, MissCause, Options, Pooling, Request, Require};

use crate::support::{ask, embedded, greedy, load, options};

fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|i| 300 + i * 7 % 4000).collect()
}

#[test]
fn vectors_come_in_order_and_are_of_length_one() {
    let llm = load(&embedded(), &Options { max_seqs: 8, context: Some(256), ..options() });
    let prompts: Vec<Vec<u32>> = (1..20).map(|n| prompt(n * 5)).collect();
    for pooling in [Pooling::Last, Pooling::Mean] {
        let together = llm.embed(prompts.clone(), pooling).unwrap();
        for (one, prompt) in together.iter().zip(&prompts) {
            let alone = llm.embed(vec![prompt.clone()], pooling).unwrap().remove(0);
            assert_eq!((&one.values, one.timing.prompt_tokens), (&alone.values, prompt.len()));
            assert_eq!(one.values.len(), llm.config().hidden);
            let length: f64 = one.values.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-6);
        }
    }
    assert_eq!(llm.embed(vec![vec![1], vec![]], Pooling::Last).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn a_miss_is_explained_with_the_texts_of_both_sides() {
    let llm = load(&embedded(), &options());
    ask(&llm, greedy(&prompt(100), 2));
    let mut other = prompt(100);
    other[40] = 4321;
    let end = ask(&llm, greedy(&other, 2)).end;
    let line = llm.cache_line(&end).unwrap();
    assert_eq!(end.miss.as_ref().unwrap().cause, MissCause::Different);
    let tokenizer = llm.tokenizer().unwrap();
    let text = |ids: &[u32]| format!("{:?}", tokenizer.decode(ids, false));
    assert!(line.starts_with("prompt 100 tokens, 32 cached; token 40 on: different text; after "), "{line}");
    assert!(line.contains(&text(&other[40..52])) && line.contains(&text(&prompt(100)[40..52])), "{line}");
    assert!(!line.contains('\n'));
    assert!(llm.cache_line(&ask(&llm, greedy(&other, 2)).end).is_none(), "nothing was missed");
}

#[test]
fn pages_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Options { prefix_cache_dir: Some(folder.path().join("pages")), ..options() };
    let first = {
        let llm = load(&embedded(), &kept);
        ask(&llm, greedy(&prompt(150), 8))
    };
    let llm = load(&embedded(), &kept);
    assert!(llm.report().notes.iter().any(|note| note.contains("prefix pages on disk: 4")), "{:?}", llm.report().notes);
    let again = ask(&llm, greedy(&prompt(150), 8));
    assert_eq!((first.end.timing.cached_tokens, again.end.timing.cached_tokens), (0, 128));
    assert_eq!(again.bits(), first.bits());
    assert_eq!(llm.stats().disk.unwrap().read, 4);
    drop(llm);
    // Pages of another storage type are others; the folder holds both.
    let other = load(&embedded(), &Options { kv_type: pelton::KvType::Int8, ..kept });
    assert_eq!(ask(&other, greedy(&prompt(150), 8)).end.timing.cached_tokens, 0);
}

#[test]
fn the_plan_is_printed_whole_and_requirements_are_kept() {
    let model = embedded();
    let llm = load(&model, &Options { require: Require::parse("ctx=512,seqs=3").unwrap(), ..options() });
    let memory = llm.report().memory;
    assert_eq!((memory.context, memory.max_seqs), (512, 3));
    let lines = memory.lines().join("\n");
    for part in ["weights", "activations", "KV pages", "bytes a token (bf16)", "3 at once, 3 of them"] {
        assert!(lines.contains(part), "{lines}");
    }
    assert_eq!(memory.kv_bytes, memory.n_pages * 32 * memory.kv_bytes_per_token);
    let short = Options {
        require: Require { context: Some(1024), seqs: Some(64), gpu: false },
        memory: Some((memory.weight_bytes + memory.activation_bytes) as u64 + (64 << 20)),
        ..options()
    };
    let error = Llm::load(&model, &short, &mut |_| ()).err().expect("it does not fit");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("64 sequences of 1024 tokens do not fit"), "{error}");
    assert!(error.to_string().contains("--require ctx=1024,seqs="), "{error}");
    let conflict =
        Options { context: Some(256), require: Require { context: Some(512), ..Require::default() }, ..options() };
    assert!(Llm::load(&model, &conflict, &mut |_| ()).is_err());
    let many = Request { n: 3, ..greedy(&prompt(10), 4) };
    assert_eq!(llm.submit(many).unwrap().filter(|event| !event.is_last()).count(), 3 * 4 + 2);
}
