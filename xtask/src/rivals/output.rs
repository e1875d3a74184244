//! The figure in what an engine prints: tokens a second of a test.

use serde_json::Value;

use super::definitions::Test;

/// The forms in which engines print their figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// `pelton bench --json`.
    Pelton,
    /// `llama-bench -o json`: a list of tests.
    LlamaBench,
    /// The table of `llama-batched-bench`.
    BatchedBench,
}

impl Output {
    /// Tokens a second of `test`, `None` where the text does not have them.
    pub(super) fn figure(self, text: &str, test: &Test) -> Option<f64> {
        let figure = match self {
            Output::Pelton => {
                let json: Value = serde_json::from_str(text).ok()?;
                json["results"].as_array()?.last()?["tokens_per_second"].as_f64()
            }
            Output::LlamaBench => {
                // Some versions print notes before the list.
                let json: Value = serde_json::from_str(text.get(text.find("[\n").or(text.find('['))?..)?).ok()?;
                json.as_array()?.last()?["avg_ts"].as_f64()
            }
            Output::BatchedBench => batched(text, test),
        };
        figure.filter(|f| f.is_finite() && *f > 0.0)
    }
}

/// The column `S_TG t/s` of the row whose `B` is the test's batch.
fn batched(text: &str, test: &Test) -> Option<f64> {
    let cells = |line: &str| -> Vec<String> { line.split('|').map(|c| c.trim().to_string()).collect() };
    let header = text.lines().find(|l| l.contains("S_TG t/s"))?;
    let header = cells(header);
    let column = |name: &str| header.iter().position(|c| c == name);
    let (batch, speed) = (column("B")?, column("S_TG t/s")?);
    let rows = text.lines().filter(|l| l.contains('|')).map(cells);
    let mut of_batch = rows.filter(|r| r.get(batch).and_then(|c| c.parse().ok()) == Some(test.batch));
    of_batch.find_map(|r| r.get(speed)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(batch: usize) -> Test {
        Test { name: "x".into(), prefill: false, tokens: 64, depth: 256, batch }
    }

    #[test]
    fn figures_are_found_in_each_form() {
        let pelton = r#"{"results": [{"kind": "decode", "tokens_per_second": 41.5}]}"#;
        assert_eq!(Output::Pelton.figure(pelton, &test(1)), Some(41.5));
        let bench = "note: x\n[\n  {\"n_prompt\": 512, \"avg_ts\": 123.25, \"stddev_ts\": 0.1}\n]\n";
        assert_eq!(Output::LlamaBench.figure(bench, &test(1)), Some(123.25));
        let table = "\
            |    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |\n\
            |-------|--------|------|--------|----------|----------|----------|----------|----------|----------|\n\
            |   256 |     64 |    1 |    320 |    1.284 |   199.37 |    2.158 |    29.66 |    3.442 |    92.96 |\n\
            |   256 |     64 |    8 |    768 |    1.301 |   196.77 |    7.606 |    67.31 |    8.907 |    86.22 |\n";
        assert_eq!(Output::BatchedBench.figure(table, &test(8)), Some(67.31));
        assert_eq!(Output::BatchedBench.figure(table, &test(32)), None);
    }

    #[test]
    fn text_without_a_figure_gives_none() {
        for output in [Output::Pelton, Output::LlamaBench, Output::BatchedBench] {
            for text in ["", "{}", "[]", "[{}]", "| B | S_TG t/s |", "{\"results\": []}", "[{\"avg_ts\": 0.0}]"] {
                assert_eq!(output.figure(text, &test(1)), None, "{output:?} {text}");
            }
        }
    }
}
