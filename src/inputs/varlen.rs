//! Tokens of sequences of unequal lengths, laid end to end, as engines feed them ("varlen").
//!
//! The file says where the sequences end: `cu_seqlens` `[n+1]`, 0 and the ends, or `seq_lens` `[n]`. Here they become one row
//! of tokens with a mask that lets each see those before it in its own sequence, and positions that begin anew with each. So
//! a tensor `[T, ..]` of a dump is the model's `[1,T,..]`: nothing is padded, and no row has to be left out.

use dsv2_reference::stage::{Layout, Stage};
use ndarray::{Array2, Array4, Axis};

use super::{AttentionMask, Inputs, Tokens};
use crate::error::{Error, Result};
#[cfg(test)]
use crate::trace::Trace;
use crate::values::Values;

/// The inputs that say where sequences end.
pub const LENGTHS: [&str; 2] = ["cu_seqlens", "seq_lens"];
/// How many tokens are laid end to end at most: the mask has one number for each pair of them.
const MOST_TOKENS: usize = 8192;

/// Where the sequences of a row of tokens are.
#[derive(Clone, Debug)]
pub struct Packed {
    /// How long each is.
    lengths: Vec<usize>,
    /// For each token of the row, its place in the file and in tensors that have a row for each key.
    order: Vec<usize>,
    /// How many of the last tokens of each are looked at.
    new_tokens: Option<usize>,
}

/// The lengths of the sequences, if `tensors` say that they are laid end to end.
///
/// # Errors
/// If these are no lengths, or there are two lists of them.
pub fn lengths(tensors: &[(String, Values)]) -> Result<Option<Vec<usize>>> {
    let of = |name: &str| tensors.iter().find(|(held, _)| held == name).map(|(_, values)| values);
    match LENGTHS.map(of) {
        [None, None] => Ok(None),
        [Some(_), Some(_)] => Err(Error::input("seq_lens", "one of `cu_seqlens` and `seq_lens`", "both")),
        [Some(ends), None] => {
            const EXPECTED: &str = "[n+1] int64 that rise from 0: where each sequence ends";
            let ends = list(LENGTHS[0], EXPECTED, ends)?;
            let rise = ends.windows(2).all(|pair| pair[0] < pair[1]);
            if ends.len() < 2 || ends[0] != 0 || !rise {
                return Err(Error::input(LENGTHS[0], EXPECTED, some_of(&ends)));
            }
            Ok(Some(ends.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect()))
        }
        [None, Some(lengths)] => {
            const EXPECTED: &str = "[n] int64 from 1 up: how long each sequence is";
            let lengths = list(LENGTHS[1], EXPECTED, lengths)?;
            if lengths.is_empty() || lengths.iter().any(|&length| length < 1) {
                return Err(Error::input(LENGTHS[1], EXPECTED, some_of(&lengths)));
            }
            Ok(Some(lengths.into_iter().map(|length| length as usize).collect()))
        }
    }
}

fn list(name: &str, expected: &str, values: &Values) -> Result<Vec<i64>> {
    match values {
        Values::Index(a) if a.ndim() == 1 => Ok(a.iter().copied().collect()),
        values => Err(Error::input(name, expected, values.describe())),
    }
}

/// The first of some numbers, for a message.
fn some_of(numbers: &[i64]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = numbers.iter().take(SHOWN).map(i64::to_string).collect();
    format!("[{}{}]", shown.join(", "), if numbers.len() > SHOWN { ", .." } else { "" })
}

/// An input of the row of tokens, which may come without the axis of sequences.
///
/// # Errors
/// If the input means nothing for tokens that are laid end to end.
pub fn as_row(name: &str, values: Values) -> Result<Values> {
    let axes = match name {
        "input_ids" | "position_ids" => 2,
        "inputs_embeds" => 3,
        _ => {
            let expected = format!("none beside {}: sequences that are laid end to end have no padding", one_of_them());
            return Err(Error::input(name, expected, values.describe()));
        }
    };
    let mut shape = values.shape().to_vec();
    if shape.len() + 1 == axes {
        shape.insert(0, 1);
    }
    Ok(values.fit(&shape).unwrap_or(values))
}

fn one_of_them() -> String {
    LENGTHS.map(|name| format!("`{name}`")).join(" or ")
}

