//! Feeding a sequence in chunks: which part of each input belongs to a chunk.

use ndarray::{Axis, Slice};

use super::{AttentionMask, Inputs, LogitsToKeep, Tokens};
use crate::error::{Error, Result};

impl Inputs {
    /// The inputs of the forward passes that feed the sequence in chunks of the given lengths, one after the other.
    ///
    /// # Errors
    /// If the lengths do not add up to the sequence, or labels or logits other than the last would have to be cut.
    pub fn chunks(&self, lengths: &[usize]) -> Result<Vec<Inputs>> {
        let total = lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length));
        if total != Some(self.length()) || lengths.contains(&0) {
            let expected = format!("lengths from 1 up that add up to {}", self.length());
            return Err(Error::request("--chunks", expected, format!("{lengths:?}")));
        }
        if self.new_tokens.is_some() && lengths.last() != self.new_tokens.as_ref() {
            let expected = format!("lengths of which the last is that of the new tokens, {}", self.looked_at());
            return Err(Error::request("--chunks", expected, format!("{lengths:?}")));
        }
        if lengths.len() == 1 {
            return Ok(vec![self.clone()]);
        }
        let last = match self.logits_to_keep {
            // of the chunk that is looked at
            _ if self.new_tokens.is_some() => Some(1),
            None => Some(self.length()),
            Some(LogitsToKeep::Last(last)) if last > 0 => Some(last as usize),
            Some(_) => None,
        };
        let Some(last) = last.filter(|_| self.labels.is_none()) else {
            return Err(Error::request("--chunks", "inputs without labels and logits_to_keep", "such inputs"));
        };
        let mut start = 0;
        let chunk = |length: &usize| {
            let range = start..start + length;
            start = range.end;
            let kept = range.len().min(range.end.saturating_sub(self.length().saturating_sub(last)));
            let keep = match (&self.logits_to_keep, self.new_tokens) {
                (keep, Some(_)) if range.end == self.length() => keep.clone(),
                (None, None) => None,
                _ => Some(last_of_chunk(kept)),
            };
            Inputs { logits_to_keep: keep, ..self.chunk(range) }
        };
        Ok(lengths.iter().map(chunk).collect())
    }

    fn chunk(&self, range: std::ops::Range<usize>) -> Inputs {
        let span = Slice::from(range.clone());
        let so_far = Slice::from(..range.end);
        let tokens = match &self.tokens {
            Tokens::InputIds(ids) => Tokens::InputIds(ids.slice_axis(Axis(1), span).to_owned()),
            Tokens::InputsEmbeds(embeds) => Tokens::InputsEmbeds(embeds.slice_axis(Axis(1), span).to_owned()),
        };
        Inputs {
            attention_mask: self.attention_mask.as_ref().map(|mask| match mask {
                AttentionMask::Padding(attend) => AttentionMask::Padding(attend.slice_axis(Axis(1), so_far).to_owned()),
                AttentionMask::Additive(added) => {
                    AttentionMask::Additive(added.slice_axis(Axis(2), span).slice_axis(Axis(3), so_far).to_owned())
                }
            }),
            position_ids: self.position_ids.as_ref().map(|ids| ids.slice_axis(Axis(1), span).to_owned()),
            ..Inputs::new(tokens)
        }
    }
}

/// The last logits of a chunk; in Python's words, 0 of them would be all.
fn last_of_chunk(kept: usize) -> LogitsToKeep {
    if kept > 0 { LogitsToKeep::Last(kept as i64) } else { LogitsToKeep::Positions(Vec::new()) }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array4, array};

    use super::*;

    #[test]
    fn each_chunk_sees_the_mask_so_far() {
        let mut inputs = Inputs::new(Tokens::InputIds(array![[1, 2, 3]]));
        inputs.position_ids = Some(array![[5, 6, 7]]);
        inputs.attention_mask = Some(AttentionMask::Padding(array![[false, true, true]]));
        let chunks = inputs.chunks(&[2, 1]).unwrap();
        assert!(matches!(&chunks[0].tokens, Tokens::InputIds(ids) if ids == array![[1, 2]]));
        assert!(matches!(&chunks[1].tokens, Tokens::InputIds(ids) if ids == array![[3]]));
        assert_eq!(chunks[1].position_ids, Some(array![[7]]));
        let keys = |chunk: &Inputs| match chunk.attention_mask.as_ref().unwrap() {
            AttentionMask::Padding(attend) => attend.shape().to_vec(),
            AttentionMask::Additive(added) => added.shape().to_vec(),
        };
        assert_eq!((keys(&chunks[0]), keys(&chunks[1])), (vec![1, 2], vec![1, 3]));

        inputs.attention_mask = Some(AttentionMask::Additive(Array4::zeros((1, 1, 3, 3))));
        assert_eq!(keys(&inputs.chunks(&[2, 1]).unwrap()[1]), [1, 1, 1, 3]);
    }

    #[test]
    fn lengths_must_add_up() {
        let inputs = Inputs::new(Tokens::InputIds(Array2::zeros((1, 3))));
        let refused = inputs.chunks(&[2, 2]).unwrap_err().to_string();
        assert_eq!(refused, "--chunks: expected lengths from 1 up that add up to 3, found [2, 2]");
        assert!(inputs.chunks(&[3, 0]).is_err());
        assert!(inputs.chunks(&[]).is_err());
    }
}
