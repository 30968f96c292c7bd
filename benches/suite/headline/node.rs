//! The comparison carried to a node of eight H800 by the roofline, every term of it in tables.

use dsv2_bench_report::{Axis, Better, Measurement, Plot, Series};

use super::measured::NODE_MEMORY;
use super::roofline::{Roofline, h800};
use super::shapes::{DENSE, Part, Precision, Shape, V2};
use super::{PAPER_RATIO, PAPER_TOKENS_PER_SECOND, SECTION, short, table};
use crate::bench::Bench;

/// In how many bits each model runs.
struct Case {
    id: &'static str,
    title: &'static str,
    bits: &'static str,
    dense: Precision,
    v2: Precision,
}

const BF16: Precision = Precision { weight: 2.0, cache: 2.0 };
const FP8: Precision = Precision { weight: 1.0, cache: 1.0 };
const MEASURED: Precision = Precision { weight: 2.0, cache: 4.0 };
const DEPLOYED: Precision = Precision { weight: 1.0, cache: 0.75 };

const CASES: [Case; 4] = [
    Case {
        id: "as-measured",
        title: "bits as measured",
        bits: "bf16 weights, fp32 cache",
        dense: MEASURED,
        v2: MEASURED,
    },
    Case { id: "bf16", title: "(a) bf16", bits: "weights and cache", dense: BF16, v2: BF16 },
    Case { id: "fp8", title: "(b) fp8", bits: "weights and cache", dense: FP8, v2: FP8 },
    Case {
        id: "paper",
        title: "(c) as the paper",
        bits: "V2 with fp8 weights and a 6-bit cache, 67B in bf16",
        dense: BF16,
        v2: DEPLOYED,
    },
];

const CONTEXTS: [f64; 5] = [1024.0, 4096.0, 8192.0, 16384.0, 32768.0];

/// A model on the node, in sequences of one length.
struct Estimate {
    batch: f64,
    parts: [Part; 4],
    roofline: Roofline,
    precision: Precision,
    communication: f64,
}

impl Estimate {
    /// At the batch that fits.
    fn new(shape: &Shape, precision: Precision, context: f64) -> Self {
        let batch = shape.room(NODE_MEMORY, precision, context).floor();
        Estimate::at(shape, precision, context, batch)
    }

    fn at(shape: &Shape, precision: Precision, context: f64, batch: f64) -> Self {
        let (parts, roofline) = (shape.parts(batch, context), h800::roofline(precision));
        Estimate { batch, parts, roofline, precision, communication: h800::communication(shape, batch) }
    }

    /// Of parts, in this order: seconds.
    fn seconds(&self) -> [f64; 4] {
        self.parts.map(|part| self.roofline.seconds(&part, self.precision))
    }

    fn step(&self) -> f64 {
        self.seconds().iter().sum()
    }

    fn tokens_per_second(&self) -> f64 {
        self.batch / self.step()
    }

    fn sum(&self, of: impl Fn(&Part) -> f64) -> f64 {
        self.parts.iter().map(of).sum()
    }
}

/// All tables and plots of the node; `measured`: context and ratio at our scale.
pub fn report(bench: &mut Bench, measured: Vec<(f64, f64)>) {
    CASES.iter().for_each(|case| terms(bench, case));
    ratios(bench, &measured);
    shares(bench);
    contexts_of_rates(bench);
    plots(bench, measured);
}

