//! The paper's headline: DeepSeek-V2 generates 5.76 times as many tokens per second as DeepSeek 67B on one node of eight
//! H800 (more than 50,000), with fp8 weights and a cache of 6 bits.
//!
//! Nobody times such a node here: a roofline says what it could do at most, with every term in a table. docs/headline.md
//! has the argument.

mod roofline;

use dsv2_bench_report::{Better, Measurement, Series};
use dsv2_reference::DeepseekV2Config;

use crate::bench::Bench;
use crate::work::Work;
use roofline::{BF16, DEPLOYED, Estimate, FP8, FP8_WEIGHTS, Model, NODE_MEMORY, Precision, node};

/// What the paper says.
const PAPER_RATIO: f64 = 5.76;
/// See [`PAPER_RATIO`].
const PAPER_TOKENS_PER_SECOND: f64 = 50_000.0;

const CONTEXTS: [f64; 5] = [1024.0, 4096.0, 8192.0, 16384.0, 32768.0];

/// In how many bits each model runs.
struct Case {
    id: &'static str,
    title: &'static str,
    bits: &'static str,
    dense: Precision,
    v2: Precision,
}

const CASES: [Case; 3] = [
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

impl Case {
    fn id(&self, context: f64) -> String {
        format!("headline/8-h800/{}/context={context}/ratio", self.id)
    }
}

/// DeepSeek 67B and DeepSeek-V2.
struct Models {
    dense: Model,
    v2: Model,
}

impl Models {
    fn new() -> Self {
        let (layers, hidden, heads, groups, head) = (95.0, 8192.0, 64.0, 8.0, 128.0);
        let dense = Work {
            layers,
            hidden,
            projections: layers * 2.0 * hidden * (heads + groups) * head,
            feed_forward: layers * 3.0 * hidden * 22016.0,
            head: hidden * 102_400.0,
            cached: 2.0 * groups * head,
            absorbed_pair: 4.0 * heads * head,
            ..Work::default()
        };
        let v2 = DeepseekV2Config::preset("v2").expect("a preset");
        Models {
            dense: Model { name: "deepseek-67b", heads, work: dense },
            v2: Model { name: "deepseek-v2", heads: v2.num_attention_heads as f64, work: Work::new(&v2) },
        }
    }

    /// At the batch that fits.
    fn estimates(&self, case: &Case, context: f64) -> [Estimate; 2] {
        [Estimate::new(&self.dense, case.dense, context), Estimate::new(&self.v2, case.v2, context)]
    }

    fn ratio(&self, case: &Case, context: f64) -> f64 {
        let [dense, v2] = self.estimates(case, context);
        v2.tokens_per_second() / dense.tokens_per_second()
    }
}

/// All tables and plots.
pub fn run(bench: &mut Bench) {
    let mut ids = CASES.iter().flat_map(|case| CONTEXTS.map(|context| case.id(context)));
    if !ids.any(|id| bench.wants(&id)) {
        return;
    }
    let models = Models::new();
    sizes(bench, &models);
    CASES.iter().for_each(|case| terms(bench, &models, case));
    ratios(bench, &models);
    shares(bench, &models);
    contexts_of_rates(bench, &models);
    plots(bench, &models);
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

fn sizes(bench: &mut Bench, models: &Models) {
    type Quantity<'a> = (&'a str, &'a dyn Fn(&Model) -> f64);
    let quantities: [Quantity; 8] = [
        ("layers", &|model| model.work.layers),
        ("hidden size", &|model| model.work.hidden),
        ("attention heads", &|model| model.heads),
        ("weights, 10^9", &|model| model.weights() / 1e9),
        ("weights that a token meets, 10^9", &|model| model.active_weights() / 1e9),
        ("cached numbers of a token", &|model| model.work.cached_in_all()),
        ("attention, 10^6 operations per token of context", &|model| model.attention_flops() / 1e6),
        ("sequences of 4096 beside the weights, all in bf16", &|model| model.room(BF16, 4096.0).floor()),
    ];
    let row = |(name, of): Quantity| {
        let (dense, v2) = (of(&models.dense), of(&models.v2));
        [name.into()].into_iter().chain([dense, v2, dense / v2].map(short)).collect()
    };
    bench.table("The two models", " | 67B | V2 | 67B / V2", quantities.map(row).into(), &[]);
}

fn terms(bench: &mut Bench, models: &Models, case: &Case) {
    let row = |model: &Model, context: f64, estimate: &Estimate| {
        let experts = model.distinct_experts(estimate.batch);
        let Precision { weight, cache } = estimate.precision;
        let sums = [
            estimate.sum(|part| part.weights * weight) / 1e9,
            estimate.sum(|part| part.cached * cache) / 1e9,
            estimate.sum(|part| part.weight_flops) / 1e12,
            estimate.sum(|part| part.attention_flops) / 1e12,
        ];
        let parts = estimate.parts.map(|part| {
            let (reading, computing) = (estimate.reading(&part), estimate.computing(&part));
            short(1e3 * reading.max(computing)) + if computing > reading { " c" } else { "" }
        });
        let names = [model.name.into(), context.to_string(), estimate.batch.to_string()];
        let mut row: Vec<String> = names.into();
        row.push(if experts > 0.0 { format!("{experts:.0}") } else { "-".into() });
        row.extend(sums.map(short).into_iter().chain(parts));
        row.push(short(1e3 * estimate.step()));
        row.push(format!("{:.0}", estimate.tokens_per_second()));
        row.push(short(1e3 * estimate.communication));
        row
    };
    let rows = CONTEXTS.iter().flat_map(|&context| {
        let [dense, v2] = models.estimates(case, context);
        [row(&models.dense, context, &dense), row(&models.v2, context, &v2)]
    });
    let columns = "model | context | batch that fits | experts used | weights, GB | cache, GB | weights, TFLOP | \
        attention, TFLOP | projections, ms | feed-forward, ms | attention, ms | head, ms | step, ms | tokens/s | \
        not counted: communication, ms";
    let machine = format!(
        "A model of 8 H800 (no measurement): {:.0} GB, {} TB/s and {} TFLOP/s in bf16 ({} in fp8) a GPU by its data sheet. \
         Each part of a step takes the longer of its reading and its computing (marked c where that is the longer); the \
         step is their sum.",
        NODE_MEMORY / 1e9,
        node::BYTES / 1e12,
        node::BF16 / 1e12,
        node::FP8 / 1e12,
    );
    let parts = "All weights that are used are read once in a step; of the experts those that the batch is expected to \
                 choose. Attention computes in bf16, MLA in the absorbed form. Communication by NVLink at 200 GB/s each \
                 way: two all-reduces a layer for 67B, tokens to and from 3 groups of experts for V2.";
    let title = format!("Carried to 8 H800: {} ({})", case.title, case.bits);
    bench.table(&title, columns, rows.collect(), &[&machine, parts]);
}

fn ratios(bench: &mut Bench, models: &Models) {
    let mut rows = Vec::new();
    for context in CONTEXTS {
        let mut row = vec![context.to_string()];
        row.extend(CASES.iter().map(|case| short(models.ratio(case, context))));
        let [dense, v2] = models.estimates(&CASES[2], context);
        let with = |estimate: &Estimate| estimate.batch / (estimate.step() + estimate.communication);
        row.push(short(with(&v2) / with(&dense)));
        row.extend([&dense, &v2].map(|estimate| format!("{:.0}", estimate.tokens_per_second())));
        rows.push(row);
        for case in &CASES {
            // Rounded, so that the mathematical functions of another platform give the same.
            let value = (1e3 * models.ratio(case, context)).round() / 1e3;
            bench.keep(Measurement::exact(case.id(context), "", Better::More, value));
        }
    }
    let of_cases = CASES.map(|case| format!("8 H800, {}", case.title));
    let columns = "(c) with communication | (c) 67B, tokens/s | (c) V2, tokens/s";
    let columns = format!("context | {} | {columns}", of_cases.join(" | "));
    let paper = format!(
        "How many times as many tokens per second V2 generates. The paper says {PAPER_RATIO}, and more than \
         {PAPER_TOKENS_PER_SECOND:.0} tokens/s, which leaves {:.0} for 67B; it does not say at which context.",
        PAPER_TOKENS_PER_SECOND / PAPER_RATIO
    );
    let left_out = "Left out: scheduling, prefill, unequal lengths, experts that get more tokens than others, kernels that do \
                    not reach the data sheet, and room for activations. All cached tokens are taken to be spread evenly over \
                    the GPUs; a latent has no heads to split by, so each GPU would keep its own sequences and a copy of V2's \
                    attention weights. 67B was trained for contexts of 4096.";
    bench.table("V2's throughput over 67B's, beside the paper's 5.76", &columns, rows, &[&paper, left_out]);
}

/// The ratio of the paper's deployment as a product: what changes when one thing changes after the other.
fn shares(bench: &mut Bench, Models { dense, v2 }: &Models) {
    let row = |context: f64| {
        let dense = Estimate::new(dense, BF16, context);
        let chain = [
            dense.tokens_per_second(),
            Estimate::at(v2, BF16, context, dense.batch).tokens_per_second(),
            Estimate::new(v2, BF16, context).tokens_per_second(),
            Estimate::new(v2, FP8_WEIGHTS, context).tokens_per_second(),
            Estimate::new(v2, DEPLOYED, context).tokens_per_second(),
        ];
        let factors = chain.windows(2).map(|pair| short(pair[1] / pair[0]));
        let all = short(chain[4] / chain[0]);
        [context.to_string()].into_iter().chain(factors).chain([all]).collect()
    };
    let columns =
        "context | architecture, at 67B's batch | batch that V2's cache allows | fp8 weights | 6-bit cache | all";
    let note = "Each column is a factor; their product is the last. From 67B in bf16 to V2 in bf16 at the same batch; then at \
                the batch that fits; then with fp8 weights (half the bytes, twice the speed of products, room for more \
                sequences); then with the cache in 6 bits (room, and fewer bytes). A token meets 3.2 times fewer weights in \
                V2, but a large batch uses nearly all experts, so that at equal bits V2 reads more weights than 67B: what it \
                gains comes from its cache, by the batch, and from its bits.";
    bench.table("Where the paper's ratio comes from, on 8 H800", columns, CONTEXTS.map(row).into(), &[note]);
}

/// At which mean context the models reach the paper's rates.
fn contexts_of_rates(bench: &mut Bench, Models { dense, v2 }: &Models) {
    let rates = [(v2, DEPLOYED, PAPER_TOKENS_PER_SECOND), (dense, BF16, PAPER_TOKENS_PER_SECOND / PAPER_RATIO)];
    let rows = rates.map(|(model, precision, rate)| {
        let longest = |fraction: f64, seconds: &dyn Fn(&Estimate) -> f64| {
            let context = longest_context(|context| {
                let estimate = Estimate::at(model, precision, context, model.room(precision, context));
                fraction * estimate.batch / seconds(&estimate) >= rate
            });
            format!("{context:.0}")
        };
        vec![
            model.name.into(),
            format!("{rate:.0}"),
            longest(1.0, &|estimate| estimate.sum(|part| estimate.reading(part))),
            longest(1.0, &Estimate::step),
            longest(1.0, &|estimate| estimate.step() + estimate.communication),
            longest(0.5, &Estimate::step),
        ]
    });
    let columns =
        "model | tokens/s | bytes alone | bytes and operations | and communication | at half the roofline's speed";
    let note = "The longest mean context of the sequences in flight at which the model of the node still gives the paper's \
                rate (V2 in fp8 with a 6-bit cache, 67B in bf16), with as many sequences as fit. Bytes alone: as if \
                computing took no time.";
    bench.table("The paper's rates: at which mean context they are possible", columns, rows.into(), &[note]);
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

fn plots(bench: &mut Bench, models: &Models) {
    let contexts: Vec<f64> = (0..=20).map(|i| 1024.0 * 2f64.powf(f64::from(i) / 4.0)).collect();
    let line = |name: &str, of: &dyn Fn(f64) -> f64| Series {
        name: name.into(),
        points: contexts.iter().map(|&context| (context, of(context))).collect(),
    };
    let mut ratios: Vec<Series> =
        CASES.iter().map(|case| line(case.title, &|context| models.ratio(case, context))).collect();
    ratios.push(line("the paper's 5.76", &|_| PAPER_RATIO));
    let (x, y) = (("mean context", true), ("times as many tokens/s", false));
    let title = "DeepSeek-V2's generation throughput over DeepSeek 67B's, 8 H800 by the roofline";
    bench.plot(title, "headline-ratio", x, y, ratios);
    let rate = |name, case: usize, model: usize| {
        line(name, &|context| models.estimates(&CASES[case], context)[model].tokens_per_second())
    };
    let rates = vec![
        rate("V2, as the paper", 2, 1),
        rate("V2, fp8", 1, 1),
        rate("V2, bf16", 0, 1),
        rate("67B, fp8", 1, 0),
        rate("67B, bf16", 0, 0),
        line("the paper's 50k", &|_| PAPER_TOKENS_PER_SECOND),
    ];
    bench.plot("Tokens per second on 8 H800 by the roofline", "headline-8-h800", x, ("tokens/s", true), rates);
}
