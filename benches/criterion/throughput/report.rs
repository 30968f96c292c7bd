//! Tables and plots of what was measured on one machine.

use dsv2_bench_report::Series;
use dsv2_reference::AttentionForm;

use super::cpu::OnCpu;
use super::device::{OWN, PAGE, TEXTS};
use super::harness::{Kind, Measured, STEPS, Subject, Timed};
use super::model::PIECE;
use super::{CACHED, FORMS};
use crate::bench::{Bench, Seconds};
use crate::ceilings::Ceilings;

/// A number with three digits that say something.
pub fn digits(value: f64) -> String {
    let after_point = if value.abs() >= 100.0 { 0 } else { usize::from(value.abs() < 10.0) + 1 };
    format!("{value:.after_point$}")
}

/// What can be said of something measured, or a dash.
fn cell(seconds: Option<Seconds>, text: impl Fn(f64) -> String) -> String {
    seconds.map_or("-".into(), |seconds| text(seconds.median))
}

/// How many times as long the expanded form takes.
fn ratio(expanded: Option<Seconds>, absorbed: Option<Seconds>) -> Option<f64> {
    Some(expanded?.median / absorbed?.median)
}

fn percent(part: f64) -> String {
    format!("{:.0} %", 100.0 * part)
}

/// The machine's name, if something was measured; what the machine can do, if it is this one: a GPU's ceilings are
/// measured with its kernels.
fn machine(bench: &Bench, measured: &[Measured]) -> (&'static str, Option<Ceilings>) {
    let name = measured.first().map_or("", |measured| measured.machine.name);
    (name, (name == "CPU").then(|| bench.ceilings()))
}

/// Prompts.
pub fn prompts(bench: &mut Bench, measured: &[Measured]) {
    let (machine, ceilings) = machine(bench, measured);
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for measured in measured {
        let model = measured.model;
        let timed = measured.of(Kind::Prompt).map(|timed| (timed.point.new as f64, timed.seconds.median));
        let prompts: Vec<(f64, f64)> = timed.collect();
        for &(length, seconds) in &prompts {
            let flops = model.work.prefill_flops(length);
            let of_floor = ceilings.map(|ceilings| percent(ceilings.floor(0.0, flops) / seconds));
            rows.push(vec![
                model.name.into(),
                length.to_string(),
                digits(seconds),
                digits(length / seconds),
                of_floor.unwrap_or_else(|| digits(flops / seconds / 1e12)),
            ]);
        }
        let points = prompts.into_iter().map(|(length, seconds)| (length, length / seconds)).collect();
        lines.push(Series { name: model.name.into(), points });
    }
    let (last, note, file) = match ceilings {
        Some(_) => (
            "of the floor",
            format!(
                "One sequence, fp32 arithmetic on bf16 weights, in pieces of {PIECE} tokens, expanded form, logits of the \
                 last token. Of the floor: the operations that the model needs at least, at the rate of multiplying and \
                 adding in registers that was measured in this run, against the time."
            ),
            "throughput-prefill",
        ),
        None => (
            "TFLOP/s",
            "One sequence in one piece, bf16, expanded form. TFLOP/s: the operations that the model needs at least; the \
             GPU's own ceilings are under Kernels."
                .into(),
            "throughput-prefill-gpu",
        ),
    };
    let columns = format!("model | prompt tokens | seconds | tokens/s | {last}");
    bench.table(&format!("Prompts on the {machine}"), &columns, rows, &[&note]);
    let title = format!("Prompts on the {machine}: tokens per second");
    bench.plot(&title, file, ("prompt tokens", true), ("tokens/s", true), lines);
}

