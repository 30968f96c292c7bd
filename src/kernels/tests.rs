use dsv2_operators::Operator;
use ndarray::Axis;

use super::*;

mod planted;
mod precision;
mod summing;

fn returned(tensors: &Tensors) -> IndexMap<String, Values> {
    tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

/// What plain implementations return must pass, and neither of them is the truth that it is held against.
#[test]
fn plain_implementations_pass_every_workload() {
    for operator in Operator::all() {
        for workload in &operator.contract.workloads {
            let judge = Judge::new(operator, workload).unwrap();
            for plain in judge.plain() {
                let report = judge.judge(&returned(plain)).unwrap();
                assert_eq!(report.verdict, KernelVerdict::Pass, "{report:#?}");
            }
        }
    }
}

/// A number of each output that is off by a tenth of the usual size (in fp8, by half as much again), in any workload, is found.
#[test]
fn one_wrong_number_fails_every_workload() {
    for operator in Operator::all() {
        for workload in &operator.contract.workloads {
            let judge = Judge::new(operator, workload).unwrap();
            let right = returned(&judge.plain()[0]);
            for (name, spec) in &operator.contract.outputs {
                // of numbers that may be rounded to fp8, a tenth is less than what that does
                let stored = spec.dtype.resolve(workload.dtype) == ElementType::Float8;
                let part = if stored || operator.contract.name == "moe_experts_fp8" { 1.5 } else { 0.1 };
                let mut wrong = right.clone();
                let spoiled = match &mut wrong[name] {
                    Values::Real(_, values) => {
                        let finite = || values.iter().filter(|x| x.is_finite());
                        let rms = (finite().map(|x| x * x).sum::<f64>() / finite().count().max(1) as f64).sqrt();
                        let last = values.iter_mut().filter(|x| x.is_finite()).last();
                        last.map(|last| *last += part * rms.max(1e-30))
                    }
                    Values::Index(values) => values.iter_mut().next().map(|first| *first = -7),
                    Values::Bool(_) => None,
                };
                if spoiled.is_some() {
                    let report = judge.judge(&wrong).unwrap();
                    assert_eq!(report.verdict, KernelVerdict::Fail, "{name}: {report:#?}");
                }
            }
        }
    }
}

#[test]
fn a_slot_that_nobody_was_to_write_must_stay_as_it_was() {
    let operator = Operator::named("mla_cache_append").unwrap();
    let judge = Judge::new(operator, operator.workload("DeepSeek-V2").unwrap()).unwrap();
    let mut wrong = returned(&judge.plain()[0]);
    let (before, after) = (&judge.inputs()["ckv_cache"], &judge.plain()[0]["ckv_cache"]);
    let (before, after) = (before.as_real().unwrap(), after.as_real().unwrap());
    let kept =
        (0..5).flat_map(|page| (0..16).map(move |slot| [page, slot, 3])).find(|at| before[&at[..]] == after[&at[..]]);
    let Values::Real(_, values) = &mut wrong["ckv_cache"] else { panic!("numbers") };
    values[&kept.unwrap()[..]] += 0.0078125;
    let report = judge.judge(&wrong).unwrap();
    assert_eq!(report.outputs[0].note.as_deref(), Some("a slot that no token was to be written to was changed"));
    assert_eq!(report.outputs[0].worst.as_ref().unwrap().index, kept.unwrap());
}

#[test]
fn near_ties_may_go_either_way_and_their_weights_with_them_but_no_others() {
    let operator = Operator::named("router_softmax").unwrap();
    let judge = Judge::new(operator, operator.workload("near ties").unwrap()).unwrap();
    let logits = judge.inputs()["router_logits"].as_real().unwrap();
    let mut swapped = returned(&judge.plain()[0]);
    let place = |rank: usize| {
        let mut order: Vec<usize> = (0..64).collect();
        let row = logits.index_axis(Axis(0), 2);
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        order[rank] as i64
    };
    let put = |returned: &mut IndexMap<String, Values>, expert: i64| {
        let Values::Index(chosen) = &mut returned["topk_indices"] else { panic!("experts") };
        chosen[[2, 5]] = expert;
        judge.judge(returned).unwrap().verdict
    };
    assert_eq!(put(&mut swapped, place(6)), KernelVerdict::Pass);
    assert_eq!(put(&mut swapped, place(8)), KernelVerdict::Fail);
}

#[test]
fn of_equal_logits_the_first_is_taken() {
    let operator = Operator::named("lm_head_argmax").unwrap();
    let judge = Judge::new(operator, operator.workload("equal logits").unwrap()).unwrap();
    let mut last = returned(&judge.plain()[0]);
    let Values::Index(tokens) = &mut last["tokens"] else { panic!("tokens") };
    tokens.mapv_inplace(|token| token + 257);
    let report = judge.judge(&last).unwrap();
    assert_eq!(report.outputs[0].note.as_deref(), Some("equal logits: the first one is taken"));
}

#[test]
fn what_was_not_returned_counts_as_not_judged() {
    let operator = Operator::named("mla_paged_decode").unwrap();
    let judge = Judge::new(operator, operator.workload("one token").unwrap()).unwrap();
    let mut some = returned(&judge.plain()[0]);
    let lse = some.swap_remove("lse").unwrap();
    assert_eq!(judge.judge(&some).unwrap().verdict, KernelVerdict::Pass);
    assert_eq!(judge.judge(&IndexMap::from([("lse".to_owned(), lse)])).unwrap().verdict, KernelVerdict::NotJudged);
}
