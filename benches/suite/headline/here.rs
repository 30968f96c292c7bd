//! Tables and plots of what was measured on this machine.

use dsv2_bench_report::{Axis, Better, Measurement, Plot, Series};

use super::measured::{NO_CONTEXT, NODE_MEMORY, SOME_CONTEXT, Timed, batch, contexts, precision};
use super::roofline::Roofline;
use super::shapes::{DENSE, Part, Precision, SCALE, Shape, V2};
use super::{SECTION, short, table};
use crate::bench::Bench;

/// What the two models are, whole and as measured.
pub fn models(bench: &mut Bench) {
    let share = NODE_MEMORY / (SCALE * SCALE) as f64;
    let models = [(DENSE, NODE_MEMORY), (V2, NODE_MEMORY), (DENSE.scaled(), share), (V2.scaled(), share)];
    let bf16 = Precision { weight: 2.0, cache: 2.0 };
    type Quantity<'a> = (String, &'a dyn Fn(&Shape, f64) -> f64);
    let quantities: [Quantity; 8] = [
        ("layers".into(), &|shape, _| shape.layers as f64),
        ("hidden size".into(), &|shape, _| shape.hidden as f64),
        ("attention heads".into(), &|shape, _| shape.heads as f64),
        ("weights, 10^9".into(), &|shape, _| shape.weights() / 1e9),
        ("weights that a token meets, 10^9".into(), &|shape, _| shape.active_weights() / 1e9),
        ("cached numbers of a token".into(), &|shape, _| shape.cached()),
        ("attention, 10^6 operations per token of context".into(), &|shape, _| shape.attention_flops() / 1e6),
        (format!("sequences of {SOME_CONTEXT} beside the weights, all in bf16"), &|shape, memory| {
            shape.room(memory, bf16, SOME_CONTEXT as f64).floor()
        }),
    ];
    let row = |(name, of): Quantity| {
        let [dense, v2, our_dense, our_v2] = models.map(|(shape, memory)| of(&shape, memory));
        let numbers = [dense, v2, dense / v2, our_dense, our_v2, our_dense / our_v2];
        [name].into_iter().chain(numbers.map(short)).collect()
    };
    let columns =
        ["", "67B", "V2", "67B / V2", "67B, narrow", "V2, narrow", "ratio, narrow"].map(String::from).to_vec();
    let notes = vec![
        format!(
            "The narrow models, which are measured, have 1/{SCALE} of every width (hidden size, experts, latents, heads, \
             vocabulary), all layers and all 160 experts. Weights and memory shrink by {}, the cache of a token and the \
             batch that fits by {SCALE}, so that weights and cache keep their proportion at every context.",
            SCALE * SCALE
        ),
        "What does not keep its proportion: a smaller batch uses fewer of the experts (at long contexts this helps the \
         narrow V2), and its attention does fewer operations for each cached number."
            .into(),
    ];
    bench.table(table("The two models", columns, quantities.map(row).into(), notes));
}

/// The floors of this machine.
pub fn roofline(bench: &Bench) -> Roofline {
    let ceilings = bench.ceilings();
    let (bytes_per_second, flops) = (ceilings.bytes_per_second, ceilings.flops_per_second);
    Roofline { bytes_per_second, weight_flops: flops, attention_flops: flops }
}

/// How far the roofline is from what was measured, term by term.
pub fn terms(bench: &mut Bench, models: &[Timed]) {
    let mut rows = Vec::new();
    let roofline = roofline(bench);
    for timed in models {
        for (&(context, batch), seconds) in &timed.layer {
            let shape = &timed.shape;
            let [projections, feed_forward, attention, _] = shape.parts(batch as f64, context as f64);
            let weights_alone = timed.layer.get(&(NO_CONTEXT, batch));
            let (term, parts, seconds) = match weights_alone {
                Some(alone) if context == SOME_CONTEXT => ("cache", vec![attention], seconds.median - alone.median),
                _ if context == NO_CONTEXT => ("weights", vec![projections, feed_forward], seconds.median),
                _ => continue,
            };
            // The parts are of all layers, the time is of one.
            let layers = shape.layers as f64;
            let sum = |of: &dyn Fn(&Part) -> f64| parts.iter().map(of).sum::<f64>() / layers;
            let floor = sum(&|part| roofline.seconds(part, precision()));
            let used = timed.experts.get(&batch).filter(|_| term == "weights");
            rows.push(vec![
                shape.name.into(),
                term.into(),
                batch.to_string(),
                used.map_or("-".into(), |used| format!("{used} ({:.0})", shape.distinct_experts(batch as f64))),
                short(sum(&|part| part.bytes(precision())) / 1e6),
                short(sum(&|part| part.weight_flops + part.attention_flops) / 1e9),
                short(1e3 * sum(&|part| roofline.reading(part, precision()))),
                short(1e3 * sum(&|part| roofline.computing(part))),
                short(1e3 * floor),
                short(1e3 * seconds),
                if seconds > 0.0 { format!("{:.2}", floor / seconds) } else { "-".into() },
            ]);
        }
    }
    let columns = [
        "model",
        "term",
        "batch",
        "experts used",
        "MB",
        "GFLOP",
        "reading, ms",
        "computing, ms",
        "floor, ms",
        "measured, ms",
        "floor / measured",
    ];
    let notes = vec![
        format!(
            "One layer of each narrow model, weights in bf16, cache and arithmetic in fp32. Weights: a step at context \
             {NO_CONTEXT}. Cache: what a step at context {SOME_CONTEXT} takes longer. Before each step other memory is read, \
             so that nothing is left in the caches."
        ),
        "Reading and computing are the least times by the ceilings of this run; the floor takes the longer of the two for \
         each part. Experts used: counted in one step, in brackets what 160 (1 - (1 - 6/160)^batch) expects."
            .into(),
    ];
    if !rows.is_empty() {
        let columns = columns.map(String::from).to_vec();
        bench.table(table("One layer: the floors of this machine and what was measured", columns, rows, notes));
    }
}

