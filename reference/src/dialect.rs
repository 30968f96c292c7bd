//! Dialects: the places where published DeepSeek-V2 code disagrees with itself, as one named choice.
//!
//! There is one architecture and one set of weights, and three bodies of code that run it differently.
//! A comparison of two implementations must say which one is meant, so every difference is a question that the model
//! code asks its [`Dialect`] by name; none is decided silently.
//!
//! | question | [`Hf`](Dialect::Hf) | [`HfPre515`](Dialect::HfPre515) | [`Deepseek`](Dialect::Deepseek) |
//! |---|---|---|---|
//! | softmax scale times mscale² ([`folds_mscale_into_softmax_scale`](Dialect::folds_mscale_into_softmax_scale)) | yes | **no** | yes |
//! | YaRN attention factor when only one of `mscale`, `mscale_all_dim` is set ([`attention_factor_honours_lone_mscale`](Dialect::attention_factor_honours_lone_mscale)) | ignores it | ignores it | uses it |
//! | `attention_factor` of YaRN ([`honours_attention_factor`](Dialect::honours_attention_factor)) | replaces the ratio of the two | replaces it | ignored |
//! | `norm_topk_prob` ([`honours_norm_topk_prob`](Dialect::honours_norm_topk_prob)) | ignored | ignored | normalises **instead of** scaling |
//! | `moe_layer_freq` ([`honours_moe_layer_freq`](Dialect::honours_moe_layer_freq)) | ignored | ignored | MoE layers are its multiples |
//! | `n_routed_experts: null` ([`allows_null_routed_experts`](Dialect::allows_null_routed_experts)) | refused | refused | every layer is dense |
//! | `n_shared_experts: null` ([`allows_null_shared_experts`](Dialect::allows_null_shared_experts)) | refused | no shared expert | no shared expert |
//! | `scoring_func` other than `softmax` ([`honours_scoring_func`](Dialect::honours_scoring_func)) | ignored | ignored | refused |
//! | token pooled by the classifier ([`pools_before_first_pad`](Dialect::pools_before_first_pad)) | last non-pad | last non-pad | before the first pad |
//!
//! # Traps
//!
//! Issue and pull request numbers are of huggingface/transformers unless another repository is named.
//!
//! * **mscale².** Transformers 4.54.0 to 5.14.x leave the YaRN factor out of the softmax scale (fixed by PR #47435, in
//!   5.15.0). Weights and shapes look right; attention scores are 1.59 times too small in V2 and V2-Lite, and 1.87
//!   times in V2.5. Copies of the mistake: onnxruntime/mobius#548, kekzl/imp#880, the thread of
//!   ggml-org/llama.cpp#7118.
//! * **A lone mscale.** DeepSeek's defaults are `mscale = 1`, `mscale_all_dim = 0`, and its attention factor is always
//!   the ratio of the two; Transformers takes the ratio only if both are present and not zero, else
//!   `0.1 ln(factor) + 1`. For factor 40 and only `mscale = 0.707`: 1.2608 against 1.3689. The released checkpoints set
//!   both alike, so the factor is exactly 1 in every dialect and the difference stays asleep.
//! * **norm_topk_prob.** In DeepSeek's V2 file the two branches exclude each other: either the weights are divided by
//!   their sum (only if k > 1), *or* they are multiplied by `routed_scaling_factor`. The later revision in the
//!   DeepSeek-VL2 repository, and V3, multiply in both cases. This dialect is the V2 file. Transformers ignores
//!   the field, although its documentation describes it (removed in the review of #36400).
//! * **YaRN without `original_max_position_embeddings`.** DeepSeek's code takes 4096, Transformers
//!   `max_position_embeddings`. [`Dialect::Deepseek`] therefore insists on the key. It also refuses
//!   `truncate: false` and a `rope_type` other than `type`, because DeepSeek's code reads `type` and knows no other.
//!   It ignores `attention_factor`, as that code does.
//! * **moe_layer_freq, scoring_func** left Transformers in the same review. All released V2 models have 1 and
//!   `softmax`, so nothing notices.
//! * **Pooling.** Transformers pools at the last token that is not padding, wherever the padding is; DeepSeek's code at
//!   the token before the first padding, which is the wrong one for left-padded input.
//! * **Group routing crashed** in Transformers 5.0.0 to 5.12.1 (`AttributeError: ... 'num_experts'`; mended in passing
//!   by #46818). [`Dialect::HfPre515`] computes what 4.57 and 5.13 compute.
//! * **Rotary layout.** Transformers rotates neighbouring elements and leaves them interleaved, DeepSeek's code
//!   de-interleaves first. Every attention score is the same; the cached `k_pe` is a permutation (compare #39687 and
//!   vllm-project/vllm#26995). All dialects here store the interleaved form.
//! * **The cache.** Transformers keeps expanded keys and values before 5.15.0 and latents since (#47761, #47460). This
//!   changes memory, not results; all dialects here keep latents.
//!
//! What differs in rounding only (DeepSeek's code computes logits in fp32 and casts the rotary tables to the model's
//! type) is no question of dialect: this crate computes in one type throughout.

