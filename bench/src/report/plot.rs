//! The results as a picture: a panel of bars for each of the figures that matter most, and one of
//! lines for growth.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::prelude::IntoLogRange;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE};

use super::{Figure, Relation, Results, Value, number};
use crate::contestants::Role;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const PANEL: (u32, u32) = (560, 164);
const GROWTH_HEIGHT: u32 = 300;
const HEAD: u32 = 56;
/// Room for the contestants' names beside their lines.
const LEGEND: u32 = 150;
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(120, 120, 120);
const GOAL: RGBColor = RGBColor(200, 30, 60);

/// The figures that have a panel: how their group begins, how their name begins, and what it is
/// called here.
const PANELS: [(&str, &str, &str); 8] = [
    (
        "Time to first token",
        "1 client, kept alive, p50",
        "First token, 1 client, p50",
    ),
    (
        "Time to first token",
        "32 clients, kept alive, p99",
        "First token, 32 clients, p99",
    ),
    (
        "Between tokens",
        "1 stream: gap longer by, p99",
        "Gap between tokens (20 ms) longer by, p99",
    ),
    (
        "Throughput",
        "replies of 2000 tokens",
        "Tokens a second, replies of 2,000",
    ),
    (
        "Throughput",
        "replies of 1 token",
        "Turns a second, replies of 1 token",
    ),
    ("CPU", "1,000 turns", "CPU time of 1,000 turns"),
    (
        "CPU",
        "a million tokens, replies of 2000",
        "CPU time of a million tokens",
    ),
    ("Many streams", "", "Memory of an open stream"),
];

/// Writes the picture.
pub fn write(results: &Results, path: &Path) -> Result<()> {
    let rows = PANELS.len().div_ceil(2) as u32;
    let size = (2 * PANEL.0, HEAD + rows * PANEL.1 + GROWTH_HEIGHT);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let (head, rest) = root.split_vertically(HEAD);
    let commit = results.commit.as_deref().unwrap_or("unknown");
    let quick = match results.quick {
        true => " (smoke run: not to be quoted)",
        false => "",
    };
    write_text(
        &head,
        (16, 10),
        20,
        INK,
        &format!("llmchat, commit {commit}, {} build{quick}", results.profile),
    )?;
    write_text(&head, (16, 36), 13, FAINT, &results.machine)?;

    let (panels, growth) = rest.split_vertically(rows * PANEL.1);
    let areas = panels.split_evenly((rows as usize, 2));
    for (area, (group, name, title)) in areas.iter().zip(PANELS) {
        let figure = results.figures.iter().find(|figure| {
            figure.group.starts_with(group)
                && figure.name.starts_with(name)
                && (!name.is_empty() || figure.name.contains("memory"))
        });
        if let Some(figure) = figure {
            bars(area, title, figure)?;
        }
    }
    let (left, right) = growth.split_horizontally(PANEL.0);
    lines(
        &left,
        results,
        "first token, p50",
        "First token (ms) by messages already in the conversation",
    )?;
    lines(
        &right,
        results,
        "8 clients",
        "Turns a second by messages already in the conversation",
    )?;
    root.present().map_err(failed)
}

/// A bar a contestant; a whisker from the least round to the largest; a mark where the goal is.
fn bars(area: &Area<'_>, title: &str, figure: &Figure) -> Result<()> {
    const LEFT: i32 = 150;
    const ROOM: i32 = 200;
    const STEP: i32 = 24;
    let what = match figure.relation {
        Relation::AddedToDirect => format!("{title}: {} added to direct", figure.unit),
        Relation::TimesPassThrough => format!("{title}: multiple of pass-through"),
        Relation::None => format!("{title}: {}", figure.unit),
    };
    write_text(area, (16, 8), 15, INK, &what)?;
    let shown: Vec<_> = figure
        .values
        .iter()
        .filter(|value| figure.relation != Relation::AddedToDirect || value.role != Role::Direct)
        .collect();
    let largest = shown
        .iter()
        .map(|value| shown_of(value).max)
        .chain(figure.verdicts.iter().map(|verdict| verdict.limit))
        .fold(0.0, f64::max);
    let at = |value: f64| LEFT + (value.max(0.0) / largest.max(1e-9) * f64::from(ROOM)) as i32;
    for (place, value) in shown.iter().enumerate() {
        let y = 36 + STEP * place as i32;
        let summary = shown_of(value);
        let fill = ShapeStyle::from(colour(value.role)).filled();
        write_text(area, (16, y + 2), 12, INK, &value.contestant)?;
        let bar = Rectangle::new([(LEFT, y), (at(summary.median), y + 16)], fill);
        area.draw(&bar).map_err(failed)?;
        let whisker = vec![(at(summary.min), y + 8), (at(summary.max), y + 8)];
        area.draw(&PathElement::new(whisker, INK.stroke_width(1)))
            .map_err(failed)?;
        let own = match value.relative {
            Some(_) => format!(
                "{} ({} {})",
                number(summary.median),
                number(value.value.median),
                figure.unit
            ),
            None => number(summary.median),
        };
        let verdict = figure.verdicts.iter();
        let verdict = verdict.filter(|verdict| verdict.contestant == value.contestant);
        let (mut right, mut own) = (at(summary.max.max(summary.median)), own);
        for verdict in verdict {
            let x = at(verdict.limit);
            let line = vec![(x, y - 3), (x, y + 19)];
            area.draw(&PathElement::new(line, GOAL.stroke_width(2)))
                .map_err(failed)?;
            right = right.max(x);
            own = format!("{own}, goal {}", verdict.goal);
        }
        write_text(area, (right + 8, y + 2), 12, INK, &own)?;
    }
    Ok(())
}