/// Throughput under the memory budget. Returns context and ratio of the rates.
pub fn budget(bench: &mut Bench, [dense, v2]: &[Timed; 2]) -> Vec<(f64, f64)> {
    let roofline = roofline(bench);
    let (mut rows, mut ratios) = (Vec::new(), Vec::new());
    let mut lines: [Vec<(f64, f64)>; 2] = Default::default();
    for &context in contexts(bench.profile()) {
        let (Some(dense_step), Some(v2_step)) = (dense.step(context), v2.step(context)) else { continue };
        let batches = [dense, v2].map(|timed| batch(&timed.shape, context) as f64);
        let steps = [dense_step, v2_step];
        let rates = [0, 1].map(|m| batches[m] / steps[m].median);
        let floors = [dense, v2].map(|timed| {
            let batch = batch(&timed.shape, context) as f64;
            roofline.step(&timed.shape, batch, context as f64, precision())
        });
        let batch_ratio = batches[1] / batches[0];
        let ratio = batch_ratio * dense_step.median / v2_step.median;
        bench.keep(Measurement {
            id: format!("headline/measured/context={context}/ratio"),
            unit: String::new(),
            better: Better::More,
            value: ratio,
            low: batch_ratio * dense_step.low / v2_step.high,
            high: batch_ratio * dense_step.high / v2_step.low,
            samples: 1,
            exact: false,
        });
        let mut row = vec![context.to_string()];
        row.extend(batches.map(|batch| batch.to_string()));
        row.extend(steps.map(|step| short(step.median)));
        row.extend(rates.map(short));
        row.extend([ratio, batch_ratio * floors[0] / floors[1]].map(short));
        row.extend([0, 1].map(|m| format!("{:.2}", floors[m] / steps[m].median)));
        rows.push(row);
        ratios.push((context as f64, ratio));
        lines.iter_mut().zip(rates).for_each(|(line, rate)| line.push((context as f64, rate)));
    }
    let columns = [
        "context",
        "batch, 67B",
        "batch, V2",
        "step of 67B, s",
        "step of V2, s",
        "67B, tokens/s",
        "V2, tokens/s",
        "V2 / 67B",
        "V2 / 67B by the floors",
        "67B: floor / measured",
        "V2: floor / measured",
    ];
    let notes = vec![format!(
        "The narrow models in {:.0} GB ({:.0} GB / {}), weights in bf16, cache in fp32: the batch is what fits beside the \
         weights. A step is all layers times one measured layer, and the measured head; V2's first layer, which is dense \
         and costs a token as much, is taken for one like the others.",
        NODE_MEMORY / (SCALE * SCALE) as f64 / 1e9,
        NODE_MEMORY / 1e9,
        SCALE * SCALE
    )];
    if !rows.is_empty() {
        let columns = columns.map(String::from).to_vec();
        bench.table(table("Generation at our scale: the same bits, the same memory", columns, rows, notes));
    }
    let names = ["67B, narrow", "V2, narrow"].map(String::from);
    bench.plot(Plot {
        section: SECTION.into(),
        title: "Generation at our scale: tokens per second in the same memory".into(),
        file: "headline-measured".into(),
        x: Axis { label: "context".into(), log: true },
        y: Axis { label: "tokens/s".into(), log: true },
        series: names.into_iter().zip(lines).map(|(name, points)| Series { name, points }).collect(),
    });
    ratios
}
