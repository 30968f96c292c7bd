//! Right tables, wrongly applied.

use dsv2_reference::model::rope::{RotaryEmbedding, RotaryTables};
use dsv2_reference::stage::table::{ATTN_SCORES, K_PE, Q_PE};
use ndarray::{Array2, Array4, ArrayD, Axis, s};

use super::tables::far;
use super::{equivalent, fixed_rope, several_tokens, structural};
use crate::case::Case;
use crate::inputs::AttentionMask;
use crate::mutants::parts::{by_part, rotate};
use crate::mutants::scene::Scene;
use crate::mutants::{At, Mutant};

const ROTATED: &[&str] = &[Q_PE, K_PE];

pub const MUTANTS: &[Mutant] = &[
    structural("rope_half", "The two halves are rotated against each other, not neighbours (Llama's layout).")
        .when(more_than_a_pair)
        .reported("vllm-project/vllm#26995, huggingface/transformers#39687")
        .at(ROTATED, rotated_halves),
    structural("rope_half_q_only", "Halves are rotated in the queries, neighbours in the keys.")
        .when(more_than_a_pair)
        .at(&[Q_PE], rotated_halves),
    structural("rope_q_off1", "Queries stand one position too late.")
        .when(fixed_rope)
        .at(&[Q_PE], |s, at| rotated_at(s, at, &(s.positions() + 1))),
    structural("no_rope_q", "Queries are not rotated.")
        .when(several_tokens)
        .at(&[Q_PE], |s, at| Some(unrotated(s, at)?.into_dyn())),
    structural("no_rope_k", "Keys are not rotated.")
        .when(several_tokens)
        .at(&[K_PE], |s, at| Some(unrotated(s, at)?.into_dyn())),
    structural(
        "q_split_swap",
        "The rotated part of a query is taken from the front of the head, the other part from the back.",
    )
    .at(&[Q_PE], |s, at| {
        let r = s.config().qk_rope_head_dim;
        rotate(s.rotary()?, s.queries(at.layer)?.slice_move(s![.., .., .., ..r]))
    })
    .at(&[ATTN_SCORES], |s, at| {
        let r = s.config().qk_rope_head_dim;
        let mut heads = s.heads(at.layer)?;
        heads.q_nope = s.queries(at.layer)?.slice_move(s![.., .., .., r..]);
        s.masked(heads.scores())
    }),
    structural(
        "q_all_nope_then_rope",
        "A query is read as all heads' parts without position, then all heads' rotated parts.",
    )
    .when(super::several_heads)
    .at(&[Q_PE], |s, at| rotate(s.rotary()?, queries_by_part(s, at.layer)?.1))
    .at(&[ATTN_SCORES], |s, at| {
        let mut heads = s.heads(at.layer)?;
        heads.q_nope = queries_by_part(s, at.layer)?.0;
        s.masked(heads.scores())
    }),
    structural("rope_on_nope", "The part without position is rotated as well.").when(fixed_rope).at(
        &[ATTN_SCORES],
        |s, at| {
            let mut heads = s.heads(at.layer)?;
            let embedding = RotaryEmbedding::new(s.config(), s.dialect()).ok()?;
            rotate_front(embedding.tables(&s.positions(), None), &mut heads.q_nope);
            rotate_front(embedding.tables(&s.all_positions(), None), &mut heads.k_nope);
            s.masked(heads.scores())
        },
    ),
    equivalent("pad_pos_abs", "With padding on the left, positions are counted from the first real token.")
        .when(|case| fixed_rope(case) && !far(case, 32) && padded_on_the_left(case))
        .at(ROTATED, |s, at| {
            let real = s.attend();
            let before = |b: usize, end: usize| real.row(b).iter().take(end).filter(|real| **real).count();
            let (batch, length, _) = s.dims();
            let positions = Array2::from_shape_fn((batch, length), |(b, i)| before(b, s.past() + i) as i64);
            rotated_at(s, at, &positions)
        }),
];

fn more_than_a_pair(case: &Case) -> bool {
    several_tokens(case) && case.config.qk_rope_head_dim > 2
}

/// Whether padding is on the left and nowhere else, and positions are counted from the padding.
fn padded_on_the_left(case: &Case) -> bool {
    let Some(AttentionMask::Padding(attend)) = &case.inputs.attention_mask else { return false };
    let rows: Vec<Vec<bool>> = attend.rows().into_iter().map(|row| row.to_vec()).collect();
    case.inputs.position_ids.is_none() && rows.iter().all(|row| row.is_sorted()) && attend.iter().any(|real| !real)
}

/// What is rotated to become `q_pe` or `k_pe`.
fn unrotated(scene: &Scene<'_>, at: At<'_>) -> Option<Array4<f64>> {
    if at.kind == K_PE {
        return scene.unrotated_keys(at.layer);
    }
    let n = scene.config().qk_nope_head_dim;
    Some(scene.queries(at.layer)?.slice_move(s![.., .., .., n..]).as_standard_layout().into_owned())
}

fn rotated_at(scene: &Scene<'_>, at: At<'_>, positions: &Array2<i64>) -> Option<ArrayD<f64>> {
    let embedding = RotaryEmbedding::new(scene.config(), scene.dialect()).ok()?;
    rotate(embedding.tables(positions, None), unrotated(scene, at)?)
}

/// Turns (x[i], x[i + r/2]) by angle i.
fn rotated_halves(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    let x = unrotated(scene, at)?;
    let half = x.len_of(Axis(3)) / 2;
    let mut neighbours = x.clone();
    for i in 0..half {
        neighbours.slice_mut(s![.., .., .., 2 * i]).assign(&x.slice(s![.., .., .., i]));
        neighbours.slice_mut(s![.., .., .., 2 * i + 1]).assign(&x.slice(s![.., .., .., half + i]));
    }
    scene.rotary()?.rotate(&mut neighbours);
    let mut halves = x;
    for i in 0..half {
        halves.slice_mut(s![.., .., .., i]).assign(&neighbours.slice(s![.., .., .., 2 * i]));
        halves.slice_mut(s![.., .., .., half + i]).assign(&neighbours.slice(s![.., .., .., 2 * i + 1]));
    }
    Some(halves.into_dyn())
}

/// Rotates as many of the first numbers as there are angles for.
fn rotate_front(tables: RotaryTables<f64>, x: &mut Array4<f64>) {
    let width = (x.len_of(Axis(3)) / 2 * 2).min(2 * tables.cos.len_of(Axis(2)));
    let mut front = x.slice(s![.., .., .., ..width]).to_owned();
    tables.rotate(&mut front);
    x.slice_mut(s![.., .., .., ..width]).assign(&front);
}

/// q as `[H n | H r]` in place of `H [n | r]`.
fn queries_by_part(scene: &Scene<'_>, layer: usize) -> Option<(Array4<f64>, Array4<f64>)> {
    let c = scene.config();
    by_part(&scene.flat_queries(layer)?, c.num_attention_heads, c.qk_nope_head_dim)
}
