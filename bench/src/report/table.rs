//! The page of results: a line a figure, a column a contestant, the relation before the value.

use std::fmt::Write;

use super::{Figure, Relation, Results, Value};

/// A number with three digits that mean something.
pub fn number(value: f64) -> String {
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

/// All of it.
pub fn page(results: &Results) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(results, &mut page);
    page
}

fn write(results: &Results, page: &mut String) -> std::fmt::Result {
    let commit = results.commit.as_deref().unwrap_or("unknown");
    writeln!(
        page,
        "llmchat benchmark, commit {commit}, {} build{}",
        results.profile,
        if results.quick {
            ", smoke run: not to be quoted"
        } else {
            ""
        }
    )?;
    let load = results.load_average.map(|load| load.unwrap_or(f64::NAN));
    writeln!(
        page,
        "{}; load average before {:.1}, after {:.1}; {:.0} s",
        results.machine, load[0], load[1], results.seconds
    )?;
    if let Some(postgres) = &results.postgres {
        writeln!(page, "{postgres}")?;
    }
    writeln!(
        page,
        "+ is what is added to direct, × the multiple of pass-through: median ±half the spread of the rounds; (the value itself)\n"
    )?;

    let mut rows = vec![header(results)];
    let mut groups: Vec<&str> = Vec::new();
    for figure in &results.figures {
        if !groups.contains(&figure.group) {
            groups.push(figure.group);
        }
    }
    for group in groups {
        rows.push(vec![String::new()]);
        rows.push(vec![group.to_owned()]);
        let own = results.figures.iter();
        let own = own.filter(|figure| figure.group == group);
        rows.extend(own.map(|figure| row(results, figure)));
    }
    align(&rows, page)?;

    if !results.micro.is_empty() {
        writeln!(page)?;
        crate::micro::table(&results.micro, page)?;
    }
    if !results.notes.is_empty() {
        writeln!(page, "\nNotes")?;
        for note in &results.notes {
            writeln!(page, "- {note}")?;
        }
    }
    Ok(())
}

fn header(results: &Results) -> Vec<String> {
    let names = results.contestants.iter().map(|whose| whose.name.clone());
    let mut row = vec![String::new()];
    row.extend(names);
    row.push("goal".to_owned());
    row
}

fn row(results: &Results, figure: &Figure) -> Vec<String> {
    let mut row = vec![format!("  {}, {}", figure.name, figure.unit)];
    for whose in &results.contestants {
        let value = figure
            .values
            .iter()
            .find(|value| value.contestant == whose.name);
        row.push(value.map_or_else(String::new, |value| cell(figure.relation, value)));
    }
    let verdicts = figure.verdicts.iter().map(|verdict| {
        let word = if verdict.met { "met" } else { "NOT MET" };
        format!("{} {word}", verdict.goal)
    });
    row.push(verdicts.collect::<Vec<_>>().join(" · "));
    row
}

fn cell(relation: Relation, value: &Value) -> String {
    let own = number(value.value.median);
    let spread = |spread: f64| match value.rounds.len() {
        1 => String::new(),
        _ => format!(" ±{}", number(spread)),
    };
    match (relation, value.relative) {
        (Relation::AddedToDirect, Some(added)) if value.role != super::Role::Direct => {
            let (sign, added_text) = match added.median < 0.0 {
                true => ("−", number(-added.median)),
                false => ("+", number(added.median)),
            };
            format!("{sign}{added_text}{} ({own})", spread(added.spread()))
        }
        (Relation::TimesPassThrough, Some(times)) if value.role != super::Role::PassThrough => {
            format!(
                "{}×{} ({own})",
                number(times.median),
                spread(times.spread())
            )
        }
        _ => format!("{own}{}", spread(value.value.spread())),
    }
}

/// Columns as wide as their widest cell; a row of one cell is a title and has no columns.
pub fn align(rows: &[Vec<String>], page: &mut String) -> std::fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| row.len() > 1);
        let cells = cells.filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(page, "{}", line.trim_end())?;
    }
    Ok(())
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

    #[test]
    fn columns_stand_below_each_other() -> std::fmt::Result {
        let row = |cells: &[&str]| cells.iter().map(|cell| cell.to_string()).collect();
        let mut page = String::new();
        align(
            &[row(&["a title"]), row(&["é", "b"]), row(&["ccc", "d"])],
            &mut page,
        )?;
        assert_eq!(page, "a title\né    b\nccc  d\n");
        Ok(())
    }
}
