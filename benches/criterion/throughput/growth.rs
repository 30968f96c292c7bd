//! How the cost of a token grows with the context: a straight line through the measured steps.
//!
//! ```text
//! seconds(T) = intercept + slope T      least squares
//! ```
//!
//! Attention on latents reads every cached token once and does the same with each, so the line must be straight.

use dsv2_bench_report::{Better, Measurement, Series};
use dsv2_reference::AttentionForm;

use super::cpu::OnCpu;
use super::harness::{Measured, Subject};
use super::report::digits;
use crate::bench::Bench;

/// A straight line.
struct Line {
    intercept: f64,
    slope: f64,
    /// Of the slope: its standard error.
    error: f64,
}

impl Line {
    /// The one with the least squares, through three points or more at different places.
    fn through(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        if points.len() < 3 {
            return None;
        }
        let mean = |value: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (x, y) = (mean(&|point| point.0), mean(&|point| point.1));
        let width = mean(&|point| (point.0 - x).powi(2));
        let slope = mean(&|point| (point.0 - x) * (point.1 - y)) / width;
        let line = Line { intercept: y - slope * x, slope, error: 0.0 };
        let rest = points.iter().map(|point| (point.1 - line.at(point.0)).powi(2)).sum::<f64>() / (count - 2.0);
        Some(Line { error: (rest / (count * width)).sqrt(), ..line })
    }

    fn at(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }

    /// The largest distance of a point from it, as a part of the line's own value there.
    fn deviation(&self, points: &[(f64, f64)]) -> f64 {
        points.iter().map(|(x, y)| (y / self.at(*x) - 1.0).abs()).fold(0.0, f64::max)
    }
}

/// A table of all models, and a plot of each.
pub fn report(bench: &mut Bench, measured: &[Measured]) {
    let ceilings = bench.ceilings();
    let mut rows = Vec::new();
    for measured in measured {
        let model = measured.model;
        let mut lines = Vec::new();
        for form in [AttentionForm::Absorbed, AttentionForm::Expanded] {
            let points = measured.by_context(form);
            let name = OnCpu::way(form);
            let milliseconds = |points: &[(f64, f64)]| points.iter().map(|(x, y)| (*x, 1e3 * y)).collect();
            let Some(line) = Line::through(&points) else { continue };
            lines.push(Series { name: format!("{name}, measured"), points: milliseconds(&points) });
            let ends = [0.0, points[points.len() - 1].0].map(|context| (context, line.at(context)));
            lines.push(Series { name: format!("{name}, fitted line"), points: milliseconds(&ends) });
            let (bytes, flops) = (measured.machine.number * model.work.cached_in_all(), model.work.key_flops(form));
            let floors = [bytes / ceilings.bytes_per_second, flops / ceilings.flops_per_second];
            // From seconds per token to microseconds per thousand tokens.
            let per_thousand = |seconds: f64| digits(1e9 * seconds);
            rows.push(vec![
                model.name.into(),
                name.into(),
                digits(1e3 * line.intercept),
                per_thousand(line.slope),
                per_thousand(floors[0]),
                per_thousand(floors[1]),
                digits(line.slope / floors[0].max(floors[1])),
                format!("{:.1} %", 100.0 * line.deviation(&points)),
            ]);
            // A line through other contexts is another line.
            let contexts: Vec<String> = points.iter().map(|(context, _)| context.to_string()).collect();
            let id = format!("throughput/growth/{}/{name}/contexts={}", model.name, contexts.join("-"));
            bench.keep(slope(id, &line, points.len()));
        }
        let title = format!("{}: time of a decoded token on the CPU", model.name);
        let file = format!("throughput-growth-{}", model.name);
        bench.plot(&title, &file, ("cached tokens", false), ("ms per token", false), lines);
    }
    let columns = "model | form | at context 0, ms | µs per 1000 cached tokens | floor: reading | floor: computing | \
        times the floor | largest deviation";
    let note = "The straight line with the least squares through the steps of one sequence. The floors are the bytes of a \
                cached token and the operations on it, at the rates measured in this run. Largest deviation: of a \
                measured point from the line.";
    bench.table("How the cost of a decoded token grows with the context, on the CPU", columns, rows, &[note]);
}

/// Seconds that each further cached token costs, with two standard errors.
fn slope(id: String, line: &Line, samples: usize) -> Measurement {
    let value = line.slope.max(0.0);
    let interval = [(value - 2.0 * line.error).max(0.0), value, value + 2.0 * line.error];
    Measurement::sampled(id, "s", Better::Less, interval, samples)
}
