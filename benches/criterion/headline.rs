//! The paper's headline: DeepSeek-V2 generates 5.76 times as many tokens per second as DeepSeek 67B on one node of eight
//! H800 (more than 50,000), with fp8 weights and a cache of 6 bits.
//!
//! Nobody times such a node here: a roofline says what it could do at most, with every term in a table. docs/headline.md
//! has the argument.

mod roofline;

use dsv2_bench_report::{Better, Measurement};
use dsv2_reference::DeepseekV2Config;

use crate::bench::Bench;
use crate::work::Work;
use roofline::{BF16, DEPLOYED, Estimate, FP8, FP8_WEIGHTS, Precision};

const CONTEXTS: [f64; 5] = [1024.0, 4096.0, 8192.0, 16384.0, 32768.0];

/// In how many bits 67B and V2 run.
const CASES: [(&str, Precision, Precision); 3] = [("bf16", BF16, BF16), ("fp8", FP8, FP8), ("paper", BF16, DEPLOYED)];

fn id(case: &str, context: f64) -> String {
    format!("headline/8-h800/{case}/context={context}/ratio")
}

/// The terms, and what comes of them.
pub fn run(bench: &mut Bench) {
    let mut ids = CASES.iter().flat_map(|(case, ..)| CONTEXTS.map(|context| id(case, context)));
    if !ids.any(|id| bench.wants(&id)) {
        return;
    }
    let (dense, v2) = (Work::deepseek_67b(), Work::new(&DeepseekV2Config::preset("v2").expect("a preset")));
    terms(bench, &dense, &v2);
    ratios(bench, &dense, &v2);
    bench.not_run(
        "the paper's 42.5 % of training cost saved",
        "it is GPU hours of a training cluster; nothing is trained here",
    );
}

/// A number with three digits or so.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v == v.round() || v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn terms(bench: &mut Bench, dense: &Work, v2: &Work) {
    let models = [("67B, bf16", dense, BF16), ("67B, fp8", dense, FP8), ("V2, bf16", v2, BF16), ("V2, fp8", v2, FP8)];
    let models = models.into_iter().chain([("V2, as the paper", v2, DEPLOYED)]);
    let row = |(name, model, precision): (&str, &Work, Precision), context: f64| {
        let estimate = Estimate::new(model, precision, context);
        let parts = estimate.parts.map(|part| {
            let (reading, computing) = (part.reading(), part.computing(precision));
            short(1e3 * reading.max(computing)) + if computing > reading { " c" } else { "" }
        });
        let mut row = vec![name.to_owned(), context.to_string(), estimate.batch.to_string()];
        row.push(format!("{:.0}", estimate.experts));
        row.extend([
            short(estimate.sum(|part| part.weights) / 1e9),
            short(estimate.sum(|part| part.cached) / 1e9),
            short(estimate.sum(|part| part.weight_flops) / 1e12),
            short(estimate.sum(|part| part.attention_flops) / 1e12),
        ]);
        row.extend(parts);
        row.extend([short(1e3 * estimate.step()), format!("{:.0}", estimate.tokens_per_second())]);
        row
    };
    let rows = models.flat_map(|model| CONTEXTS.map(|context| row(model, context))).collect();
    let columns = "model | context | batch that fits | experts used | weights, GB | cache, GB | weights, TFLOP | \
        attention, TFLOP | projections, ms | feed-forward, ms | attention, ms | head, ms | step, ms | tokens/s";
    let node = "A model of 8 H800 (no measurement): 640 GB, 3.35 TB/s and 989 TFLOP/s in bf16 (1979 in fp8) a GPU by its data \
                sheet. Each part of a step takes the longer of its reading and its computing (marked c where that is the \
                longer); the step is their sum. As the paper: fp8 weights and a cache of 6 bits.";
    let parts = "All weights that are used are read once in a step; of the experts those that the batch is expected to \
                 choose. Attention computes in bf16, MLA in the absorbed form.";
    bench.table("A decode step on 8 H800, term by term", columns, rows, &[node, parts]);
}

/// V2 against 67B, and the ratio of the paper's deployment as a product: one thing changes after the other.
fn ratios(bench: &mut Bench, dense: &Work, v2: &Work) {
    let mut rows = Vec::new();
    for context in CONTEXTS {
        let mut row = vec![context.to_string()];
        for (case, of_dense, of_v2) in CASES {
            let rate = |model, precision| Estimate::new(model, precision, context).tokens_per_second();
            let ratio = rate(v2, of_v2) / rate(dense, of_dense);
            row.push(short(ratio));
            // Rounded, so that the mathematical functions of another platform give the same.
            let value = (1e3 * ratio).round() / 1e3;
            bench.keep(Measurement::exact(id(case, context), "", Better::More, value));
        }
        let dense = Estimate::new(dense, BF16, context);
        let chain = [
            dense.tokens_per_second(),
            Estimate::at(v2, BF16, context, dense.batch).tokens_per_second(),
            Estimate::new(v2, BF16, context).tokens_per_second(),
            Estimate::new(v2, FP8_WEIGHTS, context).tokens_per_second(),
            Estimate::new(v2, DEPLOYED, context).tokens_per_second(),
        ];
        row.extend(chain.windows(2).map(|pair| short(pair[1] / pair[0])));
        rows.push(row);
    }
    let columns = "context | (a) both in bf16 | (b) both in fp8 | (c) V2 as the paper, 67B in bf16 | (c): architecture, at \
        67B's batch | (c): batch that V2's cache allows | (c): fp8 weights | (c): 6-bit cache";
    let factors = "The last four columns are factors whose product is (c): from 67B in bf16 to V2 in bf16 at the same batch; \
                   then at the batch that fits; then with fp8 weights; then with the cache in 6 bits. The paper does not say \
                   at which context it measured.";
    let left_out = "Left out: communication, scheduling, prefill, unequal lengths, experts that get more tokens than others, kernels that do \
                    not reach the data sheet, and room for activations. All cached tokens are taken to be spread evenly over \
                    the GPUs. 67B was trained for contexts of 4096.";
    bench.table("V2's throughput over 67B's, beside the paper's 5.76", columns, rows, &[factors, left_out]);
}
