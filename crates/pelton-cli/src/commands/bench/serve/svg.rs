//! Line and dot plots as inline SVG, coloured by the page's style sheet so that they follow its light or dark scheme.

use std::fmt::Write;

/// One named set of points.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Single dots instead of a line.
    pub(super) dots: bool,
}

impl Series {
    /// The points that have a place.
    fn finite(&self) -> impl Iterator<Item = (f64, f64)> {
        self.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite())
    }
}

/// A plot, linear on both axes or logarithmic on x.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) x_label: &'static str,
    pub(super) y_label: &'static str,
    pub(super) log_x: bool,
    pub(super) series: Vec<Series>,
    /// A stretch of x that is shaded.
    pub(super) window: Option<(f64, f64)>,
    /// Where the y axis ends at least.
    pub(super) y_to: f64,
}

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Lines of no more points than this show each of them.
const MOST_MARKED: usize = 16;
/// Colours that the style sheet has.
const N_COLOURS: usize = 6;

/// What a logarithmic axis spans at most.
const LOG_RANGE: (f64, f64) = (1e-9, 1e12);

/// Where an axis begins and ends, and where its ticks are.
struct Axis {
    from: f64,
    to: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// From zero in steps of 1, 2 or 5 times a power of ten.
    fn linear(to: f64) -> Axis {
        let to = if to > 0.0 && to.is_finite() { to } else { 1.0 };
        let rough = to / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= rough).unwrap_or(power);
        let n = (to / step).ceil().max(1.0) as usize;
        Axis { from: 0.0, to: n as f64 * step, log: false, ticks: (0..=n).map(|i| i as f64 * step).collect() }
    }

    /// The range of the values, ticks at 1, 2 and 5 times powers of ten, fewer where many powers are spanned.
    fn log(least: f64, most: f64) -> Axis {
        let from = least.clamp(LOG_RANGE.0, LOG_RANGE.1);
        let to = most.clamp(from * 1.0001, LOG_RANGE.1 * 10.0);
        let steps: &[f64] = if (to / from).log10() > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
        let ticks: Vec<f64> = powers.flat_map(|p| steps.iter().map(move |m| m * 10f64.powi(p))).collect();
        let below = ticks.iter().copied().filter(|&t| t <= from).fold(f64::NEG_INFINITY, f64::max);
        let above = ticks.iter().copied().filter(|&t| t >= to).fold(f64::INFINITY, f64::min);
        let (from, to) = (if below.is_finite() { below } else { from }, if above.is_finite() { above } else { to });
        Axis { from, to, log: true, ticks: ticks.into_iter().filter(|&t| t >= from && t <= to).collect() }
    }

    /// 0 to 1 along the axis.
    fn place(&self, value: f64) -> f64 {
        let share = match self.log {
            true => (value.max(self.from) / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }
}

impl Plot {
    /// A figure with its title and legend.
    pub(super) fn render(&self) -> String {
        let values = || self.series.iter().flat_map(Series::finite);
        let (mut least, mut most) = (f64::INFINITY, 0f64);
        values().for_each(|p| (least, most) = (least.min(p.0), most.max(p.0)));
        let x = if self.log_x && least.is_finite() { Axis::log(least, most) } else { Axis::linear(most) };
        let y = Axis::linear(values().map(|p| p.1).fold(self.y_to, f64::max));
        let at_x = |v: f64| LEFT + x.place(v) * (WIDTH - LEFT - RIGHT);
        let at_y = |v: f64| HEIGHT - BOTTOM - y.place(v) * (HEIGHT - TOP - BOTTOM);
        let mut out = String::new();
        let mut put = |text: String| out.push_str(&text);
        let title = escape(&self.title);
        put(format!("<figure><figcaption>{title}</figcaption>{}", self.legend()));
        put(format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"));
        if let Some((from, to)) = self.window {
            let (x0, x1) = (at_x(from), at_x(to));
            let (width, height) = ((x1 - x0).max(1.0), HEIGHT - TOP - BOTTOM);
            put(format!("<rect class=\"window\" x=\"{x0:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>"));
        }
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in &y.ticks {
            let (line, text) = (at_y(tick), at_y(tick) + 4.0);
            put(format!("<path class=\"grid\" d=\"M{LEFT} {line:.1}H{right}\"/>"));
            put(format!("<text x=\"{}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, number(tick)));
        }
        for &tick in &x.ticks {
            let line = at_x(tick);
            put(format!("<path class=\"tick\" d=\"M{line:.1} {bottom}v5\"/>"));
            put(format!(
                "<text x=\"{line:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                number(tick)
            ));
        }
        put(format!("<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>"));
        let (middle, below) = ((LEFT + right) / 2.0, HEIGHT - 8.0);
        put(format!(
            "<text class=\"label\" x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
            self.x_label
        ));
        let (half, label) = ((TOP + bottom) / 2.0, self.y_label);
        put(format!(
            "<text class=\"label\" x=\"14\" y=\"{half}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {half})\">{label}</text>"
        ));
        for (i, series) in self.series.iter().enumerate() {
            put(draw(series, i % N_COLOURS, &at_x, &at_y));
        }
        out += "</svg></figure>\n";
        out
    }

    fn legend(&self) -> String {
        if self.series.len() < 2 {
            return String::new();
        }
        let entry = |(i, s): (usize, &Series)| format!("<span class=\"k{}\">{}</span>", i % N_COLOURS, escape(&s.name));
        format!("<div class=\"legend\">{}</div>", self.series.iter().enumerate().map(entry).collect::<String>())
    }
}

fn draw(series: &Series, colour: usize, at_x: &dyn Fn(f64) -> f64, at_y: &dyn Fn(f64) -> f64) -> String {
    let (mut path, mut marks) = (String::new(), String::new());
    let has_marks = !series.dots && series.points.len() <= MOST_MARKED;
    for (i, (x, y)) in series.finite().enumerate() {
        let (x, y) = (at_x(x), at_y(y));
        // A dot is a line of no length with round ends.
        let command = if series.dots || i == 0 { 'M' } else { 'L' };
        let dot = if series.dots { "h0" } else { "" };
        write!(path, "{command}{x:.1} {y:.1}{dot}").expect("a string takes all that is written");
        if has_marks {
            write!(marks, "M{x:.1} {y:.1}h0").expect("a string takes all that is written");
        }
    }
    let class = if series.dots { "dots" } else { "line" };
    let marks = if has_marks { format!("<path class=\"marks s{colour}\" d=\"{marks}\"/>") } else { marks };
    format!("<path class=\"{class} s{colour}\" d=\"{path}\"/>{marks}")
}

/// As few digits as a tick needs.
fn number(v: f64) -> String {
    let rounded = (v * 1e6).round() / 1e6;
    if rounded.abs() >= 1e6 { format!("{rounded:.0e}") } else { format!("{rounded}") }
}

/// Text in HTML.
pub(in crate::commands::bench) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(Axis::linear(47.0).ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(Axis::linear(1.0).ticks.last(), Some(&1.0));
        assert_eq!(Axis::linear(0.0).ticks.len(), 6);
        let axis = Axis::log(3.0, 48.0);
        assert_eq!((axis.from, axis.to), (2.0, 50.0));
        assert_eq!(axis.ticks.len(), 5);
        assert_eq!((axis.place(2.0), axis.place(50.0)), (0.0, 1.0));
        let flat = Axis::log(7.0, 7.0);
        assert!(flat.from < 7.0 && flat.to > 7.0);
    }

    #[test]
    fn odd_values_still_make_a_plot() {
        for points in [vec![], vec![(0.0, 0.0)], vec![(f64::INFINITY, f64::NAN), (-1.0, 1e300)]] {
            for log_x in [false, true] {
                let series = vec![Series { name: "<a>".into(), points: points.clone(), dots: false }];
                let plot =
                    Plot { title: "a & b".into(), x_label: "x", y_label: "y", log_x, series, window: None, y_to: 0.0 };
                let text = plot.render();
                assert!(text.contains("a &amp; b") && text.ends_with("</svg></figure>\n"));
                assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            }
        }
    }
}
