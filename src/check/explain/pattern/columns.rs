//! Which part of a row is wrong, where the rest is right.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::table::*;

use super::{Seen, places};
use crate::budget::part;

/// A row that consists of parts: so many blocks, each with the widths of its parts and their names.
struct Made {
    kinds: &'static [&'static str],
    blocks: fn(&DeepseekV2Config) -> usize,
    parts: &'static [Part],
}

/// What a part is called, and how wide it is.
type Part = (&'static str, fn(&DeepseekV2Config) -> usize);

const NOPE: Part = ("the part without position", |c| c.qk_nope_head_dim);

/// Rows that are put together.
const MADE: &[Made] = &[
    Made {
        kinds: &[Q_PROJ, Q_B_PROJ],
        blocks: |c| c.num_attention_heads,
        parts: &[NOPE, ("the part to be rotated", |c| c.qk_rope_head_dim)],
    },
    Made {
        kinds: &[KV_A_PROJ],
        blocks: |_| 1,
        parts: &[("the latent", |c| c.kv_lora_rank), ("the rotary key", |c| c.qk_rope_head_dim)],
    },
    Made {
        kinds: &[KV_B_PROJ],
        blocks: |c| c.num_attention_heads,
        parts: &[("the keys' part", |c| c.qk_nope_head_dim), ("the values' part", |c| c.v_head_dim)],
    },
    Made { kinds: &[ATTN_OUTPUT], blocks: |c| c.num_attention_heads, parts: &[("", |c| c.v_head_dim)] },
];

/// A part of the row, a head's share of it, one of its halves, the even or the odd numbers, or one number.
pub fn parts(seen: &Seen<'_>) -> Option<String> {
    let wrong = wrong_columns(seen)?;
    let count = wrong.iter().filter(|wrong| **wrong).count();
    if count == 0 || count == wrong.len() {
        return None;
    }
    if let Some(said) = made(seen, &wrong) {
        return Some(said);
    }
    let width = wrong.len();
    let only = |of: &dyn Fn(usize) -> bool| (0..width).all(|i| of(i) || !wrong[i]) && count * 2 > width / 2;
    let halves: [(&str, &dyn Fn(usize) -> bool); 4] = [
        ("the first half", &|i| i < width / 2),
        ("the second half", &|i| i >= width.div_ceil(2)),
        ("the numbers at even places", &|i| i % 2 == 0),
        ("the numbers at odd places", &|i| i % 2 == 1),
    ];
    let half = halves.into_iter().find(|(_, of)| width > 2 && only(of));
    match (half, count) {
        (Some((half, _)), _) => Some(format!("only {half} of each row is wrong")),
        (None, 1) => Some(format!("only column {} is wrong (counted from 0)", wrong.iter().position(|wrong| *wrong)?)),
        _ => None,
    }
}

/// By the parts that the row consists of.
fn made(seen: &Seen<'_>, wrong: &[bool]) -> Option<String> {
    let config = &seen.case.config;
    let made = MADE.iter().find(|made| made.kinds.contains(&seen.stage.kind))?;
    let widths: Vec<usize> = made.parts.iter().map(|(_, width)| width(config)).collect();
    let (blocks, block) = ((made.blocks)(config), widths.iter().sum::<usize>());
    if block == 0 || blocks * block != wrong.len() {
        return None;
    }
    let mut by_part = vec![false; widths.len()];
    let mut by_block = vec![false; blocks];
    for (i, _) in wrong.iter().enumerate().filter(|(_, wrong)| **wrong) {
        by_block[i / block] = true;
        let mut end = 0;
        let part = widths.iter().position(|width| {
            end += width;
            i % block < end
        })?;
        by_part[part] = true;
    }
    let parts: Vec<&str> =
        made.parts.iter().zip(&by_part).filter(|(_, wrong)| **wrong).map(|((name, _), _)| *name).collect();
    match &parts[..] {
        [part] if widths.len() > 1 => Some(format!("only {part} of each row is wrong")),
        _ => places::which(&by_block, "head"),
    }
}

/// Which places along the last axis are wrong in any row; nothing if one is [in doubt](super::is_wrong).
fn wrong_columns(seen: &Seen<'_>) -> Option<Vec<bool>> {
    let mut worst = vec![0.0_f64; seen.width()];
    let (mut squares, mut count) = (0.0, 0usize);
    for (_, _, want) in seen.rows() {
        squares += super::square(&want);
        count += want.len();
    }
    let allowed = seen.budget.max * (squares / count.max(1) as f64).sqrt();
    for (_, got, want) in seen.rows() {
        for (worst, (x, y)) in worst.iter_mut().zip(got.iter().zip(&want)) {
            *worst = match (x - y).abs() {
                _ if x == y || x.is_nan() && y.is_nan() => *worst,
                error if error.is_nan() => f64::INFINITY,
                error => worst.max(part(error, allowed)),
            };
        }
    }
    worst.into_iter().map(super::is_wrong).collect()
}
