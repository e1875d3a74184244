//! Models on GPUs and CPU together, on the simulator's driver: the same answers wherever the layers are, plans that keep to
//! the card's memory, and what is said where there is no card or it fails.

use std::path::PathBuf;

use pelton::{
    Error, ErrorKind, Event, GpuLayers, Llm, Logits, Model, Options, Request, Require, SamplingParams, SubmitError,
};
use pelton_cuda::sim::{self, Build, Simulator};

use crate::fixtures::greedy_run;
use crate::support::{Expected, PATIENCE, ask, ask_together, embedded, fixture, greedy, load, open, options};

fn on(driver: PathBuf, gpu_layers: GpuLayers) -> Options {
    Options { gpu_layers, gpu_driver: Some(driver), ..options() }
}

/// A driver of its own, whose memory and faults are no other test's.
fn driver(name: &str, more: &[(&str, &str, &str)]) -> PathBuf {
    let name = format!("\"{name}\"");
    let changes: Vec<_> = [("fakecuda.cpp", "\"Simulator\"", name.as_str())].iter().chain(more).copied().collect();
    sim::build(&Build { changes: &changes, ..Build::default() })
}

fn refusal(model: &Model, options: &Options) -> Error {
    match Llm::load(model, options, &mut |_| ()) {
        Ok(_) => panic!("it was loaded"),
        Err(e) => e,
    }
}

/// A split at each layer: logits as near to transformers as the rule of the fixtures has it, and the tokens.
#[test]
fn fixtures_split_at_every_layer_have_the_logits_and_tokens_of_transformers() {
    for name in ["qwen3", "gemma2", "qwen3-moe"] {
        let (model, mut expected) = (open(&fixture(name)), Expected::of(name));
        let (n_layers, vocab) = (model.files.config.n_layers, model.files.config.vocab_size);
        // More than a page.
        expected.ids.truncate(36);
        expected.logits.truncate(36 * vocab);
        for k in 0..=n_layers {
            let options = on(sim::library(), GpuLayers::Count(k));
            let logits = Logits::compute(&model, &expected.ids, &options, false).unwrap();
            let error = expected.error_of(&logits);
            let tokens = if k == 1 { greedy_run(&model, &expected, &options, error) } else { String::new() };
            println!("{name}, {k} of {n_layers} layers: max abs logit error {error:.1e} {tokens}");
            assert!(error <= 2.0 * expected.bf16_error, "{name}, {k} layers: {error}, bf16 {}", expected.bf16_error);
        }
    }
}

#[test]
fn answers_of_a_split_model_are_the_same_bits_alone_and_in_company() {
    let model = open(&fixture("qwen2-tied"));
    let options = Options { max_seqs: 3, context: Some(128), ..on(sim::library(), GpuLayers::Count(2)) };
    let llm = load(&model, &options);
    let gpu = &llm.report().gpu;
    assert_eq!(gpu.line().unwrap(), "layers 0–1 on Simulator, 2 and the head on the CPU");
    assert!(gpu.cards[0].weight_bytes > 0 && gpu.cards[0].kv_bytes > 0, "{gpu:?}");
    assert!(llm.report().line().contains("layers 0–1 on Simulator"), "{}", llm.report().line());
    // Both parts' kernels were probed, and attention on each.
    let probed = |words: &str| llm.report().certificate.probes.iter().any(|p| p.kernel.contains(words));
    assert!(probed("cuda Simulator") && probed("cpu "), "{:?}", llm.report().certificate);
    let requests: Vec<_> = [3u32, 40, 70].iter().map(|&n| greedy(&(1..n).collect::<Vec<_>>(), 6)).collect();
    let alone: Vec<_> = requests.iter().map(|r| ask(&llm, r.clone())).collect();
    let together = ask_together(&llm, &requests);
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.bits(), together.bits());
    }
    // Another boundary computes other bits, and is the same model.
    let all = load(&model, &Options { gpu_layers: GpuLayers::All, ..options.clone() });
    assert_eq!(all.report().gpu.line().unwrap(), "all layers and the head: 0–2 on Simulator");
    assert_eq!(ask(&all, requests[1].clone()).ids, alone[1].ids);
}

