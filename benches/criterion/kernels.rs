//! The kernels against their floors.
//!
//! What an operator cannot do without follows from its shape: each byte of its operands read once, each byte of its
//! results written once, its additions and multiplications. On a GPU the time of each kernel is held against the time
//! that this takes at the ceilings of the same GPU in the same run. On any machine the emulator counts what each kernel
//! really asks for: these counts are exact, so that a later run shows every change of a kernel. From them follows how long
//! kernels and whole steps are predicted to take on cards that nobody has here.

mod attention;
mod case;
mod ceilings;
mod counts;
mod decode;
mod dense;
mod gpu;
mod head;
mod ladder;
mod mixture;
mod predictions;
mod step;

use crate::bench::Bench;
use case::{Case, Scale};

/// A table of the report, and its kernels.
type Family = (&'static str, fn(Scale) -> Vec<Case>);

const FAMILIES: [Family; 4] = [
    ("Row by row and matrix by matrix", dense::cases),
    ("Mixture of experts", mixture::cases),
    ("Attention", attention::cases),
    ("Logits", head::cases),
];

/// Counts and predictions everywhere, times on a GPU.
pub fn run(bench: &mut Bench) {
    counts::run(bench);
    step::run(bench);
    decode::run(bench);
    gpu::run(bench);
}

/// Such as `V2-Lite H=16 B=1 T=256`.
fn shape(case: &Case) -> String {
    format!("{} {}", case.model, case.shape().replace('_', " "))
}

/// Of two numbers, to two digits after the point; nothing if there is no whole.
fn ratio(part: f64, whole: f64) -> String {
    if whole == 0.0 { "-".into() } else { format!("{:.2}", part / whole) }
}
