//! Queries, keys and values that are put together wrongly, expanded or absorbed.

use dsv2_reference::stage::table::{ATTN_OUTPUT, ATTN_SCORES, ATTN_WEIGHTS, O_PROJ};
use ndarray::{Array2, Array4, ArrayD, Axis, s};

use super::{always, several_heads, several_tokens, unreported};
use crate::mutants::parts::expand;
use crate::mutants::scene::Scene;
use crate::mutants::{At, Mutant, real};

pub const MUTANTS: &[Mutant] = &[
    unreported(
        "kvb_split_swap",
        always,
        "Of each head, kv_b_proj is read as values, then keys.",
        &[
            real(&[ATTN_SCORES], |s, at| {
                let v = s.config().v_head_dim;
                let keys = s.keys_and_values_by_head(at.layer)?.slice_move(s![.., .., .., v..]);
                scores_of(s, at, keys)
            }),
            real(&[ATTN_OUTPUT], |s, at| {
                let v = s.config().v_head_dim;
                let values = s.keys_and_values_by_head(at.layer)?.slice_move(s![.., .., .., ..v]);
                s.attend_with(&s.real4(ATTN_WEIGHTS, at.layer)?, &values)
            }),
        ],
    ),
    unreported(
        "kvb_all_k_then_v",
        several_heads,
        "kv_b_proj is read as all heads' keys, then all heads' values.",
        &[
            real(&[ATTN_SCORES], |s, at| scores_of(s, at, by_part(s, at.layer)?.0)),
            real(&[ATTN_OUTPUT], |s, at| s.attend_with(&s.real4(ATTN_WEIGHTS, at.layer)?, &by_part(s, at.layer)?.1)),
        ],
    ),
    unreported(
        "kpe_head0_only",
        several_heads,
        "The rotated key is used by the first head only.",
        &[real(&[ATTN_SCORES], |s, at| {
            let heads = s.heads(at.layer)?;
            let mut rotated = heads.pe_scores();
            rotated.slice_mut(s![.., 1.., .., ..]).fill(0.0);
            s.masked(heads.nope_scores() + rotated)
        })],
    ),
    unreported(
        "kpe_dropped",
        always,
        "The rotated part does not enter the scores.",
        &[real(&[ATTN_SCORES], |s, at| s.masked(s.heads(at.layer)?.nope_scores()))],
    ),
    unreported(
        "nope_dropped",
        always,
        "The part without position does not enter the scores.",
        &[real(&[ATTN_SCORES], |s, at| s.masked(s.heads(at.layer)?.pe_scores()))],
    ),
    unreported(
        "abs_uk_T",
        |case| case.config.qk_nope_head_dim == case.config.kv_lora_rank,
        "Absorbed: W^UK is not transposed (where it is square).",
        &[real(&[ATTN_SCORES], |s, at| {
            scores_of(s, at, keys_from(s, at.layer, |w_uk, head| w_uk[head].t().to_owned())?)
        })],
    ),
    unreported(
        "abs_uk_headroll",
        several_heads,
        "Absorbed: each head has the W^UK of the next.",
        &[real(&[ATTN_SCORES], |s, at| {
            scores_of(s, at, keys_from(s, at.layer, |w_uk, head| w_uk[(head + 1) % w_uk.len()].clone())?)
        })],
    ),
    unreported(
        "abs_uv_headroll",
        several_heads,
        "Absorbed: each head has the W^UV of the next.",
        &[real(&[ATTN_OUTPUT], |s, at| {
            let values = s.values(at.layer)?;
            let rolled: Vec<usize> = (0..values.len_of(Axis(1))).map(|h| (h + 1) % values.len_of(Axis(1))).collect();
            s.attend_with(&s.real4(ATTN_WEIGHTS, at.layer)?, &values.select(Axis(1), &rolled))
        })],
    ),
    unreported(
        "abs_uv_for_uk",
        |case| case.config.v_head_dim >= case.config.qk_nope_head_dim,
        "Absorbed: W^UV stands where W^UK should.",
        &[real(&[ATTN_SCORES], |s, at| {
            let n = s.config().qk_nope_head_dim;
            scores_of(s, at, s.values(at.layer)?.slice_move(s![.., .., .., ..n]))
        })],
    ),
    unreported(
        "heads_transposed",
        |case| several_heads(case) && several_tokens(case),
        "The heads' outputs are laid side by side without exchanging heads and tokens.",
        &[real(&[ATTN_OUTPUT], |s, at| {
            let (batch, length, _) = s.dims();
            let c = s.config();
            let by_token = at.value.to_shape((batch, length, c.num_attention_heads, c.v_head_dim)).ok()?;
            let by_head = by_token.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
            Some(by_head.into_shape_with_order(at.value.raw_dim()).ok()?.into_dyn())
        })],
    ),
    unreported(
        "lastrow_tile",
        several_tokens,
        "The last query's last key lies in a tile that is not read.",
        &[real(&[ATTN_OUTPUT], |s, at| {
            let mut weights = s.real4(ATTN_WEIGHTS, at.layer)?;
            weights.slice_mut(s![.., .., -1, -1]).fill(0.0);
            s.attend_with(&weights, &s.values(at.layer)?)
        })],
    ),
    unreported(
        "one_elem",
        always,
        "One number of the output of attention is a quarter of the usual size off.",
        &[real(&[O_PROJ], |_, at| {
            let mut output = at.value.clone();
            let size = (output.iter().map(|x| x * x).sum::<f64>() / output.len() as f64).sqrt();
            *output.iter_mut().last()? += 0.25 * size;
            Some(output)
        })],
    ),
];

/// Scores with other keys.
fn scores_of(scene: &Scene<'_>, at: At<'_>, k_nope: Array4<f64>) -> Option<ArrayD<f64>> {
    let mut heads = scene.heads(at.layer)?;
    heads.k_nope = k_nope;
    scene.masked(heads.scores())
}

/// `[H n | H v]` in place of `H [n | v]`.
fn by_part(scene: &Scene<'_>, layer: usize) -> Option<(Array4<f64>, Array4<f64>)> {
    let c = scene.config();
    let (heads, n, v) = (c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim);
    let flat = scene.keys_and_values(layer)?;
    let (batch, keys, _) = flat.dim();
    let part = |from: usize, width: usize| {
        let part = flat.slice(s![.., .., from..from + heads * width]);
        let part = part.to_shape((batch, keys, heads, width)).ok()?.into_owned();
        Some(part.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned())
    };
    Some((part(0, n)?, part(heads * n, v)?))
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
