//! The table of all stages: one line for each kind, in forward order.
//!
//! Symbols as everywhere: B sequences, S new tokens, T tokens so far, D `hidden_size`, H heads, n, r and v the widths of
//! a head (`qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`), c `kv_lora_rank`, q `q_lora_rank`, I
//! `intermediate_size`, E experts, k of them for each token, V `vocab_size`.

use crate::DeepseekV2Config;

/// What the axes of a stage are, as far as rows and chunks of a sequence need it.
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
    /// `[B, T, ..]`: one row for each key, as of the last chunk of the sequence
    Keys,
    /// `[1 or B, S, ..]`: the rotary tables, which know no padding
    Table,
    /// `[B, kept, V]`: rows of `S` unless `logits_to_keep` chose some
    Logits,
    /// No axis along the sequence.
    Whole,
}

/// How the numbers of a stage come about.
#[derive(Clone, Copy, Debug)]
pub enum Made {
    /// By copying, a lookup or what is put into the cache: they are bit-identical to their source.
    Copied,
    /// One by one, or as sums that are not counted here.
    Each,
    /// Each as the sum of so many products; three products in a row count thrice.
    Sum(fn(&DeepseekV2Config) -> usize),
}

/// What is known of one kind of stage.
#[derive(Debug)]
pub struct Row {
    /// Its name, with `*` for the layer.
    pub kind: &'static str,
    /// What its axes are.
    pub layout: Layout,
    /// Its shape in the symbols above.
    pub shape: &'static str,
    /// How its numbers come about.
    pub made: Made,
    /// The kinds that it is computed from, where a model has them; `*` is the same layer, [`RESIDUAL`] the stream
    /// before it.
    pub inputs: &'static [&'static str],
}

/// The residual stream that enters a layer (or the last norm): the layer before, or the embedding.
pub const RESIDUAL: &str = "residual";

/// A sum over the residual stream's width.
const D: Made = Made::Sum(|c| c.hidden_size);
/// A sum over the query's latent.
const Q_RANK: Made = Made::Sum(|c| c.q_lora_rank.unwrap_or(1));
/// A sum over the latent.
const C: Made = Made::Sum(|c| c.kv_lora_rank);

macro_rules! stages {
    ($($name:ident = $kind:literal, $layout:ident $shape:literal, $made:expr, from [$($input:expr),*];)*) => {
        $(
            #[doc = concat!("`", $kind, "`, `", $shape, "`")]
            pub const $name: &str = $kind;
        )*
        /// Every kind of stage, in forward order.
        pub const STAGES: &[Row] = &[$(
            Row { kind: $name, layout: Layout::$layout, shape: $shape, made: $made, inputs: &[$($input),*] }
        ),*];
    };
}

use Made::{Copied, Each, Sum};

