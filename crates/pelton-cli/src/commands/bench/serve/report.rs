//! The report: one HTML file with its style and plots inside, light or dark as its reader prefers.

use super::output::{ms, named};
use super::stats::{Level, Spread};
use super::svg::{Plot, Series, escape};

const STYLE: &str = include_str!("report.css");
/// Dots beyond this many say no more.
const MAX_DOTS: usize = 20_000;

/// The page.
pub(super) fn page(headline: &str, levels: &[Level]) -> String {
    let headline = escape(headline);
    let mut body = format!("<h1>Load</h1>\n<p class=\"headline\">{headline}</p>\n{}", figures(levels));
    if levels.len() > 1 {
        body += &throughput(levels);
    }
    for (i, title) in ["First token", "Time per token", "Between tokens", "Whole answer"].iter().enumerate() {
        body += &cumulative(title, i, levels);
    }
    body += &levels.iter().map(timeline).collect::<String>();
    body += &faults(levels);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>pelton bench serve: {headline}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

fn figures(levels: &[Level]) -> String {
    let header = "<tr><th>load</th><th>requests</th><th>failed</th><th>requests/s</th><th>tokens/s</th>\
                  <th class=\"name\">latency, ms</th><th>mean</th><th>p50</th><th>p90</th><th>p99</th><th>most</th></tr>";
    let mut rows = String::new();
    for l in levels {
        for (i, (name, spread)) in named(l).into_iter().enumerate() {
            let load = if i > 0 {
                String::new()
            } else {
                let speeds = format!("{:.2}</td><td rowspan=4>{:.1}", l.requests_per_second(), l.tokens_per_second());
                let counts = format!("{}</td><td rowspan=4>{}", l.records.len(), l.n_failed());
                format!(
                    "<th rowspan=4>{}</th><td rowspan=4>{counts}</td><td rowspan=4>{speeds}</td>",
                    escape(&l.pace.to_string())
                )
            };
            let cells = match &spread {
                Some(s) => [s.mean(), s.quantile(0.5), s.quantile(0.9), s.quantile(0.99), s.quantile(1.0)].map(ms),
                None => [const { String::new() }; 5].map(|_| "–".to_string()),
            };
            let cells: String = cells.iter().map(|c| format!("<td>{c}</td>")).collect();
            let class = if i == 0 { " class=\"first\"" } else { "" };
            rows += &format!("<tr{class}>{load}<td class=\"name\">{name}</td>{cells}</tr>\n");
        }
    }
    format!("<div class=\"wide\"><table>\n<thead>{header}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n")
}

fn throughput(levels: &[Level]) -> String {
    let x = |l: &Level| match l.pace {
        super::stats::Pace::Clients(n) => n as f64,
        super::stats::Pace::Rate(rate) => rate,
    };
    let mut points: Vec<_> = levels.iter().map(|l| (x(l), l.tokens_per_second())).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let x_label = if matches!(levels[0].pace, super::stats::Pace::Rate(_)) { "requests/s sent" } else { "clients" };
    let series = vec![Series { name: "tokens/s".into(), points, dots: false }];
    let title = "Throughput".to_string();
    Plot { title, x_label, y_label: "new tokens/s", log_x: true, series, window: None, y_to: 0.0 }.render()
}

/// For each level, how many per cent of the values of latency `which` are below.
fn cumulative(title: &str, which: usize, levels: &[Level]) -> String {
    // From 1 %: pieces that arrived together would stretch the axis to microseconds.
    let curve = |s: &Spread| (1..=100).map(|q| (s.quantile(f64::from(q) / 100.0) * 1e3, f64::from(q))).collect();
    let series: Vec<Series> = levels
        .iter()
        .filter_map(|l| {
            let spread = named(l)[which].1.clone()?;
            Some(Series { name: l.pace.to_string(), points: curve(&spread), dots: false })
        })
        .collect();
    let title = title.to_string();
    let window = None;
    Plot { title, x_label: "milliseconds", y_label: "% at most", log_x: true, series, window, y_to: 100.0 }.render()
}

/// Each interval between tokens of the others at the time it ended, with the long prompt's time to first token shaded.
fn timeline(l: &Level) -> String {
    let Some(long) = &l.long else { return String::new() };
    let window = long.deliveries.first().map(|&first| (long.due, first));
    let n: usize = l.good().map(|r| r.deliveries.len()).sum();
    let every = n.div_ceil(MAX_DOTS).max(1);
    let intervals = l.good().flat_map(|r| r.intervals()).map(|(from, to)| (to, (to - from) * 1e3));
    // Every so many of the small ones, all of those that a reader looks for.
    let high = l.itl().map_or(0.0, |s| s.quantile(0.99) * 1e3);
    let points = intervals.enumerate().filter(|(i, p)| i % every == 0 || p.1 >= high).map(|(_, p)| p).collect();
    let series = vec![Series { name: "interval".into(), points, dots: true }];
    let title = format!("Between tokens of the others, {}, while a long prompt is read (shaded)", l.pace);
    let plot = Plot { title, x_label: "seconds", y_label: "milliseconds", log_x: false, series, window, y_to: 0.0 };
    format!("{}{}", plot.render(), disturbance(l))
}

/// The figures of the plot above.
fn disturbance(l: &Level) -> String {
    let Some(d) = l.disturbance() else { return "<p class=\"note\">The long prompt failed.</p>\n".to_string() };
    let line = |name: &str, spread: Option<Spread>| match spread {
        Some(s) => {
            let [mean, p50, p99, most] = [s.mean(), s.quantile(0.5), s.quantile(0.99), s.quantile(1.0)].map(ms);
            format!("{name}: mean {mean} ms, p50 {p50}, p99 {p99}, most {most}")
        }
        None => format!("{name}: no tokens"),
    };
    format!("<p class=\"note\">{}<br>{}</p>\n", line("Before it", d.before), line("During it", d.during))
}

fn faults(levels: &[Level]) -> String {
    let line = |l: &Level| {
        let pace = escape(&l.pace.to_string());
        let one = |(kind, (n, said)): (super::stats::FaultKind, (usize, &str))| {
            format!("<li>{pace}: {n} × {kind}; first: {}</li>\n", escape(said))
        };
        l.faults().into_iter().map(one).collect::<String>()
    };
    let lines: String = levels.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("<h2>Failures</h2>\n<ul>\n{lines}</ul>\n") }
}
