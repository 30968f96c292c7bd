//! Which rows of a stage are compared: padding means nothing, and correct implementations differ there by O(1).

use dsv2_metrics::Comparison;
use dsv2_reference::stage::{Layout, Stage};
use ndarray::{Array2, ArrayD, Axis, Slice};

use crate::inputs::{AttentionMask, Inputs, LogitsToKeep};
use crate::values::{Values, fit};

/// The tokens of an input that mean something.
#[derive(Clone, Debug, Default)]
pub struct ComparedRows {
    /// `[B, S]`: whether the token is compared; all are if there is no mask.
    tokens: Option<Array2<bool>>,
    /// `[B, T]`: whether the key is compared: of all tokens so far, where `tokens` are the new ones.
    keys: Option<Array2<bool>>,
    /// Which tokens have logits; all do if nothing is chosen.
    chosen: Option<LogitsToKeep>,
}

impl ComparedRows {
    /// Left out are the tokens that a 2-D attention mask masks, and the queries to which a 4-D mask leaves no key
    /// (in some head, if it has an entry for each).
    pub fn of(inputs: &Inputs) -> Self {
        let tokens = inputs.attention_mask.as_ref().map(|mask| match mask {
            AttentionMask::Padding(attend) => attend.clone(),
            AttentionMask::Additive(added) => {
                let (masks, heads, queries, keys) = added.dim();
                let hidden = |x: f32| x <= f32::MIN / 2.0;
                // one mask may serve all sequences
                let mask_of = |b: usize| if masks == 1 { 0 } else { b };
                let sees_a_key = |b: usize, h: usize, s: usize| (0..keys).any(|t| !hidden(added[[b, h, s, t]]));
                Array2::from_shape_fn((inputs.batch(), queries), |(b, s)| {
                    (0..heads).all(|h| sees_a_key(mask_of(b), h, s))
                })
            }
        });
        let keys = tokens.as_ref().map(|all| match inputs.cache_before {
            true => all.slice_axis(Axis(1), Slice::from(..inputs.past())).to_owned(),
            false => all.clone(),
        });
        let tokens = tokens.map(|all| all.slice_axis(Axis(1), Slice::from(inputs.past()..)).to_owned());
        ComparedRows { tokens, keys, chosen: inputs.logits_to_keep.clone() }
    }

    /// How many of a hundred tokens are not compared, at most.
    pub fn unread_of_hundred(&self) -> u64 {
        let unread = |tokens: &Array2<bool>| tokens.iter().filter(|compared| !**compared).count();
        self.tokens.as_ref().map_or(0, |tokens| (100 * unread(tokens)).div_ceil(tokens.len().max(1)) as u64)
    }

    /// Compares numbers of a stage in one shape, over the rows that mean something.
    pub fn compare(&self, stage: &Stage, got: &ArrayD<f64>, want: &ArrayD<f64>) -> Comparison {
        dsv2_metrics::compare(got.view(), want.view(), self.of_stage(stage, want.shape()).as_deref())
    }

    /// The same of a stage by its name, whatever its axes of length 1; nothing if it has no numbers, or others than `want`.
    pub fn measure(&self, stage: &str, got: &Values, want: &Values) -> Option<Comparison> {
        let (got, want, stage) = (got.real()?, want.real()?, Stage::parse(stage)?);
        match got.shape() == want.shape() {
            true => Some(self.compare(&stage, got, want)),
            false => Some(self.compare(&stage, &fit(got, want.shape())?, want)),
        }
    }

    /// `a` with the rows that nobody may read as in `own`, of the same shape.
    pub fn with_unread_of<A: Clone>(&self, stage: &Stage, mut a: ArrayD<A>, own: &ArrayD<A>) -> ArrayD<A> {
        let Some(read) = self.of_stage(stage, a.shape()).filter(|_| a.shape() == own.shape()) else { return a };
        let last = Axis(a.ndim() - 1);
        for ((mut row, own), _) in
            a.lanes_mut(last).into_iter().zip(own.lanes(last)).zip(read).filter(|(_, read)| !read)
        {
            row.assign(&own);
        }
        a
    }

    /// How many tokens the rows of a stage belong to; the heads of a token err together.
    pub fn tokens(stage: &Stage, shape: &[usize], rows: usize) -> usize {
        match stage.layout {
            Layout::Heads | Layout::Scores | Layout::Weights => rows / shape.get(1).copied().unwrap_or(1).max(1),
            _ => rows,
        }
    }

    /// One entry for each slice of the stage along its last axis, or `None` if all are compared.
    pub fn of_stage(&self, stage: &Stage, shape: &[usize]) -> Option<Vec<bool>> {
        let tokens = self.tokens.as_ref()?;
        let leading = &shape[..shape.len().checked_sub(1)?];
        let flat = || tokens.iter().copied();
        let rows: Vec<bool> = match stage.layout {
            Layout::Table | Layout::Whole => return None,
            Layout::Heads | Layout::Scores | Layout::Weights => {
                let heads = *leading.get(1)?;
                tokens.outer_iter().flat_map(|row| row.to_vec().repeat(heads)).collect()
            }
            Layout::Keys => self.keys.iter().flatten().copied().collect(),
            Layout::Tokens | Layout::Flat => flat().collect(),
            Layout::Logits => match &self.chosen {
                Some(chosen) => of_chosen(tokens, chosen),
                None => flat().collect(),
            },
        };
        (rows.len() == leading.iter().product::<usize>()).then_some(rows)
    }
}

