//! Wrong experts, or right ones with wrong weights.

use dsv2_reference::model::router::selection::highest;
use dsv2_reference::stage::table::{TOPK_INDICES, TOPK_WEIGHTS};
use ndarray::{Array1, Array2, ArrayD};

use super::{grouped, moe, plain_weights, scaled_experts, several_experts, some_experts, structural};
use crate::case::Case;
use crate::mutants::arithmetic::softmax;
use crate::mutants::scene::{Scene, rows, shaped};
use crate::mutants::{At, Mutant};

pub const MUTANTS: &[Mutant] = &[
    structural("group_top2", "A group is as good as the sum of its two best experts (DeepSeek-V3's rule).")
        .when(grouped)
        .reported("ggml-org/llama.cpp at 0c1e570: 1e-2 to 7.5e-1 off; the same in candle-vllm and litgpt")
        .choosing(|s, layer| by_group(s, layer, |best| best.iter().take(2).sum())),
    structural("group_sum", "A group is as good as the sum of its experts.")
        .when(grouped)
        .choosing(|s, layer| by_group(s, layer, |best| best.iter().sum())),
    structural("group_worst", "A group is as good as its worst expert.")
        .when(grouped)
        .choosing(|s, layer| by_group(s, layer, |best| best.last().copied().unwrap_or(0.0))),
    structural("group_ignored", "Experts are chosen from all groups.")
        .when(grouped)
        .choosing(|s, layer| Some(s.router(layer)?.choose(|scores| (0..scores.len()).collect()))),
    structural("group_M_plus1", "One group too many is kept.").when(grouped).choosing(|s, layer| {
        let router = s.router(layer)?;
        let count = router.groups.1 + 1;
        Some(router.choose(|scores| router.of_best_groups(scores, count, largest)))
    }),
    structural("group_strided", "Group g has the experts g, g + n_group, ..., not a run of neighbours.")
        .when(grouped)
        .choosing(|s, layer| {
            let router = s.router(layer)?;
            let (groups, kept) = router.groups;
            Some(router.choose(|scores| {
                let of = |group: usize| (group..scores.len()).step_by(groups);
                let best = |group| of(group).map(|e| scores[e]).fold(0.0, f64::max);
                let best: Array1<f64> = (0..groups).map(best).collect();
                highest((0..groups).collect(), best.view(), kept).into_iter().flat_map(of).collect()
            }))
        }),
    structural("group_topk_in_each", "Of every group its topk_group best experts are candidates.")
        .when(|case| grouped(case) && enough_in_each_group(case))
        .reported("deepseek.cpp")
        .choosing(|s, layer| {
            let router = s.router(layer)?;
            let (groups, kept) = router.groups;
            Some(router.choose(|scores| {
                let size = scores.len() / groups;
                let of = |group: usize| (group * size..(group + 1) * size).collect();
                (0..groups).flat_map(|group| highest(of(group), scores, kept)).collect()
            }))
        }),
    structural(
        "group_mask_lost",
        "The mask of groups replaces the scores: every token goes to the first experts, with weight 0.",
    )
    .when(grouped)
    .reported("huggingface/candle#2744, EricLBuehler/mistral.rs#1278")
    .choosing(|s, layer| {
        let router = s.router(layer)?;
        let tokens = router.logits.nrows();
        Some(Array2::from_shape_fn((tokens, router.per_token), |(_, slot)| slot as i64).into_dyn())
    })
    .at(&[TOPK_WEIGHTS], |_, at| Some(at.value * 0.0)),
    structural("topk_lowest", "The experts with the lowest scores are chosen.").when(some_experts).choosing(
        |s, layer| {
            let router = s.router(layer)?;
            let k = router.per_token;
            Some(router.choose(|scores| highest((0..scores.len()).collect(), (-&scores).view(), k)))
        },
    ),
    structural("no_gamma", "routed_scaling_factor is left out.")
        .when(scaled_experts)
        .at(&[TOPK_WEIGHTS], |s, at| Some(at.value / s.config().routed_scaling_factor)),
    structural("renorm", "The weights are divided by their sum, then scaled (DeepSeek-V3's rule).")
        .when(|case| several_experts(case) && plain_weights(case))
        .reported("ggml-org/llama.cpp at 0c1e570, where norm_topk_prob is set")
        .at(&[TOPK_WEIGHTS], |s, at| Some(normalised(at)? * s.config().routed_scaling_factor)),
    structural("renorm_nogamma", "The weights are divided by their sum and not scaled.")
        .when(|case| several_experts(case) && plain_weights(case))
        .at(&[TOPK_WEIGHTS], |_, at| normalised(at)),
    structural("norm_topk_ignored", "norm_topk_prob is set and ignored.")
        .when(|case| several_experts(case) && !plain_weights(case))
        .reported("huggingface/transformers, by design; see `dialect`")
        .at(&[TOPK_WEIGHTS], |s, at| {
            let choice = s.index(TOPK_INDICES, at.layer)?;
            let router = s.router(at.layer)?;
            let weight = |(n, slot): (usize, usize)| router.scores(n)[choice[[n, slot]] as usize] * router.factor;
            shaped(Array2::from_shape_fn(choice.dim(), weight), at.value)
        }),
    structural("softmax_after_topk", "The softmax is over the chosen experts only.")
        .when(|case| several_experts(case) && plain_weights(case))
        .at(&[TOPK_WEIGHTS], |s, at| {
            let factor = s.config().routed_scaling_factor;
            let mut weights = logits_of_choice(s, at)?;
            for mut row in weights.rows_mut() {
                let of_chosen = softmax(row.view());
                row.assign(&(of_chosen * factor));
            }
            shaped(weights, at.value)
        }),
    structural("gate_sigmoid", "Scores are sigmoids, not a softmax (DeepSeek-V3's rule).")
        .when(|case| moe(case) && plain_weights(case))
        .at(&[TOPK_WEIGHTS], |s, at| {
            let factor = s.config().routed_scaling_factor;
            shaped(logits_of_choice(s, at)?.mapv(|z| factor / (1.0 + (-z).exp())), at.value)
        }),
    structural("gate_raw_logits", "The logits themselves are the weights.")
        .when(|case| moe(case) && plain_weights(case))
        .at(&[TOPK_WEIGHTS], |s, at| shaped(logits_of_choice(s, at)? * s.config().routed_scaling_factor, at.value)),
    structural("w_misaligned", "Each expert has the weight of the next.").when(several_experts).at(
        &[TOPK_WEIGHTS],
        |_, at| {
            let weights = rows(at.value)?;
            let k = weights.ncols();
            shaped(Array2::from_shape_fn(weights.dim(), |(n, slot)| weights[[n, (slot + 1) % k]]), at.value)
        },
    ),
    structural("topk_minus1", "The last of the chosen experts is left out.").when(several_experts).at(
        &[TOPK_WEIGHTS],
        |_, at| {
            let mut weights = rows(at.value)?;
            let last = weights.ncols().checked_sub(1)?;
            weights.column_mut(last).fill(0.0);
            shaped(weights, at.value)
        },
    ),
    structural("weights_one", "Every chosen expert counts alike.")
        .when(several_experts)
        .at(&[TOPK_WEIGHTS], |s, at| {
            Some(at.value.mapv(|_| s.config().routed_scaling_factor / s.config().num_experts() as f64))
        }),
];

