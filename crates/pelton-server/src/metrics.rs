//! Counters and histograms, in the text format of Prometheus (exposition format 0.0.4).
//!
//! Invariant: counting never waits; a scrape sees each figure as it was at some moment during the scrape.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::engine::Loaded;

const LEAST: &str = "pelton_least_seconds_total";
const SHARE: &str = "pelton_roofline_share";

/// Upper ends of a histogram's buckets, in seconds.
const FIRST_TOKEN: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
const INTER_TOKEN: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
const END_TO_END: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// Durations, counted by bucket.
#[derive(Debug)]
pub(crate) struct Histogram {
    ends: &'static [f64; 14],
    counts: [AtomicU64; 15],
    sum_us: AtomicU64,
}

impl Histogram {
    fn new(ends: &'static [f64; 14]) -> Histogram {
        Histogram { ends, counts: Default::default(), sum_us: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.ends.iter().position(|&end| seconds <= end).unwrap_or(self.ends.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(duration.as_micros() as u64, Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (i, count) in self.counts.iter().enumerate() {
            total += count.load(Relaxed);
            let _ = match self.ends.get(i) {
                Some(end) => writeln!(out, "{name}_bucket{{le=\"{end}\"}} {total}"),
                None => writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}"),
            };
        }
        let sum = self.sum_us.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {total}");
    }
}

/// What the server counts itself; the engines' own counts are asked for at each scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) end_to_end: Histogram,
    /// Requests by class of status: 2xx, 4xx, 5xx.
    pub(crate) responses: [AtomicU64; 3],
    /// Requests whose client went away, or fell behind.
    pub(crate) abandoned: AtomicU64,
    /// Requests that rules sent to the small model and to the large one.
    pub(crate) routed: [AtomicU64; 2],
    /// Of these, answers of the small model that did not stand.
    pub(crate) handed_over: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    pub(crate) open_connections: AtomicI64,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        Metrics {
            first_token: Histogram::new(&FIRST_TOKEN),
            inter_token: Histogram::new(&INTER_TOKEN),
            end_to_end: Histogram::new(&END_TO_END),
            responses: Default::default(),
            abandoned: AtomicU64::new(0),
            routed: Default::default(),
            handed_over: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            open_connections: AtomicI64::new(0),
        }
    }

    pub(crate) fn count_response(&self, status: u16) {
        let class = match status {
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        self.responses[class].fetch_add(1, Relaxed);
    }

    /// The page for a scrape. `engines`: one for each model, loaded or not.
    pub(crate) fn page(&self, engines: &[EngineFigures]) -> String {
        let mut out = String::with_capacity(8 << 10);
        self.first_token.write(&mut out, "pelton_time_to_first_token_seconds", "From submission to the first token.");
        self.inter_token.write(&mut out, "pelton_inter_token_seconds", "Between two tokens of an answer.");
        self.end_to_end.write(&mut out, "pelton_request_seconds", "From submission to the end of an answer.");
        let _ = writeln!(
            out,
            "# HELP pelton_responses_total HTTP responses by class.\n# TYPE pelton_responses_total counter"
        );
        for (class, count) in ["2xx", "4xx", "5xx"].iter().zip(&self.responses) {
            let _ = writeln!(out, "pelton_responses_total{{class=\"{class}\"}} {}", count.load(Relaxed));
        }
        let _ = writeln!(
            out,
            "# HELP pelton_routed_total Requests that rules sent to one of two models.\n# TYPE pelton_routed_total counter"
        );
        for (to, count) in ["small", "large"].iter().zip(&self.routed) {
            let _ = writeln!(out, "pelton_routed_total{{to=\"{to}\"}} {}", count.load(Relaxed));
        }
        let own = [
            ("pelton_handed_over_total", "Answers of a small model that a large one gave again.", &self.handed_over),
            ("pelton_abandoned_total", "Answers whose client went away or fell behind.", &self.abandoned),
            ("pelton_prompt_tokens_total", "Tokens of prompts.", &self.prompt_tokens),
            ("pelton_prompt_tokens_cached_total", "Of these, tokens found in the prefix cache.", &self.cached_tokens),
            ("pelton_generated_tokens_total", "Tokens of answers.", &self.generated_tokens),
        ];
        for (name, help, value) in own {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}", value.load(Relaxed));
        }
        let open = self.open_connections.load(Relaxed);
        let _ = writeln!(
            out,
            "# HELP pelton_connections Open connections.\n# TYPE pelton_connections gauge\npelton_connections {open}"
        );
        engine_figures(&mut out, engines);
        out
    }
}

