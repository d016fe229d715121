//! The report as Markdown: a table for each group of figures, a row for each figure, a column for
//! each server; then the goals.

use comfy_table::{Table, presets};

use super::{Figure, Relation, Report, Value};
use crate::servers::Kind;

/// Explains [`cell`].
const LEGEND: &str = "+ is the difference from direct, × the ratio to pass-through: the median of \
                      the rounds, ± half their spread; (the value itself)";

pub fn page(report: &Report) -> String {
    let mut blocks = vec![report.about.join("; "), LEGEND.to_owned()];
    for figures in report.figures.chunk_by(|one, next| one.group == next.group) {
        let group = figures.first().map_or("", |figure| figure.group);
        let servers = report.servers.iter().map(Kind::to_string);
        let header = [group.to_owned()].into_iter().chain(servers);
        let rows = figures.iter().map(|figure| row(report, figure));
        blocks.push(table(header.collect(), rows));
    }
    blocks.push(goals(report));
    blocks.extend(report.failures.clone());
    blocks.join("\n\n")
}

fn row(report: &Report, figure: &Figure) -> Vec<String> {
    let mut row = vec![format!("{}, {}", figure.name, figure.unit)];
    row.extend(report.servers.iter().map(|server| {
        let mut values = figure.values.iter();
        let value = values.find(|value| value.server == *server);
        value.map_or_else(String::new, |value| cell(figure.relation, value))
    }));
    row
}

fn cell(relation: Relation, value: &Value) -> String {
    let own = number(value.summary.median);
    let spread = |spread: f64| match value.rounds.len() {
        1 => String::new(),
        _ => format!(" ±{}", number(spread)),
    };
    match (relation, value.relative) {
        (Relation::AddedToDirect, Some(added)) if value.server != Kind::Direct => {
            let sign = if added.median < 0.0 { '−' } else { '+' };
            let median = number(added.median.abs());
            format!("{sign}{median}{} ({own})", spread(added.spread))
        }
        (Relation::TimesPassThrough, Some(times)) if value.server != Kind::PassThrough => {
            let median = number(times.median);
            format!("{median}×{} ({own})", spread(times.spread))
        }
        _ => format!("{own}{}", spread(value.summary.spread)),
    }
}

fn goals(report: &Report) -> String {
    let rows = report.figures.iter().flat_map(|figure| {
        let relation = match figure.relation {
            Relation::AddedToDirect => " over direct",
            Relation::TimesPassThrough => " × pass-through",
            Relation::None => "",
        };
        figure.goals.iter().map(move |goal| {
            vec![
                format!("{}: {}, {}", figure.group, figure.name, figure.unit),
                goal.server.to_string(),
                format!("{}{relation}", goal.bound),
                number(goal.measured),
                if goal.met { "met" } else { "NOT MET" }.to_owned(),
            ]
        })
    });
    let header = ["Goals", "server", "goal", "measured", ""];
    table(header.map(str::to_owned).to_vec(), rows)
}

fn table(header: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header).add_rows(rows);
    table.to_string()
}

/// Three significant digits.
fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".to_owned(),
        _ if size >= 1e6 => format!("{:.2}M", value / 1e6),
        _ if size >= 1e5 => format!("{:.0}k", value / 1e3),
        _ if size >= 1e4 => format!("{:.1}k", value / 1e3),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0.00"),
            (0.0123, "0.012"),
            (0.456, "0.46"),
            (12.34, "12.3"),
            (1234.5, "1234"),
            (45_678.0, "45.7k"),
            (2_345_678.0, "2.35M"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
