//! Pelton, the library: from options to a running engine.
//!
//! [`Options`] is what a caller typed; [`Model::open`] resolves the model's name to files; [`Llm::load`] packs the
//! weights, plans the memory and starts the engine's thread. Everything above this crate (the command, the jobs,
//! the server) talks to [`Llm`] and never to a backend. Invariant: no environment variable is read here; the
//! binary reads them and fills [`Options`].

#![forbid(unsafe_code)]

mod available;
mod bench;
mod cache_line;
mod certificate;
mod doctor;
mod embedded;
mod error;
mod evaluate;
mod gpu;
mod grammars;
mod inspect;
pub mod ladder;
mod llm;
mod memory;
mod model;
mod options;
mod packed;
mod prompt;
mod quantization;
mod roofline;
pub mod route;
mod scorer;
mod shape;
mod speculation;

pub use available::available_memory;
pub use bench::{
    Bench, Bound, Entry, KernelFigure, KernelPlan, Kind, Ledger, Measurement, SpeculationFigure, SpeculationJob, Work,
    Workload, ceilings, quick_ceilings,
};
pub use certificate::{Certificate, Probe};
pub use doctor::{CardState, CpuState, DecodeState, Doctor, GpuState};
pub use embedded::{DEFAULT_NAME, DRAFT_NAME};
pub use error::{Error, ErrorKind};
pub use evaluate::{Logits, write_logits};
pub use gpu::{CardReport, GpuLayers, GpuReport};
pub use grammars::grammar_compiler;
pub use inspect::{Inspection, TensorGroup};
pub use llm::{Llm, LoadReport};
pub use memory::MemoryPlan;
pub use model::{Model, ModelRef, ModelText};
pub use options::{BackendChoice, Options, Require, SamplingOverrides};
pub use packed::{PackedReport, StoredPack, packed_folder};
pub use prompt::{Chat, Conversation};
pub use quantization::Quantization;
pub use scorer::{EachRows, Likelihood, Passage, RowAt, Scorer, ScorerSize, likeliest};
pub use shape::Shape;
pub use speculation::{Draft, Speculation};

pub use pelton_backend::{KvType, PAGE_LEN, Placement};
pub use pelton_cpu::Ceilings;
pub use pelton_cuda::DeviceInfo;
pub use pelton_engine::{
    CancelGuard, DiskStats, Embedded, EngineStats, Event, EventSink, FinishReason, Finished, MAX_CHOICES, MAX_DRAFT,
    MAX_TOP_LOGPROBS, Miss, MissCause, Pooling, Request, RequestHandle, Speculated, SubmitError, Task, Timing,
};
pub use pelton_formats::{GenerationDefaults, ModelConfig};
pub use pelton_model::LoadProgress;
pub use pelton_quant::DType;
pub use pelton_sample::{Grammar, GrammarCompiler, GrammarError, GrammarSpec, SamplingParams};
pub use pelton_store::{
    ModelSpec, Progress, ProgressState, Pulled, Removed, Store, StoreError, StoreOptions, StoredModel,
};
pub use pelton_text::{AnswerParser, Part, Special, StreamDecoder, Thinking, Tokenizer, ToolFormat, ToolGrammar};
