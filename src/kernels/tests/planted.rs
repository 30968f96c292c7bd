//! Known bugs of kernels, each planted into a plain implementation: what it is given wrongly, or what it returns wrongly. And
//! what is free, which must pass.

use dsv2_operators::Tensor;

use super::*;

/// Changes an input's numbers, by their places.
fn change(inputs: &mut Tensors, name: &str, mut change: impl FnMut(&ArrayD<f64>) -> ArrayD<f64>) {
    let tensor = &inputs[name];
    let changed = Tensor::real(tensor.element, change(tensor.as_real().unwrap()));
    inputs.insert(name.to_owned(), changed);
}

fn change_index(inputs: &mut Tensors, name: &str, change: impl FnMut(i64) -> i64) {
    let tensor = &inputs[name];
    let changed = Tensor::index(tensor.element, tensor.as_index().unwrap().mapv(change));
    inputs.insert(name.to_owned(), changed);
}

/// Each row's numbers one further along an axis.
fn rolled(values: &ArrayD<f64>, axis: usize) -> ArrayD<f64> {
    let length = values.len_of(Axis(axis));
    let order: Vec<usize> = (0..length).map(|at| (at + 1) % length).collect();
    values.select(Axis(axis), &order)
}

/// Rows to a power, as parts of their sum: another temperature.
fn sharpened(p: &ArrayD<f64>, power: f64) -> ArrayD<f64> {
    let mut p = p.mapv(|p| p.powf(power));
    p.rows_mut().into_iter().for_each(|mut row| row /= row.sum());
    p
}

