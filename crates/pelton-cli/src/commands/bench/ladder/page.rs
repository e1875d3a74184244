//! The ladder as one HTML file: a bar for each rung, the table, nothing from elsewhere.

use super::Ladder;
use super::output::{factor, headline, pairs, remarks, rows};
use crate::commands::bench::serve::svg::escape;

const STYLE: &str = include_str!("page.css");

const WIDTH: f64 = 760.0;
const ROW: f64 = 34.0;
/// Where the bars begin: the names are left of it.
const LEFT: f64 = 230.0;
/// Room for the figures at the bars' ends.
const RIGHT: f64 = 150.0;

/// The page.
pub(super) fn page(l: &Ladder) -> String {
    let headline = escape(&headline(l));
    let (header, rows) = rows(l);
    let head: String = header.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    let row = |(cells, off): (Vec<String>, bool)| {
        let cells: String = cells.iter().map(|c| format!("<td>{}</td>", escape(c))).collect();
        let class = if off { " class=\"off\"" } else { "" };
        format!("<tr{class}>{cells}</tr>\n")
    };
    let off = l.rungs.iter().map(|r| r.left_off.is_some());
    let body: String = rows.into_iter().zip(off).map(row).collect();
    let remarks: String = remarks(l).iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>pelton bench ladder</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<main>\n<h1>The ladder</h1>\n<p class=\"headline\">{headline}</p>\n{}\
         <div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n\
         <ul>\n{remarks}</ul>\n</main>\n</body>\n</html>\n",
        chart(l)
    )
}

/// A bar for each rung, as long as its items a second; what a rung added is darker.
fn chart(l: &Ladder) -> String {
    let most = l.rungs.iter().map(|r| r.items_per_second()).fold(0.0, f64::max).max(1e-9);
    let height = ROW * l.rungs.len() as f64 + 8.0;
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let mut bars = String::new();
    for (i, (rung, below)) in pairs(&l.rungs).enumerate() {
        let (y, text) = (4.0 + ROW * i as f64, 4.0 + ROW * i as f64 + 20.0);
        let width = rung.items_per_second() * scale;
        let before = if i == 0 { 0.0 } else { (below.items_per_second() * scale).min(width) };
        let (off, name) = (if rung.left_off.is_some() { " off" } else { "" }, escape(&rung.step.name()));
        let label = format!("{:.2} items/s · {:.1}×", rung.items_per_second(), factor(rung, &l.rungs[0]));
        bars += &format!(
            "<g class=\"rung{off}\"><text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"before\" x=\"{LEFT}\" y=\"{}\" width=\"{before:.1}\" height=\"20\"/>\
             <rect class=\"gain\" x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"20\"/>\
             <text class=\"figure\" x=\"{:.1}\" y=\"{text}\">{label}</text></g>\n",
            LEFT - 12.0,
            y + 5.0,
            LEFT + before,
            y + 5.0,
            (width - before).max(1.0),
            LEFT + width + 8.0,
        );
    }
    let title = "Items a second, rung by rung";
    format!(
        "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{title}\">\n{bars}</svg></figure>\n"
    )
}
