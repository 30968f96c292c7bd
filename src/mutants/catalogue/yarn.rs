//! Wrong rotary tables.

use dsv2_reference::Dialect;
use dsv2_reference::config::RopeType;
use dsv2_reference::model::rope::{RotaryEmbedding, yarn_get_mscale};
use dsv2_reference::stage::table::{COS, SIN};
use ndarray::Array2;

use super::tables::{at_positions, changed, embedding, far, of_frequencies};
use super::{chunked, equivalent, fixed_rope, rope, structural, yarn};
use crate::case::Case;
use crate::mutants::Mutant;
use crate::mutants::arithmetic::to_bf16;

const TABLES: &[&str] = &[COS, SIN];

/// A mutant of the tables.
pub const MUTANTS: &[Mutant] = &[
    structural("yarn_off", "YaRN is ignored: plain frequencies.")
        .when(yarn)
        .reported("vllm-project/vllm#48621")
        .at(TABLES, |s, at| changed(s, at, |rope| rope.rope_type = RopeType::Default)),
    structural("yarn_linear", "Every frequency is divided by the factor, as in linear scaling.")
        .when(yarn)
        .at(TABLES, |s, at| changed(s, at, |rope| rope.rope_type = RopeType::Linear)),
    structural("yarn_maxpos", "The ramp is computed from max_position_embeddings, not from the original context.")
        .when(|case| original(case) != Some(case.config.max_position_embeddings))
        .at(TABLES, |s, at| {
            let length = s.config().max_position_embeddings;
            changed(s, at, |rope| rope.original_max_position_embeddings = Some(length))
        }),
    structural("yarn_wrongdim", "The frequencies are those of the whole head, n + r wide.").when(yarn).at(
        TABLES,
        |s, at| {
            let mut config = s.config().clone();
            config.qk_rope_head_dim = config.qk_head_dim().next_multiple_of(2);
            let wide = RotaryEmbedding::new(&config, s.dialect()).ok()?;
            Some(of_frequencies(s, at, &wide.inv_freq()[..s.config().qk_rope_head_dim / 2], wide.attention_factor()))
        },
    ),
    structural("yarn_notrunc", "The ends of the ramp are not rounded.")
        .when(|case| rope(case).is_some_and(|rope| rope.truncate))
        .at(TABLES, |s, at| changed(s, at, |rope| rope.truncate = !rope.truncate)),
    structural("yarn_rampflip", "The ramp runs the other way: high frequencies are interpolated.").when(yarn).at(
        TABLES,
        |s, at| {
            let of = |rope_type| embedding(s, |rope| rope.rope_type = rope_type);
            let (plain, linear, yarn) = (of(RopeType::Default)?, of(RopeType::Linear)?, of(RopeType::Yarn)?);
            let all = plain.inv_freq().iter().zip(linear.inv_freq()).zip(yarn.inv_freq());
            let flipped: Vec<f32> = all.map(|((plain, linear), yarn)| plain + linear - yarn).collect();
            Some(of_frequencies(s, at, &flipped, yarn.attention_factor()))
        },
    ),
    structural("yarn_paper_ramp", "The ramp is linear in the number of turns, as the YaRN paper writes it.")
        .when(yarn)
        .at(TABLES, |s, at| {
            let rope = s.config().rope().ok()?;
            let of = |rope_type| embedding(s, |rope| rope.rope_type = rope_type);
            let (plain, linear) = (of(RopeType::Default)?, of(RopeType::Linear)?);
            let length = rope.original_max_position_embeddings? as f64;
            let frequencies: Vec<f32> = plain
                .inv_freq()
                .iter()
                .zip(linear.inv_freq())
                .map(|(&plain, &linear)| {
                    let turns = length * f64::from(plain) / (2.0 * std::f64::consts::PI);
                    let kept = ((turns - rope.beta_slow) / (rope.beta_fast - rope.beta_slow)).clamp(0.0, 1.0) as f32;
                    linear * (1.0 - kept) + plain * kept
                })
                .collect();
            Some(of_frequencies(s, at, &frequencies, of(RopeType::Yarn)?.attention_factor()))
        }),
    structural("yarn_swapbeta", "beta_fast and beta_slow are exchanged.")
        .when(yarn)
        .at(TABLES, |s, at| changed(s, at, |rope| std::mem::swap(&mut rope.beta_fast, &mut rope.beta_slow))),
    structural("yarn_default_betas", "beta_fast and beta_slow of the config are ignored.")
        .when(|case| rope(case).is_some_and(|rope| (rope.beta_fast, rope.beta_slow) != (32.0, 1.0)))
        .at(TABLES, |s, at| changed(s, at, |rope| (rope.beta_fast, rope.beta_slow) = (32.0, 1.0))),
    structural("yarn_attnfactor", "Cosine and sine are multiplied by 0.1 ln(factor) + 1, YaRN's usual length factor.")
        .when(yarn)
        .at(TABLES, |s, at| {
            let factor = s.config().rope().ok()?.factor?;
            Some(at.value * yarn_get_mscale(factor, 1.0))
        }),
    structural(
        "yarn_mscale_cos",
        "Cosine and sine are multiplied by ms(factor, mscale), not divided by ms(factor, mscale_all_dim).",
    )
    .when(|case| yarn(case) && rope(case).is_some_and(|rope| rope.mscale.is_some_and(|mscale| mscale != 0.0)))
    .reported("kekzl/imp#880")
    .at(TABLES, |s, at| {
        let rope = s.config().rope().ok()?;
        let own = embedding(s, |_| {})?.attention_factor();
        Some(at.value * (yarn_get_mscale(rope.factor?, rope.mscale?) / own))
    }),
    structural("yarn_mscale_ignored", "Cosine and sine have no factor, though mscale and mscale_all_dim differ.")
        .when(|case| {
            yarn(case)
                && rope(case).is_some_and(|rope| rope.mscale != rope.mscale_all_dim && rope.attention_factor.is_none())
        })
        .reported("ggml-org/llama.cpp at 0c1e570: 1.6e-1 off at mscale 1 and mscale_all_dim 0.707")
        .at(TABLES, |s, at| Some(at.value / embedding(s, |_| {})?.attention_factor())),
    structural(
        "yarn_lone_mscale",
        "Where one of mscale and mscale_all_dim is missing, the other code base's fallback is used.",
    )
    .when(|case| yarn(case) && rope(case).is_some_and(|rope| rope.mscale.is_some() != rope.mscale_all_dim.is_some()))
    .reported("huggingface/transformers and deepseek-ai/DeepSeek-V2 differ; see `dialect`")
    .at(TABLES, |s, at| {
        let other = if s.dialect() == Dialect::Deepseek { Dialect::Hf } else { Dialect::Deepseek };
        let [own, other] = [s.dialect(), other].map(|dialect| RotaryEmbedding::new(s.config(), dialect));
        Some(at.value * (other.ok()?.attention_factor() / own.ok()?.attention_factor()))
    }),
    structural("yarn_attention_factor_ignored", "attention_factor of the config is ignored.")
        .when(|case| yarn(case) && rope(case).is_some_and(|rope| rope.attention_factor.is_some()))
        .at(TABLES, |s, at| changed(s, at, |rope| rope.attention_factor = None)),
    structural("rope_linear_off", "The factor of linear scaling is ignored.")
        .when(|case| rope(case).is_some_and(|rope| rope.rope_type == RopeType::Linear))
        .at(TABLES, |s, at| changed(s, at, |rope| rope.rope_type = RopeType::Default)),
    structural("ntk_static", "The base of dynamic scaling never grows.")
        .when(|case| rope(case).is_some_and(|rope| rope.rope_type == RopeType::Dynamic))
        .at(TABLES, |s, at| changed(s, at, |_| {})),
    structural("rope_theta_default", "The base is 10000, whatever the config says.")
        .when(|case| rope(case).is_some_and(|rope| rope.rope_theta != 10000.0))
        .at(TABLES, |s, at| changed(s, at, |rope| rope.rope_theta = 10000.0)),
    structural("rope_neg", "Vectors are turned the wrong way round: the sine has the wrong sign.")
        .when(fixed_rope)
        .at(&[SIN], |_, at| Some(-at.value)),
    structural("rope_pos_zero_chunk", "Positions start at 0 again in every chunk.")
        .when(|case| fixed_rope(case) && chunked(case))
        .at(TABLES, |s, at| {
            let positions = Array2::from_shape_fn(s.positions().dim(), |(_, i)| i as i64);
            (s.past() > 0).then_some(())?;
            at_positions(s, at, &positions)
        }),
    structural("rope_bf16_pos", "Positions are bf16 numbers, which count by 2 from 256 on.")
        .when(|case| fixed_rope(case) && far(case, 256))
        .at(TABLES, |s, at| at_positions(s, at, &s.positions().mapv(|p| to_bf16(p as f64) as i64))),
    equivalent("rope_both_off1", "Positions are counted from 1, for queries and keys alike.")
        .when(|case| fixed_rope(case) && !far(case, 32))
        .at(TABLES, |s, at| at_positions(s, at, &(s.positions() + 1))),
];

fn original(case: &Case) -> Option<usize> {
    rope(case).filter(|rope| rope.rope_type == RopeType::Yarn)?.original_max_position_embeddings
}