/// Pieces of prompts in both forms of attention.
pub fn pieces(bench: &mut Bench, measured: &[Measured]) {
    let first = format!(
        "New tokens behind {CACHED} cached ones, in one piece. The expanded form makes keys and values of all cached tokens \
         anew, the absorbed form attends on the latents."
    );
    let (mut rows, mut notes) = (Vec::new(), vec![first]);
    for measured in measured {
        let model = measured.model;
        let mut sizes: Vec<usize> = measured.of(Kind::Piece).map(|timed| timed.point.new).collect();
        sizes.dedup();
        if !sizes.is_empty() {
            // One new token is a step of decoding.
            sizes.insert(0, 1);
        }
        let of_size = |new| (new, FORMS.map(|form| measured.seconds(form, CACHED, new)));
        let pieces: Vec<(usize, [Option<Seconds>; 2])> = sizes.into_iter().map(of_size).collect();
        for &(new, [expanded, absorbed]) in &pieces {
            let milliseconds = |seconds: f64| digits(1e3 * seconds);
            rows.push(vec![
                model.name.into(),
                new.to_string(),
                cell(expanded, milliseconds),
                cell(absorbed, milliseconds),
                ratio(expanded, absorbed).map_or("-".into(), digits),
            ]);
        }
        let (name, counted) = (model.name, model.work.break_even);
        notes.extend(crossing(&pieces).map(|found| {
            format!("{name}: the two cross {found}; by operations alone they do at {counted:.0} new tokens.")
        }));
    }
    let columns = "model | new tokens | expanded, ms | absorbed, ms | expanded / absorbed";
    let notes: Vec<&str> = notes.iter().map(String::as_str).collect();
    bench.table("Expanded or absorbed: pieces of a prompt on the CPU", columns, rows, &notes);
}

/// Where the expanded form becomes the faster one, on straight lines between logarithms.
fn crossing(pieces: &[(usize, [Option<Seconds>; 2])]) -> Option<String> {
    let logarithms =
        |&(new, [expanded, absorbed]): &(usize, [_; 2])| Some(((new as f64).ln(), ratio(expanded, absorbed)?.ln()));
    let ratios: Vec<(f64, f64)> = pieces.iter().filter_map(logarithms).collect();
    let crossed = ratios.windows(2).find(|pair| pair[0].1 > 0.0 && pair[1].1 <= 0.0);
    match (crossed, ratios.first()?, ratios.last()?) {
        (Some(&[(x0, y0), (x1, y1)]), ..) => {
            Some(format!("at about {:.0} new tokens", (x0 + (x1 - x0) * y0 / (y0 - y1)).exp()))
        }
        (_, first, _) if first.1 <= 0.0 => Some(format!("below {:.0}", first.0.exp())),
        (_, _, last) => Some(format!("above {:.0}", last.0.exp())),
    }
}

/// Steps of one sequence in both forms, against the context.
pub fn contexts(bench: &mut Bench, measured: &[Measured]) {
    let ceilings = bench.ceilings();
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for measured in measured {
        let (model, number) = (measured.model, measured.machine.number);
        let of_one = measured.of(Kind::Step).filter(|timed| timed.point.batch == 1);
        let mut contexts: Vec<usize> = of_one.map(|timed| timed.point.context).collect();
        contexts.dedup();
        for context in contexts {
            let [expanded, absorbed] = FORMS.map(|form| measured.seconds(form, context, 1));
            let keys = context as f64 + 1.0;
            let bytes = model.work.step_bytes(model.work.visits(), keys, number);
            let floor = ceilings.floor(bytes, model.work.step_flops(AttentionForm::Absorbed, 1.0, keys));
            rows.push(vec![
                model.name.into(),
                context.to_string(),
                cell(expanded, |seconds| digits(1.0 / seconds)),
                cell(absorbed, |seconds| digits(1.0 / seconds)),
                ratio(expanded, absorbed).map_or("-".into(), digits),
                cell(absorbed, |seconds| percent(floor / seconds)),
            ]);
        }
        for form in FORMS {
            let points = measured.by_context(form).into_iter().map(|(context, seconds)| (context, 1.0 / seconds));
            let name = format!("{}, {}", model.name, OnCpu::way(form));
            lines.push(Series { name, points: points.collect() });
        }
    }
    let columns =
        "model | cached tokens | expanded, tokens/s | absorbed, tokens/s | times as fast | absorbed, of the floor";
    let note = format!(
        "One sequence, one token at a time, fp32 arithmetic and cache, bf16 weights; {STEPS} different tokens in turn. Times as \
         fast: absorbed over expanded. Of the floor: the time to read the weights and the cache once, or to compute, \
         whichever is longer, at the rates measured in this run."
    );
    bench.table("Decoding on the CPU, against the context", columns, rows, &[&note]);
    let title = "Decoding one sequence on the CPU: tokens per second";
    bench.plot(title, "throughput-decode-context", ("cached tokens", true), ("tokens/s", true), lines);
}