fn terms(bench: &mut Bench, case: &Case) {
    let mut rows = Vec::new();
    for context in CONTEXTS {
        for (shape, precision) in [(DENSE, case.dense), (V2, case.v2)] {
            let estimate = Estimate::new(&shape, precision, context);
            let mut row = vec![shape.name.into(), context.to_string(), estimate.batch.to_string()];
            let experts = shape.distinct_experts(estimate.batch);
            row.push(if experts > 0.0 { format!("{experts:.0}") } else { "-".into() });
            row.extend(
                [
                    estimate.sum(|part| part.weights * precision.weight) / 1e9,
                    estimate.sum(|part| part.cached * precision.cache) / 1e9,
                    estimate.sum(|part| part.weight_flops) / 1e12,
                    estimate.sum(|part| part.attention_flops) / 1e12,
                ]
                .map(short),
            );
            row.extend(estimate.parts.map(|part| {
                let computing = estimate.roofline.computing(&part) > estimate.roofline.reading(&part, precision);
                let seconds = short(1e3 * estimate.roofline.seconds(&part, precision));
                if computing { seconds + " c" } else { seconds }
            }));
            row.push(short(1e3 * estimate.step()));
            row.push(format!("{:.0}", estimate.tokens_per_second()));
            row.push(short(1e3 * estimate.communication));
            rows.push(row);
        }
    }
    let columns = [
        "model",
        "context",
        "batch that fits",
        "experts used",
        "weights, GB",
        "cache, GB",
        "weights, TFLOP",
        "attention, TFLOP",
        "projections, ms",
        "feed-forward, ms",
        "attention, ms",
        "head, ms",
        "step, ms",
        "tokens/s",
        "not counted: communication, ms",
    ];
    let notes = vec![
        format!(
            "A model of 8 H800 (no measurement): {:.0} GB, {} TB/s and {} TFLOP/s in bf16 ({} in fp8) a GPU by its data \
             sheet. Each part of a step takes the longer of its reading and its computing ({}); the step is their sum.",
            NODE_MEMORY / 1e9,
            h800::BYTES / 1e12,
            h800::BF16 / 1e12,
            h800::FP8 / 1e12,
            "marked c where that is the longer"
        ),
        "All weights that are used are read once in a step; of the experts those that the batch is expected to choose. \
         Attention computes in bf16, MLA in the absorbed form. Communication by NVLink at 200 GB/s each way: two \
         all-reduces a layer for 67B, tokens to and from 3 groups of experts for V2."
            .into(),
    ];
    let title = format!("Carried to 8 H800: {} ({})", case.title, case.bits);
    bench.table(table(&title, columns.map(String::from).to_vec(), rows, notes));
}

fn both(case: &Case, context: f64) -> [Estimate; 2] {
    [Estimate::new(&DENSE, case.dense, context), Estimate::new(&V2, case.v2, context)]
}

fn ratio(case: &Case, context: f64) -> f64 {
    let [dense, v2] = both(case, context);
    v2.tokens_per_second() / dense.tokens_per_second()
}

fn ratios(bench: &mut Bench, measured: &[(f64, f64)]) {
    let mut rows = Vec::new();
    for context in CONTEXTS {
        let here = measured.iter().find(|point| point.0 == context);
        let mut row = vec![context.to_string(), here.map_or("-".into(), |point| short(point.1))];
        row.extend(CASES.iter().map(|case| short(ratio(case, context))));
        let [dense, v2] = both(&CASES[3], context);
        let with = |estimate: &Estimate| estimate.batch / (estimate.step() + estimate.communication);
        row.push(short(with(&v2) / with(&dense)));
        row.extend([&dense, &v2].map(|estimate| format!("{:.0}", estimate.tokens_per_second())));
        rows.push(row);
        for case in &CASES {
            // Rounded, so that the mathematical functions of another platform give the same.
            let value = (1e3 * ratio(case, context)).round() / 1e3;
            let id = format!("headline/8-h800/{}/context={context}/ratio", case.id);
            bench.keep(Measurement::exact(id, "", Better::More, value));
        }
    }
    let of_case = |case: &Case| format!("8 H800, {}", case.title);
    let columns = ["context".into(), "measured here, narrow".into()]
        .into_iter()
        .chain(CASES.iter().map(of_case))
        .chain(["(c) with communication", "(c) 67B, tokens/s", "(c) V2, tokens/s"].map(String::from));
    let notes = vec![
        format!(
            "How many times as many tokens per second V2 generates. The paper says {PAPER_RATIO}, and more than \
             {PAPER_TOKENS_PER_SECOND:.0} tokens/s, which leaves {:.0} for 67B; it does not say at which context.",
            PAPER_TOKENS_PER_SECOND / PAPER_RATIO
        ),
        "Left out: scheduling, prefill, unequal lengths, experts that get more tokens than others, kernels that do not \
         reach the data sheet, and room for activations. All cached tokens are taken to be spread evenly over the GPUs; \
         a latent has no heads to split by, so each GPU would keep its own sequences and a copy of V2's attention weights. \
         67B was trained for contexts of 4096."
            .into(),
    ];
    bench.table(table("V2's throughput over 67B's, beside the paper's 5.76", columns.collect(), rows, notes));
}