/// A bias of nothing has the host choose from the logits themselves.
#[test]
fn tokens_chosen_on_a_card_are_those_chosen_from_its_logits() {
    let model = open(&fixture("qwen2-tied"));
    let llm = load(&model, &Options { max_seqs: 6, context: Some(128), ..on(sim::library(), GpuLayers::All) });
    let sampling = |temperature, top_k, top_p, min_p| SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        seed: Some(11),
        ..SamplingParams::default()
    };
    let all = [
        sampling(0.0, 0, 1.0, 0.0),
        sampling(1.0, 0, 1.0, 0.0),
        sampling(0.8, 20, 1.0, 0.0),
        sampling(1.3, 0, 0.9, 0.0),
        sampling(2.0, 0, 1.0, 0.2),
        sampling(0.7, 40, 0.8, 0.1),
    ];
    let prompt: Vec<u32> = (5..25).chain(5..25).collect();
    let request = |sampling: &SamplingParams| Request {
        ignore_eos: true,
        top_logprobs: 3,
        ..Request::new(prompt.clone(), sampling.clone(), 12)
    };
    let here: Vec<Request> = all.iter().map(request).collect();
    let there = all.iter().map(|s| request(&SamplingParams { logit_bias: vec![(0, 0.0)], ..s.clone() }));
    let there: Vec<Request> = there.collect();
    let chosen_here = ask_together(&llm, &here);
    let weighed = llm.stats().weighed_tokens;
    // The model is random: nine tenths of its probability are more tokens than a list has.
    assert_eq!(weighed, 5 * 12, "all but those of the wide nucleus were chosen on the card");
    let mixed: Vec<Request> = here.iter().zip(&there).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let chosen_there = ask_together(&llm, &there);
    assert_eq!(llm.stats().weighed_tokens, weighed, "none was chosen on the card");
    for (here, there) in chosen_here.iter().zip(&chosen_there) {
        assert_eq!(here.bits(), there.bits());
    }
    // Both ways in one step.
    for (i, answer) in ask_together(&llm, &mixed).iter().enumerate() {
        assert_eq!(answer.bits(), chosen_here[i / 2].bits(), "{i}");
    }
}

#[test]
fn auto_puts_on_a_card_what_fits_and_says_what_is_missing() {
    let driver = driver("Small simulator", &[]);
    let simulator = Simulator::of(&driver);
    let model = embedded();
    let auto = on(driver.clone(), GpuLayers::Auto);
    let all = load(&model, &auto).report().gpu.clone();
    let n_layers = model.files.config.n_layers;
    assert!(all.head_on_card && all.cards[0].layers == (0..n_layers) && all.reason.is_none(), "{all:?}");
    // Room for about half of it.
    let whole = all.cards[0].weight_bytes + all.cards[0].kv_bytes;
    simulator.set_memory_limit(whole / 2 + (8 << 20));
    let half = load(&model, &auto);
    let gpu = &half.report().gpu;
    let on_card = gpu.cards[0].layers.len();
    assert!(on_card > 0 && !gpu.head_on_card, "{gpu:?}");
    let line = half.report().line();
    assert!(line.contains("layers 0–") && line.contains("head on the CPU") && line.contains("MiB short"), "{line}");
    assert_eq!(ask(&half, greedy(&[5, 6, 7], 4)).ids.len(), 4);
    drop(half);
    // What was asked for in so many words is refused with the numbers and what would fit.
    let error = refusal(&model, &Options { gpu_layers: GpuLayers::All, ..auto.clone() });
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    for words in ["--gpu-layers all", "layers fit", "MiB", "Small simulator", &format!("--gpu-layers {on_card} fits")] {
        assert!(error.to_string().contains(words), "`{words}` is missing: {error}");
    }
    simulator.set_memory_limit(1 << 16);
    let none = load(&model, &auto);
    let line = none.report().line();
    assert!(line.contains("no GPU: not one layer fits") && none.report().gpu.cards.is_empty(), "{line}");
    let error = refusal(&model, &Options { require: Require { gpu: true, ..Require::default() }, ..auto });
    assert!(error.to_string().contains("--require gpu: 0 of"), "{error}");
}