use std::fmt;
use std::str::FromStr;

/// Whose DeepSeek-V2 to compute. See the [module documentation](self) for every difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Hugging Face Transformers 5.15.0 and later: the default.
    #[default]
    Hf,
    /// Hugging Face Transformers 4.54.0 to 5.14.x: no mscale² in the softmax scale.
    HfPre515,
    /// DeepSeek's own `modeling_deepseek.py`, as it is published with the V2 checkpoints.
    Deepseek,
}

impl Dialect {
    /// All dialects, the default first.
    pub const ALL: [Dialect; 3] = [Dialect::Hf, Dialect::HfPre515, Dialect::Deepseek];

    /// The name on the command line and in files: `hf`, `hf-pre-5.15` or `deepseek`.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Hf => "hf",
            Dialect::HfPre515 => "hf-pre-5.15",
            Dialect::Deepseek => "deepseek",
        }
    }

    /// Is this one of Transformers' dialects?
    pub fn is_transformers(self) -> bool {
        self != Dialect::Deepseek
    }

    /// Is the softmax scale (n + r)^(-1/2) multiplied by ms(factor, mscale_all_dim)², where ms(f, m) = 0.1 m ln f + 1
    /// for f > 1 and 1 otherwise? Where it is, the condition is a rope type other than `default` *and* an
    /// `mscale_all_dim` that is neither missing nor 0; the rope type need not be yarn.
    pub fn folds_mscale_into_softmax_scale(self) -> bool {
        self != Dialect::HfPre515
    }

    /// YaRN's attention factor where `attention_factor` is not given: is it ms(factor, mscale) / ms(factor,
    /// mscale_all_dim) in every case, a missing `mscale` read as 1 and a missing `mscale_all_dim` as 0? If not, the
    /// ratio needs both to be present and not 0, and ms(factor, 1) stands in for it.
    pub fn attention_factor_honours_lone_mscale(self) -> bool {
        self == Dialect::Deepseek
    }

    /// Does YaRN's `attention_factor` count, where config.json gives it?
    pub fn honours_attention_factor(self) -> bool {
        self != Dialect::Deepseek
    }

    /// Does `norm_topk_prob` (with k > 1) replace the multiplication by `routed_scaling_factor` by a division by the
    /// sum of the selected weights + 1e-20? If not, the field has no effect and the factor always applies.
    pub fn honours_norm_topk_prob(self) -> bool {
        self == Dialect::Deepseek
    }

    /// Is a layer from `first_k_dense_replace` on dense unless its index is a multiple of `moe_layer_freq`?
    pub fn honours_moe_layer_freq(self) -> bool {
        self == Dialect::Deepseek
    }

    /// Does `n_routed_experts: null` mean a model without MoE layers? If not, it is refused.
    pub fn allows_null_routed_experts(self) -> bool {
        self == Dialect::Deepseek
    }

    /// Does `n_shared_experts: null` mean MoE layers without a shared expert? If not, it is refused (0 says the same
    /// everywhere). Transformers understood it before 5.13; [`Dialect::HfPre515`] still does.
    pub fn allows_null_shared_experts(self) -> bool {
        self != Dialect::Hf
    }

    /// Does `scoring_func` matter? Only `softmax` exists: where it matters, any other value is refused; elsewhere the
    /// field is not looked at.
    pub fn honours_scoring_func(self) -> bool {
        self == Dialect::Deepseek
    }

    /// Does the sequence classifier read the position before the first padding token? If not, it reads the last
    /// position whose token is not padding.
    pub fn pools_before_first_pad(self) -> bool {
        self == Dialect::Deepseek
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no [`Dialect`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dialect: expected hf, hf-pre-5.15 or deepseek, found {0:?}")]
pub struct UnknownDialect(pub String);

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(text: &str) -> Result<Self, UnknownDialect> {
        Dialect::ALL.into_iter().find(|dialect| dialect.name() == text).ok_or_else(|| UnknownDialect(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.to_string().parse(), Ok(dialect));
        }
        assert_eq!(Dialect::default().to_string(), "hf");
    }

    #[test]
    fn an_unknown_name_is_named() {
        let error = "HF".parse::<Dialect>().unwrap_err();
        assert_eq!(error.to_string(), "dialect: expected hf, hf-pre-5.15 or deepseek, found \"HF\"");
    }
}
