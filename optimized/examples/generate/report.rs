//! What is told of a step, and of all of them.

use std::collections::{BTreeMap, BTreeSet};

use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Cuda, Emulated, Result, Tensor};

/// The different experts of each layer.
#[derive(Default)]
pub struct Experts(Vec<usize>);

impl Tap for Experts {
    fn wants(&self, stage: &str) -> bool {
        stage.ends_with("gate.topk_indices")
    }

    fn stage(&mut self, _: &str, value: &Tensor) -> Result<bool> {
        self.0.push(value.to_i32()?.into_iter().collect::<BTreeSet<_>>().len());
        Ok(false)
    }
}

impl std::fmt::Display for Experts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (layers, sum) = (self.0.len(), self.0.iter().sum::<usize>());
        let mean = if layers == 0 { 0.0 } else { sum as f64 / layers as f64 };
        write!(f, "{mean:.1} different experts in each of {layers} layers")
    }
}

/// What each kernel took.
pub fn print_times(device: &Cuda) -> Result<()> {
    let times = device.timings()?;
    let all: f64 = times.iter().map(|time| time.microseconds).sum();
    println!("{:<36} {:>9} {:>14} {:>10} {:>7}", "kernel", "launches", "microseconds", "each", "share");
    for time in &times {
        let (each, share) = (time.microseconds / time.launches as f64, 100.0 * time.microseconds / all);
        println!("{:<36} {:>9} {:>14.1} {each:>10.2} {share:>6.1}%", time.kernel, time.launches, time.microseconds);
    }
    Ok(())
}

/// What an emulated launch does: exact counts and the model of the memory system, no time.
pub fn print_work(device: &Emulated) {
    let mut kernels: BTreeMap<String, (usize, [u64; 4])> = BTreeMap::new();
    for (kernel, profile) in device.profiles() {
        let total = profile.total();
        let (launches, sums) = kernels.entry(kernel).or_default();
        *launches += 1;
        let numbers = [total.warp_instructions, total.flops, total.global.bytes(), total.bank_conflicts()];
        sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
    }
    println!(
        "{:<36} {:>9} {:>14} {:>14} {:>14} {:>14}",
        "kernel", "launches", "warp instr.", "flop", "global bytes", "bank conflicts"
    );
    for (kernel, (launches, [instructions, flops, bytes, conflicts])) in kernels {
        println!("{kernel:<36} {launches:>9} {instructions:>14} {flops:>14} {bytes:>14} {conflicts:>14}");
    }
}