/// What is known of a model's engine. A model that is not loaded has zeros, so that who watches a figure finds it from
/// the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct EngineFigures {
    pub(crate) id: String,
    pub(crate) loaded: bool,
    pub(crate) stats: pelton::EngineStats,
    /// What the machine's limits would have let all of its steps take, where they were measured.
    pub(crate) least_seconds: Option<f64>,
}

impl EngineFigures {
    pub(crate) fn new(id: String, model: Option<&Loaded>, ceilings: Option<&pelton::Ceilings>) -> EngineFigures {
        let Some(model) = model else {
            return EngineFigures { id, least_seconds: ceilings.map(|_| 0.0), ..EngineFigures::default() };
        };
        let stats = model.llm.stats();
        let least_seconds = ceilings.map(|c| model.llm.step_work(&stats).least_seconds(c));
        EngineFigures { id, loaded: true, stats, least_seconds }
    }

    /// Share of pages in use.
    fn usage(&self) -> f64 {
        let s = &self.stats;
        let pages = s.used_pages + s.cached_pages + s.free_pages;
        if pages == 0 { 0.0 } else { s.used_pages as f64 / pages as f64 }
    }

    /// Share of the machine's limits.
    fn share(&self) -> f64 {
        match self.stats.busy.as_secs_f64() {
            busy if busy > 0.0 => self.least_seconds.unwrap_or(0.0) / busy,
            _ => 0.0,
        }
    }

    fn disk(&self, figure: fn(&pelton::DiskStats) -> f64) -> f64 {
        self.stats.disk.as_ref().map_or(0.0, figure)
    }
}

type Figure = fn(&EngineFigures) -> f64;

