//! Plans against what is loaded, against each other, and for the cards that people have.

use dsv2_optimized::collective::emulated::Ranks;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::model::plan::{self, CacheSize, MemoryPlan};
use dsv2_optimized::{Emulated, Library};
use dsv2_reference::config::Head;
use dsv2_reference::model::cache::PackedFormat;

use super::*;
use crate::golden::GoldenCases;

const GB: u64 = 1_000_000_000;

/// Of so many devices of so many gigabytes.
fn request(devices: usize, gigabytes: u64) -> Request {
    Request {
        dialect: Dialect::Hf,
        devices,
        ranks: None,
        homes: Homes::Every,
        memory: gigabytes * GB,
        reserve: 4 * GB,
        weights: WeightFormat::Bf16,
        cache: CacheFormat::Plain,
        context: None,
        batch: 1,
        chunk: 2048,
        form: AttentionForm::Expanded,
    }
}

fn preset(name: &str, request: &Request) -> DevicePlan {
    DevicePlan::new(name, &DeepseekV2Config::preset(name).unwrap(), request).unwrap()
}

fn refused(request: Request) -> String {
    DevicePlan::new("v2", &DeepseekV2Config::preset("v2").unwrap(), &request).unwrap_err().to_string()
}

#[test]
fn the_weights_of_a_rank_are_the_bytes_that_it_loads() {
    let case = GoldenCases::embedded().load("v2").unwrap().case;
    for [tensor, experts] in [[1, 2], [2, 1], [2, 2]] {
        let devices = tensor * experts;
        let layout = Layout { tensor, experts, homes: Homes::Every };
        let ranks = Ranks::new((0..devices).map(|_| Emulated::new(Library::embedded())).collect());
        let loaded = ranks.run(|rank| {
            let mut bytes = 0;
            let (config, weights, settings) = (&case.config, &*case.weights, WeightFormat::Bf16.settings());
            CausalLm::load_share(config, case.dialect, weights, (rank, layout), settings, &mut |more| bytes += more)?;
            Ok(bytes as u64)
        });
        let asked =
            Request { ranks: Some([tensor, experts]), dialect: case.dialect, context: Some(8), ..request(devices, 80) };
        let planned = DevicePlan::new("v2", &case.config, &asked).unwrap();
        assert_eq!(loaded.unwrap(), vec![planned.splits[0].weights; devices], "{tensor} x {experts}");
    }
}

#[test]
fn one_device_takes_what_the_plan_of_the_whole_model_says() {
    let config = DeepseekV2Config::preset("v2-lite").unwrap();
    let split = &preset("v2-lite", &Request { batch: 4, ..request(1, 80) }).splits[0];
    let cache = CacheSize { batch: 4, tokens: 32_768, page_size: 64 };
    let pass = plan::Pass { new: 512, keys: 32_768, form: AttentionForm::Expanded, masked: false, logits: 1 };
    let settings = WeightFormat::Bf16.settings();
    let whole = MemoryPlan::new(&config, Dialect::Hf, Head::CausalLm, settings, cache, &[pass]).unwrap();
    let found = [split.weights, split.cache, split.prompts.total];
    assert_eq!(found, [whole.weights, whole.cache, whole.workspace].map(|bytes| bytes as u64));
    assert_eq!(split.total, whole.total() as u64);
}

#[test]
fn what_is_said_to_fit_fits_and_more_does_not() {
    for (devices, memory, homes) in [(8, 80, Homes::Every), (8, 141, Homes::Own)] {
        for batch in [1, 24] {
            let asked = Request { homes, batch, ..request(devices, memory) };
            for split in preset("v2", &asked).splits {
                let with = |context, batch| {
                    let ranks = Some([split.tensor, split.experts]);
                    let asked = Request { ranks, context: Some(context), batch, ..asked };
                    preset("v2", &asked).splits[0].left
                };
                let what = format!("{memory} GB, {homes:?}, {batch}: {split:?}");
                let longest = split.longest_context;
                assert!(longest == 0 || with(longest, batch) >= 0, "{what}");
                assert!(longest == 163_840 || with(longest + 1, batch) < 0, "{what}");
                let most = split.most_sequences;
                assert!(most == 0 || with(32_768, most) >= 0, "{what}");
                assert!(with(32_768, most + 1) < 0, "{what}");
                assert_eq!(split.most_tokens, most * 32_768);
            }
        }
    }
}

#[test]
fn a_cache_is_not_split_by_heads_and_is_where_its_sequences_are() {
    let asked = Request { batch: 16, ..request(8, 141) };
    let plan = preset("v2", &asked);
    assert!(plan.splits.iter().all(|split| split.cache == 16 * 32_768 * 69_120), "{plan:?}");
    let own = preset("v2", &Request { homes: Homes::Own, ..asked });
    let of_each: Vec<_> = own.splits.iter().map(|split| split.cache / (32_768 * 69_120)).collect();
    assert_eq!(of_each, [2, 4, 8, 16], "of 1x8, 2x4, 4x2, 8x1");
    let packed = preset("v2", &Request { cache: CacheFormat::Packed(PackedFormat::Fp8), ..asked });
    assert_eq!(packed.splits[0].cache, 16 * 32_768 * 60 * 656);
}

#[test]
fn a_split_that_cannot_be_is_named_with_the_words_of_the_layout() {
    let plan = preset("v2-lite", &request(32, 80));
    let reasons: Vec<_> = plan.impossible.iter().map(ToString::to_string).collect();
    assert!(reasons.iter().any(|reason| reason.starts_with("32x1: config: num_attention_heads")), "{reasons:?}");
    assert_eq!(plan.splits.len() + reasons.len(), 6);
    assert!(refused(request(7, 80)).starts_with(
        "--devices: expected a split that the model can have, found 1x7: input `devices`: expected a divisor of the number \
         of experts, 160, found 7; 7x1: config: num_attention_heads: expected a multiple of the number of ranks, 7, found 128"
    ));
    let others = refused(Request { ranks: Some([2, 2]), ..request(8, 80) });
    let expected = "--ranks: expected a split that the model can have, found 2x2: Layout: tensor x experts: expected the number \
                    of ranks, 8, found 2 x 2 ranks";
    assert_eq!(others, expected);
}

#[test]
fn a_model_that_is_too_large_to_count_is_refused() {
    let v2 = DeepseekV2Config::preset("v2").unwrap();
    let config = DeepseekV2Config { vocab_size: i32::MAX as usize, hidden_size: (1 << 31) - 128, ..v2 };
    let refused = DevicePlan::new("huge", &config, &request(1, 80)).unwrap_err().to_string();
    assert_eq!(refused, "model: expected fewer than 2^63 bytes on a device, found more");
}

#[test]
fn the_cards_that_people_have() {
    insta::assert_snapshot!("v2_on_8_of_80_gb", preset("v2", &request(8, 80)));
    insta::assert_snapshot!("v2_on_8_of_141_gb", preset("v2", &request(8, 141)));
    insta::assert_snapshot!("v2_on_8_of_141_gb_with_sequences_of_their_own", {
        preset("v2", &Request { homes: Homes::Own, batch: 64, ..request(8, 141) })
    });
    insta::assert_snapshot!("v2_lite_on_one_of_80_gb", preset("v2-lite", &request(1, 80)));
}