type Given = (&'static str, &'static str, &'static str, fn(&mut Tensors));

/// Bugs in what a kernel takes for its inputs.
const GIVEN: &[Given] = &[
    ("mla_paged_decode_fp8", "pages of 64", "the cache's scale forgotten", |inputs| {
        change(inputs, "kv_scale", |_| ndarray::arr0(1.0).into_dyn());
    }),
    ("mla_paged_decode_fp8", "NaN in unused cache", "the scale on the keys twice", |inputs| {
        change(inputs, "sm_scale", |scale| scale * 0.015_625);
    }),
    ("mla_paged_decode", "beyond 64K tokens", "pages in 16 bits of tokens", |inputs| {
        // the pages behind the 65,536th token are taken for the first ones
        let first = inputs["kv_indices"].as_index().unwrap()[[1]];
        let mut at = 0;
        change_index(inputs, "kv_indices", |page| {
            at += 1;
            if at > 1 + 1024 { first + at - 1026 } else { page }
        });
    }),
    ("mla_cache_write_fp8", "DeepSeek-V2", "multiplied with the scale", |inputs| {
        change(inputs, "kv_scale", |scale| scale.mapv(f64::recip));
    }),
    ("gemm_fp8_block_scaled", "DeepSeek-V3", "scales of the block beside, along k", |inputs| {
        change(inputs, "B_scale", |scale| rolled(scale, 1));
    }),
    ("gemm_fp8_block_scaled", "blocks that are not whole", "scales of the block below", |inputs| {
        change(inputs, "B_scale", |scale| rolled(scale, 0));
    }),
    ("gemm_fp8_block_scaled", "many rows", "scales of the next row", |inputs| {
        change(inputs, "A_scale", |scale| rolled(scale, 0));
    }),
    ("moe_experts_fp8", "small counts", "scales of the next expert", |inputs| {
        change(inputs, "w13_scale", |scale| rolled(scale, 0));
    }),
    ("moe_experts_fp8", "elsewhere", "scales of w2 of the block beside", |inputs| {
        change(inputs, "w2_scale", |scale| rolled(scale, 2));
    }),
    ("moe_experts_fp8", "one sign", "the weights of experts 2 % too large", |inputs| {
        change(inputs, "topk_weights", |weights| weights * 1.02);
    }),
    ("quantize_fp8_groups", "DeepSeek-V2", "groups that begin one too late", |inputs| {
        change(inputs, "x", |x| rolled(x, 1));
    }),
    ("moe_sum", "DeepSeek-V2", "the factor forgotten", |inputs| {
        change(inputs, "routed_scaling_factor", |_| ndarray::arr0(1.0).into_dyn());
    }),
    ("moe_combine", "elsewhere", "what another device adds counted as 0 times NaN", |inputs| {
        change_index(inputs, "topk_indices", |expert| expert.max(0));
    }),
    ("moe_combine", "DeepSeek-V2", "the shared experts forgotten", |inputs| {
        change(inputs, "shared_output", |shared| shared * 0.0);
    }),
    ("swiglu_mlp", "small counts", "gate and up-projection swapped", |inputs| {
        change(inputs, "gate_up_proj", |w| {
            let half = w.len_of(Axis(0)) / 2;
            w.select(Axis(0), &(half..2 * half).chain(0..half).collect::<Vec<_>>())
        });
    }),
    ("gemm", "many rows", "the last of k left out", |inputs| {
        change(inputs, "A", |a| {
            let mut a = a.clone();
            a.slice_axis_mut(Axis(1), (-1..).into()).fill(0.0);
            a
        });
    }),
    ("sampling_from_probs", "one distribution", "another temperature", |inputs| {
        change(inputs, "probs", |p| sharpened(p, 1.5));
    }),
    ("sampling_from_probs", "one distribution", "always the most likely", |inputs| {
        change(inputs, "probs", |p| sharpened(p, 200.0));
    }),
    ("top_k_sampling_from_probs", "DeepSeek-V3", "top-k forgotten", |inputs| {
        change_index(inputs, "top_k", |_| 0);
    }),
    ("top_k_sampling_from_probs", "one distribution", "one token less", |inputs| {
        change_index(inputs, "top_k", |k| k - 1);
    }),
    ("top_p_sampling_from_probs", "one distribution", "without the token that reaches p", |inputs| {
        let before = sum_before(inputs["probs"].as_real().unwrap(), 0.8);
        change(inputs, "top_p", |p| p.mapv(|_| before - 1e-3));
    }),
    ("top_k_top_p_sampling_from_probs", "one distribution", "one token more", |inputs| {
        change(inputs, "top_p", |p| p + 0.02);
    }),
    (
        "top_k_top_p_sampling_from_probs",
        "one distribution",
        "top-p of what was not divided by the sum of top-k",
        |inputs| {
            let of_best = sum_of_best(inputs["probs"].as_real().unwrap(), 20);
            change(inputs, "top_p", |top_p| top_p / of_best);
        },
    ),
    ("top_k_top_p_sampling_from_logits", "one distribution", "logits as if they were to base 2", |inputs| {
        change(inputs, "logits", |z| z * std::f64::consts::LN_2);
    }),
    ("top_k_renorm_probs", "odd sizes", "one token less", |inputs| change_index(inputs, "top_k", |k| (k - 1).max(1))),
    ("top_p_renorm_probs", "odd sizes", "one token more", |inputs| change(inputs, "top_p", |p| p + 0.2)),
];

/// The probabilities of the first row, the largest first.
fn falling(p: &ArrayD<f64>) -> Vec<f64> {
    let mut row: Vec<f64> = p.index_axis(Axis(0), 0).iter().copied().collect();
    row.sort_by(|a, b| b.total_cmp(a));
    row
}

/// What so many of the most likely add up to.
fn sum_of_best(p: &ArrayD<f64>, count: usize) -> f64 {
    falling(p)[..count].iter().sum()
}

/// What those before the token add up to with which a limit is exceeded.
fn sum_before(p: &ArrayD<f64>, limit: f64) -> f64 {
    falling(p)
        .into_iter()
        .scan(0.0, |sum, p| {
            *sum += p;
            Some(*sum)
        })
        .take_while(|sum| *sum <= limit)
        .last()
        .unwrap_or(0.0)
}

type Returned = IndexMap<String, Values>;
type Changed = (&'static str, &'static str, &'static str, KernelVerdict, fn(&mut Returned));

fn list<'a>(returned: &'a mut Returned, name: &str) -> &'a mut [i64] {
    let Values::Index(values) = &mut returned[name] else { panic!("{name}: whole numbers") };
    values.as_slice_mut().unwrap()
}

fn longer(returned: &mut Returned, name: &str, with: i64) {
    let mut all = list(returned, name).to_vec();
    all.extend([with; 100]);
    returned.insert(name.to_owned(), Values::Index(ndarray::Array1::from(all).into_dyn()));
}

