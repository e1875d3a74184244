//! Whole models: written, read back, interrupted, refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pelton::{Model, ModelRef, Options, Passage, Scorer, ScorerSize};
use pelton_formats::{Tensors, TokenizerFiles};
use pelton_quant::DType;
use pelton_quantize::fit::{self, Goal};
use pelton_quantize::{
    Calibration, Imatrix, Mix, Plan, QuantizeError, Sensitivities, Types, record, scale, write, write_compensated,
};

fn embedded() -> Model {
    Model::open(&ModelRef::Embedded, None).expect("the embedded model opens")
}

/// Its first two layers, with the first 512 words: the same roles, rows and blocks in a quarter of the weights.
fn small() -> Model {
    let mut model = embedded();
    let mut tensors = Tensors::new("small");
    for tensor in model.files.tensors.iter().filter(|t| !["blk.2", "blk.3", "blk.4", "blk.5"].contains(&&t.name[..5])) {
        let is_table = tensor.name == "token_embd.weight";
        tensors.insert(if is_table { tensor.rows(0..512) } else { tensor.clone() }).unwrap();
    }
    model.files.tensors = tensors;
    (model.files.config.n_layers, model.files.config.vocab_size) = (2, 512);
    model.files.config.sliding_window.truncate(2);
    (model.files.tokenizer, model.tokenizer) = (TokenizerFiles::Missing, None);
    model
}

fn quantize(model: &Model, types: &Types, out: &Path, threads: usize) -> Result<Plan, QuantizeError> {
    let mut plan = Plan::new(&model.files, types, None)?;
    write(&model.files, &mut plan, out, threads, &mut |_| ())?;
    Ok(plan)
}

fn path_model(path: &Path) -> Model {
    Model::open(&ModelRef::Path(path.to_owned()), None).expect("what was written opens")
}

/// Ids of nothing in particular, the same each time.
fn ids(n: usize, vocab: usize) -> Vec<u32> {
    (0..n as u64).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u32 % vocab as u32).collect()
}

#[test]
fn what_was_written_is_read_back_with_the_types_of_the_plan() {
    let model = small();
    let folder = tempfile::tempdir().unwrap();
    for mix in [Mix::Q4_K_M, Mix::Q2_K, Mix::IQ3_XXS, Mix::IQ2_M, Mix::Q8_0, Mix::F16] {
        let out = folder.path().join(format!("{mix}.gguf"));
        let plan = quantize(&model, &Types::Mix(mix), &out, 2).unwrap();
        let read = path_model(&out);
        assert_eq!(read.files.config.n_layers, model.files.config.n_layers);
        for planned in &plan.tensors {
            let Some(tensor) = read.files.tensors.get(planned.source.name()) else {
                assert!(planned.source.name().starts_with("rope"), "{} is missing", planned.source.name());
                continue;
            };
            assert_eq!(tensor.dtype, planned.to, "{mix}: {}", tensor.name);
            let (was, is) = (planned.source.rows_f32(0..planned.source.n_rows()).unwrap(), tensor.to_f32().unwrap());
            let error: f64 = was.iter().zip(&is).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let size: f64 = was.iter().map(|a| f64::from(*a).powi(2)).sum();
            assert!((error / size).sqrt() < 0.4, "{mix}: {}: {}", tensor.name, (error / size).sqrt());
        }
        assert!(!folder.path().join(format!("{mix}.gguf.part")).exists());
        assert!(!folder.path().join(format!("{mix}.gguf.part.journal")).exists());
    }
}

#[test]
fn threads_change_no_byte() {
    let model = small();
    let folder = tempfile::tempdir().unwrap();
    let written = [1, 3].map(|threads| {
        let out = folder.path().join(format!("{threads}.gguf"));
        quantize(&model, &Types::Mix(Mix::Q3_K_M), &out, threads).unwrap();
        std::fs::read(out).unwrap()
    });
    assert!(written[0] == written[1]);
}

