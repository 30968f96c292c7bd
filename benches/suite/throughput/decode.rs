//! Decoding on the CPU reference: one new token of each sequence, against the context and the number of sequences.

use std::collections::BTreeMap;
use std::time::Duration;

use criterion::Throughput;
use dsv2_bench_report::{Better, Measurement, Series};
use dsv2_reference::{AttentionForm, LatentCache};

use super::subject::{History, Subject, tokens};
use super::{Grid, Measured, cell, digits, name_of, percent, plot, table};
use crate::bench::{Bench, Seconds};

/// The context at which batches are compared: short, so that the weights count and not the caches.
pub const SHORT: usize = 128;

/// Different steps that are timed in turn.
const STEPS: usize = 8;
/// The number of the first text that steps take their tokens from: none that a prompt is made of.
const STEP_TEXTS: usize = 1 << 20;

/// A number of the reference, in bytes.
const F32: f64 = 4.0;

/// Seconds of a model's steps.
pub struct Decoded {
    /// By form (is it absorbed?), context, batch.
    seconds: BTreeMap<(bool, usize, usize), Seconds>,
    /// Different experts in all layers, by batch: the mean of some steps.
    experts: BTreeMap<usize, f64>,
}

impl Decoded {
    /// Of a step, if it was measured.
    pub fn seconds(&self, form: AttentionForm, context: usize, batch: usize) -> Option<Seconds> {
        self.seconds.get(&(form == AttentionForm::Absorbed, context, batch)).copied()
    }

    /// Contexts and seconds of one sequence.
    pub fn by_context(&self, form: AttentionForm) -> Vec<(f64, f64)> {
        let absorbed = form == AttentionForm::Absorbed;
        let of_form = self.seconds.iter().filter(|((is, _, batch), _)| *is == absorbed && *batch == 1);
        of_form.map(|((_, context, _), seconds)| (*context as f64, seconds.median)).collect()
    }

    /// Batches and seconds at the short context.
    fn by_batch(&self) -> Vec<(usize, f64)> {
        let short = self.seconds.iter().filter(|((absorbed, context, _), _)| *absorbed && *context == SHORT);
        short.map(|((_, _, batch), seconds)| (*batch, seconds.median)).collect()
    }
}

/// Group and name of a step.
pub fn id(model: &str, form: AttentionForm, context: usize, batch: usize) -> (String, String) {
    (format!("throughput/decode/{model}/{}/context={context}", name_of(form)), format!("batch={batch}"))
}

/// Times steps of batches at a short context, then of one sequence at longer ones.
pub fn measure(bench: &mut Bench, subject: &Subject, grid: &Grid) -> Decoded {
    let mut decoded = Decoded { seconds: BTreeMap::new(), experts: BTreeMap::new() };
    batches(bench, subject, grid, &mut decoded);
    let mut history = History::new(subject, 1);
    for &context in [&[SHORT], grid.contexts].into_iter().flatten() {
        for form in [AttentionForm::Absorbed, AttentionForm::Expanded] {
            let key = (form == AttentionForm::Absorbed, context, 1);
            if decoded.seconds.contains_key(&key) {
                continue;
            }
            let mut step = 0;
            let (group, name) = id(subject.name, form, context, 1);
            let seconds = bench.time_after_setup(&group, &name, Some(Throughput::Elements(1)), |iterations| {
                steps(subject, history.at(context), form, iterations, &mut step)
            });
            decoded.seconds.extend(seconds.map(|seconds| (key, seconds)));
        }
    }
    decoded
}

fn batches(bench: &mut Bench, subject: &Subject, grid: &Grid, decoded: &mut Decoded) {
    let form = AttentionForm::Absorbed;
    let mut history = History::new(subject, grid.batches.iter().copied().max().unwrap_or(1));
    for &batch in grid.batches {
        let (mut cache, mut step) = (None, 0);
        let mut experts = 0.0;
        let (group, name) = id(subject.name, form, SHORT, batch);
        let seconds = bench.time_after_setup(&group, &name, Some(Throughput::Elements(batch as u64)), |iterations| {
            let cache = cache.get_or_insert_with(|| {
                let mut cache = history.at(SHORT).clone();
                cache.reorder(&(0..batch).collect::<Vec<_>>()).expect("some of its rows");
                experts = mean_experts(subject, &mut cache);
                cache
            });
            steps(subject, cache, form, iterations, &mut step)
        });
        let Some(seconds) = seconds else { continue };
        decoded.seconds.insert((true, SHORT, batch), seconds);
        decoded.experts.insert(batch, experts);
        let id = format!("throughput/experts/{}/context={SHORT}/batch={batch}", subject.name);
        bench.keep(Measurement::exact(id, "", Better::Neither, experts / subject.work.moe_layers));
    }
}

/// Tokens of a step, one of each sequence.
fn step_tokens(subject: &Subject, step: usize, batch: usize) -> ndarray::Array2<i64> {
    tokens(&subject.config, STEP_TEXTS + (step % STEPS) * 1000, batch, 1)
}

/// So many steps, each at the same context.
fn steps(
    subject: &Subject,
    cache: &mut LatentCache<f32>,
    form: AttentionForm,
    iterations: u64,
    step: &mut usize,
) -> Duration {
    let mut seconds = Duration::ZERO;
    for _ in 0..iterations {
        seconds += subject.forward(step_tokens(subject, *step, cache.batch()), cache, form);
        cache.crop(-1).expect("the new token");
        *step += 1;
    }
    seconds
}

/// Different experts of a step, summed over the layers; the mean of the steps that are timed.
fn mean_experts(subject: &Subject, cache: &mut LatentCache<f32>) -> f64 {
    let count = |step| {
        let count = subject.count_experts(step_tokens(subject, step, cache.batch()), cache);
        cache.crop(-1).expect("the new token");
        count
    };
    (0..STEPS).map(count).sum::<usize>() as f64 / STEPS as f64
}