/// The ratio of the paper's deployment as a product: what changes when one thing changes after the other.
fn shares(bench: &mut Bench) {
    let row = |context: f64| {
        let fp8_weights = Precision { weight: 1.0, cache: 2.0 };
        let dense = Estimate::new(&DENSE, BF16, context);
        let chain = [
            dense.tokens_per_second(),
            Estimate::at(&V2, BF16, context, dense.batch).tokens_per_second(),
            Estimate::new(&V2, BF16, context).tokens_per_second(),
            Estimate::new(&V2, fp8_weights, context).tokens_per_second(),
            Estimate::new(&V2, DEPLOYED, context).tokens_per_second(),
        ];
        let factors = chain.windows(2).map(|pair| short(pair[1] / pair[0]));
        let all = short(chain[4] / chain[0]);
        [context.to_string()].into_iter().chain(factors).chain([all]).collect()
    };
    let columns = [
        "context",
        "architecture, at 67B's batch",
        "batch that V2's cache allows",
        "fp8 weights",
        "6-bit cache",
        "all",
    ];
    let notes = vec![
        "Each column is a factor; their product is the last. From 67B in bf16 to V2 in bf16 at the same batch; then at the \
         batch that fits; then with fp8 weights (half the bytes, twice the speed of products, room for more sequences); \
         then with the cache in 6 bits (room, and fewer bytes). A token meets 3.2 times fewer weights in V2, but a large \
         batch uses nearly all experts, so that at equal bits V2 reads more weights than 67B: what it gains comes from its \
         cache, by the batch, and from its bits."
            .into(),
    ];
    let columns = columns.map(String::from).to_vec();
    bench.table(table("Where the paper's ratio comes from, on 8 H800", columns, CONTEXTS.map(row).into(), notes));
}

/// At which mean context the models reach the paper's rates.
fn contexts_of_rates(bench: &mut Bench) {
    let rows = [(V2, DEPLOYED, PAPER_TOKENS_PER_SECOND), (DENSE, BF16, PAPER_TOKENS_PER_SECOND / PAPER_RATIO)].map(
        |(shape, precision, rate)| {
            let longest = |fraction: f64, seconds: &dyn Fn(&Estimate) -> f64| {
                let context = longest_context(|context| {
                    let estimate =
                        Estimate::at(&shape, precision, context, shape.room(NODE_MEMORY, precision, context));
                    fraction * estimate.batch / seconds(&estimate) >= rate
                });
                format!("{context:.0}")
            };
            let reading = |estimate: &Estimate| estimate.sum(|part| estimate.roofline.reading(part, precision));
            let communicating = |estimate: &Estimate| estimate.step() + estimate.communication;
            vec![
                shape.name.into(),
                format!("{rate:.0}"),
                longest(1.0, &reading),
                longest(1.0, &Estimate::step),
                longest(1.0, &communicating),
                longest(0.5, &Estimate::step),
            ]
        },
    );
    let columns = [
        "model",
        "tokens/s",
        "bytes alone",
        "bytes and operations",
        "and communication",
        "at half the roofline's speed",
    ];
    let notes = vec![
        "The longest mean context of the sequences in flight at which the model of the node still gives the paper's rate \
         (V2 in fp8 with a 6-bit cache, 67B in bf16), with as many sequences as fit. Bytes alone: as if computing took no \
         time."
            .into(),
    ];
    let columns = columns.map(String::from).to_vec();
    bench.table(table("The paper's rates: at which mean context they are possible", columns, rows.into(), notes));
}

/// The longest context for which `holds` is true, which must be true below it and false above.
fn longest_context(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (1.0, 1e6);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

fn plots(bench: &mut Bench, measured: Vec<(f64, f64)>) {
    let contexts: Vec<f64> = (0..=20).map(|i| 1024.0 * 2f64.powf(f64::from(i) / 4.0)).collect();
    let line = |name: &str, of: &dyn Fn(f64) -> f64| Series {
        name: name.into(),
        points: contexts.iter().map(|&context| (context, of(context))).collect(),
    };
    let x = || Axis { label: "mean context".into(), log: true };
    let mut series: Vec<Series> = CASES.iter().map(|case| line(case.title, &|context| ratio(case, context))).collect();
    series.push(line("the paper's 5.76", &|_| PAPER_RATIO));
    series.push(Series { name: "measured, narrow models".into(), points: measured });
    bench.plot(Plot {
        section: SECTION.into(),
        title: "DeepSeek-V2's generation throughput over DeepSeek 67B's, 8 H800 by the roofline".into(),
        file: "headline-ratio".into(),
        x: x(),
        y: Axis { label: "times as many tokens/s".into(), log: false },
        series,
    });
    let rate = |model: usize, case: &'static Case| move |context| both(case, context)[model].tokens_per_second();
    bench.plot(Plot {
        section: SECTION.into(),
        title: "Tokens per second on 8 H800 by the roofline".into(),
        file: "headline-8-h800".into(),
        x: x(),
        y: Axis { label: "tokens/s".into(), log: true },
        series: vec![
            line("V2, as the paper", &rate(1, &CASES[3])),
            line("V2, fp8", &rate(1, &CASES[2])),
            line("V2, bf16", &rate(1, &CASES[1])),
            line("67B, fp8", &rate(0, &CASES[2])),
            line("67B, bf16", &rate(0, &CASES[1])),
            line("the paper's 50k", &|_| PAPER_TOKENS_PER_SECOND),
        ],
    });
}
