//! A plot as SVG.

use dsv2_foreign::Foreign;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::{Error, Plot, Result};

const SIZE: (u32, u32) = (960, 480);

/// Where the names of the lines begin: beside the chart, so that they cover none of it.
const NAMES: u32 = 740;

/// Draws a plot. Points that a logarithmic axis cannot show are left out.
///
/// # Errors
/// If there is nothing to draw.
pub(crate) fn svg(plot: &Plot) -> Result<String> {
    let wrong = |message: String| Error::Plot { title: plot.title.clone(), message };
    let (x, y) = (range(plot, 0), range(plot, 1));
    let (Some(x), Some(y)) = (x, y) else { return Err(wrong("no point that can be drawn".into())) };
    let mut text = String::new();
    let drawn = match (plot.x.log, plot.y.log) {
        (false, false) => draw(plot, x.0..x.1, y.0..y.1, &mut text),
        (true, false) => draw(plot, (x.0..x.1).log_scale(), y.0..y.1, &mut text),
        (false, true) => draw(plot, x.0..x.1, (y.0..y.1).log_scale(), &mut text),
        (true, true) => draw(plot, (x.0..x.1).log_scale(), (y.0..y.1).log_scale(), &mut text),
    };
    drawn.map_err(wrong)?;
    Ok(text)
}

/// Whether an axis has a place for a value.
fn visible(log: bool, value: f64) -> bool {
    value.is_finite() && (!log || value > 0.0)
}

fn points(plot: &Plot, series: usize) -> impl Iterator<Item = (f64, f64)> + Clone + '_ {
    let of_series = plot.series[series].points.iter().copied();
    of_series.filter(|&(x, y)| visible(plot.x.log, x) && visible(plot.y.log, y))
}

/// From the least value to the largest, on a plain axis from 0.
fn range(plot: &Plot, axis: usize) -> Option<(f64, f64)> {
    let log = [plot.x.log, plot.y.log][axis];
    let values = (0..plot.series.len()).flat_map(|series| points(plot, series)).map(|point| [point.0, point.1][axis]);
    let least = values.clone().reduce(f64::min)?;
    let largest = values.reduce(f64::max)?;
    Some(match log {
        true => (least / 1.1, largest * 1.1),
        false => (least.min(0.0), if largest > 0.0 { largest * 1.05 } else { 1.0 }),
    })
}

fn draw<X, Y>(plot: &Plot, x: X, y: Y, text: &mut String) -> Result<(), String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let whole = SVGBackend::with_string(text, SIZE).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| error.to_string();
    whole.fill(&WHITE).map_err(failed)?;
    let (area, names) = whole.split_horizontally(NAMES);
    let mut chart = ChartBuilder::on(&area)
        .caption(Foreign(&plot.title).to_string(), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    let mesh = &|value: &f64| number(*value);
    chart
        .configure_mesh()
        .x_desc(Foreign(&plot.x.label).to_string())
        .y_desc(Foreign(&plot.y.label).to_string())
        .x_label_formatter(mesh)
        .y_label_formatter(mesh)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (index, series) in plot.series.iter().enumerate() {
        let line = Palette99::pick(index).stroke_width(2);
        chart.draw_series(LineSeries::new(points(plot, index), line).point_size(3)).map_err(failed)?;
        let y = 44 + 22 * index as i32;
        names.draw(&PathElement::new([(0, y), (18, y)], line)).map_err(failed)?;
        names.draw(&Text::new(Foreign(&series.name).to_string(), (24, y - 7), ("sans-serif", 14))).map_err(failed)?;
    }
    whole.present().map_err(failed)
}

/// 1500 as 1.5k, 2e9 as 2G.
fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e12 => (value / 1e12, "T"),
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled == 0.0 || scaled.abs() >= 100.0 {
        0
    } else if scaled.abs() >= 1.0 {
        1
    } else {
        3
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}
