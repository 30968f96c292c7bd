//! What a stage's name says: its place in the forward pass, what its axes are, and ([`flow`]) what it is computed from.

pub mod flow;

/// What the axes of a stage are, as far as rows and pieces of a sequence need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[B, S, ..]`
    Tokens,
    /// `[B, heads, S, ..]`
    Heads,
    /// `[B, heads, S, T]`, scores: a key that is not there yet has -inf.
    Scores,
    /// `[B, heads, S, T]`, probabilities: a key that is not there yet has 0.
    Weights,
    /// `[B·S, ..]`, in the order `b·S + s`
    Flat,
    /// `[B, T, ..]`: one row for each key, as of the last piece of the sequence
    Keys,
    /// `[1 or B, S, ..]`: the rotary tables, which know no padding
    Table,
    /// `[B, kept, V]`: rows of `S` unless `logits_to_keep` chose some
    Logits,
    /// No axis along the sequence.
    Whole,
}

/// Every stage there is, in forward order; `*` stands for the layer.
const STAGES: [(&str, Layout); 36] = [
    ("model.embed_tokens", Layout::Tokens),
    ("model.rotary_emb.cos", Layout::Table),
    ("model.rotary_emb.sin", Layout::Table),
    ("model.layers.*.input_layernorm", Layout::Tokens),
    ("model.layers.*.self_attn.q_proj", Layout::Tokens),
    ("model.layers.*.self_attn.q_a_proj", Layout::Tokens),
    ("model.layers.*.self_attn.q_a_layernorm", Layout::Tokens),
    ("model.layers.*.self_attn.q_b_proj", Layout::Tokens),
    ("model.layers.*.self_attn.kv_a_proj_with_mqa", Layout::Tokens),
    ("model.layers.*.self_attn.kv_a_layernorm", Layout::Tokens),
    ("model.layers.*.self_attn.q_pe", Layout::Heads),
    ("model.layers.*.self_attn.k_pe", Layout::Heads),
    ("past_key_values.*.compressed_kv", Layout::Keys),
    ("past_key_values.*.k_pe", Layout::Keys),
    ("model.layers.*.self_attn.kv_b_proj", Layout::Keys),
    ("model.layers.*.self_attn.attn_scores", Layout::Scores),
    ("model.layers.*.self_attn.attn_weights", Layout::Weights),
    ("model.layers.*.self_attn.attn_output", Layout::Tokens),
    ("model.layers.*.self_attn.o_proj", Layout::Tokens),
    ("model.layers.*.post_attention_layernorm", Layout::Tokens),
    ("model.layers.*.mlp.gate_proj", Layout::Tokens),
    ("model.layers.*.mlp.up_proj", Layout::Tokens),
    ("model.layers.*.mlp.down_proj", Layout::Tokens),
    ("model.layers.*.mlp.gate.router_logits", Layout::Flat),
    ("model.layers.*.mlp.gate.topk_indices", Layout::Flat),
    ("model.layers.*.mlp.gate.topk_weights", Layout::Flat),
    ("model.layers.*.mlp.experts", Layout::Flat),
    ("model.layers.*.mlp.shared_experts", Layout::Tokens),
    ("model.layers.*.mlp", Layout::Tokens),
    ("model.layers.*", Layout::Tokens),
    ("model.norm", Layout::Tokens),
    ("lm_head", Layout::Logits),
    ("score", Layout::Tokens),
    ("pooled_logits", Layout::Whole),
    ("loss", Layout::Whole),
    ("logits", Layout::Logits),
];

/// Where the layers begin and end in [`STAGES`].
const LAYER_STAGES: std::ops::Range<usize> = 3..30;

/// A stage's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The name with `*` for the layer: the kind of tap, the same in every layer.
    pub kind: &'static str,
    /// The layer, if the stage belongs to one.
    pub layer: Option<usize>,
    /// What the axes are.
    pub layout: Layout,
    index: usize,
}

impl Stage {
    /// Takes a name apart; `None` if there is no such stage.
    pub fn parse(name: &str) -> Option<Self> {
        let (pattern, layer) = match name.split('.').find_map(|part| Some((part, part.parse::<usize>().ok()?))) {
            Some((digits, layer)) => (name.replacen(&format!(".{digits}"), ".*", 1), Some(layer)),
            None => (name.to_owned(), None),
        };
        let index = STAGES.iter().position(|(kind, _)| *kind == pattern)?;
        let (kind, layout) = STAGES[index];
        Some(Stage { kind, layer, layout, index })
    }

    /// Sorts stages into the order of the forward pass.
    pub fn place(&self) -> (usize, usize, usize) {
        let section = usize::from(self.index >= LAYER_STAGES.start) + usize::from(self.index >= LAYER_STAGES.end);
        (section, self.layer.unwrap_or(0), self.index)
    }
}

/// The name under which a tensor of a dump is compared: `logits` is `lm_head`.
pub fn canonical(name: &str) -> &str {
    if name == "logits" { "lm_head" } else { name }
}

/// The key that sorts names into the order of the forward pass; names of no stage come last.
pub fn forward_order(name: &str) -> (usize, usize, usize) {
    Stage::parse(name).map_or((usize::MAX, 0, 0), |stage| stage.place())
}

/// The stage beside `name` in the same module: `sibling("a.gate.topk_weights", "topk_indices")` is `a.gate.topk_indices`.
pub fn sibling(name: &str, leaf: &str) -> String {
    match name.rsplit_once('.') {
        Some((module, _)) => format!("{module}.{leaf}"),
        None => leaf.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let stage = Stage::parse("model.layers.12.self_attn.q_pe").unwrap();
        assert_eq!((stage.kind, stage.layer, stage.layout), ("model.layers.*.self_attn.q_pe", Some(12), Layout::Heads));
        assert_eq!(Stage::parse("past_key_values.0.k_pe").unwrap().layout, Layout::Keys);
        assert_eq!(Stage::parse("model.layers.3").unwrap().kind, "model.layers.*");
        assert_eq!(Stage::parse("loss").unwrap().layout, Layout::Whole);
        assert_eq!(Stage::parse("model.layers.x.mlp"), None);
        assert_eq!(Stage::parse("transformer.h.0"), None);
    }

    #[test]
    fn forward_order_goes_layer_by_layer() {
        let forward = [
            "model.embed_tokens",
            "model.layers.0.input_layernorm",
            "past_key_values.0.k_pe",
            "model.layers.0.self_attn.attn_scores",
            "model.layers.0",
            "model.layers.1.input_layernorm",
            "model.layers.10.input_layernorm",
            "model.norm",
            "lm_head",
            "loss",
            "anything else",
        ];
        let mut sorted = forward;
        sorted.reverse();
        sorted.sort_by_key(|name| forward_order(name));
        assert_eq!(sorted, forward);
    }
}
