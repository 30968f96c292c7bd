//! Tables and plots of what was measured on a GPU.

use dsv2_bench_report::Series;

use super::super::work::Work;
use super::super::{digits, plot, table};
use super::{OWN, PAGE, TEXTS};
use crate::bench::{Bench, Seconds};

/// A number of the device, in bytes: bf16.
const BYTES: f64 = 2.0;

/// Seconds of a model.
pub struct Measured {
    pub name: &'static str,
    pub work: Work,
    pub experts_in_all: usize,
    pub prompts: Vec<(usize, Seconds)>,
    pub steps: Vec<Step>,
}

pub struct Step {
    pub context: usize,
    pub batch: usize,
    pub seconds: Seconds,
    /// In all layers.
    pub experts: f64,
}

/// Tables and plots of all models.
pub fn report(bench: &mut Bench, measured: &[Measured]) {
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for model in measured {
        let rates = model.prompts.iter().map(|&(length, seconds)| (length as f64, length as f64 / seconds.median));
        for (length, rate) in rates.clone() {
            let flops = model.work.prefill_flops(length) * rate / length;
            rows.push(vec![model.name.into(), length.to_string(), digits(rate), digits(flops / 1e12)]);
        }
        lines.push(Series { name: model.name.into(), points: rates.collect() });
    }
    let columns = ["model", "prompt tokens", "tokens/s", "TFLOP/s"];
    let notes =
        ["One sequence in one piece, bf16, expanded form. TFLOP/s: the operations that the model needs at least; the \
                  GPU's own ceilings are under Kernels."
            .into()];
    table(bench, "Prompts on the GPU", &columns, rows, &notes);
    let (x, y) = (("prompt tokens", true), ("tokens/s", true));
    plot(bench, "Prompts on the GPU: tokens per second", "throughput-prefill-gpu", x, y, lines);
    report_steps(bench, measured);
}

fn report_steps(bench: &mut Bench, measured: &[Measured]) {
    let (mut rows, mut lines) = (Vec::new(), Vec::<Series>::new());
    for model in measured {
        for &Step { context, batch, seconds, experts } in &model.steps {
            let rate = batch as f64 / seconds.median;
            let keys = batch as f64 * (context as f64 + 1.0);
            let bytes = model.work.weight_bytes(experts, BYTES) + model.work.cache_bytes(keys, BYTES);
            rows.push(vec![
                model.name.into(),
                context.to_string(),
                batch.to_string(),
                digits(1e3 * seconds.median),
                digits(rate),
                format!("{:.1} of {}", experts / model.work.moe_layers, model.experts_in_all),
                digits(bytes / seconds.median / 1e9),
            ]);
            let name = format!("{}, {context} cached tokens", model.name);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push((batch as f64, rate)),
                None => lines.push(Series { name, points: vec![(batch as f64, rate)] }),
            }
        }
    }
    let columns = ["model", "cached tokens", "sequences", "ms per step", "tokens/s", "different experts", "GB/s"];
    let notes = [format!(
        "bf16, absorbed form, pages of {PAGE} tokens, a step is one token of each sequence. Up to {TEXTS} texts are different \
         from the first token on; more sequences are forks of them with {OWN} tokens of their own. Different experts: in \
         one layer and step. GB/s: the weights and the cache that a step has to read, once; the GPU's own ceiling is \
         under Kernels."
    )];
    table(bench, "Decoding on the GPU", &columns, rows, &notes);
    let (x, y) = (("sequences", true), ("tokens/s", true));
    plot(bench, "Decoding on the GPU: tokens per second of all sequences", "throughput-decode-gpu", x, y, lines);
}