/// Tables and plots of all models.
pub fn report(bench: &mut Bench, measured: &[Measured]) {
    report_contexts(bench, measured);
    report_batches(bench, measured);
}

fn report_contexts(bench: &mut Bench, measured: &[Measured]) {
    let ceilings = bench.ceilings();
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for Measured { subject, decoded, .. } in measured {
        let work = &subject.work;
        let mut contexts: Vec<usize> =
            decoded.seconds.keys().filter(|(_, _, batch)| *batch == 1).map(|(_, context, _)| *context).collect();
        contexts.sort_unstable();
        contexts.dedup();
        for context in contexts {
            let [absorbed, expanded] =
                [AttentionForm::Absorbed, AttentionForm::Expanded].map(|form| decoded.seconds(form, context, 1));
            let ratio = match (expanded, absorbed) {
                (Some(expanded), Some(absorbed)) => digits(expanded.median / absorbed.median),
                _ => "-".into(),
            };
            let keys = context as f64 + 1.0;
            let bytes = work.weight_bytes(work.visits, F32) + work.cache_bytes(keys, F32);
            let floor = ceilings.floor(bytes, work.step_flops(AttentionForm::Absorbed, 1.0, keys));
            rows.push(vec![
                subject.name.into(),
                context.to_string(),
                cell(expanded, |seconds| digits(1.0 / seconds)),
                cell(absorbed, |seconds| digits(1.0 / seconds)),
                ratio,
                cell(absorbed, |seconds| percent(floor / seconds)),
            ]);
        }
        for form in [AttentionForm::Absorbed, AttentionForm::Expanded] {
            let points = decoded.by_context(form).into_iter().map(|(context, seconds)| (context, 1.0 / seconds));
            let name = format!("{}, {}", subject.name, name_of(form));
            lines.push(Series { name, points: points.collect() });
        }
    }
    let columns = [
        "model",
        "cached tokens",
        "expanded, tokens/s",
        "absorbed, tokens/s",
        "times as fast",
        "absorbed, of the floor",
    ];
    let notes = [format!(
        "One sequence, one token at a time, fp32 arithmetic and cache, bf16 weights; {STEPS} different tokens in turn. Times as \
         fast: absorbed over expanded. Of the floor: the time to read the weights and the cache once, or to compute, \
         whichever is longer, at the rates measured in this run."
    )];
    table(bench, "Decoding on the CPU, against the context", &columns, rows, &notes);
    let (x, y) = (("cached tokens", true), ("tokens/s", true));
    plot(bench, "Decoding one sequence on the CPU: tokens per second", "throughput-decode-context", x, y, lines);
}

fn report_batches(bench: &mut Bench, measured: &[Measured]) {
    let ceilings = bench.ceilings();
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for Measured { subject, decoded, .. } in measured {
        let work = &subject.work;
        let steps = decoded.by_batch();
        // Without one that counts experts the context's own step is there alone.
        let counted = |batch: usize| decoded.experts.get(&batch).copied();
        for &(batch, seconds) in &steps {
            let Some(experts) = counted(batch) else { continue };
            let keys = SHORT as f64 + 1.0;
            let weights = work.weight_bytes(experts, F32);
            let bytes = weights + work.cache_bytes(batch as f64 * keys, F32);
            let floor = ceilings.floor(bytes, work.step_flops(AttentionForm::Absorbed, batch as f64, keys));
            let first = steps.first().filter(|(batch, _)| *batch == 1);
            let speedup = first.map(|(_, one)| digits(batch as f64 * one / seconds));
            rows.push(vec![
                subject.name.into(),
                batch.to_string(),
                digits(batch as f64 / seconds),
                speedup.unwrap_or("-".into()),
                format!("{:.1} of {}", experts / work.moe_layers, subject.config.num_experts()),
                digits(weights / 1e6),
                digits(weights / seconds / 1e9),
                percent(weights / seconds / ceilings.bytes_per_second),
                percent(floor / seconds),
            ]);
        }
        let points = steps.iter().map(|&(batch, seconds)| (batch as f64, batch as f64 / seconds)).collect();
        lines.push(Series { name: subject.name.into(), points });
        if let (Some((1, one)), Some((last, _))) = (steps.first(), steps.last().filter(|(batch, _)| *batch > 1)) {
            let points = vec![(1.0, 1.0 / one), (*last as f64, *last as f64 / one)];
            lines.push(Series { name: format!("{}, if each were as fast as one", subject.name), points });
        }
    }
    let columns = [
        "model",
        "sequences",
        "tokens/s",
        "of one sequence",
        "different experts",
        "weights, MB",
        "weights, GB/s",
        "of reading",
        "of the floor",
    ];
    let notes = [
        format!(
            "Sequences of different random texts with {SHORT} cached tokens each, absorbed form; a step is one token of each. \
             Of one sequence: how many times the tokens/s of one. Different experts: in one layer and step, the mean of \
             {STEPS} steps that are timed in turn; each has to be read, so few sequences share little."
        ),
        "Weights: what a step reads of them, each once (the absorbed form holds kv_b_proj in fp32, the rest is bf16). Of \
         reading: their GB/s against the most that this machine read in this run, which no cache can hold; more than 100 % \
         is a model that a cache holds. Of the floor: reading or computing, whichever is longer."
            .into(),
    ];
    table(bench, "Decoding on the CPU, against the number of sequences", &columns, rows, &notes);
    let (x, y) = (("sequences", true), ("tokens/s", true));
    plot(bench, "Decoding on the CPU: tokens per second of all sequences", "throughput-decode-batch", x, y, lines);
}
