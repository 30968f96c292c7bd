//! How DeepSeek-V3 keeps its experts equally busy in training (V3 report 2.1.2; "Auxiliary-Loss-Free Load Balancing
//! Strategy for Mixture-of-Experts", arXiv 2408.15664). **Not DeepSeek-V2,** which has three losses for it
//! ([`crate::paper::training::balance_loss`]).
//!
//! After each step, every expert's bias goes up a little if it had fewer tokens than the mean, and down if it had more.
//! No gradient is involved. A small loss, sequence by sequence, guards against single sequences that visit few experts.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, Axis};

use crate::model::router::selection::highest;
use crate::{Error, Real, Result};

/// gamma of the released model for the first 14.3T tokens; 0 for the last 500B (V3 report 4.2).
pub const BIAS_UPDATE_SPEED: f64 = 0.001;

/// alpha of the released model (V3 report 4.2).
pub const SEQUENCE_BALANCE_FACTOR: f64 = 0.0001;

/// b_i <- b_i + gamma sign(mean load - load_i), where `load` \[E\] is how many tokens of the step's whole batch selected
/// each expert. An expert with exactly the mean keeps its bias.
///
/// # Errors
/// If there is not a load for each bias.
pub fn update_biases<T: Real>(mut bias: ArrayViewMut1<T>, load: &[usize], speed: T) -> Result<()> {
    if bias.len() != load.len() {
        return Err(Error::input("load", format!("one for each of {} experts", bias.len()), load.len()));
    }
    let (experts, all) = (load.len(), load.iter().sum::<usize>());
    for (bias, &load) in bias.iter_mut().zip(load) {
        // load_i against the mean, in whole numbers: nothing is rounded.
        match (load * experts).cmp(&all) {
            std::cmp::Ordering::Less => *bias += speed,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => *bias -= speed,
        }
    }
    Ok(())
}

/// MaxVio (arXiv 2408.15664): by how much the busiest expert exceeds the mean, as a fraction of it. 0 if all are equal.
pub fn max_violation(load: &[usize]) -> f64 {
    let mean = load.iter().sum::<usize>() as f64 / load.len() as f64;
    load.iter().max().map_or(0.0, |&busiest| busiest as f64 / mean - 1.0)
}

/// The sequence-wise loss of one sequence, from its scores s (the sigmoids, *without* biases) \[T,E\]:
///
/// ```text
/// L_Bal   = alpha sum_i f_i P_i                                                  (17)
/// f_i     = E / (k T) sum_t 1(s_{i,t} is one of the k highest of token t)        (18)
/// s'_{i,t} = s_{i,t} / sum_j s_{j,t}                                              (19)
/// P_i     = 1/T sum_t s'_{i,t}                                                   (20)
/// ```
///
/// In the report f counts the highest scores themselves, with neither bias nor groups, so not quite the experts that
/// the tokens visit. The form is that of V2's expert-level loss; there, s' is the softmax.
///
/// # Errors
/// If there is no token, or fewer experts than k.
pub fn sequence_balance_loss<T: Real>(scores: ArrayView2<T>, experts_per_token: usize, alpha: T) -> Result<T> {
    let (length, experts) = scores.dim();
    if length == 0 || experts < experts_per_token || experts_per_token == 0 {
        let expected = format!("one token or more, with {} scores or more each", experts_per_token.max(1));
        return Err(Error::input("scores", expected, format!("shape {:?}", scores.shape())));
    }
    let f = selected_share(scores, experts_per_token);
    let p = mean_share(scores);
    Ok(alpha * (f * p).sum())
}

/// f \[E\] (18).
fn selected_share<T: Real>(scores: ArrayView2<T>, experts_per_token: usize) -> Array1<T> {
    let (length, experts) = scores.dim();
    let one = T::from_f64(experts as f64 / (experts_per_token * length) as f64);
    let mut f = Array1::zeros(experts);
    for scores in scores.rows() {
        highest((0..experts).collect(), scores, experts_per_token).into_iter().for_each(|expert| f[expert] += one);
    }
    f
}

/// P \[E\] (19, 20).
fn mean_share<T: Real>(scores: ArrayView2<T>) -> Array1<T> {
    let sums = scores.sum_axis(Axis(1)).insert_axis(Axis(1));
    let shares: Array2<T> = &scores / &sums;
    shares.sum_axis(Axis(0)) / T::from_f64(scores.nrows() as f64)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use ndarray::array;

    use super::*;

    #[test]
    fn the_bias_moves_against_the_load() {
        let mut bias = array![0.5, 0.5, 0.5, 0.5];
        update_biases(bias.view_mut(), &[9, 2, 3, 6], 0.25).unwrap();
        assert_eq!(bias, array![0.25, 0.75, 0.75, 0.25], "the mean is 5");
        update_biases(bias.view_mut(), &[1, 1, 1, 1], 0.25).unwrap();
        assert_eq!(bias, array![0.25, 0.75, 0.75, 0.25]);
        let refused = update_biases(bias.view_mut(), &[1], 0.25).unwrap_err().to_string();
        assert_eq!(refused, "input `load`: expected one for each of 4 experts, found 1");
    }

    #[test]
    fn the_busiest_expert_is_compared_with_the_mean() {
        assert_eq!(max_violation(&[9, 2, 3, 6]), 0.8);
        assert_eq!(max_violation(&[4, 4]), 0.0);
    }

    #[test]
    fn the_sequence_wise_loss_by_hand() {
        // Selected: experts 0 and 0. f = 3/(1*2) [2, 0, 0] = [3, 0, 0]; P_0 = (0.8/1.6 + 0.6/0.8) / 2 = 0.625.
        let scores = array![[0.8, 0.4, 0.4], [0.6, 0.1, 0.1]];
        assert_abs_diff_eq!(sequence_balance_loss(scores.view(), 1, 0.5).unwrap(), 0.5 * 3.0 * 0.625, epsilon = 1e-15);
        let refused = sequence_balance_loss(scores.view(), 4, 0.5).unwrap_err().to_string();
        assert_eq!(
            refused,
            "input `scores`: expected one token or more, with 4 scores or more each, found shape [2, 3]"
        );
    }
}