#[test]
fn two_cards_share_what_one_does_not_hold() {
    let driver = driver(
        "Half a simulator",
        &[
            ("fakecuda.cpp", "{ *n = 1; return SUCCESS; }", "{ *n = 2; return SUCCESS; }"),
            ("fakecuda.cpp", "return ordinal ? INVALID_DEVICE", "return ordinal > 1 ? INVALID_DEVICE"),
            // Both have their memory from one pool: each sees half of it.
            ("fakecuda.cpp", "memory_limit - memory_used : 0", "(memory_limit - memory_used) / 2 : 0"),
        ],
    );
    let (model, simulator) = (embedded(), Simulator::of(&driver));
    let card = load(&model, &on(driver.clone(), GpuLayers::Auto)).report().gpu.cards[0].clone();
    // Each sees two thirds of what is needed.
    simulator.set_memory_limit((card.weight_bytes + card.kv_bytes) * 3 / 2);
    let both = load(&model, &Options { batch_rows: 8, ..on(driver, GpuLayers::Auto) });
    let cards = &both.report().gpu.cards;
    assert!(cards.len() == 2 && cards[0].layers.end == cards[1].layers.start && cards[1].index == 1, "{cards:?}");
    let answer = ask(&both, greedy(&[5, 6, 7, 8], 6));
    assert_eq!(answer.ids.len(), 6);
    // The border between two cards changes no bit: each layer is on the same kind of card.
    let one = load(&model, &Options { batch_rows: 8, ..on(sim::library(), GpuLayers::Count(cards[1].layers.end)) });
    assert_eq!(ask(&one, greedy(&[5, 6, 7, 8], 6)).ids, answer.ids);
}

#[test]
fn without_a_driver_auto_runs_on_the_cpu_and_the_others_say_what_to_do() {
    let model = embedded();
    let nowhere = |gpu_layers| on("no-such-driver.so".into(), gpu_layers);
    let llm = load(&model, &nowhere(GpuLayers::Auto));
    let line = llm.report().line();
    assert!(line.contains("no GPU: no NVIDIA driver (no-such-driver.so cannot be loaded)"), "{line}");
    assert_eq!(ask(&llm, greedy(&[5, 6, 7], 3)).ids.len(), 3);
    assert_eq!(load(&model, &nowhere(GpuLayers::Count(0))).report().gpu.line(), None);
    let gpu = Require { gpu: true, ..Require::default() };
    for (options, asked) in [
        (nowhere(GpuLayers::All), "--gpu-layers all: no NVIDIA driver"),
        (nowhere(GpuLayers::Count(3)), "--gpu-layers 3: no NVIDIA driver"),
        (Options { require: gpu, ..nowhere(GpuLayers::Auto) }, "--require gpu: no NVIDIA driver"),
        (Options { require: gpu, ..nowhere(GpuLayers::Count(0)) }, "leave one of the two out"),
        (Options { backend: pelton::BackendChoice::Reference, ..nowhere(GpuLayers::All) }, "--reference"),
    ] {
        let error = refusal(&model, &options);
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(asked), "`{asked}` is missing: {error}");
    }
    let error = refusal(&model, &nowhere(GpuLayers::All)).to_string();
    assert!(error.contains("install the driver") && error.contains("no-such-driver.so"), "{error}");
}