#[test]
fn an_interrupted_run_goes_on_and_damage_is_made_again() {
    let model = small();
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole.gguf"), folder.path().join("out.gguf"));
    let types = Types::Mix(Mix::Q4_0);
    quantize(&model, &types, &whole, 2).unwrap();
    let whole = std::fs::read(whole).unwrap();
    std::fs::write(&out, b"a good file").unwrap();
    // Stops in the middle as a process that is killed does: nothing is tidied up.
    let mut plan = Plan::new(&model.files, &types, None).unwrap();
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut tensors = BTreeMap::new();
        write(&model.files, &mut plan, &out, 1, &mut |p| {
            tensors.insert(p.tensor.to_owned(), ());
            assert!(tensors.len() < 12, "stopped");
        })
    }));
    assert!(stopped.is_err());
    assert_eq!(std::fs::read(&out).unwrap(), b"a good file", "a good file stays until a whole one takes its place");
    let (part, journal) = (folder.path().join("out.gguf.part"), folder.path().join("out.gguf.part.journal"));
    assert!(part.exists() && journal.exists());
    // A byte of an early tensor changes, and the last line of the journal is cut off.
    let mut bytes = std::fs::read(&part).unwrap();
    let entry = std::fs::read_to_string(&journal).unwrap().lines().nth(5).unwrap().to_owned();
    let end: usize = entry.split(' ').nth(1).unwrap().parse().unwrap();
    bytes[end - 40] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, &text[..text.len() - 7]).unwrap();
    let mut plan = Plan::new(&model.files, &types, None).unwrap();
    let written = write(&model.files, &mut plan, &out, 2, &mut |_| ()).unwrap();
    assert_eq!(written.resumed, 4, "the tensors before the damaged one");
    assert!(std::fs::read(&out).unwrap() == whole);
    assert!(!part.exists() && !journal.exists());
    // Another choice of types does not go on with what is there.
    std::fs::write(&part, b"something").unwrap();
    std::fs::write(&journal, text).unwrap();
    let mut plan = Plan::new(&model.files, &Types::Mix(Mix::Q8_0), None).unwrap();
    assert_eq!(write(&model.files, &mut plan, &out, 2, &mut |_| ()).unwrap().resumed, 0);
    assert_eq!(path_model(&out).files.tensors.get("blk.0.ffn_down.weight").unwrap().dtype, DType::Q8_0);
}

