//! Tables of what was measured on one machine, the same for the CPU and for a device.

use dsv2_bench_report::{Better, Measurement};
use dsv2_reference::AttentionForm;

use super::harness::{Kind, Measured, STEPS, Timed};
use super::{CACHED, FORMS, way};
use crate::bench::Bench;
use crate::ceilings::Ceilings;

/// A number with three digits that say something.
fn digits(value: f64) -> String {
    let after_point = if value.abs() >= 100.0 { 0 } else { usize::from(value.abs() < 10.0) + 1 };
    format!("{value:.after_point$}")
}

/// What can be said of something measured, or a dash.
fn cell(seconds: Option<f64>, text: impl Fn(f64) -> String) -> String {
    seconds.map_or("-".into(), text)
}

/// How many times as long the expanded form takes.
fn ratio([expanded, absorbed]: [Option<f64>; 2]) -> String {
    expanded.zip(absorbed).map_or("-".into(), |(expanded, absorbed)| digits(expanded / absorbed))
}

/// The least time in which so much can be read and computed, against the time; a dash where the ceilings are not known.
fn of_floor(ceilings: Option<Ceilings>, bytes: f64, flops: f64, seconds: f64) -> String {
    ceilings.map_or("-".into(), |ceilings| format!("{:.0} %", 100.0 * ceilings.floor(bytes, flops) / seconds))
}

const FLOOR: &str = "Of the floor: the time to read the weights and the cache that are needed once, or to do the operations that \
    are needed, whichever is longer, at the rates measured in this run.";

/// Prompts.
pub fn prompts(bench: &mut Bench, measured: &[Measured]) {
    let Some(&Measured { machine, .. }) = measured.first() else { return };
    let ceilings = machine.ceilings(bench);
    let row = |model: &super::Model, timed: &Timed| {
        let (length, seconds) = (timed.point.new as f64, timed.seconds);
        let flops = model.work.prefill_flops(length);
        let rates = [seconds, length / seconds, flops / seconds / 1e9].map(digits);
        let names = [model.name.to_owned(), length.to_string()].into_iter();
        names.chain(rates).chain([of_floor(ceilings, 0.0, flops, seconds)]).collect()
    };
    let rows = measured.iter().flat_map(|of| of.of(Kind::Prompt).map(|timed| row(&of.model, timed))).collect();
    let columns = "model | prompt tokens | seconds | tokens/s | GFLOP/s | of the floor";
    let note =
        "One sequence, expanded form, logits of the last token. GFLOP/s: the operations that the model needs at least.";
    bench.table(&format!("Prompts on the {}", machine.name), columns, rows, &[note, machine.note, FLOOR]);
}

/// Pieces of prompts in both forms of attention.
pub fn pieces(bench: &mut Bench, measured: &[Measured]) {
    let mut rows = Vec::new();
    for measured in measured {
        let model = &measured.model;
        let mut sizes: Vec<usize> = measured.of(Kind::Piece).map(|timed| timed.point.new).collect();
        sizes.dedup();
        if !sizes.is_empty() {
            // One new token is a step of decoding.
            sizes.insert(0, 1);
        }
        for new in sizes {
            let both = FORMS.map(|form| measured.seconds(form, CACHED, new));
            let [expanded, absorbed] = both.map(|seconds| cell(seconds, |seconds| digits(1e3 * seconds)));
            rows.push(vec![model.name.into(), new.to_string(), expanded, absorbed, ratio(both)]);
        }
    }
    let columns = "model | new tokens | expanded, ms | absorbed, ms | expanded / absorbed";
    let note = format!(
        "New tokens behind {CACHED} cached ones, in one piece. The expanded form makes keys and values of all cached tokens \
         anew, the absorbed form attends on the latents."
    );
    bench.table("Expanded or absorbed: pieces of a prompt on the CPU", columns, rows, &[&note]);
}

/// Steps of one sequence in both forms, against the context.
pub fn contexts(bench: &mut Bench, measured: &[Measured]) {
    let Some(&Measured { machine, .. }) = measured.first() else { return };
    let ceilings = machine.ceilings(bench);
    let note = format!(
        "One sequence, one token at a time; {STEPS} different tokens in turn. Times as fast: absorbed over expanded."
    );
    let (mut rows, mut notes) = (vec![], vec![note, machine.note.into(), FLOOR.into()]);
    for measured in measured {
        let model = &measured.model;
        let of_one = measured.of(Kind::Step).filter(|timed| timed.point.batch == 1);
        let mut contexts: Vec<usize> = of_one.map(|timed| timed.point.context).collect();
        contexts.dedup();
        for context in contexts {
            let both = FORMS.map(|form| measured.seconds(form, context, 1));
            let [expanded, absorbed] = both.map(|seconds| cell(seconds, |seconds| digits(1.0 / seconds)));
            let keys = context as f64 + 1.0;
            let bytes = model.work.step_bytes(model.work.visits(), keys, machine.number);
            let flops = model.work.step_flops(AttentionForm::Absorbed, 1.0, keys);
            let floor = cell(both[1], |seconds| of_floor(ceilings, bytes, flops, seconds));
            rows.push(vec![model.name.into(), context.to_string(), expanded, absorbed, ratio(both), floor]);
        }
        for form in FORMS {
            let points = measured.by_context(form);
            if let Some(slope) = growth(bench, model.name, form, &points) {
                let (name, form, slope) = (model.name, way(form), digits(1e9 * slope));
                notes.push(format!("{name}, {form}: 1000 more cached tokens cost {slope} µs (least squares)."));
            }
        }
    }
    let columns =
        "model | cached tokens | expanded, tokens/s | absorbed, tokens/s | times as fast | absorbed, of the floor";
    let title = "Decoding on the CPU, against the context";
    let notes: Vec<&str> = notes.iter().map(String::as_str).collect();
    bench.table(title, columns, rows, &notes);
}

