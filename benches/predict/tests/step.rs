//! A step of a whole model is put together from launches of models of one layer: that this is right, and that nothing is missing.

use dsv2_predict::step::{self, Size};
use dsv2_predict::{Card, Step, Work};
use dsv2_reference::config::Head;
use dsv2_reference::{DeepseekV2Config, Dialect};

/// V2-Lite with a dense layer and two of experts, narrow. Its vocabulary is as large as memory that nobody wrote wants it.
fn narrow() -> DeepseekV2Config {
    let mut config = DeepseekV2Config::preset("v2-lite").unwrap();
    config.num_hidden_layers = 3;
    config.hidden_size = 128;
    config.intermediate_size = 320;
    config.moe_intermediate_size = 96;
    config.vocab_size = 50_000;
    config.tie_word_embeddings = true;
    config
}

fn sum(work: &Work) -> [u64; 4] {
    let of = |count: fn(&dsv2_predict::Block) -> u64| work.blocks.iter().map(count).sum();
    [of(|block| block.instructions), of(|block| block.matrix), of(|block| block.sectors), work.written]
}

#[test]
fn a_step_of_three_layers_does_what_is_counted_of_models_of_one() {
    let size = Size { batch: 1, context: 300 };
    let step = Step::new(&narrow(), size).unwrap();
    let counted = step::count(&narrow(), size, vec![]).unwrap();
    assert_eq!(step.launches(), counted.len());
    let mut from_counts: Vec<(String, [u64; 4])> =
        counted.iter().map(|launch| (launch.key.kernel.clone(), sum(&launch.work))).collect();
    let mut from_step = vec![];
    for line in &step.lines {
        from_step.extend(std::iter::repeat_n((line.work.kernel.clone(), sum(&line.work)), line.times));
    }
    from_counts.sort();
    from_step.sort();
    for ((kernel, counted), (of_step, predicted)) in from_counts.iter().zip(&from_step) {
        assert_eq!(kernel, of_step);
        for (counted, predicted) in counted.iter().zip(predicted) {
            // How often a comparison of the router goes one way depends on its numbers.
            assert!(counted.abs_diff(*predicted) * 50 <= *counted, "{kernel}: {counted} {predicted}");
        }
    }
}

#[test]
fn the_last_layer_is_one_of_experts() {
    let step = Step::new(&narrow(), Size { batch: 1, context: 70 }).unwrap();
    let of_layer = |name: &str| -> usize {
        step.lines.iter().filter(|line| line.work.kernel.starts_with(name)).map(|line| line.in_layer).sum()
    };
    assert_eq!(["gate_up", "down", "linear_route", "rotary", "argmax", "gated"].map(of_layer), [1, 1, 1, 0, 0, 0]);
    let in_layer: usize = step.lines.iter().map(|line| line.in_layer).sum();
    assert!(in_layer < step.launches() && in_layer > 0);
}

#[test]
fn what_comes_from_memory_is_the_weights_that_a_token_meets_and_the_cache() {
    let (config, context) = (narrow(), 512);
    let step = Step::new(&config, Size { batch: 1, context }).unwrap();
    let mut weights = 0;
    for (name, shape) in config.weight_shapes(Head::CausalLm, Dialect::Hf) {
        let size: usize = shape.iter().product();
        // Of a layer's experts a token visits 6 of 64; of the embedding, which is the head, it meets all.
        weights += if name.contains(".mlp.experts.") { size * 6 / 64 } else { size };
    }
    let cache = config.num_hidden_layers * context * (config.kv_lora_rank + config.qk_rope_head_dim);
    let needed = 2.0 * (weights + cache) as f64;
    let cold = step.floor(&Card::H200) * Card::H200.memory;
    assert!((0.98..1.05).contains(&(cold / needed)), "{cold} {needed}");
}

#[test]
fn twice_as_many_keys_more_are_twice_as_much_more_work_of_attention() {
    let of = |context| {
        let step = Step::new(&narrow(), Size { batch: 1, context }).unwrap();
        let line = step.lines.into_iter().find(|line| line.work.kernel.starts_with("mla_decode")).unwrap();
        line.work.blocks.iter().map(|block| block.instructions).sum::<u64>() as f64
    };
    // To add up the splits takes nearly the same for all.
    let [few, twice, four_times] = [512, 1024, 2048].map(of);
    let more = (four_times - twice) / (twice - few);
    assert!((1.95..2.05).contains(&more), "{few} {twice} {four_times}");
}

#[test]
fn more_sequences_meet_more_experts_until_there_are_no_more() {
    let of = |batch| {
        let step = Step::new(&narrow(), Size { batch, context: 2 }).unwrap();
        let line = step.lines.into_iter().find(|line| line.work.kernel.starts_with("down")).unwrap();
        line.work.cold as f64 / (2 * narrow().moe_intermediate_size * narrow().hidden_size) as f64
    };
    // The shared experts count as two. Of 64 experts, 8 tokens that choose 6 each at random meet 35.
    let [one, eight] = [1, 8].map(of);
    assert!((8.0..8.5).contains(&one), "{one}");
    assert!((25.0..45.0).contains(&eight), "{eight}");
}

/// A layer of V2-Lite with experts at a context of 4096, one sequence, reads 172 MB: 40 us of an H200.
#[test]
fn a_layer_in_full_width_has_the_floor_that_its_weights_and_its_cache_demand() {
    let mut config = DeepseekV2Config::preset("v2-lite").unwrap();
    (config.num_hidden_layers, config.first_k_dense_replace) = (2, 0);
    // What no layer's bytes depend on, but for the router's: a tenth of a microsecond.
    (config.vocab_size, config.tie_word_embeddings, config.n_routed_experts) = (50_000, true, Some(16));
    let step = Step::new(&config, Size { batch: 1, context: 4096 }).unwrap();
    let [floor, time] = [step.layer_floor(&Card::H200), step.layer_time(&Card::H200)].map(|seconds| seconds * 1e6);
    assert!((39.2..40.8).contains(&floor), "{floor}");
    // The kernels as they were before steps were captured were estimated at 147 us, with 21 launches for a layer.
    assert!(time > floor && time < 147.0, "{time}");
}
