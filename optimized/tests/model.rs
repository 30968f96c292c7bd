//! What the model promises beyond being near the truth: the same bits, whatever company a sequence has, however it is fed,
//! and whatever happened to its cache before.

use std::sync::Arc;

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::{Model, Settings};
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Variant};
use dsv2_reference::model::ModelInput;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{AttentionForm, DeepseekV2Config, Dialect};
use ndarray::{Array2, Axis, concatenate, s};

const CONFIG: &str = r#"{"vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 40, "moe_intermediate_size": 20, "n_routed_experts": 12, "num_experts_per_tok": 3,
    "n_shared_experts": 1, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
    "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
    "routed_scaling_factor": 2.0}"#;
const WEIGHTS: &str = r#"{"seed": 4, "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
    {"suffix": "embed_tokens.weight", "std": 1.0}, {"suffix": "weight", "gain": 1.3}]}"#;
const SETTINGS: [(Element, AttentionForm); 4] = [
    (Element::F32, AttentionForm::Expanded),
    (Element::F32, AttentionForm::Absorbed),
    (Element::Bf16, AttentionForm::Expanded),
    (Element::Bf16, AttentionForm::Absorbed),
];

/// A model on an emulator of its own, and how attention is computed.
struct Bench {
    model: Model,
    form: AttentionForm,
    page_size: usize,
}

impl Bench {
    fn all() -> impl Iterator<Item = Bench> {
        SETTINGS.into_iter().map(|(element, form)| {
            let config = DeepseekV2Config::from_json_str(CONFIG).unwrap();
            let weights: GeneratedWeights = serde_json::from_str(WEIGHTS).unwrap();
            let device: Arc<dyn Device> = Emulated::new(Library::embedded());
            let settings = Settings::new(element, Variant::Tuned);
            let model = Model::load(&config, Dialect::Hf, &weights, &device, settings, &mut |_| ()).unwrap();
            Bench { model, form, page_size: 4 }
        })
    }

    fn cache(&self, batch: usize, tokens: usize) -> LatentCache {
        let element = self.model.settings().element;
        LatentCache::new(self.model.config(), self.model.device(), element, batch, tokens, self.page_size).unwrap()
    }

    /// The last hidden states of new tokens \[B,S\], row by row.
    fn run(&self, tokens: Array2<i64>, cache: &mut LatentCache) -> Vec<f32> {
        self.try_run(tokens, cache).unwrap()
    }

    fn try_run(&self, tokens: Array2<i64>, cache: &mut LatentCache) -> Result<Vec<f32>> {
        self.model.forward(&ModelInput::ids(tokens), Some(cache), self.form, None)?.to_f32()
    }

    fn width(&self) -> usize {
        self.model.config().hidden_size
    }
}