/// Seconds that each further cached token costs, kept with two standard errors. Attention on latents reads every cached
/// token once and does the same with each, so that the times must lie on a straight line.
fn growth(bench: &mut Bench, model: &str, form: AttentionForm, points: &[(f64, f64)]) -> Option<f64> {
    let [slope, error] = slope(points)?;
    let value = slope.max(0.0);
    // A line through other contexts is another line.
    let contexts: Vec<String> = points.iter().map(|(context, _)| context.to_string()).collect();
    let id = format!("throughput/growth/{model}/{}/contexts={}", way(form), contexts.join("-"));
    let interval = [(value - 2.0 * error).max(0.0), value, value + 2.0 * error];
    bench.keep(Measurement::sampled(id, "s", Better::Less, interval, points.len()));
    Some(slope)
}

/// The slope of the line with the least squares through three points or more, and its standard error.
fn slope(points: &[(f64, f64)]) -> Option<[f64; 2]> {
    let count = points.len() as f64;
    if points.len() < 3 {
        return None;
    }
    let mean = |value: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
    let (x, y) = (mean(&|point| point.0), mean(&|point| point.1));
    let width = mean(&|point| (point.0 - x).powi(2));
    let slope = mean(&|point| (point.0 - x) * (point.1 - y)) / width;
    let rest = mean(&|point| (point.1 - y - slope * (point.0 - x)).powi(2)) / (count - 2.0);
    Some([slope, (rest / width).sqrt()])
}

/// Steps of batches, as far as their experts were counted.
pub fn batches(bench: &mut Bench, measured: &[Measured]) {
    let Some(&Measured { machine, .. }) = measured.first() else { return };
    let ceilings = machine.ceilings(bench);
    let mut rows = Vec::new();
    for measured in measured {
        let model = &measured.model;
        let mut counted: Vec<(&Timed, f64)> =
            measured.of(Kind::Step).filter_map(|timed| Some((timed, timed.experts?))).collect();
        counted.sort_by_key(|(timed, _)| (timed.point.context, timed.point.batch));
        let rate = |timed: &Timed| timed.point.batch as f64 / timed.seconds;
        for of_context in counted.chunk_by(|(a, _), (b, _)| a.point.context == b.point.context) {
            let context = of_context[0].0.point.context;
            let one = of_context.first().filter(|(timed, _)| timed.point.batch == 1).map(|(one, _)| rate(one));
            for &(timed, experts) in of_context {
                let (batch, seconds, keys) = (timed.point.batch as f64, timed.seconds, context as f64 + 1.0);
                let bytes = model.work.step_bytes(experts, batch * keys, machine.number);
                let flops = model.work.step_flops(timed.point.form, batch, keys);
                rows.push(vec![
                    model.name.into(),
                    context.to_string(),
                    timed.point.batch.to_string(),
                    digits(1e3 * seconds),
                    digits(rate(timed)),
                    one.map_or("-".into(), |one| digits(rate(timed) / one)),
                    format!("{:.1} of {}", experts / model.work.moe_layers, model.config.num_experts()),
                    digits(bytes / 1e6),
                    digits(bytes / seconds / 1e9),
                    of_floor(ceilings, bytes, 0.0, seconds),
                    of_floor(ceilings, bytes, flops, seconds),
                ]);
            }
        }
    }
    let columns = "model | cached tokens | sequences | ms per step | tokens/s | of one sequence | different experts | \
                   read, MB | read, GB/s | of reading | of the floor";
    let note = format!(
        "Absorbed form; a step is one token of each sequence, {STEPS} different ones in turn. Of one sequence: how many times \
         the tokens/s of one. Different experts: in one layer and step, the mean of these steps; each has to be read, so few \
         sequences share little. Read: the weights and the cache that a step needs, each once. Of reading: as if computing \
         took no time; more than 100 % is a model that a cache holds."
    );
    let title = format!("Decoding on the {}, against the number of sequences", machine.name);
    bench.table(&title, columns, rows, &[&note, machine.note, FLOOR]);
}