/// The same for the tokens that have logits, in the order of these.
fn of_chosen(tokens: &Array2<bool>, chosen: &LogitsToKeep) -> Vec<bool> {
    let (batch, length) = tokens.dim();
    let at = |b: usize, position: i64| {
        let place = if position < 0 { position + length as i64 } else { position };
        usize::try_from(place).ok().and_then(|s| tokens.get((b, s))).is_none_or(|compared| *compared)
    };
    let each = |positions: &[i64]| (0..batch).flat_map(|b| positions.iter().map(move |&p| at(b, p))).collect();
    match chosen {
        LogitsToKeep::Last(kept) => {
            let first = if *kept > 0 { (length as i64 - kept).max(0) } else { (length as i64).min(-kept) };
            each(&(first..length as i64).collect::<Vec<_>>())
        }
        LogitsToKeep::Positions(positions) => each(positions),
        LogitsToKeep::PerSample(positions) => positions.indexed_iter().map(|((b, _), &p)| at(b, p)).collect(),
        LogitsToKeep::Mask(kept) => {
            kept.iter().zip(tokens).filter_map(|(kept, compared)| kept.then_some(*compared)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array4, array};

    use super::*;
    use crate::inputs::Tokens;

    fn inputs(mask: Option<AttentionMask>) -> Inputs {
        Inputs { attention_mask: mask, ..Inputs::new(Tokens::InputIds(array![[1, 2, 3], [4, 5, 6]])) }
    }

    fn rows(rows: &ComparedRows, name: &str, shape: &[usize]) -> Option<Vec<bool>> {
        rows.of_stage(&Stage::parse(name).unwrap(), shape)
    }

    #[test]
    fn padding_is_left_out_wherever_the_sequence_is() {
        let padded = inputs(Some(AttentionMask::Padding(array![[false, true, true], [true, true, true]])));
        let compared = ComparedRows::of(&padded);
        let tokens = Some(vec![false, true, true, true, true, true]);
        assert_eq!(rows(&compared, "model.norm", &[2, 3, 8]), tokens);
        assert_eq!(rows(&compared, "model.layers.0.mlp.experts", &[6, 8]), tokens);
        assert_eq!(rows(&compared, "past_key_values.0.k_pe", &[2, 3, 4]), tokens);
        assert_eq!(rows(&compared, "lm_head", &[2, 3, 9]), tokens);
        let scores = rows(&compared, "model.layers.0.self_attn.attn_scores", &[2, 2, 3, 3]).unwrap();
        assert_eq!(scores[..6], [false, true, true, false, true, true]);
        assert_eq!(scores[6..], [true; 6]);
        assert_eq!(rows(&compared, "loss", &[]), None);
        assert_eq!(rows(&compared, "model.rotary_emb.cos", &[1, 3, 4]), None);
    }

    #[test]
    fn chosen_logits_are_compared_where_their_tokens_are() {
        let padded = inputs(Some(AttentionMask::Padding(array![[false, true, true], [true, true, true]])));
        let chosen = |keep| ComparedRows::of(&Inputs { logits_to_keep: Some(keep), ..padded.clone() });
        let one_is_padding = Some(vec![false, true, true, true]);
        assert_eq!(rows(&chosen(LogitsToKeep::Positions(vec![0, -1])), "lm_head", &[2, 2, 9]), one_is_padding);
        assert_eq!(
            rows(&chosen(LogitsToKeep::PerSample(array![[0, 2], [1, 2]])), "lm_head", &[2, 2, 9]),
            one_is_padding
        );
        let mask = array![[true, true, false], [true, true, false]];
        assert_eq!(rows(&chosen(LogitsToKeep::Mask(mask)), "lm_head", &[1, 4, 9]), one_is_padding);
        assert_eq!(rows(&chosen(LogitsToKeep::Last(2)), "lm_head", &[2, 2, 9]), Some(vec![true; 4]));
    }

    #[test]
    fn a_query_without_a_key_is_left_out() {
        let mut added = Array4::zeros((2, 1, 3, 3));
        added.slice_mut(ndarray::s![1, 0, 2, ..]).fill(f32::MIN);
        let compared = ComparedRows::of(&inputs(Some(AttentionMask::Additive(added))));
        assert_eq!(rows(&compared, "model.norm", &[2, 3, 8]), Some(vec![true, true, true, true, true, false]));
    }

    #[test]
    fn without_a_mask_all_rows_are_compared() {
        assert_eq!(rows(&ComparedRows::of(&inputs(None)), "model.norm", &[2, 3, 8]), None);
    }
}
