//! Device-level token dropping (2.2.4): in training, a device computes its share of the load and no more.
//!
//! What the paper says: the budget of a device is the average one (a capacity factor of 1.0); on each device, tokens
//! with the lowest affinity are dropped until the budget is met; tokens of about 10 % of the training sequences are
//! never dropped; nothing is dropped in evaluation.
//!
//! What it leaves open, and is pinned here (**ours**):
//!
//! * The unit of the budget is the pair of a token and one of its experts, since that is what a device computes:
//!   C = ⌈factor · K_r T / D⌉. What is dropped is the pair; the token keeps its other experts and the shared ones.
//! * T counts the tokens that are routed together, all sequences of the batch that the devices share.
//! * The affinity is s_{i,t} of the pair. Of equal ones that of the later token goes first, of one token's that of the
//!   later slot.
//! * The weights that stay are as they were: they are not normalised again.
//! * Protected pairs count against the budget, even if they alone exceed it; then they are all that is left.
//!
//! Neither Transformers nor the code that DeepSeek published with the checkpoints drops tokens.

use ndarray::{Array2, Zip};

use crate::model::router::{DROPPED, Routing};
use crate::paper::parallel::Placement;
use crate::{Error, Real, Result};

/// Is anything dropped, and what never?
#[derive(Clone, Copy, Debug)]
pub enum Phase<'a> {
    /// Tokens may be dropped.
    Training {
        /// The budget of a device, in shares of the average load. The paper's is 1.0; infinity drops nothing.
        capacity_factor: f64,
        /// Which of the B sequences are exempt. The paper exempts about one in ten; which is left open.
        protected: &'a [bool],
    },
    /// Nothing is dropped.
    Evaluation,
}

/// C = ⌈factor · pairs / D⌉: how many of the pairs of token and expert a device computes (ours).
pub fn capacity(factor: f64, pairs: usize, devices: usize) -> usize {
    (factor * pairs as f64 / devices as f64).ceil() as usize
}

/// Which pairs of token and slot stay: \[N,k\], N = B·S.
///
/// # Errors
/// If the routing is none, a score is no number, the placement is one of other experts, B does not divide N, or the
/// capacity factor is negative or NaN.
pub fn kept<T: Real>(routing: &Routing<T>, placement: &Placement, phase: Phase) -> Result<Array2<bool>> {
    routing.validate()?;
    let (tokens, k) = routing.topk_indices.dim();
    let mut kept = Array2::from_elem((tokens, k), true);
    let Phase::Training { capacity_factor, protected } = phase else { return Ok(kept) };

    let experts = routing.router_logits.ncols();
    if placement.experts() != experts {
        return Err(Error::input("placement", format!("{experts} experts"), placement.experts()));
    }
    if protected.is_empty() || !tokens.is_multiple_of(protected.len()) {
        let expected = format!("as many sequences as divide {tokens} tokens");
        return Err(Error::input("protected", expected, protected.len()));
    }
    if capacity_factor.is_nan() || capacity_factor < 0.0 {
        return Err(Error::input("capacity_factor", "a number >= 0", capacity_factor));
    }
    let scores = routing.scores();
    if let Some(bad) = scores.iter().find(|score| score.is_nan()) {
        return Err(Error::input("router_logits", "logits with a softmax", bad));
    }

    let length = tokens / protected.len();
    let capacity = capacity(capacity_factor, tokens * k, placement.devices());
    for mut pairs in pairs_of_devices(routing, placement) {
        let excess = pairs.len().saturating_sub(capacity);
        pairs.retain(|(token, _)| !protected[token / length]);
        let affinity = |&(token, slot): &(usize, usize)| scores[[token, routing.topk_indices[[token, slot]] as usize]];
        pairs.sort_by(|a, b| affinity(a).partial_cmp(&affinity(b)).expect("numbers").then(b.cmp(a)));
        for pair in pairs.into_iter().take(excess) {
            kept[pair] = false;
        }
    }
    Ok(kept)
}

/// For each device, the pairs (token, slot) whose expert it holds, in order.
fn pairs_of_devices<T: Real>(routing: &Routing<T>, placement: &Placement) -> Vec<Vec<(usize, usize)>> {
    let mut pairs = vec![Vec::new(); placement.devices()];
    for (pair, &expert) in routing.topk_indices.indexed_iter() {
        pairs[placement.device_of(expert as usize)].push(pair);
    }
    pairs
}

/// The routing without the pairs that are not `kept`: they are [`DROPPED`], and their weight is 0.
///
/// # Errors
/// If `kept` has another shape.
pub fn drop_tokens<T: Real>(mut routing: Routing<T>, kept: &Array2<bool>) -> Result<Routing<T>> {
    if kept.dim() != routing.topk_indices.dim() {
        let expected = format!("{:?}, as the indices", routing.topk_indices.shape());
        return Err(Error::input("kept", expected, format!("{:?}", kept.shape())));
    }
    Zip::from(&mut routing.topk_indices).and(&mut routing.topk_weights).and(kept).for_each(|expert, weight, kept| {
        if !kept {
            (*expert, *weight) = (DROPPED, T::zero());
        }
    });
    Ok(routing)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    /// Three tokens and four experts; device 0 has the experts 0 and 1, which get 4 of the 6 pairs. C = 3.
    fn routing() -> Routing<f64> {
        Routing {
            router_logits: array![[0.5, 0.1, 0.3, 0.1], [0.3, 0.5, 0.1, 0.1], [0.4, 0.1, 0.1, 0.4]].ln(),
            topk_indices: array![[0, 2], [1, 0], [0, 3]],
            topk_weights: array![[0.5, 0.3], [0.5, 0.3], [0.4, 0.4]],
        }
    }

    #[test]
    fn what_cannot_be_dropped_is_refused() {
        let placement = Placement::contiguous(4, 2).unwrap();
        let refusal = |factor, protected: &[bool]| {
            let phase = Phase::Training { capacity_factor: factor, protected };
            kept(&routing(), &placement, phase).unwrap_err().to_string()
        };
        assert_eq!(refusal(-1.0, &[false]), "input `capacity_factor`: expected a number >= 0, found -1");
        assert_eq!(
            refusal(1.0, &[false; 2]),
            "input `protected`: expected as many sequences as divide 3 tokens, found 2"
        );
        let nan = Routing { router_logits: array![[f64::NAN, 0.0, 0.0, 0.0], [0.0; 4], [0.0; 4]], ..routing() };
        let phase = Phase::Training { capacity_factor: 1.0, protected: &[false] };
        assert_eq!(
            kept(&nan, &placement, phase).unwrap_err().to_string(),
            "input `router_logits`: expected logits with a softmax, found NaN"
        );
    }
}