fn largest(scores: &[f64]) -> f64 {
    scores.iter().copied().fold(0.0, f64::max)
}

/// Whether the best `topk_group` of every group are enough to choose from.
fn enough_in_each_group(case: &Case) -> bool {
    let (groups, kept) = (case.config.n_group.unwrap_or(1), case.config.topk_group.unwrap_or(1));
    let in_each = kept.min(case.config.num_experts() / groups.max(1));
    case.config.experts_per_token().is_ok_and(|k| k <= groups * in_each)
}

/// The choice with another value of a group, of the scores of its experts by falling score.
fn by_group(scene: &Scene<'_>, layer: usize, value: impl Fn(&[f64]) -> f64) -> Option<ArrayD<i64>> {
    let router = scene.router(layer)?;
    let sorted = |scores: &[f64]| {
        let mut scores = scores.to_vec();
        scores.sort_by(|a, b| b.total_cmp(a));
        value(&scores)
    };
    Some(router.choose(|scores| router.of_best_groups(scores, router.groups.1, sorted)))
}

/// Each token's weights, divided by their sum.
fn normalised(at: At<'_>) -> Option<ArrayD<f64>> {
    let mut weights = rows(at.value)?;
    for mut row in weights.rows_mut() {
        let sum = row.sum();
        row /= sum;
    }
    shaped(weights, at.value)
}

/// The logits of the chosen experts, `[N,k]`.
fn logits_of_choice(scene: &Scene<'_>, at: At<'_>) -> Option<Array2<f64>> {
    let logits = scene.router(at.layer)?.logits;
    let choice = scene.index(TOPK_INDICES, at.layer)?;
    Some(Array2::from_shape_fn(choice.dim(), |(n, slot)| logits[[n, choice[[n, slot]] as usize]]))
}
