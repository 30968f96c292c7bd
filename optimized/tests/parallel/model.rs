//! The model over ranks is the model on one device: to the bit where it is split by experts, within budget by heads.

use std::collections::BTreeSet;
use std::sync::Mutex;

use dsv2_optimized::Element;
use dsv2_optimized::Variant;
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::model::parallel::Homes;
use dsv2_reference::Dialect;
use dsv2_reference::weights::WeightSource;
use ndarray::Array2;
use serde_json::{Value, json};

use crate::bench::{BATCH, Budget, config, layout, on_one_device, on_ranks, on_ranks_with, ranks, weights};

/// Models that differ in what a layer of experts has beside them, after the usual one.
fn variants() -> [Value; 2] {
    [json!({"n_shared_experts": 0}), json!({"mlp_bias": true, "attention_bias": true, "q_lora_rank": null})]
}

#[test]
fn a_split_by_experts_changes_no_bit_of_any_stage_on_any_rank() {
    let usual = [Element::F32, Element::Bf16].map(|element| (element, json!({}), vec![1, 2, 4]));
    let others = variants().map(|change| (Element::F32, change, vec![2]));
    for (element, change, splits) in usual.into_iter().chain(others) {
        let config = config(change.clone());
        let alone = on_one_device(&config, element);
        assert!(alone.len() > 100, "stages were seen: {}", alone.len());
        for experts in splits {
            let layout = layout(1, experts, Homes::Every);
            let all = on_ranks(&config, element, layout, ranks(experts).shuffled(experts as u64)).unwrap();
            for (rank, stages) in all.iter().enumerate() {
                assert_eq!(stages.len(), alone.len());
                let differ: Vec<_> =
                    alone.iter().filter(|(name, bits)| stages[name] != **bits).map(|(name, _)| name).collect();
                assert!(differ.is_empty(), "{element}, {change}, {experts} ranks, rank {rank}: {differ:?}");
            }
        }
    }
}

#[test]
fn ranks_with_sequences_of_their_own_have_the_bits_of_these() {
    let config = config(json!({}));
    for element in [Element::F32, Element::Bf16] {
        let alone = on_one_device(&config, element);
        for experts in [2, 4] {
            let layout = layout(1, experts, Homes::Own);
            let all = on_ranks(&config, element, layout, ranks(experts).shuffled(3)).unwrap();
            let logits = |pass: usize| (pass, "lm_head".to_owned());
            for pass in 0..3 {
                let together: Vec<u32> = all.iter().flat_map(|stages| stages[&logits(pass)].clone()).collect();
                assert_eq!(together, alone[&logits(pass)], "{element}, {experts} ranks, pass {pass}");
            }
        }
    }
}

#[test]
fn a_split_by_heads_is_within_budget_and_the_same_on_all_ranks() {
    let usual = (json!({}), vec![(2, 1), (4, 1), (2, 2), (4, 2), (2, 4), (4, 4)]);
    for (change, splits) in [usual].into_iter().chain(variants().map(|change| (change, vec![(2, 2)]))) {
        let config = config(change.clone());
        let budget = Budget::of(&config);
        assert!(budget.holds(&on_one_device(&config, Element::F32)));
        for (tensor, experts) in splits {
            let layout = layout(tensor, experts, Homes::Every);
            let all = on_ranks(&config, Element::F32, layout, ranks(tensor * experts)).unwrap();
            for (rank, stages) in all.iter().enumerate() {
                assert!(budget.holds(stages), "{change}, {tensor} x {experts}, rank {rank}");
                for stage in ["lm_head", "model.layers.2", "model.layers.2.mlp", "model.layers.0.self_attn.o_proj"] {
                    let at = (2, stage.to_owned());
                    assert_eq!(stages[&at], all[0][&at], "{change}, {tensor} x {experts}, {stage} of rank {rank}");
                }
            }
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_order_in_which_ranks_get_ahead() {
    let run = |seed| {
        let layout = layout(2, 2, Homes::Every);
        on_ranks(&config(json!({})), Element::F32, layout, ranks(4).shuffled(seed)).unwrap()
    };
    let first = run(1);
    (2..4).for_each(|seed| assert!(run(seed) == first, "seed {seed}"));
}

#[test]
fn a_rank_reads_no_expert_of_another() {
    let read = Mutex::new(vec![BTreeSet::new(); 2]);
    let given = |rank: usize, name: &str, shape: &[usize]| {
        if let Some((_, rest)) = name.split_once(".experts.") {
            read.lock().unwrap()[rank].insert(rest.split('.').next().unwrap().parse::<usize>().unwrap());
        }
        weights().tensor(name, shape)
    };
    on_ranks_with(&given, &config(json!({})), Element::F32, layout(1, 2, Homes::Every), ranks(2)).unwrap();
    assert_eq!(read.into_inner().unwrap(), [(0..6).collect(), (6..12).collect()]);
}

#[test]
fn every_rank_generates_the_text_of_one_device() {
    let (config, prompt) = (config(json!({"eos_token_id": null})), Array2::from_elem((2, 3), 7));
    let options = GenerateOptions { page_size: 4, ..GenerateOptions::new(4) };
    let settings = Settings::new(Element::F32, Variant::Tuned);
    let texts = |experts| {
        let layout = layout(1, experts, Homes::Every);
        let of_rank = ranks(experts).run(|rank| {
            let part = (rank, layout);
            let model = CausalLm::load_share(&config, Dialect::Hf, &weights(), part, settings, &mut |_| ())?;
            model.generate(&prompt, None, &options)
        });
        of_rank.unwrap()
    };
    let alone = texts(1);
    assert_eq!(texts(2), vec![alone[0].clone(); 2]);
}

#[test]
fn what_cannot_be_split_so_is_refused_by_name() {
    let refusal = |change: Value, tensor, experts, homes, count: usize| {
        let layout = layout(tensor, experts, homes);
        on_ranks(&config(change), Element::F32, layout, ranks(count)).unwrap_err().to_string()
    };
    let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 8}});
    let dense = json!({"first_k_dense_replace": 3});
    let cases = [
        (
            refusal(json!({}), 3, 1, Homes::Every, 3),
            "num_attention_heads: expected a multiple of the number of ranks, 3, found 4",
        ),
        (refusal(json!({}), 1, 5, Homes::Every, 5), "expected a divisor of the number of experts, 12, found 5"),
        (
            refusal(json!({}), 2, 2, Homes::Every, 3),
            "tensor x experts: expected the number of ranks, 3, found 2 x 2 ranks",
        ),
        (refusal(json!({"intermediate_size": 22}), 4, 1, Homes::Every, 4), "intermediate_size: expected a multiple"),
        (
            refusal(json!({"moe_intermediate_size": 10}), 4, 1, Homes::Every, 4),
            "moe_intermediate_size: expected a multiple",
        ),
        (refusal(dynamic, 1, 2, Homes::Own, 2), "homes: expected Every, where the rope type is `dynamic`, found Own"),
        (refusal(dense, 1, 2, Homes::Every, 2), "experts: expected 1 for a model without routed experts, found 2"),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "{found}");
    }
    assert_eq!(BATCH % 4, 0, "every rank has a sequence");
}
