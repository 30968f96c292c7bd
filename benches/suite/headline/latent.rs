//! A decoder layer of DeepSeek-V2: the reference's own model of one mixture-of-experts layer, decoding in the absorbed
//! form.

use std::collections::BTreeSet;

use dsv2_reference::{
    AttentionForm, DeepseekV2Config, DeepseekV2Model, Dialect, LatentCache, ModelInput, NoTap, Run, StageValue, Tap,
    Tokens,
};
use ndarray::{Array2, Array3, Axis};

use super::layer::{Layer, random, random_tokens, random_weights};
use super::shapes::{Attention, FeedForward, Shape};

/// See the module.
pub struct LatentLayer {
    layer: DeepseekV2Model<f32>,
    /// A model with the same cache that costs next to nothing: it fills the cache.
    filler: DeepseekV2Model<f32>,
}

impl LatentLayer {
    /// Of a shape with latent attention and experts, with random weights.
    pub fn new(shape: &Shape) -> Self {
        let Attention::Latent { q_rank, c, n, r, v } = shape.attention else {
            panic!("{}: a latent layer has latent attention", shape.name);
        };
        let FeedForward::Experts { routed, chosen, shared, width, dense_width, .. } = shape.feed_forward else {
            panic!("{}: a latent layer has experts", shape.name);
        };
        let config = DeepseekV2Config {
            vocab_size: 1,
            num_hidden_layers: 1,
            first_k_dense_replace: 0,
            hidden_size: shape.hidden,
            num_attention_heads: shape.heads,
            num_key_value_heads: None,
            intermediate_size: dense_width,
            moe_intermediate_size: width,
            n_routed_experts: Some(routed),
            num_experts_per_tok: Some(chosen),
            n_shared_experts: Some(shared),
            q_lora_rank: Some(q_rank),
            kv_lora_rank: c,
            qk_nope_head_dim: n,
            qk_rope_head_dim: r,
            v_head_dim: v,
            bos_token_id: None,
            eos_token_id: None,
            ..DeepseekV2Config::preset("v2").expect("a preset")
        };
        let filler = DeepseekV2Config {
            first_k_dense_replace: 1,
            hidden_size: FILLER_HIDDEN,
            num_attention_heads: 1,
            intermediate_size: 1,
            q_lora_rank: None,
            qk_nope_head_dim: 1,
            v_head_dim: 1,
            ..config.clone()
        };
        let model = |config| DeepseekV2Model::load(config, Dialect::Hf, &random_weights()).expect("random weights");
        LatentLayer { layer: model(&config), filler: model(&filler) }
    }
}

const FILLER_HIDDEN: usize = 64;

/// How many different tokens are cached, as far as the batch needs them.
const FILLED_TOKENS: usize = 1 << 15;

fn run(
    model: &DeepseekV2Model<f32>,
    tokens: Array3<f32>,
    cache: &mut LatentCache<f32>,
    attention: AttentionForm,
    tap: &mut dyn Tap<f32>,
) -> Array3<f32> {
    let input = ModelInput { tokens: Tokens::InputsEmbeds(tokens), attention_mask: None, position_ids: None };
    let run = Run { attention, ..Run::default() };
    model.forward(&input, Some(cache), &run, tap).expect("finite numbers").last_hidden_state
}

impl Layer for LatentLayer {
    type Cache = LatentCache<f32>;

    /// Of long contexts several sequences hold the same tokens, each its own copy.
    fn cache(&self, batch: usize, context: usize) -> LatentCache<f32> {
        let distinct = (FILLED_TOKENS / context).clamp(1, batch);
        let mut cache = LatentCache::new(self.filler.config(), distinct);
        // A cache doubles its room when it is full. Pieces of this size leave room for the token of the step.
        let piece = context / 16 + 1;
        for start in (0..context).step_by(piece) {
            let length = piece.min(context - start);
            let tokens = random(6 + start as u64, distinct * length * FILLER_HIDDEN);
            let tokens = Array3::from_shape_vec((distinct, length, FILLER_HIDDEN), tokens).expect("B S D numbers");
            // Expanded is the cheap form here: one head of one number.
            run(&self.filler, tokens, &mut cache, AttentionForm::Expanded, &mut NoTap);
        }
        let rows: Vec<usize> = (0..batch).map(|row| row % distinct).collect();
        cache.reorder(&rows).expect("rows of the filled cache");
        cache
    }

    fn step(&self, tokens: Array2<f32>, cache: &mut LatentCache<f32>) -> Array2<f32> {
        let tokens = tokens.insert_axis(Axis(1));
        run(&self.layer, tokens, cache, AttentionForm::Absorbed, &mut NoTap).index_axis_move(Axis(1), 0)
    }

    fn forget(&self, cache: &mut LatentCache<f32>) {
        cache.crop(-1).expect("the token of the step");
    }
    fn distinct_experts(&self, batch: usize) -> Option<usize> {
        let mut used = BTreeSet::new();
        let mut tap = |name: &str, value: StageValue<f32>| {
            if let (true, StageValue::Index(experts)) = (name.ends_with("topk_indices"), value) {
                used.extend(experts.iter().copied());
            }
        };
        let tokens = random_tokens(5, batch, self.layer.config().hidden_size);
        let mut cache = self.cache(batch, 1);
        run(&self.layer, tokens.insert_axis(Axis(1)), &mut cache, AttentionForm::Absorbed, &mut tap);
        Some(used.len())
    }
}
