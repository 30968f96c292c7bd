//! Queries, keys and values that are put together wrongly, expanded or absorbed.

use dsv2_reference::stage::table::{ATTN_OUTPUT, ATTN_SCORES, ATTN_WEIGHTS, O_PROJ};
use ndarray::{Array2, Array4, ArrayD, Axis, s};

use super::{several_heads, several_tokens, structural};
use crate::mutants::parts::{by_part, expand};
use crate::mutants::scene::Scene;
use crate::mutants::{At, Mutant};

pub const MUTANTS: &[Mutant] = &[
    structural("kvb_split_swap", "Of each head, kv_b_proj is read as values, then keys.")
        .at(&[ATTN_SCORES], |s, at| {
            let v = s.config().v_head_dim;
            let keys = s.keys_and_values_by_head(at.layer)?.slice_move(s![.., .., .., v..]);
            scores_of(s, at, keys)
        })
        .at(&[ATTN_OUTPUT], |s, at| {
            let v = s.config().v_head_dim;
            let values = s.keys_and_values_by_head(at.layer)?.slice_move(s![.., .., .., ..v]);
            s.attend_with(&s.real4(ATTN_WEIGHTS, at.layer)?, &values)
        }),
    structural("kvb_all_k_then_v", "kv_b_proj is read as all heads' keys, then all heads' values.")
        .when(several_heads)
        .at(&[ATTN_SCORES], |s, at| scores_of(s, at, keys_then_values(s, at.layer)?.0))
        .at(&[ATTN_OUTPUT], |s, at| {
            s.attend_with(&s.real4(ATTN_WEIGHTS, at.layer)?, &keys_then_values(s, at.layer)?.1)
        }),
    structural("kpe_head0_only", "The rotated key is used by the first head only.").when(several_heads).at(
        &[ATTN_SCORES],
        |s, at| {
            let heads = s.heads(at.layer)?;
            let mut rotated = heads.pe_scores();
            rotated.slice_mut(s![.., 1.., .., ..]).fill(0.0);
            s.masked(heads.nope_scores() + rotated)
        },
    ),
    structural("kpe_dropped", "The rotated part does not enter the scores.")
        .at(&[ATTN_SCORES], |s, at| s.masked(s.heads(at.layer)?.nope_scores())),
    structural("nope_dropped", "The part without position does not enter the scores.")
        .at(&[ATTN_SCORES], |s, at| s.masked(s.heads(at.layer)?.pe_scores())),
    structural("abs_uk_T", "Absorbed: W^UK is not transposed (where it is square).")
        .when(|case| case.config.qk_nope_head_dim == case.config.kv_lora_rank)
        .at(&[ATTN_SCORES], |s, at| scores_of(s, at, keys_from(s, at.layer, |w_uk, head| w_uk[head].t().to_owned())?)),
    structural("abs_uk_headroll", "Absorbed: each head has the W^UK of the next.")
        .when(several_heads)
        .at(&[ATTN_SCORES], |s, at| {
            scores_of(s, at, keys_from(s, at.layer, |w_uk, head| w_uk[(head + 1) % w_uk.len()].clone())?)
        }),
    structural("abs_uv_headroll", "Absorbed: each head has the W^UV of the next.").when(several_heads).at(
        &[ATTN_OUTPUT],
        |s, at| {
            let values = s.values(at.layer)?;
            let rolled: Vec<usize> = (0..values.len_of(Axis(1))).map(|h| (h + 1) % values.len_of(Axis(1))).collect();
            s.attend_with(&s.real4(ATTN_WEIGHTS, at.layer)?, &values.select(Axis(1), &rolled))
        },
    ),
    structural("abs_uv_for_uk", "Absorbed: W^UV stands where W^UK should.")
        .when(|case| case.config.v_head_dim >= case.config.qk_nope_head_dim)
        .at(&[ATTN_SCORES], |s, at| {
            let n = s.config().qk_nope_head_dim;
            scores_of(s, at, s.values(at.layer)?.slice_move(s![.., .., .., ..n]))
        }),
    structural("heads_transposed", "The heads' outputs are laid side by side without exchanging heads and tokens.")
        .when(|case| several_heads(case) && several_tokens(case))
        .at(&[ATTN_OUTPUT], |s, at| {
            let (batch, length, _) = s.dims();
            let c = s.config();
            let by_token = at.value.to_shape((batch, length, c.num_attention_heads, c.v_head_dim)).ok()?;
            let by_head = by_token.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
            Some(by_head.into_shape_with_order(at.value.raw_dim()).ok()?.into_dyn())
        }),
    structural("lastrow_tile", "The last query's last key lies in a tile that is not read.").when(several_tokens).at(
        &[ATTN_OUTPUT],
        |s, at| {
            let mut weights = s.real4(ATTN_WEIGHTS, at.layer)?;
            weights.slice_mut(s![.., .., -1, -1]).fill(0.0);
            s.attend_with(&weights, &s.values(at.layer)?)
        },
    ),
    structural("one_elem", "One number of the output of attention is a quarter of the usual size off.").at(
        &[O_PROJ],
        |_, at| {
            let mut output = at.value.clone();
            let size = (output.iter().map(|x| x * x).sum::<f64>() / output.len() as f64).sqrt();
            *output.iter_mut().last()? += 0.25 * size;
            Some(output)
        },
    ),
];

/// Scores with other keys.
fn scores_of(scene: &Scene<'_>, at: At<'_>, k_nope: Array4<f64>) -> Option<ArrayD<f64>> {
    let mut heads = scene.heads(at.layer)?;
    heads.k_nope = k_nope;
    scene.masked(heads.scores())
}

/// kv_b_proj read as `[H n | H v]` in place of `H [n | v]`.
fn keys_then_values(scene: &Scene<'_>, layer: usize) -> Option<(Array4<f64>, Array4<f64>)> {
    let c = scene.config();
    by_part(&scene.keys_and_values(layer)?, c.num_attention_heads, c.qk_nope_head_dim)
}

/// Keys from the latents, each head by the matrix that `choose(W^UK of all heads, the head)` names.
fn keys_from(
    scene: &Scene<'_>,
    layer: usize,
    choose: impl Fn(&[Array2<f64>], usize) -> Array2<f64>,
) -> Option<Array4<f64>> {
    let heads = scene.config().num_attention_heads;
    let w_uk: Vec<_> = (0..heads).map(|head| Some(scene.absorbed_weights(layer, head)?.0)).collect::<Option<_>>()?;
    let chosen: Vec<_> = (0..heads).map(|head| choose(&w_uk, head)).collect();
    expand(scene.latents(layer)?.view(), &chosen)
}
