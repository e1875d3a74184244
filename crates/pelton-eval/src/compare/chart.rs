//! A chart of harm against cost as inline SVG, coloured by the page's style sheet.

use std::fmt::Write;

/// A candidate in a chart.
pub(super) struct Point {
    pub(super) label: String,
    /// Cost (bytes) or gain (speed).
    pub(super) x: f64,
    /// Harm, above 0, and its error bar.
    pub(super) y: f64,
    pub(super) error: f64,
}

/// A chart, logarithmic on both axes, with the candidates that no other beats joined.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) x_label: &'static str,
    pub(super) y_label: &'static str,
    /// Whether less x is better.
    pub(super) less_is_better: bool,
    /// The base: where it is on x, without harm.
    pub(super) base: (String, f64),
    pub(super) points: Vec<Point>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 50.0;
/// Height of the strip below the axis where the base lies.
const STRIP: f64 = 26.0;
/// What harm is drawn at least.
const LEAST: f64 = 1e-9;

/// A logarithmic axis: where it begins and ends, and its ticks.
struct Axis {
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, margin: f64) -> Axis {
        let values = values.filter(|v| v.is_finite() && *v > 0.0);
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        if most <= 0.0 {
            return Axis { from: 1.0, to: 10.0, ticks: vec![1.0, 10.0] };
        }
        let (from, to) = (least / margin, most * margin);
        // Finer ticks where few powers of ten are spanned.
        let steps: &[f64] = match (to / from).log10() {
            d if d > 2.2 => &[1.0],
            d if d > 0.9 => &[1.0, 2.0, 5.0],
            _ => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        };
        let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
        let ticks = powers.flat_map(|p| steps.iter().map(move |m| m * 10f64.powi(p)));
        Axis { from, to, ticks: ticks.filter(|t| *t >= from && *t <= to).collect() }
    }

    /// 0 to 1 along the axis.
    fn place(&self, value: f64) -> f64 {
        ((value.max(LEAST) / self.from).ln() / (self.to / self.from).ln()).clamp(0.0, 1.0)
    }
}

impl Chart {
    /// Candidates that no other beats in both.
    fn best(&self) -> Vec<&Point> {
        let better_x = |a: f64, b: f64| if self.less_is_better { a < b } else { a > b };
        let is_beaten = |p: &Point| {
            self.points.iter().any(|q| {
                let no_worse = q.y <= p.y && !better_x(p.x, q.x);
                no_worse && (q.y < p.y || better_x(q.x, p.x))
            })
        };
        let mut best: Vec<&Point> = self.points.iter().filter(|p| !is_beaten(p)).collect();
        best.sort_by(|a, b| a.x.total_cmp(&b.x));
        best
    }

    /// The figure.
    pub(super) fn render(&self, format_x: &dyn Fn(f64) -> String) -> String {
        let x = Axis::of(self.points.iter().map(|p| p.x).chain([self.base.1]), 1.15);
        let y = Axis::of(self.points.iter().flat_map(|p| [p.y, p.y + p.error]), 1.4);
        let bottom = HEIGHT - BOTTOM - STRIP;
        let at_x = |v: f64| LEFT + x.place(v) * (WIDTH - LEFT - RIGHT);
        let at_y = |v: f64| bottom - y.place(v) * (bottom - TOP);
        let mut out = format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title),
            escape(self.title)
        );
        let mut put = |text: String| out.push_str(&text);
        let (right, strip) = (WIDTH - RIGHT, bottom + STRIP);
        for &tick in &y.ticks {
            let at = at_y(tick);
            put(format!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>"));
            put(text(LEFT - 8.0, at + 4.0, "end", &number(tick)));
        }
        for &tick in &x.ticks {
            let at = at_x(tick);
            put(format!("<path class=\"tick\" d=\"M{at:.1} {strip}v5\"/>"));
            put(text(at, strip + 18.0, "middle", &format_x(tick)));
        }
        put(format!("<path class=\"axis\" d=\"M{LEFT} {strip}H{right}\"/>"));
        put(format!("<path class=\"grid zero\" d=\"M{LEFT} {bottom}H{right}\"/>"));
        put(text(LEFT - 8.0, bottom + STRIP / 2.0 + 4.0, "end", "0"));
        put(text((LEFT + right) / 2.0, HEIGHT - 8.0, "middle", self.x_label));
        let middle = (TOP + bottom) / 2.0;
        put(format!(
            "<text x=\"14\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle})\">{}</text>",
            escape(self.y_label)
        ));
        let mut line = String::new();
        for (i, p) in self.best().iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            write!(line, "{command}{:.1} {:.1}", at_x(p.x), at_y(p.y)).expect("a string takes all that is written");
        }
        put(format!("<path class=\"front\" d=\"{line}\"/>"));
        let base = (at_x(self.base.1), bottom + STRIP / 2.0);
        put(format!("<path class=\"mark base\" d=\"M{:.1} {:.1}h0\"/>", base.0, base.1));
        put(label(base.0, base.1 + 4.0, &self.base.0, false));
        for p in &self.points {
            let (cx, cy) = (at_x(p.x), at_y(p.y));
            let (low, high) = (at_y((p.y - p.error).max(y.from)), at_y(p.y + p.error));
            put(format!("<path class=\"error\" d=\"M{cx:.1} {low:.1}V{high:.1}\"/>"));
            put(format!("<path class=\"mark\" d=\"M{cx:.1} {cy:.1}h0\"/>"));
            // Beside the line that joins them, which falls where less is better and rises where more is.
            put(label(cx, cy - 8.0, &p.label, !self.less_is_better));
        }
        out += "</svg></figure>\n";
        out
    }
}

/// A name beside a mark, on the side where there is room.
fn label(x: f64, y: f64, name: &str, before: bool) -> String {
    let before = if before { x > WIDTH * 0.3 } else { x > WIDTH * 0.7 };
    if before { text(x - 10.0, y, "end", name) } else { text(x + 10.0, y, "start", name) }
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(words))
}

/// As few digits as a tick needs.
fn number(v: f64) -> String {
    if v >= 1e-4 { format!("{}", (v * 1e6).round() / 1e6) } else { format!("{v:.0e}") }
}

/// Text in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)], less_is_better: bool) -> Chart {
        let point = |(i, &(x, y)): (usize, &(f64, f64))| Point { label: format!("<{i}>"), x, y, error: y / 10.0 };
        let points = points.iter().enumerate().map(point).collect();
        Chart { title: "t & u", x_label: "x", y_label: "y", less_is_better, base: ("b".into(), 100.0), points }
    }

    #[test]
    fn those_that_no_other_beats_are_joined() {
        let points = [(50.0, 0.01), (40.0, 0.02), (45.0, 0.03), (20.0, 0.5), (60.0, 0.01)];
        let labels = |less| chart(&points, less).best().iter().map(|p| p.label.clone()).collect::<String>();
        assert_eq!(labels(true), "<3><1><0>");
        assert_eq!(labels(false), "<4>");
    }

    #[test]
    fn odd_values_still_make_a_chart() {
        for points in [&[][..], &[(0.0, 0.0)], &[(f64::NAN, f64::INFINITY), (1.0, 1e-300)], &[(5.0, 0.1), (5.0, 0.1)]] {
            let text = chart(points, true).render(&|v| format!("{v}"));
            assert!(text.contains("t &amp; u") && text.ends_with("</svg></figure>\n"), "{text}");
            assert!(!text.contains("NaN") && !text.contains("inf") && !text.contains("<0>"), "{text}");
        }
    }
}
