//! What a router decides: which experts each token goes to, and with what weight.

use ndarray::{Array2, Axis};

use crate::arithmetic::softmax::softmax;
use crate::{Error, Real, Result};

/// In place of an expert: the token was dropped there ([`crate::paper::training::token_dropping`]).
pub const DROPPED: i64 = -1;

/// The experts of each of N tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing<T> {
    /// u_t^T e_i before the softmax: \[N,E\].
    pub router_logits: Array2<T>,
    /// Selected experts, by falling score, equal ones by rising index: \[N,k\]. Or [`DROPPED`].
    pub topk_indices: Array2<i64>,
    /// Their weights: \[N,k\].
    pub topk_weights: Array2<T>,
}

impl<T: Real> Routing<T> {
    /// s_{i,t}: the softmax over all experts (eq. 22), \[N,E\].
    pub fn scores(&self) -> Array2<T> {
        let mut scores = self.router_logits.clone();
        scores.rows_mut().into_iter().for_each(softmax);
        scores
    }

    /// For each expert, the tokens that selected it and their weights, in token order.
    ///
    /// # Panics
    /// If a token has an expert that does not exist ([`Routing::validate`] tells).
    pub fn tokens_of_experts(&self) -> Vec<Vec<(usize, T)>> {
        let mut tokens = vec![Vec::new(); self.router_logits.len_of(Axis(1))];
        for ((token, slot), &expert) in self.topk_indices.indexed_iter().filter(|(_, e)| **e != DROPPED) {
            tokens[expert as usize].push((token, self.topk_weights[[token, slot]]));
        }
        tokens
    }

    /// For each expert, how many tokens selected it: \[E\].
    pub fn tokens_per_expert(&self) -> Vec<usize> {
        self.tokens_of_experts().iter().map(Vec::len).collect()
    }

    /// Checks what anybody may have put together: that the shapes agree, and that each token has k different experts
    /// which exist, none of them dropped.
    ///
    /// # Errors
    /// What does not hold.
    pub fn validate(&self) -> Result<()> {
        let (tokens, experts) = self.router_logits.dim();
        if self.topk_indices.nrows() != tokens {
            return Err(Error::input("topk_indices", format!("{tokens} tokens"), self.topk_indices.nrows()));
        }
        if self.topk_weights.dim() != self.topk_indices.dim() {
            let expected = format!("{:?}, as the indices", self.topk_indices.shape());
            return Err(Error::input("topk_weights", expected, format!("{:?}", self.topk_weights.shape())));
        }
        for (token, selected) in self.topk_indices.rows().into_iter().enumerate() {
            let mut seen = vec![false; experts];
            for &expert in selected {
                let unseen = usize::try_from(expert).ok().and_then(|e| seen.get_mut(e)).filter(|seen| !**seen);
                let Some(unseen) = unseen else {
                    let expected = format!("different experts below {experts} for each token");
                    return Err(Error::input("topk_indices", expected, format!("{selected} for token {token}")));
                };
                *unseen = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn two_tokens() -> Routing<f64> {
        Routing {
            router_logits: Array2::zeros((2, 3)),
            topk_indices: array![[2, 0], [0, 1]],
            topk_weights: array![[0.5, 0.25], [0.75, 0.125]],
        }
    }

    #[test]
    fn each_expert_sees_its_tokens_in_order() {
        let mut routing = two_tokens();
        assert_eq!(routing.tokens_of_experts(), [vec![(0, 0.25), (1, 0.75)], vec![(1, 0.125)], vec![(0, 0.5)]]);
        assert_eq!(routing.tokens_per_expert(), [2, 1, 1]);
        routing.topk_indices[[0, 1]] = DROPPED;
        assert_eq!(routing.tokens_of_experts(), [vec![(1, 0.75)], vec![(1, 0.125)], vec![(0, 0.5)]]);
    }

    #[test]
    fn a_routing_that_cannot_be_is_refused() {
        assert!(two_tokens().validate().is_ok());
        for bad in [DROPPED, 3, 2] {
            let mut routing = two_tokens();
            routing.topk_indices[[0, 1]] = bad;
            assert_eq!(
                routing.validate().unwrap_err().to_string(),
                format!(
                    "input `topk_indices`: expected different experts below 3 for each token, \
                     found [2, {bad}] for token 0"
                )
            );
        }
        let routing = Routing { topk_weights: Array2::zeros((2, 1)), ..two_tokens() };
        assert_eq!(
            routing.validate().unwrap_err().to_string(),
            "input `topk_weights`: expected [2, 2], as the indices, found [2, 1]"
        );
    }
}
