//! The plan of a rank against what a rank really takes: every tensor of its share, and what lives at the same time where ranks
//! come to a collective.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use dsv2_optimized::model::Settings;
use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::parallel::{Homes, Layout};
use dsv2_optimized::model::plan::{CacheSize, Pass, RankPlan};
use dsv2_optimized::{Device, Element, Result, Variant};
use dsv2_reference::model::causal_lm::LogitsToKeep;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{AttentionForm, DeepseekV2Config, Dialect, ModelInput, Tensor};
use ndarray::Array2;
use serde_json::json;

use crate::bench::{BATCH, config, layout, ranks, weights};

const SETTINGS: Settings = Settings::new(Element::Bf16, Variant::Tuned);

fn plan(config: &DeepseekV2Config, layout: Layout, rank: usize) -> RankPlan {
    RankPlan::new(config, Dialect::Hf, layout, rank, SETTINGS).unwrap()
}

/// Says which tensor was asked for last.
#[derive(Default)]
struct Asked(Mutex<String>);

impl WeightSource for Asked {
    fn tensor(&self, name: &str, shape: &[usize]) -> dsv2_reference::Result<Tensor> {
        name.clone_into(&mut self.0.lock().unwrap());
        weights().tensor(name, shape)
    }

    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

fn used(device: &Arc<dyn Device>) -> Result<usize> {
    device.synchronize()?;
    let (free, total) = device.memory()?;
    Ok(total - free)
}

/// Each tensor that a rank loads, its bytes, and what the device then has taken in all.
fn loaded(config: &DeepseekV2Config, layout: Layout) -> Vec<(BTreeMap<String, usize>, usize)> {
    let of_rank = ranks(layout.ranks()).run(|rank| {
        let (asked, mut tensors) = (Asked::default(), BTreeMap::new());
        let mut progress = |bytes| {
            let name = asked.0.lock().unwrap().clone();
            // What is not asked for are the zeros that a query has for a bias.
            let name = if tensors.contains_key(&name) { name.replace(".weight", ".bias") } else { name };
            assert_eq!(tensors.insert(name, bytes), None);
        };
        let part = (rank, layout);
        let model = CausalLm::load_share(config, Dialect::Hf, &asked, part, SETTINGS, &mut progress)?;
        let used = used(rank.device())?;
        drop(model);
        Ok((tensors, used))
    });
    of_rank.unwrap()
}

#[test]
fn a_rank_loads_every_tensor_of_its_plan_and_no_other() {
    let direct = json!({"mlp_bias": true, "attention_bias": true, "q_lora_rank": null});
    for (change, tensor, experts) in [
        (json!({}), 1, 4),
        (json!({}), 4, 1),
        (json!({}), 2, 2),
        (direct, 2, 2),
        (json!({"tie_word_embeddings": true}), 2, 1),
        (json!({"first_k_dense_replace": 3}), 4, 1),
    ] {
        let (config, layout) = (config(change.clone()), layout(tensor, experts, Homes::Every));
        for (rank, (tensors, used)) in loaded(&config, layout).into_iter().enumerate() {
            let planned = plan(&config, layout, rank).weights();
            let planned = planned.into_iter().map(|(name, shape)| (name, 2 * shape.iter().product::<usize>()));
            assert_eq!(tensors, planned.collect(), "{change}, {tensor} x {experts}, rank {rank}");
            assert_eq!(used, tensors.values().sum::<usize>(), "{change}, {tensor} x {experts}, rank {rank}");
        }
    }
}

/// Of each rank, in each of two passes, the most that lives where it comes to a collective, and what was planned: from the
/// first layer to the last.
fn passes(config: &DeepseekV2Config, layout: Layout) -> Vec<[[usize; 2]; 2]> {
    let most = Arc::new(Mutex::new(vec![0; layout.ranks()]));
    let seen = most.clone();
    let looked_at = ranks(layout.ranks()).interfered(Box::new(move |rank, call| {
        let used = used(call.send.device()).unwrap();
        let most = &mut seen.lock().unwrap()[rank];
        *most = used.max(*most);
        vec![call]
    }));
    let batch = if layout.homes == Homes::Own { BATCH / layout.experts } else { BATCH };
    let size = CacheSize { batch, tokens: 8, page_size: 4 };
    let of_rank = looked_at.run(|rank| {
        let (device, planned) = (rank.device(), plan(config, layout, rank.index()));
        let part = (rank, layout);
        let model = CausalLm::load_share(config, Dialect::Hf, &weights(), part, SETTINGS, &mut |_| ())?;
        let run = || {
            let weights = used(device)?;
            let mut cache = LatentCache::new(model.model().config(), device, Element::Bf16, batch, 8, 4)?;
            let before = used(device)?;
            assert_eq!(before - weights, planned.cache(size));
            let mut keys = 0;
            let mut taken = |new: usize, form| -> Result<[usize; 2]> {
                keys += new;
                let tokens = Array2::from_shape_fn((batch, new), |(b, s)| (7 * b as i64 + 3 * s as i64 + 1) % 40);
                let logits_to_keep = LogitsToKeep::Last(1);
                let input = CausalLmInput { input: ModelInput::ids(tokens), logits_to_keep, labels: None };
                most.lock().unwrap()[rank.index()] = 0;
                drop(model.forward(&input, Some(&mut cache), form, None)?);
                let size = planned.pass(size, &Pass { new, keys, form, masked: false, logits: 1 });
                let layers = size.throughout + size.attention.max(size.feed_forward);
                Ok([most.lock().unwrap()[rank.index()] - before, layers])
            };
            Ok([taken(5, AttentionForm::Expanded)?, taken(1, AttentionForm::Absorbed)?])
        };
        // The first run loads kernels, whose tables take device memory as well.
        run().and_then(|_: [[usize; 2]; 2]| run())
    });
    of_rank.unwrap()
}

const LAYOUTS: [Layout; 6] = [
    layout(1, 2, Homes::Every),
    layout(1, 4, Homes::Every),
    layout(4, 1, Homes::Every),
    layout(2, 2, Homes::Every),
    layout(1, 4, Homes::Own),
    layout(2, 2, Homes::Own),
];

#[test]
fn a_pass_takes_all_that_is_planned_where_every_token_goes_to_every_expert() {
    let everywhere = json!({"n_routed_experts": 8, "num_experts_per_tok": 8, "topk_method": "greedy"});
    let config = config(everywhere);
    for layout in LAYOUTS {
        for (rank, passes) in passes(&config, layout).into_iter().enumerate() {
            for [taken, planned] in passes {
                assert!(taken <= planned && planned <= taken + taken / 10, "{layout:?}, {rank}: {taken} of {planned}");
            }
        }
    }
}

#[test]
fn a_pass_takes_no_more_than_is_planned() {
    let biased = json!({"mlp_bias": true, "attention_bias": true, "q_lora_rank": null});
    for change in [json!({}), biased, json!({"n_shared_experts": 6}), json!({"moe_intermediate_size": 96})] {
        let config = config(change.clone());
        for layout in LAYOUTS {
            let of_ranks = passes(&config, layout);
            for pass in [0, 1] {
                let most = of_ranks.iter().map(|passes| passes[pass][0]).max().unwrap();
                let planned = of_ranks[0][pass][1];
                // The router could have sent all to one rank.
                assert!(most <= planned && planned <= 4 * most, "{change}, {layout:?}: {most} of {planned}");
            }
        }
    }
}
