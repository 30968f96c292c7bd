//! The other choices that a token could have made: all sets of experts that are acceptable, nearest first.
//!
//! Whatever a router selects from logits that are off by ε at most lies in groups, and among their experts, that differ from
//! the best by swaps across a gap of 2ε at most. So those swaps are listed, and [`acceptable`] decides.

use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;

use super::acceptable;

/// How many experts (or groups) may be swapped on each side of the gap. More are not looked at.
const SWAPPED: usize = 6;
/// How many alternatives are told.
const MOST: usize = 24;

/// Other choices.
#[derive(Clone, Debug, Default)]
pub struct Alternatives {
    /// Each with the smallest error of the logits that allows it; the nearest first.
    pub sets: Vec<(f64, BTreeSet<usize>)>,
    /// Whether these are all.
    pub complete: bool,
}

/// What a router could have selected in place of `chosen` from `logits` known to within `epsilon`.
pub fn alternatives(method: TopkMethod, logits: &[f64], chosen: &BTreeSet<usize>, epsilon: f64) -> Alternatives {
    let mut complete = true;
    let mut swaps = |values: &[f64], items: Vec<usize>, k: usize| {
        let (sets, all) = swaps(values, items, k, epsilon);
        complete &= all;
        sets
    };
    let found: BTreeSet<BTreeSet<usize>> = match method {
        TopkMethod::Greedy => swaps(logits, (0..logits.len()).collect(), chosen.len()).into_iter().collect(),
        TopkMethod::GroupLimitedGreedy { n_group, topk_group } => {
            let size = logits.len() / n_group;
            let experts = |group: usize| group * size..(group + 1) * size;
            let best: Vec<f64> =
                (0..n_group).map(|g| experts(g).map(|e| logits[e]).fold(f64::NEG_INFINITY, f64::max)).collect();
            let kept = swaps(&best, (0..n_group).collect(), topk_group);
            let within = kept
                .into_iter()
                .flat_map(|groups| swaps(logits, groups.into_iter().flat_map(experts).collect(), chosen.len()));
            within.collect()
        }
    };
    let others = found.into_iter().filter(|set| set != chosen && acceptable(method, logits, set, epsilon));
    let mut sets: Vec<_> = others.map(|set| (needed(method, logits, &set, epsilon), set)).collect();
    sets.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    complete &= sets.len() <= MOST;
    sets.truncate(MOST);
    Alternatives { sets, complete }
}

/// The sets of `k` of the `items` none of which is more than 2ε below one that is left out, and whether these are all.
fn swaps(values: &[f64], mut items: Vec<usize>, k: usize, epsilon: f64) -> (Vec<BTreeSet<usize>>, bool) {
    items.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    if k == 0 || k >= items.len() {
        let all = (k == items.len()).then(|| items.into_iter().collect());
        return (all.into_iter().collect(), true);
    }
    let (inside, outside) = items.split_at(k);
    let (lowest, highest) = (values[inside[k - 1]], values[outside[0]]);
    let leave: Vec<usize> = inside.iter().rev().copied().filter(|&e| values[e] <= highest + 2.0 * epsilon).collect();
    let enter: Vec<usize> = outside.iter().copied().filter(|&e| values[e] >= lowest - 2.0 * epsilon).collect();
    let all = leave.len() <= SWAPPED && enter.len() <= SWAPPED;
    let subsets = |of: &[usize]| -> Vec<Vec<usize>> {
        let of = &of[..of.len().min(SWAPPED)];
        let subset = |mask: usize| (0..of.len()).filter(|i| mask >> i & 1 == 1).map(|i| of[i]).collect();
        (0..1_usize << of.len()).map(subset).collect()
    };
    let (leaving, entering) = (subsets(&leave), subsets(&enter));
    let mut sets = Vec::new();
    for gone in &leaving {
        for come in entering.iter().filter(|come| come.len() == gone.len()) {
            let kept = inside.iter().filter(|e| !gone.contains(e));
            sets.push(kept.chain(come).copied().collect());
        }
    }
    (sets, all)
}

/// The smallest error of the logits that makes `set` acceptable, which `most` does.
fn needed(method: TopkMethod, logits: &[f64], set: &BTreeSet<usize>, most: f64) -> f64 {
    let (mut low, mut high) = (0.0, most);
    if acceptable(method, logits, set, 0.0) {
        return 0.0;
    }
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if acceptable(method, logits, set, middle) { high = middle } else { low = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use dsv2_reference::weights::generator::splitmix64;

    use super::*;

    const METHODS: [TopkMethod; 2] = [TopkMethod::Greedy, TopkMethod::GroupLimitedGreedy { n_group: 4, topk_group: 2 }];

    fn uniform(seed: u64) -> f64 {
        (splitmix64(seed) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn sets_of_3_of_8() -> impl Iterator<Item = BTreeSet<usize>> {
        (0..1_usize << 8)
            .filter(|mask| mask.count_ones() == 3)
            .map(|mask| (0..8).filter(|e| mask >> e & 1 == 1).collect())
    }

    #[test]
    fn they_are_all_sets_that_are_acceptable_and_no_other() {
        let mut several = 0;
        for trial in 0..300 {
            let epsilon = 0.02 + 0.1 * uniform(trial);
            // some are exactly equal
            let z: Vec<f64> = (0..8).map(|e| (uniform(1000 * trial + e) * 20.0).round() / 20.0).collect();
            for method in METHODS {
                let acceptable: BTreeSet<_> =
                    sets_of_3_of_8().filter(|set| acceptable(method, &z, set, epsilon)).collect();
                let chosen = acceptable.first().unwrap().clone();
                let found = alternatives(method, &z, &chosen, epsilon);
                assert!(found.sets.is_sorted_by(|a, b| a.0 <= b.0));
                let sets: BTreeSet<_> = found.sets.iter().map(|(_, set)| set.clone()).collect();
                assert!(sets.iter().all(|set| acceptable.contains(set) && *set != chosen));
                if found.complete {
                    assert_eq!(sets.len() + 1, acceptable.len(), "{method:?} {z:?} {epsilon}");
                    several += usize::from(sets.len() > 1);
                }
            }
        }
        assert!(several > 200, "{several}");
    }

    #[test]
    fn each_needs_as_much_as_is_said_and_no_less() {
        for trial in 0..100 {
            let z: Vec<f64> = (0..8).map(|e| uniform(77 * trial + e)).collect();
            for method in METHODS {
                let chosen = sets_of_3_of_8().find(|set| acceptable(method, &z, set, 0.0)).unwrap();
                for (needed, set) in alternatives(method, &z, &chosen, 0.1).sets {
                    assert!(needed > 0.0 && acceptable(method, &z, &set, needed));
                    assert!(!acceptable(method, &z, &set, needed - 1e-9));
                }
            }
        }
    }

    #[test]
    fn a_tie_needs_nothing() {
        let z = [3.0, 2.0, 2.0, 0.0];
        let found = alternatives(TopkMethod::Greedy, &z, &BTreeSet::from([0, 1]), 0.0);
        assert_eq!(found.sets, [(0.0, BTreeSet::from([0, 2]))]);
        assert!(found.complete);
    }
}
