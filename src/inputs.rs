//! The inputs of a forward pass, as a safetensors file holds them.
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `input_ids` | `[B,S]` int64 | this or the next |
//! | `inputs_embeds` | `[B,S,D]` float | |
//! | `attention_mask` | `[B,S]` int64 or bool; `[B,H,S,S]` float, added to the scores; B, H and the first S may be 1 | optional |
//! | `position_ids` | `[1 or B,S]` int64 | optional |
//! | `labels` | `[B,S]` int64; of a classifier `[B]` int64, or `[B]` or `[B,num_labels]` float | optional |
//! | `logits_to_keep` | `[]`, `[n]` or `[B,n]` int64, or `[B,S]` bool | optional |
//! | `num_items_in_batch` | `[]` int64 | optional |
//! | `cu_seqlens` or `seq_lens` | `[n+1]` or `[n]` int64 | the tokens are those of n sequences, laid end to end ([`varlen`]) |

mod check;
mod chunks;
mod feed;
pub mod varlen;

use std::path::Path;

pub use dsv2_reference::model::causal_lm::LogitsToKeep;
use dsv2_reference::model::mask;
use dsv2_reference::{Dtype, Real, model};
use ndarray::{Array1, Array2, ArrayD, Dimension};

use crate::error::{Error, Result};
use crate::values::{self, Values};
use varlen::Packed;

pub use check::{Expected, check};

/// The names of the inputs, but for those that say where sequences end.
const KNOWN: [&str; 7] =
    ["input_ids", "inputs_embeds", "attention_mask", "position_ids", "labels", "logits_to_keep", "num_items_in_batch"];

/// The sequences, in the type that files hold.
pub type Tokens = model::Tokens<f32>;

/// A mask, in the type that files hold.
pub type AttentionMask = mask::AttentionMask<f32>;

/// What the output is held against.
#[derive(Clone, Debug)]
pub enum Labels {
    /// `[B,kept]` token ids, -100 for none.
    Ids(Array2<i64>),
    /// `[B]` classes.
    Classes(Array1<i64>),
    /// `[B]` or `[B,num_labels]` numbers.
    Targets(ArrayD<f32>),
}

/// Everything that goes into a forward pass besides the model.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The sequences.
    pub tokens: Tokens,
    /// Who may be attended to.
    pub attention_mask: Option<AttentionMask>,
    /// `[1 or B,S]`: where each token stands.
    pub position_ids: Option<Array2<i64>>,
    /// The truth to compute a loss against.
    pub labels: Option<Labels>,
    /// Which positions get logits.
    pub logits_to_keep: Option<LogitsToKeep>,
    /// What the sum of the losses is divided by, in place of the number of labels.
    pub num_items_in_batch: Option<i64>,
    /// Where the sequences are, if they are laid end to end in one row of tokens.
    pub packed: Option<Packed>,
    /// How many tokens at the end are looked at, if those before them are in the cache.
    pub new_tokens: Option<usize>,
    /// Whether what is cached is looked at as it was before the new tokens.
    pub cache_before: bool,
    /// Inputs of the file that are not fed.
    pub left_out: Vec<&'static str>,
}

impl Inputs {
    /// Sequences alone.
    pub fn new(tokens: Tokens) -> Self {
        Inputs {
            tokens,
            attention_mask: None,
            position_ids: None,
            labels: None,
            logits_to_keep: None,
            num_items_in_batch: None,
            packed: None,
            new_tokens: None,
            cache_before: false,
            left_out: Vec::new(),
        }
    }

    /// From a safetensors file.
    ///
    /// # Errors
    /// If it is none, or does not hold what the table above says.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_tensors(path, values::read(path)?)
    }

    /// From the tensors of a file; `path` is for messages.
    ///
    /// # Errors
    /// If they are not those of the table above.
    pub fn from_tensors(path: &Path, tensors: Vec<(String, Values)>) -> Result<Self> {
        let mut tokens = None;
        let mut inputs = Inputs::new(Tokens::InputIds(Array2::zeros((0, 0))));
        let lengths = varlen::lengths(&tensors)?;
        for (name, values) in tensors {
            let values = match &lengths {
                Some(_) if KNOWN.contains(&name.as_str()) => varlen::as_row(&name, values)?,
                _ => values,
            };
            match name.as_str() {
                "input_ids" | "inputs_embeds" if tokens.is_some() => {
                    return Err(Error::file(path, "one of `input_ids` and `inputs_embeds`", "both"));
                }
                "input_ids" => {
                    let expected = match values.shape() {
                        [_] => "[B,S] int64, or `cu_seqlens` or `seq_lens` beside the [T] of sequences laid end to end",
                        _ => "[B,S] int64",
                    };
                    tokens = Some(Tokens::InputIds(index("input_ids", expected, &values)?));
                }
                "inputs_embeds" => {
                    tokens = Some(Tokens::InputsEmbeds(real("inputs_embeds", "[B,S,D] float", &values)?))
                }
                "attention_mask" => inputs.attention_mask = Some(attention_mask(&values)?),
                "position_ids" => inputs.position_ids = Some(index("position_ids", "[1 or B,S] int64", &values)?),
                "labels" => inputs.labels = Some(labels(&values)?),
                "logits_to_keep" => inputs.logits_to_keep = Some(logits_to_keep(&values)?),
                "num_items_in_batch" => inputs.num_items_in_batch = Some(scalar("num_items_in_batch", &values)?),
                name if varlen::LENGTHS.contains(&name) => {}
                other => {
                    let known = [&KNOWN[..], &varlen::LENGTHS].concat();
                    let (last, others) = known.split_last().expect("there are some");
                    let known = format!("`{}` or `{last}`", others.join("`, `"));
                    return Err(Error::file(path, known, format!("`{}`", other.escape_debug())));
                }
            }
        }
        inputs.tokens = tokens.ok_or_else(|| Error::file(path, "`input_ids` or `inputs_embeds`", "neither"))?;
        match lengths {
            Some(lengths) => inputs.laid_end_to_end(lengths),
            None => Ok(inputs.with_a_mask_for_each_query()),
        }
    }

    /// The same with a row for each query in a 4-D mask that has one for all of them: chunks take their own.
    fn with_a_mask_for_each_query(mut self) -> Self {
        let length = self.length();
        if let Some(AttentionMask::Additive(added)) = &self.attention_mask {
            let (rows, heads, _, keys) = added.dim();
            let each = added.broadcast((rows, heads, length, keys)).filter(|_| keys == length);
            if let Some(each) = each.map(|each| each.to_owned()) {
                self.attention_mask = Some(AttentionMask::Additive(each));
            }
        }
        self
    }

    /// B: how many sequences.
    pub fn batch(&self) -> usize {
        self.tokens.dim().0
    }

    /// S: how long they are.
    pub fn length(&self) -> usize {
        self.tokens.dim().1
    }
}

