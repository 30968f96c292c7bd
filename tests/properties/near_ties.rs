//! What `check` accepts as a near tie of the router: all that an error of the logits can cause, and nothing else.
//!
//! A set S of experts is acceptable for logits z and an error ε if the router selects S from some z + δ, |δ_e| <= ε. So
//! there are two laws: whatever a δ selects is accepted (a correct implementation is never accused), and for whatever is
//! accepted there is a δ (a wrong one is not excused). Logits lie on a coarse grid, so that ties are common.

use std::collections::BTreeSet;

use dsv2::judge::near_tie;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router::RoutingRule;
use dsv2_testing::for_all;
use ndarray::Array1;
use proptest::collection::vec;
use proptest::prop_assert;
use proptest::strategy::Strategy;

/// A unit of logits.
const STEP: f64 = 0.25;

#[derive(Clone, Debug)]
struct Logits {
    n_group: usize,
    topk_group: usize,
    k: usize,
    /// In steps.
    z: Vec<i32>,
    /// ε, in steps.
    error: i32,
    /// In eighths of ε, -8 to 8.
    delta: Vec<i32>,
    /// Which set of k experts is asked about.
    asked: usize,
}

fn logits() -> impl Strategy<Value = Logits> {
    (1..4_usize, 2..4_usize)
        .prop_flat_map(|(n_group, size)| {
            let experts = n_group * size;
            (1..=n_group, 1..4_usize, vec(0..6, experts), 0..3, vec(-8..=8, experts), 0..220_usize).prop_map(
                move |(topk_group, k, z, error, delta, asked)| {
                    let k = k.min(topk_group * size);
                    Logits { n_group, topk_group, k, z, error, delta, asked }
                },
            )
        })
        .boxed()
}

impl Logits {
    /// Without groups, if there is one.
    fn method(&self) -> TopkMethod {
        let (n_group, topk_group) = (self.n_group, self.topk_group);
        if n_group == 1 { TopkMethod::Greedy } else { TopkMethod::GroupLimitedGreedy { n_group, topk_group } }
    }

    fn z(&self) -> Vec<f64> {
        self.z.iter().map(|&z| STEP * f64::from(z)).collect()
    }

    fn epsilon(&self) -> f64 {
        STEP * f64::from(self.error)
    }

    fn select(&self, logits: &[f64]) -> BTreeSet<usize> {
        let rule = RoutingRule::<f64>::new(self.z.len(), self.method(), self.k).unwrap();
        let scores: Array1<f64> = logits.iter().map(|z| z.exp()).collect();
        rule.select(scores.view()).into_iter().collect()
    }

    /// A set of k experts, any.
    fn asked(&self) -> BTreeSet<usize> {
        let sets = subsets(self.z.len(), self.k);
        sets[self.asked % sets.len()].iter().copied().collect()
    }

    /// A δ of just more than ε by which `chosen` is selected, if there is one: for every set of groups that could be kept,
    /// `chosen` is raised and all others are lowered; in those groups the others are raised again as far as they may.
    fn witness(&self, chosen: &BTreeSet<usize>) -> Option<Vec<f64>> {
        let (z, epsilon, tiny) = (self.z(), self.epsilon() + 1e-6, 1e-7);
        let size = z.len() / self.n_group;
        let moved: Vec<f64> =
            z.iter().enumerate().map(|(e, z)| if chosen.contains(&e) { z + epsilon } else { z - epsilon }).collect();
        let lowest = chosen.iter().map(|&e| moved[e]).fold(f64::INFINITY, f64::min);
        let kept = if self.n_group == 1 { vec![vec![0]] } else { subsets(self.n_group, self.topk_group) };
        kept.into_iter().find_map(|kept| {
            let raised = |e: usize| kept.contains(&(e / size)) && !chosen.contains(&e);
            let try_ = |e: usize| {
                if raised(e) { (z[e] + epsilon).min(lowest - tiny).max(z[e] - epsilon) } else { moved[e] }
            };
            let logits: Vec<f64> = (0..z.len()).map(try_).collect();
            (self.select(&logits) == *chosen).then_some(logits)
        })
    }
}

/// All sets of `k` of the numbers below `n`.
fn subsets(n: usize, k: usize) -> Vec<Vec<usize>> {
    let of_size = |bits: &usize| bits.count_ones() as usize == k;
    (0..1_usize << n).filter(of_size).map(|bits| (0..n).filter(|i| bits >> i & 1 == 1).collect()).collect()
}

/// Method, logits, chosen experts, ε -> whether they are accepted.
type Acceptance = dyn Fn(TopkMethod, &[f64], &BTreeSet<usize>, f64) -> bool;

/// As if there were no groups: no expert that was not chosen may be surely better than one that was.
fn without_groups(_: TopkMethod, z: &[f64], chosen: &BTreeSet<usize>, epsilon: f64) -> bool {
    near_tie::acceptable(TopkMethod::Greedy, z, chosen, epsilon)
}

#[test]
fn whatever_an_error_of_the_logits_selects_is_accepted() {
    let law = |accept: &Acceptance, case: Logits| {
        let moved: Vec<f64> =
            case.z().iter().zip(&case.delta).map(|(z, &d)| z + case.epsilon() * f64::from(d) / 8.0).collect();
        let chosen = case.select(&moved);
        prop_assert!(
            accept(case.method(), &case.z(), &chosen, case.epsilon()),
            "{chosen:?} is selected from {moved:?}"
        );
        Ok(())
    };
    for_all(logits(), law)
        .tried(4096)
        .holds_for(&near_tie::acceptable)
        .fails_for("groups are ignored", &without_groups)
        .fails_for("one logit of the two may be off", &|method, z, chosen, epsilon| {
            near_tie::acceptable(method, z, chosen, epsilon / 2.0)
        });
}

#[test]
fn for_whatever_is_accepted_there_is_an_error_of_the_logits_that_selects_it() {
    let law = |accept: &Acceptance, case: Logits| {
        let chosen = case.asked();
        let accepted = accept(case.method(), &case.z(), &chosen, case.epsilon());
        prop_assert!(!accepted || case.witness(&chosen).is_some(), "nothing selects {chosen:?}");
        Ok(())
    };
    for_all(logits(), law)
        .tried(4096)
        .holds_for(&near_tie::acceptable)
        .fails_for("groups are ignored", &without_groups)
        .fails_for("each logit may be off by twice its error", &|method, z, chosen, epsilon| {
            near_tie::acceptable(method, z, chosen, 2.0 * epsilon)
        })
        .fails_for("any set that holds the best expert", &|_, z, chosen, _| {
            (0..z.len()).max_by(|&a, &b| z[a].total_cmp(&z[b])).is_some_and(|best| chosen.contains(&best))
        });
}