fn tokens(batch: usize, length: usize, salt: i64) -> Array2<i64> {
    Array2::from_shape_fn((batch, length), |(b, s)| (31 * b as i64 + 17 * s as i64 + 7 * salt * salt + 3) % 90)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn two_runs_give_the_same_bits() {
    for bench in Bench::all() {
        let run = || bench.run(tokens(2, 9, 1), &mut bench.cache(2, 9));
        assert_eq!(bits(&run()), bits(&run()));
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_in_a_batch_and_at_another_place_of_it() {
    for bench in Bench::all() {
        let all = tokens(3, 7, 2);
        let order = [2, 0, 1];
        let together = bench.run(all.clone(), &mut bench.cache(3, 7));
        let permuted = bench.run(all.select(Axis(0), &order), &mut bench.cache(3, 7));
        let size = 7 * bench.width();
        for (place, b) in order.into_iter().enumerate() {
            let alone = bench.run(all.slice(s![b..b + 1, ..]).to_owned(), &mut bench.cache(1, 7));
            assert_eq!(bits(&alone), bits(&together[b * size..(b + 1) * size]), "in a batch");
            assert_eq!(bits(&alone), bits(&permuted[place * size..(place + 1) * size]), "in a permuted batch");
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_in_one_piece_and_token_by_token() {
    for bench in Bench::all() {
        let all = tokens(2, 11, 3);
        let whole = bench.run(all.clone(), &mut bench.cache(2, 11));
        let mut cache = bench.cache(2, 11);
        for piece in [0..5, 5..6, 6..7, 7..11] {
            let (start, new) = (piece.start, piece.len());
            let part = bench.run(all.slice(s![.., piece]).to_owned(), &mut cache);
            let rows = |b: usize| (b * 11 + start) * bench.width()..(b * 11 + start + new) * bench.width();
            for b in 0..2 {
                let part = &part[b * new * bench.width()..(b + 1) * new * bench.width()];
                assert_eq!(bits(part), bits(&whole[rows(b)]), "{new} tokens after {start}");
            }
        }
    }
}

#[test]
fn sequences_of_different_lengths_do_not_see_each_other() {
    for bench in Bench::all() {
        let (past, next) = (tokens(3, 9, 4), tokens(3, 2, 5));
        let mut cache = bench.cache(3, 11);
        bench.run(past.clone(), &mut cache);
        let lengths = [9, 1, 6];
        cache.crop(&lengths);
        let together = bench.run(next.clone(), &mut cache);
        assert_eq!(cache.lengths(), [11, 3, 8]);
        for (b, length) in lengths.into_iter().enumerate() {
            let mut alone = bench.cache(1, 11);
            bench.run(past.slice(s![b..b + 1, ..length]).to_owned(), &mut alone);
            let alone = bench.run(next.slice(s![b..b + 1, ..]).to_owned(), &mut alone);
            let size = 2 * bench.width();
            assert_eq!(bits(&alone), bits(&together[b * size..(b + 1) * size]), "sequence {b}");
        }
    }
}

#[test]
fn a_fork_goes_on_as_if_it_had_been_computed_anew() {
    for bench in Bench::all() {
        let (past, next) = (tokens(2, 6, 6), tokens(4, 3, 7));
        let mut cache = bench.cache(4, 12);
        cache.reorder(&[0, 1]).unwrap();
        bench.run(past.clone(), &mut cache);
        let from = [1, 0, 1, 1];
        cache.reorder(&from).unwrap();
        let forked = bench.run(next.clone(), &mut cache);
        let mut fresh = bench.cache(4, 9);
        bench.run(past.select(Axis(0), &from), &mut fresh);
        assert_eq!(bits(&forked), bits(&bench.run(next, &mut fresh)));
    }
}

#[test]
fn what_was_cropped_leaves_no_trace() {
    for bench in Bench::all() {
        let (start, wrong, right) = (tokens(2, 5, 8), tokens(2, 6, 9), tokens(2, 4, 10));
        let mut cache = bench.cache(2, 11);
        bench.run(start.clone(), &mut cache);
        bench.run(wrong, &mut cache);
        cache.crop(&[5, 5]);
        let after = bench.run(right.clone(), &mut cache);
        let mut fresh = bench.cache(2, 9);
        let whole = bench.run(concatenate![Axis(1), start, right], &mut fresh);
        for b in 0..2 {
            let rows = (b * 9 + 5) * bench.width()..(b * 9 + 9) * bench.width();
            assert_eq!(bits(&after[b * 4 * bench.width()..(b + 1) * 4 * bench.width()]), bits(&whole[rows]));
        }
    }
}

#[test]
fn a_pass_that_is_refused_leaves_the_cache_as_it_was() {
    for bench in Bench::all() {
        let mut cache = bench.cache(1, 6);
        bench.run(tokens(1, 3, 11), &mut cache);
        let refusal = bench.try_run(tokens(1, 8, 12), &mut cache).unwrap_err().to_string();
        assert_eq!(refusal, "LatentCache: pages: expected 2 for 8 more tokens, found 1 free of 4 tokens");
        let refusal = bench.try_run(Array2::from_elem((1, 1), 90), &mut cache).unwrap_err().to_string();
        assert_eq!(refusal, "forward: input_ids: expected tokens 0 to 89, found 90");
        assert_eq!(cache.lengths(), [3]);
        let after = bench.run(tokens(1, 2, 13), &mut cache);
        let mut fresh = bench.cache(1, 6);
        bench.run(tokens(1, 3, 11), &mut fresh);
        assert_eq!(bits(&after), bits(&bench.run(tokens(1, 2, 13), &mut fresh)));
    }
}
