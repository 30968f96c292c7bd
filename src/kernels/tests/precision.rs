//! Kernels that add up in too few digits: each right but for that, and found by a workload that is made for it; the same kernel
//! passes all workloads of its operator when it adds up in fp32.

use super::summing::{
    Called, FP32, Kernel, Sum, absorb, cross_entropy, experts, gemm, merge, mlp, paged, ragged, rmsnorm,
};
use super::*;

/// A workload, the type that sums are kept in, and the tiles that are summed in fp32 first.
type Found = (&'static str, ElementType, &'static [usize]);

/// Each operator that adds up, a kernel for it, and the workloads that find out in what it does, with what it may not.
const SUMMING: &[(&str, Kernel, &[Found])] = {
    use ElementType::{Bfloat16, Float16};
    /// A sum that is rounded once, at its end.
    const ONCE: usize = usize::MAX;
    &[
        (
            "rmsnorm",
            rmsnorm,
            &[
                ("a sum between two of bf16", Bfloat16, &[ONCE, 64, 1]),
                ("a sum between two of fp16", Float16, &[ONCE, 64]),
            ],
        ),
        (
            "fused_add_rmsnorm",
            rmsnorm,
            &[
                ("a sum between two of bf16", Bfloat16, &[ONCE, 64, 1]),
                ("a sum between two of fp16", Float16, &[ONCE, 64]),
            ],
        ),
        ("gemm", gemm, &[("one sign", Bfloat16, &[128, 64, 32, 16]), ("one sign, fp16", Float16, &[128, 64, 32, 16])]),
        ("gemm_fp8_block_scaled", gemm, &[("one sign", Bfloat16, &[128, 64, 32])]),
        ("mla_absorb", absorb, &[("one sign", Bfloat16, &[64, 32, 16])]),
        (
            "mla_paged_decode",
            paged,
            &[("latents of one sign", Bfloat16, &[64, 32, 16]), ("sums beyond fp16", Float16, &[64, 32, 16])],
        ),
        (
            "mla_paged_prefill_causal",
            paged,
            &[("latents of one sign", Bfloat16, &[64, 32, 16]), ("sums beyond fp16", Float16, &[64, 32, 16])],
        ),
        (
            "mla_ragged_prefill_causal",
            ragged,
            &[("values of one sign", Bfloat16, &[64, 32, 16]), ("sums beyond fp16", Float16, &[64, 32, 16])],
        ),
        ("merge_state", merge, &[("weights between two of bf16", Bfloat16, &[1])]),
        ("swiglu_mlp", mlp, &[("one sign", Bfloat16, &[64, 32, 16])]),
        ("moe_experts", experts, &[("one sign", Bfloat16, &[128, 64, 32, 16])]),
        ("cross_entropy", cross_entropy, &[("small counts", Bfloat16, &[ONCE, 64]), ("bf16", Float16, &[ONCE, 64])]),
    ]
};

fn verdict(judge: &Judge, operator: &Operator, kernel: Kernel, sum: Sum) -> KernelReport {
    let returned = kernel(&Called { operator, inputs: judge.inputs() }, sum);
    judge.judge(&returned.into_iter().collect()).unwrap()
}

#[test]
fn a_kernel_that_adds_up_in_too_few_digits_fails_and_in_fp32_passes() {
    let mut missed = Vec::new();
    for (name, kernel, found) in SUMMING {
        let operator = Operator::named(name).unwrap();
        for (workload, kept, tiles) in *found {
            let judge = Judge::new(operator, operator.workload(workload).unwrap()).unwrap();
            let mut says = |sum: Sum, expected: KernelVerdict| {
                let report = verdict(&judge, operator, *kernel, sum);
                if report.verdict != expected {
                    let part = report.outputs[0].ratio().unwrap_or_default();
                    missed
                        .push(format!("{name} \"{workload}\" {sum:?}: {:?}, {part:.2} of the budget", report.verdict));
                }
            };
            tiles.iter().for_each(|&every| says(Sum { every, kept: *kept }, KernelVerdict::Fail));
            for every in [64, 16] {
                says(Sum { every, ..FP32 }, KernelVerdict::Pass);
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn kernels_that_add_up_in_fp32_pass_every_workload() {
    for (name, kernel, _) in SUMMING {
        let operator = Operator::named(name).unwrap();
        for workload in &operator.contract.workloads {
            let judge = Judge::new(operator, workload).unwrap();
            let report = verdict(&judge, operator, *kernel, FP32);
            assert_eq!(report.verdict, KernelVerdict::Pass, "{report:#?}");
        }
    }
}