/// Bugs in what a kernel returns, and what is free. Of "odd sizes", 33 choices in 7 experts, blocks are of 5.
const RETURNED: &[Changed] = {
    use KernelVerdict::{Fail, Pass};
    const ALIGN: &str = "moe_align_block_size";
    &[
        (ALIGN, "odd sizes", "a choice twice, another never", Fail, |out| {
            let sorted = list(out, "sorted_token_ids");
            sorted[0] = sorted[1];
        }),
        (ALIGN, "odd sizes", "a choice in another expert's block", Fail, |out| {
            let last = list(out, "expert_ids").iter().position(|expert| *expert == 6).unwrap();
            list(out, "sorted_token_ids").swap(0, last * 5);
        }),
        (ALIGN, "odd sizes", "a choice filled over", Fail, |out| list(out, "sorted_token_ids")[0] = 33),
        (ALIGN, "odd sizes", "tokens in place of choices", Fail, |out| {
            list(out, "sorted_token_ids").iter_mut().for_each(|choice| *choice /= 3);
        }),
        (ALIGN, "odd sizes", "filled up with -1", Fail, |out| {
            list(out, "sorted_token_ids").iter_mut().filter(|choice| **choice == 33).for_each(|choice| *choice = -1);
        }),
        (ALIGN, "odd sizes", "what counts without what fills up", Fail, |out| {
            list(out, "num_tokens_post_padded")[0] = 33
        }),
        (ALIGN, "odd sizes", "experts of blocks one too late", Fail, |out| list(out, "expert_ids").rotate_right(1)),
        (ALIGN, "odd sizes", "choices of an expert in another order", Pass, |out| {
            list(out, "sorted_token_ids")[..5].reverse()
        }),
        (ALIGN, "odd sizes", "blocks in another order", Pass, |out| {
            let count = list(out, "num_tokens_post_padded")[0] as usize;
            list(out, "sorted_token_ids")[..count].reverse();
            list(out, "expert_ids")[..count / 5].reverse();
        }),
        (ALIGN, "odd sizes", "more room, and garbage in it", Pass, |out| {
            longer(out, "sorted_token_ids", -77);
            longer(out, "expert_ids", 1234);
        }),
        ("sampling_from_probs", "zeros", "a token that has no probability", Fail, |out| list(out, "samples")[3] = 0),
        ("sampling_from_probs", "DeepSeek-V3", "a token behind the last", Fail, |out| {
            list(out, "samples")[1] = 129_280
        }),
        ("sampling_from_probs", "one distribution", "one uniform number for all rows", Fail, |out| {
            let samples = list(out, "samples");
            samples.fill(samples[0]);
        }),
        ("sampling_from_probs", "one distribution", "rows in another order", Pass, |out| {
            list(out, "samples").reverse()
        }),
        ("top_k_renorm_probs", "DeepSeek-V2", "something where nothing is left", Fail, |out| {
            let Values::Real(_, p) = &mut out["renorm_probs"] else { panic!("numbers") };
            *p.iter_mut().find(|p| **p == 0.0).unwrap() = 1e-12;
        }),
    ]
};

#[test]
fn each_planted_bug_is_found_and_what_is_free_passes() {
    let mut missed = Vec::new();
    let judged = |name: &str, workload: &str| {
        let operator = Operator::named(name).unwrap();
        (operator, Judge::new(operator, operator.workload(workload).unwrap()).unwrap())
    };
    for (name, workload, bug, plant) in GIVEN {
        let (operator, judge) = judged(name, workload);
        let mut inputs = judge.inputs().clone();
        plant(&mut inputs);
        let report = judge.judge(&returned(&operator.plain(&inputs, Plain::Fp32).unwrap())).unwrap();
        if report.verdict != KernelVerdict::Fail {
            missed.push(format!("{name} \"{workload}\": {bug}: {:?}", report.outputs[0].ratio()));
        }
    }
    for (name, workload, what, expected, plant) in RETURNED {
        let (_, judge) = judged(name, workload);
        let mut changed = returned(&judge.plain()[0]);
        plant(&mut changed);
        let report = judge.judge(&changed).unwrap();
        if report.verdict != *expected {
            missed.push(format!("{name} \"{workload}\": {what}: {:?}", report.outputs));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// A kernel whose rows depend on their neighbours in the last bit is right, and not batch-invariant.
#[test]
fn bits_of_a_row_alone_are_compared_with_those_among_others() {
    let operator = Operator::named("mla_paged_decode").unwrap();
    let judge = Judge::new(operator, operator.workload("pages of 64").unwrap()).unwrap();
    let rows = chosen_rows(operator, judge.inputs());
    assert_eq!(rows, [0, 2, 3]);
    let run = |inputs: &Tensors| returned(&operator.plain(inputs, Plain::Fp32).unwrap());
    let mut alone: Vec<_> = rows.iter().map(|&row| (row, run(&operator.contract.alone(judge.inputs(), row)))).collect();
    let among = run(judge.inputs());
    let measured = judge.batch_invariance(&among, &alone).unwrap();
    assert!(measured.invariant && measured.rows == rows, "{measured:?}");
    let Values::Real(_, lse) = &mut alone[1].1["lse"] else { panic!("numbers") };
    lse[[0, 7]] = lse[[0, 7]].next_up();
    let measured = judge.batch_invariance(&among, &alone).unwrap();
    let first = measured.first.unwrap();
    assert_eq!((measured.invariant, first.row, first.output.as_str(), first.index), (false, 2, "lse", vec![0, 7]));
    assert!(judge.batch_invariance(&among, &[]).is_none());
}
