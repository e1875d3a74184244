//! What the machine's limits would have let an engine's steps take.
//!
//! Invariant: what is counted had to be done: each step read the weights once, each token met every matrix, each sampled
//! token the vocabulary's. Keys, values and attention are left out, as the counts of a whole run do not tell them: the
//! share of the limits that follows is a lower bound.

use pelton_formats::ModelConfig;
use pelton_quant::DType;

use crate::bench::Work;
use crate::{EngineStats, Llm};

impl Llm {
    /// Bytes and operations that the steps counted in `stats` needed at least.
    pub fn step_work(&self, stats: &EngineStats) -> Work {
        let placements = &self.report().placements;
        let of_most_bytes = placements.iter().max_by_key(|p| p.bytes).map_or(DType::F32.into(), |p| p.dtype);
        let config = self.config();
        let mut work = Work::product(stats.computed_tokens as f64, of_most_bytes, 1, matrix_elements(config));
        let head = Work::product(stats.generated_tokens as f64, of_most_bytes, config.hidden, config.vocab_size);
        work += head;
        work.memory_bytes = stats.steps as f64 * self.report().decode_weight_bytes(config) as f64;
        work
    }
}

/// Elements of the matrices that a token meets on its way through the layers.
fn matrix_elements(c: &ModelConfig) -> usize {
    let attention = c.hidden * (c.q_dim() + 2 * c.kv_dim()) + c.q_dim() * c.hidden;
    let dense = 3 * c.hidden * c.ffn;
    let ffn = |layer: usize| match &c.moe {
        Some(moe) if moe.moe_layers[layer] => {
            c.hidden * moe.n_experts + moe.n_experts_used * 3 * c.hidden * moe.expert_ffn
        }
        _ => dense,
    };
    (0..c.n_layers).map(|layer| attention + ffn(layer)).sum()
}

#[cfg(test)]
mod tests {
    use crate::{Ceilings, Llm, Model, ModelRef, Options, Request, SamplingParams, Speculation};

    #[test]
    fn work_grows_with_steps_and_tokens() {
        let model = Model::open(&ModelRef::Embedded, None).unwrap();
        // Without drafts: their weights are in the plan of memory, and not in a step.
        let options = Options { context: Some(64), speculation: Speculation::off(), ..Options::default() };
        let llm = Llm::load(&model, &options, &mut |_| ()).unwrap();
        let handle = llm.submit(Request::new(vec![1, 2, 3], SamplingParams::default(), 4)).unwrap();
        while handle.next_event().is_some() {}
        let stats = llm.stats();
        let work = llm.step_work(&stats);
        // The embeddings are tied: each generated token multiplies all parameters but the norms.
        let parameters = llm.report().parameters as f64;
        assert!(work.operations() > 2.0 * parameters && work.operations() < 2.0 * 7.0 * parameters, "{work:?}");
        assert_eq!(work.memory_bytes, stats.steps as f64 * llm.report().memory.weight_bytes as f64);
        let ceilings = Ceilings {
            read_gb_per_s: 1.0,
            int8_tera_ops: 1e9,
            int8_unit: "",
            bf16_tera_ops: None,
            f32_tera_ops: 1e9,
            f32_unit: "",
        };
        assert!((work.least_seconds(&ceilings) - work.memory_bytes / 1e9).abs() < 1e-9);
        assert!(stats.busy.as_secs_f64() > 0.0);
    }
}