/// Name, kind, help and figure.
const FIGURES: [(&str, &str, &str, Figure); 26] = [
    ("vllm:num_requests_waiting", "gauge", "Sequences that wait.", |f| f.stats.waiting as f64),
    ("vllm:num_requests_running", "gauge", "Sequences that run.", |f| f.stats.running as f64),
    ("vllm:kv_cache_usage_perc", "gauge", "Share of KV pages in use, 0 to 1.", EngineFigures::usage),
    ("pelton_sequences_waiting", "gauge", "Sequences that wait.", |f| f.stats.waiting as f64),
    ("pelton_sequences_running", "gauge", "Sequences that run.", |f| f.stats.running as f64),
    ("pelton_pages_free", "gauge", "KV pages with nothing in them.", |f| f.stats.free_pages as f64),
    ("pelton_pages_cached", "gauge", "KV pages kept for later prompts.", |f| f.stats.cached_pages as f64),
    ("pelton_pages_used", "gauge", "KV pages of running sequences.", |f| f.stats.used_pages as f64),
    ("pelton_steps_total", "counter", "Steps run.", |f| f.stats.steps as f64),
    ("pelton_computed_tokens_total", "counter", "Tokens computed.", |f| f.stats.computed_tokens as f64),
    ("pelton_reused_tokens_total", "counter", "Tokens taken from cached pages.", |f| f.stats.cached_tokens as f64),
    ("pelton_sampled_tokens_total", "counter", "Tokens sampled.", |f| f.stats.generated_tokens as f64),
    ("pelton_device_sampled_tokens_total", "counter", "Of these, chosen on a device, which kept the logits.", |f| {
        f.stats.weighed_tokens as f64
    }),
    ("pelton_drafted_tokens_total", "counter", "Guessed tokens that were run.", |f| f.stats.drafted_tokens as f64),
    ("pelton_accepted_tokens_total", "counter", "Of these, tokens that were right.", |f| {
        f.stats.accepted_tokens as f64
    }),
    ("pelton_preemptions_total", "counter", "Sequences that lost their pages.", |f| f.stats.preemptions as f64),
    ("pelton_evictions_total", "counter", "Cached pages given up.", |f| f.stats.evictions as f64),
    ("pelton_disk_pages", "gauge", "KV pages kept on disk.", |f| f.disk(|d| d.pages as f64)),
    ("pelton_disk_bytes", "gauge", "Their bytes.", |f| f.disk(|d| d.bytes as f64)),
    ("pelton_disk_pages_written_total", "counter", "KV pages written to disk.", |f| f.disk(|d| d.written as f64)),
    ("pelton_disk_pages_read_total", "counter", "KV pages read back from disk.", |f| f.disk(|d| d.read as f64)),
    (
        "pelton_disk_pages_rejected_total",
        "counter",
        "Files that could not be used: damaged, or of another model.",
        |f| f.disk(|d| d.rejected as f64),
    ),
    ("pelton_model_loaded", "gauge", "Models in memory.", |f| f64::from(u8::from(f.loaded))),
    ("pelton_busy_seconds_total", "counter", "Time in steps.", |f| f.stats.busy.as_secs_f64()),
    (LEAST, "counter", "What the machine's limits would have let these steps take.", |f| {
        f.least_seconds.unwrap_or(0.0)
    }),
    (SHARE, "gauge", "Share of the machine's limits that was reached: the one over the other.", EngineFigures::share),
];

/// Gauges and counters of the engines, one line for each model.
fn engine_figures(out: &mut String, engines: &[EngineFigures]) {
    let measured = engines.iter().any(|f| f.least_seconds.is_some());
    for (name, kind, help, figure) in FIGURES {
        if !measured && [LEAST, SHARE].contains(&name) {
            continue;
        }
        let label = if name.starts_with("vllm:") { "model_name" } else { "model" };
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for engine in engines {
            let _ = writeln!(out, "{name}{{{label}=\"{}\"}} {}", escape(&engine.id), figure(engine));
        }
    }
}

/// A label's value, as the format wants it.
fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::new();
        for ms in [1, 7, 7, 300_000] {
            metrics.first_token.observe(Duration::from_millis(ms));
        }
        metrics.count_response(200);
        metrics.count_response(429);
        let busy = Duration::from_secs(4);
        let stats = pelton::EngineStats { busy, drafted_tokens: 9, accepted_tokens: 7, ..Default::default() };
        let loaded = EngineFigures { id: "a\"b".into(), loaded: true, stats, least_seconds: Some(1.0) };
        let waiting = EngineFigures { id: "c".into(), ..EngineFigures::default() };
        let page = metrics.page(&[loaded, waiting.clone()]);
        assert!(!metrics.page(&[waiting]).contains("roofline"), "nothing was measured");
        for line in [
            "pelton_time_to_first_token_seconds_bucket{le=\"0.005\"} 1",
            "pelton_time_to_first_token_seconds_bucket{le=\"0.01\"} 3",
            "pelton_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "pelton_time_to_first_token_seconds_count 4",
            "pelton_responses_total{class=\"4xx\"} 1",
            "vllm:num_requests_waiting{model_name=\"a\\\"b\"} 0",
            "vllm:kv_cache_usage_perc{model_name=\"a\\\"b\"} 0",
            "vllm:num_requests_running{model_name=\"c\"} 0",
            "pelton_drafted_tokens_total{model=\"a\\\"b\"} 9",
            "pelton_accepted_tokens_total{model=\"a\\\"b\"} 7",
            "pelton_model_loaded{model=\"c\"} 0",
            "pelton_roofline_share{model=\"a\\\"b\"} 0.25",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}
