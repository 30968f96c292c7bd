//! What a run of the reference holds while it goes through a layer, moment by moment, in numbers of its own type.
//!
//! It follows the reference's code: what is listed together is alive together. (A name that is given anew does not end what
//! it stood for; a product packs its left operand anew; heads are computed side by side and then put together, so that there are
//! two of what comes of them.)

use std::num::Saturating;
use std::ops::Range;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::{LM_HEAD, SCORE};
use indexmap::IndexMap;

use crate::case::Case;
use crate::inputs::AttentionMask;
use crate::planned::Planned;

/// A number of numbers. (What a config says is believed here, however much it is.)
pub type Count = Saturating<u64>;

/// So many.
pub const fn count(length: usize) -> Count {
    Saturating(length as u64)
}

/// Some tokens of each sequence, and those before them.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    batch: Count,
    /// How many tokens of each sequence are new.
    new: Count,
    /// How many keys there then are.
    keys: Count,
}

impl Chunk {
    /// Those in which a case is fed.
    pub fn all(case: &Case) -> Vec<Chunk> {
        let batch = count(case.inputs.batch());
        let fed = case.chunks.iter().scan(count(0), |keys, &new| {
            *keys += count(new);
            Some(Chunk { batch, new: count(new), keys: *keys })
        });
        fed.collect()
    }

    fn tokens(&self) -> Count {
        self.batch * self.new
    }

    /// The residual stream.
    pub fn stream(&self, config: &DeepseekV2Config) -> Count {
        self.tokens() * count(config.hidden_size)
    }

    /// Cosines and sines.
    pub fn tables(&self, case: &Case) -> Count {
        let rows = case.inputs.position_ids.as_ref().map_or(1, |ids| ids.nrows());
        count(rows) * self.new * count(case.config.qk_rope_head_dim)
    }

    /// The mask as it is given, if it has a number for each pair of tokens.
    pub fn given_mask(&self, case: &Case) -> Count {
        match &case.inputs.attention_mask {
            Some(AttentionMask::Additive(mask)) => {
                let (masks, heads, ..) = mask.dim();
                count(masks) * count(heads) * self.new * self.keys
            }
            _ => count(0),
        }
    }

    /// What is added to scores, beside a mask that is given.
    pub fn mask(&self, case: &Case) -> Count {
        let masks = match &case.inputs.attention_mask {
            Some(AttentionMask::Additive(_)) => return self.given_mask(case) * count(2),
            Some(AttentionMask::Padding(_)) => self.batch,
            None => count(case.inputs.position_ids.as_ref().map_or(1, |ids| ids.nrows())),
        };
        masks * self.new * self.keys
    }

    /// Before a layer: the stream, and normed; tables and mask.
    pub fn before_a_layer(&self, case: &Case) -> Count {
        self.stream(&case.config) * count(2) + self.tables(case) + self.mask(case)
    }

    /// At most, in this layer, beside its cache.
    pub fn in_layer(&self, case: &Case, layer: usize, form: AttentionForm) -> Count {
        let config = &case.config;
        let behind = match config.is_moe_layer(layer, case.dialect) {
            true => self.experts(config),
            // gate, up, and one of them packed for the product with down
            false => count(3) * self.tokens() * count(config.intermediate_size) + self.stream(config),
        };
        // the weights of attention last until the layer ends, and the other normed stream is there
        let behind = self.scores(config) + self.stream(config) + behind;
        self.before_a_layer(case) + self.attention(config, form).max(behind)
    }

    /// The same when it has queries.
    pub fn at_queries(&self, case: &Case) -> Count {
        self.before_a_layer(case) + count(2) * self.queries(&case.config)
    }

    /// Behind the layers: the stream, and normed, of tokens that have logits, and packed; and so many logits.
    pub fn behind_layers(&self, case: &Case, logits: Count) -> Count {
        self.stream(&case.config) * count(4) + self.given_mask(case) + logits
    }

    fn scores(&self, config: &DeepseekV2Config) -> Count {
        self.batch * count(config.num_attention_heads) * self.new * self.keys
    }

    fn queries(&self, config: &DeepseekV2Config) -> Count {
        self.tokens() * count(config.num_attention_heads) * count(config.qk_head_dim())
    }

