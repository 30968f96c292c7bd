//! Tokens per second: prompts and decoding, against the length of the context and the number of sequences, on the CPU
//! reference (expanded and absorbed) and on a GPU.
//!
//! Every sequence has its own random text: sequences that share a text share their experts, and a batch of them looks
//! faster than any real one. Where a step is timed again and again at the same context, its tokens change, so that other
//! experts are read from memory each time.

mod cpu;
mod device;
mod harness;
mod model;
mod report;

use dsv2_reference::AttentionForm;

use crate::bench::{Bench, Profile};
use cpu::OnCpu;
use harness::{Point, measure};
use model::Model;

const FORMS: [AttentionForm; 2] = [AttentionForm::Expanded, AttentionForm::Absorbed];

/// The context at which batches are compared on the CPU: short, so that the weights count and not the caches.
const SHORT: usize = 128;

/// Tokens that are cached before a piece.
const CACHED: usize = 2048;

/// In the ids and tables of the CPU.
fn way(form: AttentionForm) -> &'static str {
    match form {
        AttentionForm::Expanded => "expanded",
        AttentionForm::Absorbed => "absorbed",
    }
}

/// Measures the models on the CPU and, if there is one, on the GPU.
pub fn run(bench: &mut Bench) {
    let mut measured = vec![];
    if bench.profile() == Profile::Quick {
        let points = points(&[16, 4, 1], &[512, 2048], &[128, 512], &[16, 256]);
        measured.push(measure(bench, OnCpu::mid(), &points));
    } else {
        let points = |contexts| points(&[32, 16, 8, 4, 2, 1], contexts, &[128, 512, 2048, 4096], &[4, 16, 64, 256]);
        // Its steps are cheap enough to see how the cost goes on.
        measured.push(measure(bench, OnCpu::mid(), &points(&[512, 1024, 2048, 4096, 16384])));
        let points = points(&[512, 1024, 2048, 4096]);
        measured.extend(v2_lite_4(bench, &points).map(|lite| measure(bench, lite, &points)));
    }
    report::prompts(bench, &measured);
    report::pieces(bench, &measured);
    report::contexts(bench, &measured);
    report::batches(bench, &measured);
    let measured = device::measured(bench);
    report::prompts(bench, &measured);
    report::batches(bench, &measured);
}

/// Steps of batches at the short context, the largest first, for smaller ones are a part of it; then of one sequence at
/// rising contexts; then prompts, and pieces behind cached tokens.
fn points(batches: &[usize], contexts: &[usize], prompts: &[usize], pieces: &[usize]) -> Vec<Point> {
    let absorbed = AttentionForm::Absorbed;
    let batches = batches.iter().map(|&batch| Point { experts: true, ..Point::step(absorbed, SHORT, batch) });
    let short = std::iter::once(Point::step(AttentionForm::Expanded, SHORT, 1));
    let contexts = contexts.iter().flat_map(|&context| FORMS.map(|form| Point::step(form, context, 1)));
    let prompts = prompts.iter().map(|&length| Point::prompt(length));
    let pieces = pieces.iter().flat_map(|&new| FORMS.map(|form| Point::piece(form, CACHED, new)));
    batches.chain(short).chain(contexts).chain(prompts).chain(pieces).collect()
}

/// The large model, if the command line wants anything of it: making it takes time and 4.5 GB of disk.
fn v2_lite_4(bench: &mut Bench, points: &[Point]) -> Option<OnCpu> {
    if !points.iter().any(|point| point.is_wanted::<OnCpu>(bench, Model::V2_LITE_4)) {
        return None;
    }
    match OnCpu::v2_lite_4() {
        Ok(lite) => Some(lite),
        Err(error) => {
            bench.not_run("throughput of v2-lite-4 on the CPU", error);
            None
        }
    }
}
