//! A choice of experts for some tokens, the others left to the router.

use std::collections::{BTreeMap, HashMap};

use dsv2_reference::tap::{StageValue, Tap};

/// Experts that some tokens are taken to go to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assumed {
    batch: usize,
    length: usize,
    /// By the stage `topk_indices`: the token, in the order `b·S + s`, and its experts.
    chosen: BTreeMap<String, BTreeMap<usize, Vec<i64>>>,
}

impl Assumed {
    /// Nothing yet, of `batch` sequences of `length` tokens.
    pub fn new(batch: usize, length: usize) -> Self {
        Assumed { batch, length, chosen: BTreeMap::new() }
    }

    /// Whether every token is left to the router.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Sends a token to these experts.
    pub fn assume(&mut self, stage: &str, token: usize, experts: Vec<i64>) {
        self.chosen.entry(stage.to_owned()).or_default().insert(token, experts);
    }

    /// Stage by stage, the tokens and their experts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &BTreeMap<usize, Vec<i64>>)> {
        self.chosen.iter().map(|(stage, tokens)| (stage.as_str(), tokens))
    }

    /// The tap that does it.
    pub fn tap(&self) -> Assume<'_> {
        Assume { assumed: self, done: HashMap::new() }
    }
}

/// See [`Assumed::tap`].
pub struct Assume<'a> {
    assumed: &'a Assumed,
    /// How much of each sequence is behind us: it may be fed in chunks.
    done: HashMap<String, usize>,
}

impl<T> Tap<T> for Assume<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        let (Some(tokens), StageValue::Index(mut value)) = (self.assumed.chosen.get(name), value) else { return };
        let rows = value.shape().first().copied().unwrap_or(0);
        let Some(new) = rows.checked_div(self.assumed.batch) else { return };
        let done = self.done.entry(name.to_owned()).or_default();
        for (row, mut experts) in value.rows_mut().into_iter().enumerate() {
            let token = row / new.max(1) * self.assumed.length + *done + row % new.max(1);
            if let Some(assumed) = tokens.get(&token).filter(|assumed| assumed.len() == experts.len()) {
                experts.iter_mut().zip(assumed).for_each(|(to, from)| *to = *from);
            }
        }
        *done += new;
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn a_token_is_found_in_whatever_chunks_its_sequence_is_fed() {
        let stage = "model.layers.1.mlp.gate.topk_indices";
        let mut assumed = Assumed::new(2, 3);
        assumed.assume(stage, 2, vec![7]);
        assumed.assume(stage, 4, vec![9]);
        let mut tap = assumed.tap();
        let mut chunk = |tokens: usize| {
            let mut experts = Array2::zeros((2 * tokens, 1));
            Tap::<f64>::stage(&mut tap, stage, StageValue::Index(experts.view_mut().into_dyn()));
            experts.into_raw_vec_and_offset().0
        };
        assert_eq!(chunk(2), [0, 0, 0, 9]);
        assert_eq!(chunk(1), [7, 0]);
    }
}