fn mismatch(name: &str, expected: &str, values: &Values) -> Error {
    Error::input(name, expected, values.describe())
}

fn index<D: Dimension>(name: &str, expected: &str, values: &Values) -> Result<ndarray::Array<i64, D>> {
    match values {
        Values::Index(a) => a.clone().into_dimensionality().map_err(|_| mismatch(name, expected, values)),
        _ => Err(mismatch(name, expected, values)),
    }
}

fn real<D: Dimension>(name: &str, expected: &str, values: &Values) -> Result<ndarray::Array<f32, D>> {
    match values {
        Values::Real(dtype, a) if *dtype != Dtype::F64 => {
            a.mapv(f64::to_f32).into_dimensionality().map_err(|_| mismatch(name, expected, values))
        }
        _ => Err(mismatch(name, expected, values)),
    }
}

fn scalar(name: &str, values: &Values) -> Result<i64> {
    match values {
        Values::Index(a) if a.len() == 1 => Ok(a.iter().copied().sum()),
        _ => Err(mismatch(name, "[] int64", values)),
    }
}

fn attention_mask(values: &Values) -> Result<AttentionMask> {
    const EXPECTED: &str = "[B,S] int64 or bool, or [B,H,S,S] float";
    let padding = |a: ArrayD<bool>| a.into_dimensionality().map(AttentionMask::Padding);
    let mask = match values {
        Values::Bool(a) => padding(a.clone()),
        Values::Index(a) => padding(a.mapv(|x| x != 0)),
        Values::Real(..) => return Ok(AttentionMask::Additive(real("attention_mask", EXPECTED, values)?)),
    };
    mask.map_err(|_| mismatch("attention_mask", EXPECTED, values))
}

fn labels(values: &Values) -> Result<Labels> {
    const EXPECTED: &str = "[B,S] or [B] int64, or [B] or [B,num_labels] float";
    match values {
        Values::Index(a) if a.ndim() == 1 => Ok(Labels::Classes(index("labels", EXPECTED, values)?)),
        Values::Index(_) => Ok(Labels::Ids(index("labels", EXPECTED, values)?)),
        Values::Real(_, a) if (1..=2).contains(&a.ndim()) => Ok(Labels::Targets(real("labels", EXPECTED, values)?)),
        _ => Err(mismatch("labels", EXPECTED, values)),
    }
}

fn logits_to_keep(values: &Values) -> Result<LogitsToKeep> {
    const EXPECTED: &str = "[], [n] or [B,n] int64, or [B,S] bool";
    match values {
        Values::Index(a) if a.ndim() == 0 => Ok(LogitsToKeep::Last(scalar("logits_to_keep", values)?)),
        Values::Index(a) if a.ndim() == 1 => Ok(LogitsToKeep::Positions(a.iter().copied().collect())),
        Values::Index(_) => Ok(LogitsToKeep::PerSample(index("logits_to_keep", EXPECTED, values)?)),
        Values::Bool(a) => {
            let mask = a.clone().into_dimensionality().map_err(|_| mismatch("logits_to_keep", EXPECTED, values))?;
            Ok(LogitsToKeep::Mask(mask))
        }
        Values::Real(..) => Err(mismatch("logits_to_keep", EXPECTED, values)),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn refused(tensors: &[(&str, Values)]) -> String {
        let tensors = tensors.iter().map(|(name, values)| ((*name).to_owned(), values.clone())).collect();
        Inputs::from_tensors(Path::new("in.safetensors"), tensors).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_input_is_refused() {
        let ids = ("input_ids", Values::Index(array![[1, 2]].into_dyn()));
        let float = |dtype| Values::Real(dtype, array![[1.0, 2.0]].into_dyn());
        insta::assert_snapshot!(
            [
                refused(&[]),
                refused(&[("input_ids", float(Dtype::F32))]),
                refused(&[("input_ids", Values::Index(array![1].into_dyn()))]),
                refused(&[ids.clone(), ("inputs_embeds", float(Dtype::F32))]),
                refused(&[ids.clone(), ("attention_masks", float(Dtype::F32))]),
                refused(&[ids.clone(), ("attention_mask", float(Dtype::F32))]),
                refused(&[ids, ("labels", Values::Bool(array![true].into_dyn()))]),
            ]
            .join("\n")
        );
    }
}