    fn attention(&self, config: &DeepseekV2Config, form: AttentionForm) -> Count {
        let two = count(2);
        let [heads, n, r, v, c] = [
            config.num_attention_heads,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            config.kv_lora_rank,
        ]
        .map(count);
        let (tokens, scores, queries, stream) =
            (self.tokens(), self.scores(config), self.queries(config), self.stream(config));
        let (outputs, latents) = (tokens * heads * v, tokens * (c + r));
        // the product that makes them, of the normed stream or of something narrower; then they are cut in two
        let projected = match config.q_lora_rank.map(|rank| tokens * count(rank)) {
            None => stream.max(queries),
            Some(latent) => (stream + latent).max(count(3) * latent + queries).max(queries * two),
        };
        let projected = queries + projected;
        let of_form = match form {
            AttentionForm::Expanded => {
                let keys_and_values = self.batch * self.keys * heads * (n + v);
                // a head's keys, and its queries packed, for each of the threads
                let threads = count(rayon::current_num_threads()).min(self.batch * heads);
                let scored = two * scores + threads * (self.keys + self.new) * (n + r);
                let expanded = (queries + scored.max(scores + two * outputs)).max(self.batch * self.keys * c);
                queries + keys_and_values + expanded
            }
            AttentionForm::Absorbed => {
                let of_latents = tokens * heads * c;
                let scored = of_latents + count(3) * scores;
                queries + scored.max(scores + two * of_latents).max(scores + of_latents + two * outputs)
            }
        };
        let attended = of_form.max(scores + two * outputs).max(scores + two * outputs + stream);
        projected.max(queries + stream + two * latents).max(latents + attended)
    }

    fn experts(&self, config: &DeepseekV2Config) -> Count {
        let (tokens, stream) = (self.tokens(), self.stream(config));
        let chosen = count(config.experts_per_token().unwrap_or(0));
        let routing = tokens * (count(2 * config.num_experts()) + count(4) * chosen);
        // what an MLP holds of as many tokens: two that are wide, and one that is not
        let mlp = |width: usize| count(2) * tokens * count(width) + stream;
        // what all experts made of their tokens, and what one makes of them on its way, or the sum
        let routed = chosen * stream + stream + mlp(config.moe_intermediate_size);
        let shared = config.n_shared_experts.map_or(count(0), |_| mlp(config.shared_width()));
        routing + routed.max(stream + shared)
    }
}

/// The layers that run.
pub fn layers(case: &Case) -> Range<usize> {
    case.part.as_ref().map_or(0..case.config.num_hidden_layers, |part| part.layers.0.clone())
}

/// What is kept of a weight beside its numbers, measured: its name and place, in tables that double when they are full.
const OF_A_WEIGHT: usize = 512;

/// The bytes of that, of all weights in the layers that run; and of the norms' gains, which are small and kept as numbers.
pub fn of_weights(case: &Case) -> Count {
    let config = &case.config;
    let gains = 2 * config.hidden_size + config.q_lora_rank.unwrap_or(0) + config.kv_lora_rank;
    let weights = |layer| if config.is_moe_layer(layer, case.dialect) { 16 + 3 * config.num_experts() } else { 16 };
    let of_layer = |layer| count(weights(layer)) * count(OF_A_WEIGHT) + count(gains) * count(8);
    layers(case).map(of_layer).fold(count(0), |sum, bytes| sum + bytes)
}

/// At most, in the layers that run, beside what is cached.
pub fn most_in_layers(case: &Case, form: AttentionForm) -> Count {
    let is_moe = |layer: usize| case.config.is_moe_layer(layer, case.dialect);
    let of_each_kind = [false, true].into_iter().filter_map(|of| layers(case).find(|&layer| is_moe(layer) == of));
    let (layers, chunks) = (Vec::from_iter(of_each_kind), Chunk::all(case));
    let most = layers.iter().flat_map(|&layer| chunks.iter().map(move |chunk| chunk.in_layer(case, layer, form)));
    most.max().unwrap_or(count(0))
}

/// At most, behind the layers; `planned` are the stages.
pub fn most_behind_layers(case: &Case, planned: &IndexMap<String, Planned>) -> Count {
    let logits = of_a_chunk(planned, case);
    Chunk::all(case).iter().map(|chunk| chunk.behind_layers(case, logits)).max().unwrap_or(count(0))
}

/// The logits of a chunk.
fn of_a_chunk(planned: &IndexMap<String, Planned>, case: &Case) -> Count {
    let longest = case.chunks.iter().copied().max().unwrap_or(1);
    let of = |kind: &str| {
        let shape = planned.get(kind).map_or(&[][..], |planned| &planned.shape);
        match (shape, case.chunks.len()) {
            ([], _) => count(0),
            (&[batch, kept, width], 2..) => count(batch) * count(kept.min(longest)) * count(width),
            _ => shape.iter().fold(count(1), |all, &length| all * count(length)),
        }
    };
    of(LM_HEAD).max(of(SCORE))
}

/// The cache of a layer: its room doubles when it is full, and both are there meanwhile.
pub fn cache(case: &Case) -> Count {
    let (mut room, mut most) = (count(0), count(0));
    for Chunk { batch, keys, .. } in Chunk::all(case) {
        if keys > room {
            let larger = keys.max(count(2) * room);
            most = most.max(batch * (room + larger));
            room = larger;
        }
    }
    most * count(case.config.kv_lora_rank + case.config.qk_rope_head_dim)
}