stages! {
    EMBED_TOKENS = "model.embed_tokens", Tokens "[B,S,D]", Copied, from [];
    COS = "model.rotary_emb.cos", Table "[1 or B,S,r/2]", Each, from [];
    SIN = "model.rotary_emb.sin", Table "[1 or B,S,r/2]", Each, from [];

    INPUT_LAYERNORM = "model.layers.*.input_layernorm", Tokens "[B,S,D]", D, from [RESIDUAL];
    Q_PROJ = "model.layers.*.self_attn.q_proj", Tokens "[B,S,H(n+r)]", D, from [INPUT_LAYERNORM];
    Q_A_PROJ = "model.layers.*.self_attn.q_a_proj", Tokens "[B,S,q]", D, from [INPUT_LAYERNORM];
    Q_A_LAYERNORM = "model.layers.*.self_attn.q_a_layernorm", Tokens "[B,S,q]", Q_RANK, from [Q_A_PROJ];
    Q_B_PROJ = "model.layers.*.self_attn.q_b_proj", Tokens "[B,S,H(n+r)]", Q_RANK, from [Q_A_LAYERNORM];
    KV_A_PROJ = "model.layers.*.self_attn.kv_a_proj_with_mqa", Tokens "[B,S,c+r]", D, from [INPUT_LAYERNORM];
    KV_A_LAYERNORM = "model.layers.*.self_attn.kv_a_layernorm", Tokens "[B,S,c]", C, from [KV_A_PROJ];
    Q_PE = "model.layers.*.self_attn.q_pe", Heads "[B,H,S,r]", Each, from [Q_PROJ, Q_B_PROJ, COS, SIN];
    K_PE = "model.layers.*.self_attn.k_pe", Heads "[B,1,S,r]", Each, from [KV_A_PROJ, COS, SIN];
    CACHED_KV = "past_key_values.*.compressed_kv", Keys "[B,T,c]", Copied, from [KV_A_LAYERNORM];
    CACHED_K_PE = "past_key_values.*.k_pe", Keys "[B,T,r]", Copied, from [K_PE];
    KV_B_PROJ = "model.layers.*.self_attn.kv_b_proj", Keys "[B,T,H(n+v)]", C, from [CACHED_KV, KV_A_LAYERNORM];
    ATTN_SCORES = "model.layers.*.self_attn.attn_scores", Scores "[B,H,S,T]", Sum(|c| c.qk_head_dim()),
        from [Q_PROJ, Q_B_PROJ, Q_PE, KV_B_PROJ, CACHED_K_PE, K_PE];
    ATTN_WEIGHTS = "model.layers.*.self_attn.attn_weights", Weights "[B,H,S,T]", Each, from [ATTN_SCORES];
    ATTN_OUTPUT = "model.layers.*.self_attn.attn_output", Tokens "[B,S,Hv]", Each, from [ATTN_WEIGHTS, KV_B_PROJ];
    O_PROJ = "model.layers.*.self_attn.o_proj", Tokens "[B,S,D]", Sum(|c| c.num_attention_heads * c.v_head_dim),
        from [ATTN_OUTPUT];
    POST_ATTENTION_LAYERNORM = "model.layers.*.post_attention_layernorm", Tokens "[B,S,D]", D, from [RESIDUAL, O_PROJ];
    GATE_PROJ = "model.layers.*.mlp.gate_proj", Tokens "[B,S,I]", D, from [POST_ATTENTION_LAYERNORM];
    UP_PROJ = "model.layers.*.mlp.up_proj", Tokens "[B,S,I]", D, from [POST_ATTENTION_LAYERNORM];
    DOWN_PROJ = "model.layers.*.mlp.down_proj", Tokens "[B,S,D]", Sum(|c| c.intermediate_size),
        from [GATE_PROJ, UP_PROJ];
    ROUTER_LOGITS = "model.layers.*.mlp.gate.router_logits", Flat "[BS,E]", D, from [POST_ATTENTION_LAYERNORM];
    TOPK_INDICES = "model.layers.*.mlp.gate.topk_indices", Flat "[BS,k]", Each, from [ROUTER_LOGITS];
    TOPK_WEIGHTS = "model.layers.*.mlp.gate.topk_weights", Flat "[BS,k]", Sum(|c| c.num_experts()),
        from [ROUTER_LOGITS, TOPK_INDICES];
    EXPERTS = "model.layers.*.mlp.experts", Flat "[BS,D]", Sum(|c| 3 * c.hidden_size.max(c.moe_intermediate_size)),
        from [POST_ATTENTION_LAYERNORM, TOPK_INDICES, TOPK_WEIGHTS];
    SHARED_EXPERTS = "model.layers.*.mlp.shared_experts", Tokens "[B,S,D]",
        Sum(|c| 3 * c.hidden_size.max(c.shared_width())), from [POST_ATTENTION_LAYERNORM];
    MLP = "model.layers.*.mlp", Tokens "[B,S,D]", Each, from [EXPERTS, SHARED_EXPERTS];
    LAYER = "model.layers.*", Tokens "[B,S,D]", Each, from [RESIDUAL, O_PROJ, DOWN_PROJ, MLP];

    NORM = "model.norm", Tokens "[B,S,D]", D, from [RESIDUAL];
    LM_HEAD = "lm_head", Logits "[B,kept,V]", D, from [NORM];
    SCORE = "score", Tokens "[B,S,labels]", D, from [NORM];
    POOLED_LOGITS = "pooled_logits", Whole "[B,labels]", Each, from [SCORE];
    LOSS = "loss", Whole "[]", Sum(|c| c.vocab_size), from [LM_HEAD, POOLED_LOGITS];
}

/// Names that are taken for another without a word.
pub const ALIASES: &[(&str, &str)] = &[("logits", LM_HEAD)];

/// Kinds that no module returns by itself: a forward hook, which keeps what modules return, does not see them.
pub const INSIDE: &[&str] = &[
    COS,
    SIN,
    Q_PE,
    K_PE,
    CACHED_KV,
    CACHED_K_PE,
    ATTN_SCORES,
    ATTN_WEIGHTS,
    ATTN_OUTPUT,
    TOPK_INDICES,
    TOPK_WEIGHTS,
    LOSS,
];