#[test]
fn a_card_that_is_too_old_is_named() {
    let driver = driver("GeForce GTX 1080", &[("fakecuda.cpp", "case 75: *v = 8;", "case 75: *v = 6;")]);
    let line = load(&embedded(), &on(driver, GpuLayers::Auto)).report().line();
    assert!(line.contains("no GPU: GeForce GTX 1080 has compute capability 6.0"), "{line}");
}

#[test]
fn a_lost_card_fails_its_requests_and_whoever_comes_after_hears_why() {
    let driver = driver("Lost simulator", &[]);
    let simulator = Simulator::of(&driver);
    let llm = load(&embedded(), &Options { max_seqs: 2, ..on(driver, GpuLayers::Count(1)) });
    let handles = [9, 10].map(|id| llm.submit(greedy(&[id, 6, 7], 600)).unwrap());
    for handle in &handles {
        assert!(matches!(handle.next_event_timeout(PATIENCE).unwrap(), Event::Token { .. }));
    }
    simulator.lose_device();
    for handle in &handles {
        let last = std::iter::from_fn(|| handle.next_event_timeout(PATIENCE).ok()).last();
        let Some(Event::Failed(message)) = last else { panic!("{last:?}") };
        for words in ["the engine has stopped", "the GPU stopped", "LAUNCH_FAILED", "restart"] {
            assert!(message.contains(words), "`{words}` is missing: {message}");
        }
    }
    match llm.submit(greedy(&[5], 3)) {
        Err(Error::Submit(SubmitError::Failed(message))) => assert!(message.contains("the GPU stopped"), "{message}"),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("a stopped engine takes requests"),
    }
}

#[test]
fn a_lost_card_can_be_opened_again_where_the_driver_lets_it() {
    let driver = driver("Reopened simulator", &[]);
    let simulator = Simulator::of(&driver);
    let options = Options { max_seqs: 2, ..on(driver, GpuLayers::All) };
    let (model, request) = (embedded(), greedy(&[9, 6, 7], 12));
    let llm = load(&model, &options);
    let before = ask(&llm, request.clone());
    assert!(llm.failure().is_none() && !llm.has_ended());
    simulator.lose_device_in(50);
    let handle = llm.submit(request.clone()).unwrap();
    let last = std::iter::from_fn(|| handle.next_event_timeout(PATIENCE).ok()).last();
    assert!(matches!(&last, Some(Event::Failed(message)) if message.contains("LAUNCH_FAILED")), "{last:?}");
    let failure = llm.failure().expect("it has stopped");
    assert!(failure.contains("the GPU stopped"), "{failure}");
    drop(llm);
    simulator.stay_lost(true);
    let error = refusal(&model, &options).to_string();
    assert!(error.contains("--gpu-layers all") && error.contains("cuDevicePrimaryCtxRetain"), "{error}");
    simulator.stay_lost(false);
    let again = load(&model, &options);
    assert_eq!(ask(&again, request).bits(), before.bits());
}

#[test]
fn a_card_that_fails_while_it_is_loaded_is_left_alone_unless_someone_insists() {
    let fault = ("fakecuda.cpp", "if (!sim::launch(", "if (true || !sim::launch(");
    let driver = driver("Broken simulator", &[fault]);
    let llm = load(&embedded(), &on(driver.clone(), GpuLayers::Auto));
    let line = llm.report().line();
    assert!(line.contains("no GPU: loading on Broken simulator failed"), "{line}");
    assert_eq!(ask(&llm, greedy(&[5, 6, 7], 3)).ids.len(), 3);
    let logits = Logits::compute(&embedded(), &[5, 6, 7], &on(driver.clone(), GpuLayers::Auto), false);
    assert_eq!(logits.unwrap().rows, 3);
    let error = refusal(&embedded(), &on(driver, GpuLayers::All));
    assert_eq!(error.kind(), ErrorKind::Failure, "{error}");
    for words in ["--gpu-layers all", "Broken simulator", "--gpu-layers 0"] {
        assert!(error.to_string().contains(words), "`{words}` is missing: {error}");
    }
}