/// Steps of batches, as far as their experts were counted.
pub fn batches(bench: &mut Bench, measured: &[Measured]) {
    let (machine, ceilings) = machine(bench, measured);
    let (mut rows, mut lines) = (Vec::new(), Vec::<Series>::new());
    for measured in measured {
        let (model, number) = (measured.model, measured.machine.number);
        let mut counted: Vec<(&Timed, f64)> =
            measured.of(Kind::Step).filter_map(|timed| Some((timed, timed.experts?))).collect();
        counted.sort_by_key(|(timed, _)| (timed.point.context, timed.point.batch));
        let rate = |timed: &Timed| timed.point.batch as f64 / timed.seconds.median;
        for of_context in counted.chunk_by(|(a, _), (b, _)| a.point.context == b.point.context) {
            let context = of_context[0].0.point.context;
            let one = of_context.first().filter(|(timed, _)| timed.point.batch == 1).map(|(one, _)| rate(one));
            for &(timed, experts) in of_context {
                let (batch, seconds, keys) = (timed.point.batch as f64, timed.seconds.median, context as f64 + 1.0);
                let bytes = model.work.step_bytes(experts, batch * keys, number);
                let mut row = vec![
                    model.name.into(),
                    context.to_string(),
                    timed.point.batch.to_string(),
                    digits(1e3 * seconds),
                    digits(rate(timed)),
                    one.map_or("-".into(), |one| digits(rate(timed) / one)),
                    format!("{:.1} of {}", experts / model.work.moe_layers, model.config.num_experts()),
                    digits(bytes / 1e6),
                    digits(bytes / seconds / 1e9),
                ];
                if let Some(ceilings) = ceilings {
                    let floor = ceilings.floor(bytes, model.work.step_flops(timed.point.form, batch, keys));
                    row.push(percent(bytes / seconds / ceilings.bytes_per_second));
                    row.push(percent(floor / seconds));
                }
                rows.push(row);
            }
            let points = of_context.iter().map(|(timed, _)| (timed.point.batch as f64, rate(timed))).collect();
            let name = format!("{}, {context} cached tokens", model.name);
            lines.push(Series { name, points });
            if let (Some(one), Some(_), [_, .., (last, _)]) = (one, ceilings, of_context) {
                let points = [1.0, last.point.batch as f64].map(|batch| (batch, batch * one)).into();
                lines.push(Series { name: format!("{}, if each were as fast as one", model.name), points });
            }
        }
    }
    let columns = "model | cached tokens | sequences | ms per step | tokens/s | of one sequence | different experts | \
                   read, MB | read, GB/s";
    let mut columns = columns.to_owned();
    let mut notes = vec![format!(
        "Absorbed form; a step is one token of each sequence, {STEPS} different ones in turn. Of one sequence: how many times \
         the tokens/s of one. Different experts: in one layer and step, the mean of these steps; each has to be read, so few \
         sequences share little. Read: the weights and the cache that a step needs, each once."
    )];
    let file = match ceilings {
        Some(_) => {
            columns += " | of reading | of the floor";
            notes.push(
                "Sequences of different random texts, fp32 arithmetic and cache; the absorbed form holds kv_b_proj in fp32, the \
                 other weights are bf16. Of reading: the GB/s against the most that this machine read in this run, which \
                 no cache can hold; more than 100 % is a model that a cache holds. Of the floor: reading or computing, \
                 whichever is longer."
                    .into(),
            );
            "throughput-decode-batch"
        }
        None => {
            notes.push(format!(
                "bf16, pages of {PAGE} tokens. Up to {TEXTS} texts are different from the first token on; more sequences are \
                 forks of them with {OWN} tokens of their own. The GPU's own ceilings are under Kernels."
            ));
            "throughput-decode-gpu"
        }
    };
    let notes: Vec<&str> = notes.iter().map(String::as_str).collect();
    let title = format!("Decoding on the {machine}, against the number of sequences");
    bench.table(&title, &columns, rows, &notes);
    let title = format!("Decoding on the {machine}: tokens per second of all sequences");
    bench.plot(&title, file, ("sequences", true), ("tokens/s", true), lines);
}
