//! What does not fit is refused with numbers before anything is packed; upper bounds shrink and the report says so.

use pelton::{Error, ErrorKind, Inspection, KvType, Llm, Logits, Model, Options, available_memory};

use crate::support::{ask, embedded, fixture, greedy, load, open};

fn refusal(model: &Model, options: &Options) -> Error {
    match Llm::load(model, options, &mut |_| panic!("nothing is packed")) {
        Ok(_) => panic!("it was loaded"),
        Err(e) => e,
    }
}

/// The fixture with another context in its configuration.
fn with_context(context: usize) -> Model {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("qwen2-tied").join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = context.into();
    std::fs::write(&path, config.to_string()).unwrap();
    open(dir.path())
}

#[test]
fn a_context_that_does_not_fit_is_refused_with_numbers() {
    if available_memory().is_none() {
        println!("this system does not say how much memory is free; skipped");
        return;
    }
    let model = with_context(1 << 30);
    let options = Options { context: Some(1 << 30), kv_type: KvType::F32, ..Options::default() };
    let error = refusal(&model, &options);
    let message = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Usage);
    for part in ["1073741824 tokens", "weights", "KV", "MiB that may be used", "--context "] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Without a word from the caller it is the default context.
    let llm = load(&model, &Options::default());
    assert_eq!(llm.report().memory.context, Options::DEFAULT_CONTEXT);
}

#[test]
fn impossible_options_are_refused_before_packing() {
    let model = embedded();
    let d = Options::default;
    let cases = [
        (Options { context: Some(1), ..d() }, "holds 2 to 1024"),
        (Options { context: Some(0), ..d() }, "holds 2 to 1024"),
        (Options { context: Some(usize::MAX), ..d() }, "holds 2 to 1024"),
        (Options { threads: Some(0), ..d() }, "threads is 0"),
        (Options { max_seqs: 0, ..d() }, "max_seqs is 0"),
        (Options { batch_rows: 0, ..d() }, "batch_rows is 0"),
        (Options { max_waiting: 0, ..d() }, "max_waiting is 0"),
        (Options { isa: Some("sse9".into()), ..d() }, "sse9"),
    ];
    for (options, words) in cases {
        let error = refusal(&model, &options);
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    if available_memory().is_some() {
        let error = refusal(&model, &Options { batch_rows: usize::MAX, ..d() });
        assert!(error.to_string().contains("activations"), "{error}");
    }
}

#[test]
fn sequences_beyond_memory_become_what_fits_and_the_report_says_so() {
    if available_memory().is_none() {
        println!("this system does not say how much memory is free; skipped");
        return;
    }
    // The pool is committed page by page: reserving nearly all memory costs nothing.
    let llm = load(&embedded(), &Options { max_seqs: usize::MAX, ..Options::default() });
    let memory = llm.report().memory;
    assert!(memory.max_seqs < memory.wanted_seqs && memory.wanted_seqs == usize::MAX, "{memory:?}");
    let line = llm.report().line();
    assert!(line.contains(&format!("memory allows {} of", memory.max_seqs)), "{line}");
    assert_eq!(ask(&llm, greedy(&[5, 6, 7], 4)).ids.len(), 4);
    let modest = load(&embedded(), &Options { max_seqs: 3, ..Options::default() });
    assert_eq!((modest.report().memory.max_seqs, modest.report().memory.full_sequences), (3, 3));
    assert!(!modest.report().line().contains("memory allows"), "{}", modest.report().line());
}

#[test]
fn logits_and_figures_are_bounded() {
    let model = embedded();
    let long = vec![1; 1025];
    let error = Logits::compute(&model, &long, &Options::default(), false).unwrap_err();
    assert!(error.to_string().contains("1 to 1024"), "{error}");
    let error = Logits::compute(&model, &[], &Options::default(), false).unwrap_err();
    assert!(error.to_string().contains("0 ids"), "{error}");
    let error = Logits::compute(&model, &[1, 8192], &Options::default(), false).unwrap_err();
    assert!(error.to_string().contains("id 8192 at position 1"), "{error}");
    let figures = Inspection::new(&model, None, usize::MAX, KvType::F32).unwrap();
    assert_eq!(figures.memory_bytes, u64::MAX);
}
