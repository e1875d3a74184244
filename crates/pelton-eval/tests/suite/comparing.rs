//! `compare` from end to end, with the built-in models.

use pelton::{KvType, Model, ModelRef, Options};
use pelton_eval::{Candidate, DEFAULT_TEXT, Plan, WindowOptions, compare, default_prompts, page};

use crate::support::{cpu, open};

fn candidate(label: &str, model: ModelRef, kv_type: KvType) -> Candidate<'static> {
    let open = Box::new(move || Model::open(&model, None));
    Candidate { label: label.into(), open, options: Options { kv_type, batch_rows: 512, ..cpu() } }
}

fn plan(folder: &std::path::Path) -> Plan {
    Plan {
        text: DEFAULT_TEXT.into(),
        text_name: "the built-in text".into(),
        windows: WindowOptions { window: 128, stride: None, most: Some(4) },
        prompts: default_prompts().into_iter().take(2).collect(),
        answer_tokens: 8,
        raw: false,
        repeat: 0,
        speed_tokens: (8, 2),
        context: 256,
        scratch: folder.to_path_buf(),
    }
}

#[test]
fn a_model_a_copy_and_a_smaller_one() {
    let folder = tempfile::tempdir().unwrap();
    let base = candidate("base", ModelRef::Embedded, KvType::Bf16);
    let copy = candidate("copy", ModelRef::Embedded, KvType::Bf16);
    let fp8 = candidate("fp8", ModelRef::Embedded, KvType::Fp8);
    let draft = candidate("draft", ModelRef::EmbeddedDraft, KvType::Bf16);
    let mut said = Vec::new();
    let found = compare(&[base, copy, fp8, draft], &Plan { repeat: 1, ..plan(folder.path()) }, &mut |step| {
        assert!(step.done <= step.total, "{step:?}");
        said.push(format!("{}: {}", step.label, step.what));
    })
    .unwrap();
    assert!(said.contains(&"draft: predicting the text".into()) && said.contains(&"copy: measuring speed".into()));
    let [base, copy, fp8, draft] = &found.candidates[..] else { panic!("{found:?}") };
    assert_eq!((copy.text.mean.value, copy.text.same_top.value, copy.text.ln_ratio.value), (0.0, 1.0, 0.0));
    let (same, parted) = (copy.parting.unwrap(), draft.parting.unwrap());
    assert_eq!((same.prompts, same.same, same.median_tokens), (2, 2, same.answer_tokens));
    assert_eq!(base.parting, copy.parting);
    assert!(parted.same < 2 && parted.median_tokens < 8.0, "{parted:?}");
    assert!(fp8.text.mean.value > 0.0 && fp8.text.mean.value < draft.text.mean.value, "{fp8:?} {draft:?}");
    assert!(draft.text.ln_ratio.value > 0.0 && draft.file_bytes < base.file_bytes);
    assert!(fp8.memory_bytes < base.memory_bytes && fp8.kv_type == "fp8");
    assert!(found.candidates.iter().all(|c| c.speed.is_some_and(|s| s.decode.value > 0.0)));
    assert_eq!((found.tokens, found.prompts, found.prompts_left_out), (4 * 63, 2, 0));
    assert!(found.advice.contains("draft"), "{}", found.advice);
    let page = page(&found);
    assert!(page.contains("draft") && page.matches("<svg").count() == 2);
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let base = || candidate("base", ModelRef::Embedded, KvType::Bf16);
    let refused = |candidates: &[Candidate<'_>], plan: &Plan, words: &str| {
        let error = compare(candidates, plan, &mut |_| panic!("nothing is measured")).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(&[], &plan(folder.path()), "a base and at least one");
    refused(&[base()], &plan(folder.path()), "a base and at least one");
    let other = Candidate { label: "other".into(), open: Box::new(|| Ok(open("qwen3"))), options: cpu() };
    refused(&[base(), other], &plan(folder.path()), "share their vocabulary");
    let short = Plan { text: "a short text".into(), ..plan(folder.path()) };
    refused(&[base(), base()], &short, "needs 128");
}
