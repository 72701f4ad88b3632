//! The HTML report: one self-contained file, a plot a row.

use std::{
    fmt::Write,
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use runsc_tests::binary::profile_dir;

use crate::table::{Row, Table, number};

const COLOURS: [&str; 6] = ["#4c78a8", "#b0b0b0", "#888888", "#e45756", "#54a24b", "#f58518"];
const WIDTH: f64 = 560.0;
const BAR: f64 = 18.0;
const LABEL: f64 = 70.0;

/// Writes `target/bench/report.html`.
pub fn write(table: &Table) -> Result<PathBuf> {
    let target = profile_dir();
    let dir = target.parent().unwrap_or(&target).join("bench");
    let path = dir.join("report.html");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    fs::write(&path, page(table)).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn page(table: &Table) -> String {
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>runsc benchmark</title><style>\
         body{font:14px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse}td,th{padding:2px 10px;text-align:right}\
         th:first-child,td:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}\
         figure{display:inline-block;margin:8px 16px 8px 0}figcaption{font-weight:bold}</style><h1>runsc benchmark</h1>",
    );
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let _ = write!(
        out,
        "<p>Kernel {}, {}, made at {seconds} s after the epoch. Samples of all environments were taken in turns in one run; \
         compare within a row. A ratio is the median's to native's; for MB/s native's to the median.</p><ul>",
        escape(kernel.trim()),
        escape(cpu)
    );
    for line in table.budget() {
        let _ = write!(out, "<li>{}</li>", escape(&line));
    }
    out.push_str("</ul><table><tr><th>row</th>");
    for environment in &table.environments {
        let _ = write!(out, "<th>{environment}</th>");
    }
    out.push_str("<th>unit</th></tr>");
    for row in &table.rows {
        let _ = write!(out, "<tr><td>{}</td>", escape(&row.name));
        for column in 0..table.environments.len() {
            match row.summary(column) {
                Some(summary) => {
                    let _ = write!(out, "<td>{} ({})", number(summary.median), number(summary.best));
                    if let Some(ratio) = row.ratio(column).filter(|_| column > 0) {
                        let _ = write!(out, " <b>{ratio:.2}x</b>");
                    }
                    out.push_str("</td>");
                }
                None => out.push_str("<td>-</td>"),
            }
        }
        let _ = write!(out, "<td>{}</td></tr>", escape(&row.unit));
    }
    out.push_str("</table><p>Bars: median on a logarithmic scale; ticks: single samples; white line: best.</p>");
    for row in &table.rows {
        out.push_str(&plot(table, row));
    }
    out.push_str("</html>\n");
    out
}

fn plot(table: &Table, row: &Row) -> String {
    let all = row.samples.iter().flatten().copied().filter(|sample| *sample > 0.0);
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), sample| (low.min(sample), high.max(sample)));
    if low > high {
        return String::new();
    }
    let (start, end) = ((low / 2.0).log10(), (high * 1.5).log10());
    let x = |value: f64| LABEL + (value.max(low / 2.0).log10() - start) / (end - start) * (WIDTH - LABEL - 80.0);
    let height = BAR * table.environments.len() as f64 + 4.0;
    let mut svg = format!(
        "<figure><figcaption>{} ({})</figcaption><svg width=\"{WIDTH}\" height=\"{height}\" role=\"img\">",
        escape(&row.name),
        escape(&row.unit)
    );
    for (column, environment) in table.environments.iter().enumerate() {
        let y = column as f64 * BAR;
        let _ = write!(svg, "<text x=\"0\" y=\"{}\" font-size=\"12\">{environment}</text>", y + 13.0);
        let Some(summary) = row.summary(column) else { continue };
        let colour = COLOURS[column % COLOURS.len()];
        let (median, best) = (x(summary.median), x(summary.best));
        let _ = write!(
            svg,
            "<rect x=\"{LABEL}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
            y + 2.0,
            (median - LABEL).max(1.0),
            BAR - 4.0
        );
        for sample in &row.samples[column] {
            let at = x(*sample);
            let _ = write!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"black\" stroke-opacity=\"0.35\"/>",
                y + 5.0,
                y + BAR - 5.0
            );
        }
        let _ = write!(
            svg,
            "<line x1=\"{best:.1}\" x2=\"{best:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"white\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{}</text>",
            y + 2.0,
            y + BAR - 2.0,
            median + 6.0,
            y + 13.0,
            number(summary.median)
        );
    }
    svg.push_str("</svg></figure>");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_holds_rows_and_escapes() {
        let mut table = Table::new(vec!["native", "ptrace"]);
        table.add("a<b", "ns", 0, 1.0);
        table.add("a<b", "ns", 1, 5.0);
        let page = page(&table);
        assert!(page.contains("a&lt;b") && page.contains("5.00x") && page.contains("<svg") && !page.contains("a<b"));
    }
}