#[test]
fn a_folder_that_is_not_there_and_an_output_that_cannot_be_written_are_errors() {
    let model = small();
    let folder = tempfile::tempdir().unwrap();
    let missing: PathBuf = folder.path().join("nowhere").join("out.gguf");
    let Err(error) = quantize(&model, &Types::Mix(Mix::Q4_0), &missing, 1) else { panic!("written") };
    assert!(error.to_string().contains("nowhere"), "{error}");
    // A full disk, where the system has a device for it: the error says that the next run goes on.
    if Path::new("/dev/full").exists() {
        let out = folder.path().join("full.gguf");
        std::os::unix::fs::symlink("/dev/full", folder.path().join("full.gguf.part")).unwrap();
        let Err(error) = quantize(&model, &Types::Mix(Mix::Q4_0), &out, 1) else { panic!("written") };
        assert!(!out.exists(), "{error}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let model = small();
    let mut files = model.files.clone();
    let mut tensors = Tensors::new("broken");
    for tensor in files.tensors.iter() {
        let mut tensor = tensor.clone();
        if tensor.name == "blk.1.ffn_up.weight" {
            let mut values = tensor.to_f32().unwrap();
            values[2 * 256 + 7] = f32::NAN;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let shape = tensor.shape.clone();
            tensor = pelton_formats::Tensor::new("broken", &tensor.name, DType::F32, shape, bytes.into()).unwrap();
        }
        tensors.insert(tensor).unwrap();
    }
    files.tensors = tensors;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut plan = Plan::new(&files, &Types::Mix(Mix::Q4_K_S), None).unwrap();
    let error = write(&files, &mut plan, &out, 2, &mut |_| ()).unwrap_err().to_string();
    for part in ["blk.1.ffn_up.weight", "row 2", "column 7", "NaN"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!out.exists());
}

#[test]
fn an_importance_matrix_is_recorded_written_read_and_used() {
    let model = small();
    let ids = ids(300, model.files.config.vocab_size);
    let recorded = record::record(&model, &ids, 128, Some(2), &mut |_, _| ()).unwrap();
    assert!(recorded.left_out.is_empty(), "{:?}", recorded.left_out);
    assert_eq!(recorded.imatrix.chunks, 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix.gguf");
    recorded.imatrix.write(&path).unwrap();
    let read = Imatrix::read(&path).unwrap();
    assert_eq!(read, recorded.imatrix);
    // The three read the same input.
    let of = |name: &str| read.of(name, 256, 1).unwrap().unwrap();
    assert_eq!(of("blk.1.attn_q.weight"), of("blk.1.attn_v.weight"));
    assert_ne!(of("blk.1.attn_q.weight"), of("blk.1.ffn_up.weight"));
    assert!(read.of("blk.1.attn_q.weight", 512, 1).is_err(), "of another model");
    let plan = Plan::new(&model.files, &Types::Mix(Mix::IQ2_XXS), Some(&read)).unwrap();
    assert!(plan.tensors.iter().all(|t| !t.source.is_matrix() || t.importance.is_some()));
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
    let plan = Plan::new(&model.files, &Types::Mix(Mix::IQ2_XXS), None).unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("importance")), "{:?}", plan.notes);
}

#[test]
fn the_older_form_of_importance_matrices_is_read_and_cut_ones_are_refused() {
    let mut bytes = Vec::new();
    bytes.extend(1i32.to_le_bytes());
    bytes.extend(21i32.to_le_bytes());
    bytes.extend(b"blk.0.ffn_down.weight");
    bytes.extend(4i32.to_le_bytes());
    bytes.extend(2i32.to_le_bytes());
    bytes.extend([8.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend(10i32.to_le_bytes());
    bytes.extend(4i32.to_le_bytes());
    bytes.extend(b"text");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.dat");
    std::fs::write(&path, &bytes).unwrap();
    let read = Imatrix::read(&path).unwrap();
    assert_eq!(read.of("blk.0.ffn_down.weight", 2, 1).unwrap(), Some(vec![2.0, 0.5]));
    assert_eq!((read.chunks, read.datasets.as_slice()), (10, ["text".to_owned()].as_slice()));
    for len in 0..bytes.len() - 1 {
        std::fs::write(&path, &bytes[..len]).unwrap();
        // The end of the entries is a good end: later versions wrote more.
        assert_eq!(Imatrix::read(&path).is_ok(), len == bytes.len() - 12, "{len} bytes");
    }
    let mut negative = bytes.clone();
    negative[37..41].copy_from_slice(&(-1.0f32).to_le_bytes());
    std::fs::write(&path, &negative).unwrap();
    assert!(Imatrix::read(&path).unwrap_err().to_string().contains("-1"));
    let model = folder.path().join("model.gguf");
    quantize(&small(), &Types::Mix(Mix::Q8_0), &model, 1).unwrap();
    let error = Imatrix::read(&model).unwrap_err().to_string();
    assert!(error.contains("no importance matrix"), "{error}");
}

#[test]
fn a_budget_is_kept_and_more_bytes_bring_less_harm() {
    let model = small();
    let plan = Plan::new(&model.files, &Types::All(DType::Q8_0), None).unwrap();
    let ids = ids(128, model.files.config.vocab_size);
    let options = Options { threads: Some(2), ..Options::default() };
    let measured = Sensitivities::measure(&model, &plan, &ids, 128, &options, &mut |_, _| ()).unwrap();
    let matrices = fit::measure(&plan, &measured, 2, &mut |_, _| ()).unwrap();
    let n = plan.elements();
    let mut harms = Vec::new();
    for bits in [2.5, 3.5, 4.5, 6.0] {
        let budget = (bits * n as f64 / 8.0) as u64;
        let choices = fit::choose(&plan, matrices.clone(), Goal::Bytes(budget)).unwrap();
        let each = choices.iter().map(|c| (c.name.clone(), c.chosen.dtype)).collect();
        let fitted = Plan::new(&model.files, &Types::Each(each), None).unwrap();
        assert!(
            fitted.bytes() <= budget && fitted.bytes() * 100 > budget * 97,
            "{bits}: {} of {budget}",
            fitted.bytes()
        );
        harms.push(choices.iter().map(|c| c.chosen.harm).sum::<f64>());
    }
    assert!(harms.is_sorted_by(|a, b| a > b), "{harms:?}");
    let most = harms[1];
    let choices = fit::choose(&plan, matrices.clone(), Goal::Harm(most)).unwrap();
    assert!(choices.iter().map(|c| c.chosen.harm).sum::<f64>() <= most);
    for goal in [Goal::Bytes(1000), Goal::Harm(-1.0)] {
        let error = fit::choose(&plan, matrices.clone(), goal).unwrap_err();
        assert!(matches!(error, QuantizeError::Usage(_)), "{error}");
    }
}

/// The logits of every position of one window.
fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let size = ScorerSize { context: ids.len(), sequences: 1 };
    let options = Options { threads: Some(2), ..Options::default() };
    let mut scorer = Scorer::load(model, &options, size, &mut |_| ()).unwrap();
    let mut all = Vec::new();
    scorer
        .run(&[Passage { ids, from: 1 }], &mut |_, logits| {
            all.extend_from_slice(logits);
            Ok(())
        })
        .unwrap();
    all
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: &f32| f64::from(*x).powi(2);
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(&(a - b))).sum();
    (apart / a.iter().map(square).sum::<f64>()).sqrt()
}

#[test]
fn a_scaled_model_computes_what_the_model_does() {
    let model = small();
    let ids = ids(192, 512);
    let mut calibration = Calibration::new(&model, &ids, 64, Some(2)).unwrap();
    let mut plan = Plan::new(&model.files, &Types::All(DType::Q3_K), None).unwrap();
    let scaled = scale(&mut plan, &model.files.config, &mut calibration, &mut |_, _| ()).unwrap();
    assert!((2..=8).contains(&scaled), "{scaled} of eight inputs");
    // The scales were chosen for Q3_K; F32 shows that they are made good exactly.
    plan.tensors.iter_mut().for_each(|tensor| tensor.to = DType::F32);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    write(&model.files, &mut plan, &out, 2, &mut |_| ()).unwrap();
    let plain = folder.path().join("plain.gguf");
    quantize(&model, &Types::Mix(Mix::F32), &plain, 2).unwrap();
    let (scaled, plain) = (path_model(&out), path_model(&plain));
    let values = |model: &Model, name: &str| model.files.tensors.get(name).unwrap().to_f32().unwrap();
    assert_ne!(values(&scaled, "blk.0.ffn_up.weight"), values(&plain, "blk.0.ffn_up.weight"));
    let apart = distance(&logits(&plain, &ids[..64]), &logits(&scaled, &ids[..64]));
    assert!(apart < 2e-3, "{apart}");
}

#[test]
fn compensated_layers_are_nearer_to_the_models_on_the_text_whatever_fits_in_memory() {
    let model = small();
    let ids = ids(1024, 512);
    let folder = tempfile::tempdir().unwrap();
    let types = Types::All(DType::Q2_K);
    let written = |name: &str, memory: u64, threads: usize| {
        let mut calibration = Calibration::new(&model, &ids, 128, Some(2)).unwrap().with_memory(memory);
        let mut plan = Plan::new(&model.files, &types, None).unwrap();
        let out = folder.path().join(name);
        write_compensated(&model.files, &mut plan, Some(&mut calibration), &out, threads, &mut |_| ()).unwrap();
        (calibration.runs(), std::fs::read(out).unwrap())
    };
    let (runs, bytes) = written("all.gguf", 1 << 30, 2);
    assert_eq!(runs, 1);
    // Room for one layer's products alone: the text is run for each input, to the same bytes.
    let (runs, again) = written("again.gguf", 1, 1);
    assert!(runs >= 8, "{runs}");
    assert!(bytes == again);
    let plain = folder.path().join("plain.gguf");
    quantize(&model, &types, &plain, 2).unwrap();
    let truth = logits(&model, &ids[..256]);
    let apart = |name: &str| distance(&truth, &logits(&path_model(&folder.path().join(name)), &ids[..256]));
    let (with, without) = (apart("all.gguf"), apart("plain.gguf"));
    assert!(with < 0.9 * without, "{with} with, {without} without");
}

#[test]
fn mixes_have_the_size_that_llama_cpp_gives_them() {
    // What llama.cpp says that the embedded model takes (`llama-quantize --dry-run`, without an importance matrix), in
    // hundredths of a MiB.
    let sizes = [
        (Mix::IQ1_M, 242),
        (Mix::IQ1_S, 233),
        (Mix::IQ2_M, 290),
        (Mix::IQ2_S, 278),
        (Mix::IQ2_XS, 271),
        (Mix::IQ2_XXS, 257),
        (Mix::IQ3_M, 367),
        (Mix::IQ3_S, 360),
        (Mix::IQ3_XS, 348),
        (Mix::IQ3_XXS, 317),
        (Mix::IQ4_NL, 420),
        (Mix::IQ4_XS, 406),
        (Mix::Q2_K, 331),
        (Mix::Q2_K_S, 314),
        (Mix::Q3_K_L, 403),
        (Mix::Q3_K_M, 383),
        (Mix::Q3_K_S, 360),
        (Mix::Q4_0, 420),
        (Mix::Q4_1, 448),
        (Mix::Q4_K_M, 431),
        (Mix::Q4_K_S, 421),
        (Mix::Q5_0, 476),
        (Mix::Q5_1, 504),
        (Mix::Q5_K_M, 482),
        (Mix::Q5_K_S, 476),
        (Mix::Q6_K, 536),
        (Mix::TQ1_0, 261),
        (Mix::TQ2_0, 283),
    ];
    let model = embedded();
    for (mix, expected) in sizes {
        let plan = Plan::new(&model.files, &Types::Mix(mix), None).unwrap();
        let size = plan.bytes() as f64 * 100.0 / f64::from(1 << 20);
        assert!((size - f64::from(expected)).abs() <= 0.51, "{mix}: {size:.1} hundredths, expected {expected}");
    }
}
