//! The paper's headline: DeepSeek-V2 generates 5.76 times as many tokens per second as DeepSeek 67B on one node of eight
//! H800 (more than 50,000), with fp8 weights and a cache of 6 bits.
//!
//! A layer of each is timed here at a quarter of the width, with the same bits and in the same memory ([`here`]). A
//! roofline, which those times test, carries the comparison to the node ([`node`]).

mod dense;
mod here;
mod latent;
mod layer;
mod measured;
mod node;
mod roofline;
mod shapes;

use std::cell::LazyCell;

use dsv2_bench_report::Table;

use crate::bench::Bench;
use measured::Timed;

const SECTION: &str = "headline";

/// What the paper says.
const PAPER_RATIO: f64 = 5.76;
/// See [`PAPER_RATIO`].
const PAPER_TOKENS_PER_SECOND: f64 = 50_000.0;

/// Measures, compares and carries over.
pub fn run(bench: &mut Bench) {
    let sweep: LazyCell<layer::Sweep> = LazyCell::new(layer::Sweep::new);
    let dense = Timed::measure(bench, shapes::DENSE.scaled(), &sweep, |shape| {
        dense::check();
        dense::DenseLayer::new(shape)
    });
    let v2 = Timed::measure(bench, shapes::V2.scaled(), &sweep, latent::LatentLayer::new);
    let models = [dense, v2];
    if models.iter().all(|timed| timed.layer.is_empty()) {
        return;
    }
    here::models(bench);
    here::terms(bench, &models);
    let measured = here::budget(bench, &models);
    node::report(bench, measured);
    bench.not_run(
        "the paper's 42.5 % of training cost saved",
        "it is GPU hours of a training cluster; nothing is trained here",
    );
}

fn table(title: &str, columns: Vec<String>, rows: Vec<Vec<String>>, notes: Vec<String>) -> Table {
    Table { section: SECTION.into(), title: title.into(), columns, rows, notes }
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
