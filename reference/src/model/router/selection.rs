//! Selecting the highest scores: the only decision of the model that is no continuous function of its input.
//!
//! A score that is no number ranks below all others, so that there is always an order.

use std::cmp::Ordering;

use ndarray::{Array1, ArrayView1, Axis};

use super::groups::Groups;
use crate::Real;

/// The `count` candidates with the highest scores, by falling score. Of equal scores the lower index wins (and -0
/// equals +0). `torch.topk` promises no such thing: of eight equal ones it takes 6, 5, 4.
///
/// # Panics
/// If a candidate is not an index of `scores`.
pub fn highest<T: Real>(mut candidates: Vec<usize>, scores: ArrayView1<T>, count: usize) -> Vec<usize> {
    let rank = |e: usize| if scores[e].is_nan() { T::neg_infinity() } else { scores[e] };
    candidates.sort_by(|&a, &b| rank(b).partial_cmp(&rank(a)).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
    candidates.truncate(count);
    candidates
}

/// Restricts the choice to groups: all experts of the `count` groups with the highest `group_score`, which is given the
/// scores of a group's experts, by rising index. Of equal groups the lower index wins.
///
/// DeepSeek-V2's `group_score` is [`best`]; DeepSeek-V3's is the sum of the two best.
///
/// # Panics
/// If there are not as many `scores` as experts in `groups`.
pub fn experts_of_best_groups<T: Real>(
    groups: &Groups,
    scores: ArrayView1<T>,
    count: usize,
    group_score: impl Fn(ArrayView1<T>) -> T,
) -> Vec<usize> {
    assert_eq!(scores.len(), groups.experts(), "a score for each expert");
    let score_of = |group| group_score(scores.select(Axis(0), groups.experts_of(group)).view());
    let group_scores = Array1::from_iter((0..groups.count()).map(score_of));
    let kept = highest((0..groups.count()).collect(), group_scores.view(), count);
    kept.into_iter().flat_map(|group| groups.experts_of(group)).copied().collect()
}

/// DeepSeek-V2's score of a group: that of its best expert; minus infinity if it has none.
pub fn best<T: Real>(scores: ArrayView1<T>) -> T {
    scores.iter().copied().fold(T::neg_infinity(), T::max)
}

#[cfg(test)]
mod tests {
    use ndarray::{array, aview1};

    use super::*;

    #[test]
    fn what_is_no_number_comes_last() {
        assert_eq!(highest((0..4).collect(), aview1(&[f64::NAN, -3.0, f64::NAN, 1.0]), 3), [3, 1, 0]);
    }

    #[test]
    fn the_group_score_decides_which_groups() {
        let groups = Groups::new(vec![0, 1, 0, 1], 3);
        let scores = array![0.4, 0.3, 0.1, 0.3];
        assert_eq!(experts_of_best_groups(&groups, scores.view(), 1, best), [0, 2]);
        assert_eq!(experts_of_best_groups(&groups, scores.view(), 1, |group| group.sum()), [1, 3]);
        assert_eq!(best(aview1::<f64>(&[])), f64::NEG_INFINITY);
    }
}