/// A contestant's line of a panel.
struct Line {
    name: String,
    role: Role,
    points: Vec<(f64, f64)>,
}

/// Growth: a line a contestant, the messages on a logarithmic axis.
fn lines(area: &Area<'_>, results: &Results, what: &str, title: &str) -> Result<()> {
    let mut series: Vec<Line> = Vec::new();
    for figure in &results.figures {
        let Some((messages, name)) = figure.name.split_once(" messages: ") else {
            continue;
        };
        let (Ok(messages), true) = (messages.parse::<f64>(), name == what) else {
            continue;
        };
        for value in &figure.values {
            let point = (messages, value.value.median);
            match series.iter_mut().find(|line| line.name == value.contestant) {
                Some(line) => line.points.push(point),
                None => series.push(Line {
                    name: value.contestant.clone(),
                    role: value.role,
                    points: vec![point],
                }),
            }
        }
    }
    let points = || series.iter().flat_map(|line| &line.points);
    let most = points().map(|point| point.0).fold(100.0, f64::max);
    let high = points().map(|point| point.1).fold(0.01, f64::max);
    let low = points().map(|point| point.1).fold(high, f64::min);
    if series.is_empty() {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15, &INK))
        .margin(16)
        .margin_right(LEGEND)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(
            (8.0..most * 1.5).log_scale(),
            (low * 0.7..high * 1.4).log_scale(),
        )
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(4)
        .y_labels(5)
        .y_label_formatter(&|value| number(*value))
        .x_label_formatter(&|value| format!("{value:.0}"))
        .label_style(("sans-serif", 12, &INK))
        .draw()
        .map_err(failed)?;
    for (place, Line { name, role, points }) in series.into_iter().enumerate() {
        let style = colour(role).stroke_width(2);
        chart
            .draw_series(std::iter::once(PathElement::new(points.clone(), style)))
            .map_err(failed)?;
        let dots = points.into_iter();
        chart
            .draw_series(dots.map(|point| Circle::new(point, 3, colour(role).filled())))
            .map_err(failed)?;
        let at = ((PANEL.0 - LEGEND + 8) as i32, 48 + 18 * place as i32);
        write_text(area, at, 12, colour(role), &name)?;
    }
    Ok(())
}

fn shown_of(value: &Value) -> crate::stats::Summary {
    value.relative.unwrap_or(value.value)
}

fn colour(role: Role) -> RGBColor {
    match role {
        Role::Direct => RGBColor(150, 150, 150),
        Role::PassThrough => RGBColor(95, 120, 160),
        Role::Sqlite => RGBColor(20, 140, 120),
        Role::Postgres => RGBColor(215, 120, 20),
        Role::Other => RGBColor(130, 80, 160),
    }
}

fn write_text(
    area: &Area<'_>,
    at: (i32, i32),
    size: i32,
    colour: RGBColor,
    text: &str,
) -> Result<()> {
    let font = ("sans-serif", size).into_font();
    let style = TextStyle::from(font)
        .color(&colour)
        .pos(Pos::new(HPos::Left, VPos::Top));
    area.draw(&Text::new(text.to_owned(), at, style))
        .map_err(failed)
}

/// plotters' errors borrow what they drew on.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the picture cannot be drawn: {error}")
}
