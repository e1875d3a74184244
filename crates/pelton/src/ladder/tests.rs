use super::*;
use crate::ModelRef;

fn job(model: &Model) -> LadderJob {
    let tokenizer = model.tokenizer.as_ref().unwrap();
    let shared = "Write one short sentence for each function, and nothing else. ".repeat(8);
    let prompt = |i: usize| {
        let text = format!("{shared}\nDocument this function:\nfn add_{i}(a: i32) -> i32 {{ a + {i} }}\n");
        tokenizer.encode(&text, crate::Special::AsText)
    };
    LadderJob { prompts: (0..6).map(prompt).collect(), max_tokens: 12, sampling: SamplingParams::default() }
}

fn options() -> LadderOptions {
    let options = Options { threads: Some(2), ..Options::default() };
    LadderOptions { options, batches: vec![2, 4], kv_type: Some(KvType::Int8), speculation: false, rounds: 2 }
}

#[test]
fn kept_rungs_are_faster_and_answers_stay_the_same() {
    let model = Model::open(&ModelRef::Embedded, None).unwrap();
    let baseline = in_bf16(&model).unwrap().expect("the embedded model is quantized");
    assert_eq!(baseline.parameters(), model.parameters());
    let job = job(&model);
    let mut seen = Vec::new();
    let rungs = climb(Some(&baseline), &model, &job, &options(), &mut |p| seen.push(p.rung)).unwrap();
    let steps: Vec<Step> = rungs.iter().map(|r| r.step).collect();
    let two = [Step::Together(2), Step::Together(4)];
    assert_eq!(
        steps,
        [Step::Baseline, Step::Quantization, Step::PrefixReuse, two[0], two[1], Step::KvType(KvType::Int8)]
    );
    assert!(steps.iter().all(|s| seen.contains(&s.name())));
    let mut fastest = 0.0;
    for rung in &rungs {
        assert!(rung.items == 6 && rung.tokens > 0 && rung.tokens <= 72 && rung.steps > 0, "{rung:?}");
        assert!(rung.memory_bytes > 1 << 20 && rung.work.operations() > 0.0, "{rung:?}");
        if rung.left_off.is_none() {
            assert!(rung.seconds.len() >= 2, "every kept rung is measured in every round");
            assert!(rung.items_per_second() > fastest, "{rung:?}");
            fastest = rung.items_per_second();
        }
        // What neither weights nor keys and values change, no rung may.
        if matches!(rung.step, Step::PrefixReuse | Step::Together(_)) {
            assert_eq!(rung.same_answers, Some(6), "{rung:?}");
        }
    }
    assert_eq!(rungs[0].cached_tokens + rungs[1].cached_tokens, 0);
    assert!(rungs[2].cached_tokens >= 5 * 64, "{:?}", rungs[2]);
    assert!(rungs[0].memory_bytes > rungs[1].memory_bytes, "the baseline's weights are wider");
}

#[test]
fn what_adds_nothing_is_left_off_and_the_rest_goes_without() {
    let model = Model::open(&ModelRef::Embedded, None).unwrap();
    let mut job = job(&model);
    job.max_tokens = 4;
    // One at a time again: nothing can be gained by a second rung that says so.
    let options = LadderOptions { batches: Vec::new(), kv_type: Some(KvType::F32), rounds: 1, ..options() };
    let rungs = climb(None, &model, &job, &options, &mut |_| ()).unwrap();
    assert_eq!(
        rungs.iter().map(|r| r.step).collect::<Vec<_>>(),
        [Step::Sequential, Step::PrefixReuse, Step::KvType(KvType::F32)]
    );
    for pair in rungs.windows(2) {
        let slower = pair[1].median_seconds() >= pair[0].median_seconds();
        assert!(pair[0].left_off.is_some() || slower == pair[1].left_off.is_some(), "{rungs:?}");
    }
}

#[test]
fn nothing_to_do_is_refused() {
    let model = Model::open(&ModelRef::Embedded, None).unwrap();
    let job = LadderJob { prompts: Vec::new(), ..job(&model) };
    let refused = climb(None, &model, &job, &options(), &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("no prompts"), "{refused}");
}