impl Inputs {
    /// The same tokens, which are those of sequences of these lengths.
    ///
    /// # Errors
    /// If the lengths are not those of the tokens.
    pub fn laid_end_to_end(self, lengths: Vec<usize>) -> Result<Self> {
        let (rows, total) = self.tokens.dim();
        let sum = lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length));
        if rows != 1 || sum != Some(total) || total > MOST_TOKENS {
            let found = sum.map_or_else(|| "more".to_owned(), |sum| sum.to_string());
            let expected = match total {
                total if total > MOST_TOKENS => format!("lengths that add up to {MOST_TOKENS} at most"),
                _ if rows == 1 => format!("lengths that add up to the {total} tokens"),
                _ => format!("tokens of one row, [1, T], with {}", one_of_them()),
            };
            return Err(Error::input("input_ids", expected, if rows == 1 { found } else { format!("{rows} rows") }));
        }
        let starts_anew = lengths.iter().flat_map(|&length| 0..length as i64).collect();
        let positions = Array2::from_shape_vec((1, total), starts_anew).expect("one for each token");
        let packed = Packed { lengths, order: (0..total).collect(), new_tokens: None };
        Ok(Inputs {
            attention_mask: Some(packed.mask()),
            position_ids: self.position_ids.or(Some(positions)),
            packed: Some(packed),
            ..self
        })
    }

    /// The same with the last `new` tokens of each sequence behind all others: what was there before is then one chunk, and
    /// the new tokens another.
    ///
    /// # Errors
    /// If a sequence is not longer than that.
    pub(super) fn with_new_tokens_behind(self, packed: &Packed, new: usize) -> Result<Self> {
        let Packed { lengths, .. } = packed;
        let shortest = lengths.iter().min().copied().unwrap_or(0);
        if new >= shortest {
            return Err(Error::request("--decode", format!("1 to {} new tokens", shortest.saturating_sub(1)), new));
        }
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let (ends, mut order): (Vec<usize>, Vec<usize>) = (ends.collect(), Vec::new());
        order.extend(ends.iter().zip(lengths).flat_map(|(end, length)| end - length..end - new));
        order.extend(ends.iter().flat_map(|end| end - new..*end));
        let packed = Packed { lengths: lengths.clone(), order, new_tokens: Some(new) };
        let order = &packed.order;
        Ok(Inputs {
            tokens: match &self.tokens {
                Tokens::InputIds(ids) => Tokens::InputIds(ids.select(Axis(1), order)),
                Tokens::InputsEmbeds(embeds) => Tokens::InputsEmbeds(embeds.select(Axis(1), order)),
            },
            position_ids: self.position_ids.as_ref().map(|positions| positions.select(Axis(1), order)),
            attention_mask: Some(packed.mask()),
            new_tokens: Some(new * lengths.len()),
            packed: Some(packed),
            ..self
        })
    }
}

impl Packed {
    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// The last token of each sequence, of those that are looked at.
    pub fn ends(&self) -> Vec<i64> {
        let looked_at = |length: &usize| self.new_tokens.unwrap_or(*length) as i64;
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += looked_at(length);
            Some(*end - 1)
        });
        ends.collect()
    }

    /// Each token sees those before it in its own sequence.
    fn mask(&self) -> AttentionMask {
        let total = self.order.len();
        let sequence: Vec<usize> =
            self.lengths.iter().enumerate().flat_map(|(i, &length)| std::iter::repeat_n(i, length)).collect();
        let allowed = |q: usize, k: usize| k <= q && sequence[self.order[q]] == sequence[self.order[k]];
        AttentionMask::Additive(Array4::from_shape_fn(
            (1, 1, total, total),
            |(_, _, q, k)| {
                if allowed(q, k) { 0.0 } else { f32::MIN }
            },
        ))
    }

    /// A tensor of a dump, which has its keys in the order of the file, with those of the row.
    pub fn taken_in(&self, name: &str, values: &Values) -> Values {
        match (self.axis_of_keys(name, values.shape()), values) {
            (Some(axis), Values::Real(dtype, a)) => Values::Real(*dtype, a.select(axis, &self.order)),
            _ => values.clone(),
        }
    }

    /// The shape of a tensor of a run as a dump has it: without the axis of sequences.
    pub fn dumped_shape<'a>(&self, shape: &'a [usize]) -> &'a [usize] {
        if let [1, rest @ ..] = shape
            && !rest.is_empty()
        {
            rest
        } else {
            shape
        }
    }

    /// The axis of a stage of a run in which a dump has its keys in another order, and that order. A chunk that has not all keys is
    /// in that of the file.
    pub fn dumped_keys(&self, name: &str, shape: &[usize]) -> Option<(Axis, Vec<usize>)> {
        self.new_tokens?;
        let axis = self.axis_of_keys(name, shape)?;
        let mut order = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(row, &place)| order[place] = row);
        Some((axis, order))
    }

    /// The stages of a run as a dump has them.
    #[cfg(test)]
    pub(crate) fn as_dumped(&self, trace: &Trace) -> Trace {
        let dumped = trace.iter().map(|(name, values)| {
            let values = match (self.dumped_keys(name, values.shape()), values) {
                (Some((axis, order)), Values::Real(dtype, a)) => Values::Real(*dtype, a.select(axis, &order)),
                _ => values.clone(),
            };
            let shape = self.dumped_shape(values.shape()).to_vec();
            (name.to_owned(), values.fit(&shape).unwrap())
        });
        dumped.collect()
    }

    /// The axis of the keys of all sequences, of a tensor of this shape.
    fn axis_of_keys(&self, name: &str, shape: &[usize]) -> Option<Axis> {
        let is_of_keys = |length: &usize| *length == self.order.len();
        match Stage::parse(name)?.layout {
            Layout::Keys => shape.iter().position(is_of_keys).map(Axis),
            Layout::Scores | Layout::Weights => {
                shape.last().filter(|last| is_of_keys(last)).map(|_| Axis(shape.len() - 1))
            }
            _ => None,
        }
    }
}
