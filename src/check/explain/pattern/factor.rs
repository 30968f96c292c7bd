//! Everything is a multiple of what it should be.

use dsv2_metrics::Comparing;
use dsv2_reference::model::rope::{softmax_scale, yarn_get_mscale};
use dsv2_reference::stage::table::*;

use super::Seen;
use crate::case::Case;

/// A number of the model that somebody may forget, or apply twice.
struct Quantity {
    name: &'static str,
    /// Where it plays a part; everywhere, if there is no list.
    at: &'static [&'static str],
    of: fn(&Case) -> Option<f64>,
}

const SCORES: &[&str] = &[ATTN_SCORES];
const TABLES: &[&str] = &[COS, SIN, Q_PE, K_PE, CACHED_K_PE];
const WEIGHTED: &[&str] = &[TOPK_WEIGHTS, EXPERTS, SHARED_EXPERTS];
const NORMED: &[&str] = &[EMBED_TOKENS, INPUT_LAYERNORM, POST_ATTENTION_LAYERNORM, NORM];

/// All of them, the likeliest first.
const QUANTITIES: &[Quantity] = &[
    Quantity { name: "routed_scaling_factor", at: WEIGHTED, of: |case| Some(case.config.routed_scaling_factor) },
    Quantity { name: "mscale", at: &[ATTN_SCORES, ATTN_WEIGHTS], of: mscale },
    Quantity { name: "mscale²", at: SCORES, of: |case| Some(mscale(case)?.powi(2)) },
    Quantity {
        name: "0.1 ln(factor) + 1",
        at: TABLES,
        of: |case| Some(yarn_get_mscale(case.config.rope().ok()?.factor?, 1.0)),
    },
    Quantity { name: "the softmax scale", at: SCORES, of: |case| softmax_scale(&case.config, case.dialect).ok() },
    Quantity {
        name: "√((n + r) / n), the scale of a head without its rotated part",
        at: SCORES,
        of: |case| Some((case.config.qk_head_dim() as f64 / case.config.qk_nope_head_dim as f64).sqrt()),
    },
    Quantity {
        name: "√((n + r) / (c + r)), the scale of a latent query",
        at: SCORES,
        of: |case| {
            let c = &case.config;
            Some((c.qk_head_dim() as f64 / (c.kv_lora_rank + c.qk_rope_head_dim) as f64).sqrt())
        },
    },
    Quantity { name: "√(n + r)", at: SCORES, of: |case| Some((case.config.qk_head_dim() as f64).sqrt()) },
    Quantity { name: "√hidden_size", at: NORMED, of: |case| Some((case.config.hidden_size as f64).sqrt()) },
    Quantity {
        name: "√kv_lora_rank",
        at: &[KV_A_LAYERNORM, CACHED_KV],
        of: |case| Some((case.config.kv_lora_rank as f64).sqrt()),
    },
    Quantity {
        name: "√q_lora_rank", at: &[Q_A_LAYERNORM], of: |case| Some((case.config.q_lora_rank? as f64).sqrt())
    },
    Quantity {
        name: "num_experts_per_tok",
        at: WEIGHTED,
        of: |case| Some(case.config.experts_per_token().ok()? as f64),
    },
    Quantity { name: "n_group", at: WEIGHTED, of: |case| Some(case.config.n_group? as f64) },
    Quantity { name: "n_shared_experts", at: WEIGHTED, of: |case| Some(case.config.n_shared_experts? as f64) },
    Quantity {
        name: "num_attention_heads",
        at: &[ATTN_WEIGHTS, ATTN_OUTPUT, O_PROJ],
        of: |case| Some(case.config.num_attention_heads as f64),
    },
    Quantity { name: "2", at: &[], of: |_| Some(2.0) },
];

/// More names than this are no help.
const NAMES: usize = 2;

fn mscale(case: &Case) -> Option<f64> {
    let rope = case.config.rope().ok()?;
    Some(yarn_get_mscale(rope.factor?, rope.mscale_all_dim.filter(|m| *m != 0.0).unwrap_or(1.0)))
}

/// Nothing but zeros.
pub fn zero(seen: &Seen<'_>) -> Option<String> {
    let mut rows = seen.rows().peekable();
    rows.peek()?;
    rows.all(|(_, got, _)| got.iter().all(|x| *x == 0.0)).then(|| "every number is 0".to_owned())
}

/// One factor on every number, and what it may be. A factor of 1 is none, and neither is one that leaves an error behind.
pub fn factor(seen: &Seen<'_>) -> Option<String> {
    let (mut product, mut norm) = (0.0, 0.0);
    for (_, got, want) in seen.rows() {
        for (x, y) in got.iter().zip(&want).filter(|(x, y)| x.is_finite() && y.is_finite()) {
            product += x * y;
            norm += y * y;
        }
    }
    let factor = product / norm;
    let noise = seen.budget.l2.max(seen.budget.gain);
    let is_one = (factor - 1.0).abs() <= 4.0 * noise;
    if !factor.is_finite() || factor == 0.0 || is_one {
        return None;
    }
    let mut comparing = Comparing::new(seen.want.shape());
    for (row, got, mut want) in seen.rows() {
        want.iter_mut().for_each(|y| *y *= if y.is_finite() { factor } else { 1.0 });
        comparing.go_to(row);
        comparing.add(&got, &want, None);
    }
    let compared = comparing.finish();
    let left = compared.metrics;
    if compared.nonfinite.is_some()
        || left.l2 > seen.budget.l2
        || left.row > seen.budget.row
        || left.max > seen.budget.max
    {
        return None;
    }
    let near = |value: f64| (factor.abs() / value - 1.0).abs() <= 2.0 * noise;
    let mut names: Vec<String> = Vec::new();
    let known = QUANTITIES.iter().filter(|known| known.at.is_empty() || known.at.contains(&seen.stage.kind));
    for (name, value) in known.filter_map(|known| Some((known.name, (known.of)(seen.case)?))) {
        if value.is_finite() && value > 0.0 && (value - 1.0).abs() > 4.0 * noise {
            names.extend(near(value).then(|| name.to_owned()));
            names.extend(near(1.0 / value).then(|| format!("1/{name}")));
        }
    }
    // a number that only repeats the factor tells nothing beside a name
    if names.len() > 1 {
        names.retain(|name| name != "2" && name != "1/2");
    }
    let sign = if factor < 0.0 { ", with the sign changed" } else { "" };
    if (factor + 1.0).abs() <= 2.0 * noise {
        return Some("every number has the wrong sign, and is right otherwise".to_owned());
    }
    // as many digits as the noise leaves, and no fewer than tell it from 1
    let from_one = (-(factor.abs() - 1.0).abs().log10()).ceil() + 1.0;
    let digits = (-noise.log10()).floor().clamp(2.0, 4.0).max(from_one.min(15.0)) as i32;
    let shown = rounded(factor, digits);
    let named =
        if names.is_empty() || names.len() > NAMES { String::new() } else { format!(": {}{sign}", names.join(" or ")) };
    let shown = if (1e-5..1e7).contains(&shown.abs()) { shown.to_string() } else { format!("{factor:.1e}") };
    Some(format!("every number is {shown} times what it should be{named}"))
}

/// A number to so many significant digits, without zeros behind the point.
fn rounded(x: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(x.abs().log10().floor() as i32 + 1 - digits);
    let rounded = (x / unit).round() * unit;
    // what the multiplication leaves behind the last digit is no digit
    format!("{rounded:.12}").parse().unwrap_or(rounded)
}
