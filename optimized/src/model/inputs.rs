//! What a pass is given: checked, and put on the device as embeddings and rotary tables.

use dsv2_reference::model::{ModelInput, Tokens};

use super::Model;
use super::cache::LatentCache;
use super::tap::Scope;
use crate::operators::embedding::embedding;
use crate::operators::rotary::rotary;
use crate::{Element, Error, Result, Tensor};

impl Model {
    /// Refuses what no cache and no kernel needs to be asked about.
    pub(super) fn check_input(&self, input: &ModelInput<f32>) -> Result<()> {
        let (batch, new) = input.tokens.dim();
        let operand = |name, expected: String, found: String| Err(Error::operand("forward", name, expected, found));
        if batch == 0 || new == 0 {
            return operand("input_ids", "at least one sequence of one token".into(), format!("[{batch}, {new}]"));
        }
        if let Tokens::InputsEmbeds(embeds) = &input.tokens {
            if embeds.dim().2 != self.config.hidden_size {
                let expected = format!("rows of {}", self.config.hidden_size);
                return operand("inputs_embeds", expected, format!("{:?}", embeds.shape()));
            }
            if let Some(bad) = embeds.iter().find(|x| !x.is_finite()) {
                return operand("inputs_embeds", "finite numbers".into(), bad.to_string());
            }
        }
        match &input.position_ids {
            Some(ids) if ids.dim() != (1, new) && ids.dim() != (batch, new) => {
                operand("position_ids", format!("shape [1 or {batch}, {new}]"), format!("{:?}", ids.shape()))
            }
            _ => Ok(()),
        }
    }

    /// The tokens' rows of the embedding, or the embeddings that were given: \[N,D\].
    pub(super) fn embed(&self, tokens: &Tokens<f32>) -> Result<Tensor> {
        let (batch, new) = tokens.dim();
        let shape = [batch * new, self.config.hidden_size];
        match tokens {
            Tokens::InputsEmbeds(embeds) => {
                let values: Vec<f32> = embeds.iter().copied().collect();
                Tensor::from_f32(&self.device, self.settings.element, &shape, &values)
            }
            Tokens::InputIds(ids) => {
                let vocab = self.config.vocab_size;
                let token = |id: &i64| match usize::try_from(*id) {
                    Ok(token) if token < vocab => Ok(token as i32),
                    _ => Err(Error::operand("forward", "input_ids", format!("tokens 0 to {}", vocab - 1), id)),
                };
                let ids = ids.iter().map(token).collect::<Result<Vec<_>>>()?;
                let ids = Tensor::from_i32(&self.device, &[ids.len()], &ids)?;
                let hidden = Tensor::empty(&self.device, self.settings.element, &shape)?;
                embedding(self.settings.variant, &ids, &self.embed_tokens, &hidden)?;
                Ok(hidden)
            }
        }
    }

    /// Cosine and sine of every token, \[N,r/2\].
    pub(super) fn rotary_tables(
        &self,
        input: &ModelInput<f32>,
        past: &[usize],
        cache: &mut LatentCache,
        scope: &mut Scope,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, new) = input.tokens.dim();
        // One row of positions serves all sequences of the same length.
        let lengths = if past.iter().all(|length| *length == past[0]) { &past[..1] } else { past };
        let counted = lengths.iter().flat_map(|past| (*past..past + new).map(|position| position as i64));
        let rows: Vec<i64> = match &input.position_ids {
            Some(ids) => ids.iter().copied().collect(),
            None => counted.collect(),
        };
        let given = rows.len() / new;
        let longest = rows.iter().max().map_or(0, |position| position.saturating_add(1));
        let position = |position: &i64| {
            let expected = || format!("positions up to {}", i32::MAX);
            i32::try_from(*position).map_err(|_| Error::operand("forward", "position_ids", expected(), position))
        };
        let positions = rows.iter().cycle().take(batch * new).map(position).collect::<Result<Vec<_>>>()?;
        let positions = Tensor::from_i32(&self.device, &[batch * new], &positions)?;
        let frequencies = self.frequencies.of_call(longest, cache.reached());
        let pairs = frequencies.len();
        let frequencies = Tensor::from_f32(&self.device, Element::F32, &[pairs], &frequencies)?;
        let table = || Tensor::empty(&self.device, Element::F32, &[batch * new, pairs]);
        let (cos, sin) = (table()?, table()?);
        let factor = self.frequencies.attention_factor;
        rotary(self.settings.variant, &positions, &frequencies, factor, &cos, &sin)?;
        for (name, table) in [("rotary_emb.cos", &cos), ("rotary_emb.sin", &sin)] {
            let changed = scope.show(name, || table.narrow(0, 0..given * new)?.reshape(&[given, new, pairs]))?;
            for b in given..if changed { batch } else { given } {
                let row = |b: usize| Ok::<_, Error>(table.narrow(0, b * new..(b + 1) * new)?.address());
                self.device.copy(row(0)?, row(b)?, new * pairs * Element::F32.bytes())?;
            }
        }
        Ok((cos, sin))
    }
}
