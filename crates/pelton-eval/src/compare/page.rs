//! A comparison as one HTML file with its style and charts inside, light or dark as its reader prefers.

use super::advice::{Size, percent};
use super::chart::{Chart, Point, escape};
use super::{Comparison, Figures};

const STYLE: &str = include_str!("page.css");

/// The page.
pub fn page(comparison: &Comparison) -> String {
    let Some(base) = comparison.candidates.first() else { return String::new() };
    let headline = escape(&headline(comparison));
    let mut body = format!(
        "<h1>Comparison with {}</h1>\n<p class=\"headline\">{headline}</p>\n<p class=\"advice\">{}</p>\n{}",
        escape(&base.label),
        escape(&comparison.advice),
        table(comparison)
    );
    body += &bytes_chart(comparison, base);
    body += &speed_chart(comparison, base);
    body += "<p class=\"note\">Error bars are one standard error; that of the change of the perplexity is paired: both \
             models predict the same tokens. Candidates that no other beats are joined.</p>\n";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>pelton compare: {}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(&base.label)
    )
}

fn headline(c: &Comparison) -> String {
    let stride = c.windows.stride.map_or(String::new(), |s| format!(" at a stride of {s}"));
    let prompts = if c.prompts > 0 { format!(" · {} prompts", c.prompts) } else { String::new() };
    let backend = c.candidates.first().map_or("", |b| &b.backend);
    format!("{} predictions of {} in windows of {}{stride}{prompts} · {backend}", c.tokens, c.text, c.windows.window)
}

fn table(c: &Comparison) -> String {
    let header = [
        "model",
        "KV",
        "file",
        "bits a weight",
        "memory",
        "perplexity",
        "change",
        "KL mean",
        "KL p99",
        "same top token",
        "answers part after",
        "prefill tokens/s",
        "decode tokens/s",
    ];
    let header: String = header.iter().map(|h| format!("<th>{h}</th>")).collect();
    let rows: String = c.candidates.iter().enumerate().map(|(i, f)| row(f, i == 0)).collect();
    format!("<div class=\"wide\"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n")
}

fn row(f: &Figures, is_base: bool) -> String {
    let p = f.text.perplexity.perplexity;
    let beside = |text: String| if is_base { "–".to_string() } else { text };
    let speed =
        |pick: fn(&super::Speed) -> f64| f.speed.as_ref().map_or("–".to_string(), |s| format!("{:.1}", pick(s)));
    let cells = [
        f.kv_type.clone(),
        mib(f.file_bytes as f64),
        format!("{:.2}", f.bits_per_weight),
        mib(f.memory_bytes as f64),
        format!("{:.4} ± {:.4}", p.value, p.error),
        beside(percent(f)),
        beside(format!("{:.5} ± {:.5}", f.text.mean.value, f.text.mean.error)),
        beside(format!("{:.4}", f.text.p99)),
        beside(format!("{:.2} %", f.text.same_top.value * 100.0)),
        beside(f.parting.map_or("–".into(), |p| {
            format!("{:.0} of {:.0} ({} of {} same)", p.median_tokens, p.answer_tokens, p.same, p.prompts)
        })),
        speed(|s| s.prefill.value),
        speed(|s| s.decode.value),
    ];
    let cells: String = cells.iter().map(|c| format!("<td>{}</td>", escape(c))).collect();
    format!("<tr><th>{}</th>{cells}</tr>\n", escape(&f.label))
}

fn mib(bytes: f64) -> String {
    let mib = bytes / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{:.1} MiB", mib) }
}

fn bytes_chart(c: &Comparison, base: &Figures) -> String {
    let size = Size::of(c);
    // In MiB, so that ticks are round.
    let x = |f: &Figures| size.bytes(f) as f64 / f64::from(1 << 20);
    let chart = Chart {
        title: if size == Size::Files { "Harm against bytes" } else { "Harm against memory" },
        x_label: if size == Size::Files { "size of the files" } else { "weights, keys and values in memory" },
        y_label: "mean KL divergence, nats",
        less_is_better: true,
        base: (base.label.clone(), x(base)),
        points: points(c, &|f| Some(x(f))),
    };
    chart.render(&|v| format!("{} MiB", (v * 100.0).round() / 100.0))
}

fn speed_chart(c: &Comparison, base: &Figures) -> String {
    let Some(speed) = &base.speed else { return String::new() };
    let chart = Chart {
        title: "Harm against speed",
        x_label: "tokens a second while writing",
        y_label: "mean KL divergence, nats",
        less_is_better: false,
        base: (base.label.clone(), speed.decode.value),
        points: points(c, &|f| f.speed.map(|s| s.decode.value)),
    };
    chart.render(&|v| format!("{}", (v * 100.0).round() / 100.0))
}

/// All but the base.
fn points(c: &Comparison, x: &dyn Fn(&Figures) -> Option<f64>) -> Vec<Point> {
    let point = |f: &Figures| {
        // A candidate without any harm lies at the least that is drawn.
        let (y, error) = (f.text.mean.value.max(1e-7), f.text.mean.error);
        Some(Point { label: f.label.clone(), x: x(f)?, y, error })
    };
    c.candidates.iter().skip(1).filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::super::advice::tests::{comparison, figures};
    use super::*;

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        let mut all = comparison(vec![
            figures("base <b>", 1_000_000, 0.0, 0.0, 0.0),
            figures("Q4", 300_000, 0.05, 0.004, 0.05),
            figures("Q8", 500_000, 0.0, 0.001, 0.0),
        ]);
        all.advice = super::super::advice(&all);
        let text = page(&all);
        assert_eq!(text.matches("<svg").count(), 2);
        assert!(!text.contains("http") && !text.contains("<script") && !text.contains("<b>"), "{text}");
        assert!(text.contains("prefers-color-scheme: dark") && text.contains(&escape(&all.advice)));
        all.candidates.iter_mut().for_each(|c| c.speed = None);
        assert_eq!(page(&all).matches("<svg").count(), 1);
    }
}
