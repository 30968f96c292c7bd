//! The kinds of stage that mutants act on; `*` is the layer.

macro_rules! kinds {
    ($($name:ident = $kind:literal;)*) => {
        $(#[doc = concat!("`", $kind, "`")] pub const $name: &str = $kind;)*
        /// All of them, in forward order.
        #[cfg(test)]
        pub const ALL: &[&str] = &[$($kind),*];
    };
}

kinds! {
    EMBEDDING = "model.embed_tokens";
    COS = "model.rotary_emb.cos";
    SIN = "model.rotary_emb.sin";
    INPUT_NORM = "model.layers.*.input_layernorm";
    Q = "model.layers.*.self_attn.q_proj";
    Q_A = "model.layers.*.self_attn.q_a_proj";
    Q_A_NORM = "model.layers.*.self_attn.q_a_layernorm";
    Q_B = "model.layers.*.self_attn.q_b_proj";
    KV_A = "model.layers.*.self_attn.kv_a_proj_with_mqa";
    KV_A_NORM = "model.layers.*.self_attn.kv_a_layernorm";
    Q_PE = "model.layers.*.self_attn.q_pe";
    K_PE = "model.layers.*.self_attn.k_pe";
    CACHED_LATENT = "past_key_values.*.compressed_kv";
    CACHED_KEY = "past_key_values.*.k_pe";
    KV_B = "model.layers.*.self_attn.kv_b_proj";
    SCORES = "model.layers.*.self_attn.attn_scores";
    WEIGHTS = "model.layers.*.self_attn.attn_weights";
    ATTENTION = "model.layers.*.self_attn.attn_output";
    O = "model.layers.*.self_attn.o_proj";
    POST_NORM = "model.layers.*.post_attention_layernorm";
    GATE = "model.layers.*.mlp.gate_proj";
    UP = "model.layers.*.mlp.up_proj";
    DOWN = "model.layers.*.mlp.down_proj";
    LOGITS = "model.layers.*.mlp.gate.router_logits";
    CHOICE = "model.layers.*.mlp.gate.topk_indices";
    GATES = "model.layers.*.mlp.gate.topk_weights";
    EXPERTS = "model.layers.*.mlp.experts";
    SHARED = "model.layers.*.mlp.shared_experts";
    MLP = "model.layers.*.mlp";
    LAYER = "model.layers.*";
    FINAL_NORM = "model.norm";
    LM_HEAD = "lm_head";
    SCORE = "score";
    POOLED = "pooled_logits";
    LOSS = "loss";
}

/// The name of the stage of this kind in `layer`.
pub fn name(kind: &str, layer: usize) -> String {
    kind.replacen('*', &layer.to_string(), 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    #[test]
    fn every_kind_is_a_stage_and_in_forward_order() {
        let place = |kind: &str| Stage::parse(&name(kind, 0)).unwrap_or_else(|| panic!("{kind}")).place();
        let places: Vec<_> = ALL.iter().map(|kind| place(kind)).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(name(Q_PE, 12), "model.layers.12.self_attn.q_pe");
    }
}
