//! What is asked of inputs before anything is computed from them.

use dsv2_reference::model::loss::IGNORE_INDEX;
use ndarray::{ArrayBase, Data, Dimension};

use super::{AttentionMask, Inputs, Labels, LogitsToKeep, Tokens};
use crate::error::{Error, Result};

/// What the model says about its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// V: token ids are below it.
    pub vocab_size: usize,
    /// D: the width of `inputs_embeds`.
    pub hidden_size: usize,
    /// H: how many heads a mask may have an entry for each of.
    pub num_attention_heads: usize,
    /// How many classes a classifier has; `None` for a language model.
    pub num_labels: Option<usize>,
}

/// Checks shapes, ranges, and that every number is finite.
///
/// # Errors
/// One that names the first input that cannot be.
pub fn check(inputs: &Inputs, expected: &Expected) -> Result<()> {
    check_tokens(&inputs.tokens, expected)?;
    let (batch, length) = (inputs.batch(), inputs.length());
    if let Some(mask) = &inputs.attention_mask {
        check_mask(mask, batch, expected.num_attention_heads, length)?;
    }
    if let Some(positions) = &inputs.position_ids {
        let (rows, columns) = positions.dim();
        if (rows != 1 && rows != batch) || columns != length {
            return Err(shape("position_ids", format!("[{}, {length}]", one_or(batch)), positions));
        }
    }
    if let Some(keep) = &inputs.logits_to_keep {
        check_keep(keep, batch, length)?;
    }
    if let Some(labels) = &inputs.labels {
        match expected.num_labels {
            None => check_token_labels(labels, inputs, expected.vocab_size)?,
            Some(classes) => check_class_labels(labels, batch, classes)?,
        }
    }
    match inputs.num_items_in_batch {
        Some(items) if items < 0 => Err(Error::input("num_items_in_batch", "0 or more", items)),
        _ => Ok(()),
    }
}

fn shape<S: Data, D: Dimension>(name: &str, expected: String, found: &ArrayBase<S, D>) -> Error {
    Error::input(name, format!("shape {expected}"), format!("shape {:?}", found.shape()))
}

/// How many of something there are, which one may stand for.
fn one_or(batch: usize) -> String {
    if batch == 1 { "1".into() } else { format!("1 or {batch}") }
}

/// Refuses the first element that is not `valid`.
fn each<T, S, D>(name: &str, expected: String, a: &ArrayBase<S, D>, valid: impl Fn(T) -> bool) -> Result<()>
where
    T: Copy + std::fmt::Display,
    S: Data<Elem = T>,
    D: Dimension,
{
    let wrong = a.view().into_dyn().indexed_iter().map(|(i, &x)| (i, x)).find(|(_, x)| !valid(*x));
    match wrong {
        Some((i, x)) => Err(Error::input(name, expected, format!("{x} at {:?}", ndarray::Dimension::slice(&i)))),
        None => Ok(()),
    }
}

fn check_tokens(tokens: &Tokens, expected: &Expected) -> Result<()> {
    match tokens {
        Tokens::InputIds(ids) if ids.is_empty() => Err(shape("input_ids", "[B,S] with a token at least".into(), ids)),
        Tokens::InputIds(ids) => {
            let vocabulary = 0..expected.vocab_size as i64;
            let range = format!("ids from 0 to {}", expected.vocab_size as i64 - 1);
            each("input_ids", range, ids, |id| vocabulary.contains(&id))
        }
        Tokens::InputsEmbeds(embeds) => {
            let (batch, length, width) = embeds.dim();
            if batch == 0 || length == 0 {
                return Err(shape("inputs_embeds", "[B,S,D] with a token at least".into(), embeds));
            }
            if width != expected.hidden_size {
                return Err(shape("inputs_embeds", format!("[B,S,{}]", expected.hidden_size), embeds));
            }
            each("inputs_embeds", "finite numbers".into(), embeds, f32::is_finite)
        }
    }
}

fn check_mask(mask: &AttentionMask, batch: usize, heads: usize, length: usize) -> Result<()> {
    match mask {
        AttentionMask::Padding(attend) if attend.dim() != (batch, length) => {
            Err(shape("attention_mask", format!("[{batch}, {length}]"), attend))
        }
        AttentionMask::Padding(_) => Ok(()),
        AttentionMask::Additive(added) => {
            let (rows, planes, queries, keys) = added.dim();
            let fits = |found: usize, all: usize| found == 1 || found == all;
            if !fits(rows, batch) || !fits(planes, heads) || (queries, keys) != (length, length) {
                let expected = format!("[{}, {}, {}, {length}]", one_or(batch), one_or(heads), one_or(length));
                return Err(shape("attention_mask", expected, added));
            }
            // minus infinity forbids a key, as the lowest finite number does
            each("attention_mask", "no NaN and no plus infinity".into(), added, |x| x < f32::INFINITY)
        }
    }
}

fn check_keep(keep: &LogitsToKeep, batch: usize, length: usize) -> Result<()> {
    let positions = -(length as i64)..length as i64;
    let range = || format!("positions from -{length} to {}", length - 1);
    match keep {
        LogitsToKeep::Last(_) => Ok(()),
        LogitsToKeep::Positions(kept) => {
            each("logits_to_keep", range(), &ndarray::aview1(kept), |position| positions.contains(&position))
        }
        LogitsToKeep::PerSample(kept) if kept.nrows() != batch => {
            Err(shape("logits_to_keep", format!("[{batch}, n]"), kept))
        }
        LogitsToKeep::PerSample(kept) => {
            each("logits_to_keep", range(), kept, |position| positions.contains(&position))
        }
        LogitsToKeep::Mask(kept) if kept.dim() != (batch, length) => {
            Err(shape("logits_to_keep", format!("[{batch}, {length}]"), kept))
        }
        LogitsToKeep::Mask(_) => Ok(()),
    }
}

/// How many positions of each sequence get logits; `None` if it is not the same number for each.
fn kept(keep: Option<&LogitsToKeep>, length: usize) -> Option<usize> {
    match keep {
        None | Some(LogitsToKeep::Last(0)) => Some(length),
        Some(LogitsToKeep::Last(k)) if *k > 0 => Some(length.min(*k as usize)),
        Some(LogitsToKeep::Last(k)) => Some(length.saturating_sub(k.unsigned_abs() as usize)),
        Some(LogitsToKeep::Positions(kept)) => Some(kept.len()),
        Some(LogitsToKeep::PerSample(kept)) => Some(kept.ncols()),
        Some(LogitsToKeep::Mask(_)) => None,
    }
}

fn check_token_labels(labels: &Labels, inputs: &Inputs, vocab_size: usize) -> Result<()> {
    let Labels::Ids(ids) = labels else {
        return Err(Error::input("labels", "[B,S] int64 (of a language model)", "labels of a classifier"));
    };
    match kept(inputs.logits_to_keep.as_ref(), inputs.length()) {
        Some(kept) if ids.dim() != (inputs.batch(), kept) => {
            return Err(shape("labels", format!("[{}, {kept}]", inputs.batch()), ids));
        }
        _ => {}
    }
    let range = format!("ids from 0 to {}, or {IGNORE_INDEX}", vocab_size as i64 - 1);
    each("labels", range, ids, |id| id == IGNORE_INDEX || (0..vocab_size as i64).contains(&id))
}

fn check_class_labels(labels: &Labels, batch: usize, classes: usize) -> Result<()> {
    match labels {
        Labels::Ids(ids) => {
            Err(shape("labels", format!("[{batch}] int64 or float, or [{batch}, {classes}] float"), ids))
        }
        Labels::Classes(ids) if ids.len() != batch => Err(shape("labels", format!("[{batch}]"), ids)),
        Labels::Classes(ids) => {
            let range = format!("classes from 0 to {}, or {IGNORE_INDEX}", classes as i64 - 1);
            each("labels", range, ids, |id| id == IGNORE_INDEX || (0..classes as i64).contains(&id))
        }
        Labels::Targets(targets) if targets.shape() != [batch] && targets.shape() != [batch, classes] => {
            Err(shape("labels", format!("[{batch}] or [{batch}, {classes}]"), targets))
        }
        Labels::Targets(targets) => each("labels", "finite numbers".into(), targets, f32::is_finite),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2, Array3, Array4, array};

    use super::*;

    const EXPECTED: Expected = Expected { vocab_size: 10, hidden_size: 4, num_attention_heads: 2, num_labels: None };

    fn ids() -> Inputs {
        Inputs::new(Tokens::InputIds(array![[1, 2, 3], [4, 5, 6]]))
    }

    fn refused(inputs: Inputs) -> String {
        check(&inputs, &EXPECTED).unwrap_err().to_string()
    }

    #[test]
    fn good_inputs_pass() {
        let inputs = Inputs {
            attention_mask: Some(AttentionMask::Padding(Array2::from_elem((2, 3), true))),
            position_ids: Some(array![[0, 1, 2]]),
            labels: Some(Labels::Ids(array![[-100, 9], [0, 1]])),
            logits_to_keep: Some(LogitsToKeep::Last(2)),
            num_items_in_batch: Some(3),
            ..ids()
        };
        check(&inputs, &EXPECTED).unwrap();
    }

    #[test]
    fn every_impossible_input_is_named() {
        let mut nan = Array3::zeros((1, 2, 4));
        nan[[0, 1, 3]] = f32::NAN;
        let embeds = |a| Inputs::new(Tokens::InputsEmbeds(a));
        let mask = |mask| Inputs { attention_mask: Some(mask), ..ids() };
        let labels = |labels| Inputs { labels: Some(labels), ..ids() };
        let messages = [
            refused(Inputs::new(Tokens::InputIds(array![[1, 10]]))),
            refused(Inputs::new(Tokens::InputIds(array![[1], [-1]]))),
            refused(Inputs::new(Tokens::InputIds(Array2::zeros((0, 3))))),
            refused(embeds(Array3::zeros((1, 0, 4)))),
            refused(embeds(Array3::zeros((1, 1, 5)))),
            refused(embeds(nan)),
            refused(mask(AttentionMask::Padding(Array2::from_elem((2, 2), true)))),
            refused(mask(AttentionMask::Additive(Array4::zeros((2, 1, 3, 2))))),
            refused(mask(AttentionMask::Additive(Array4::from_elem((2, 1, 3, 3), f32::INFINITY)))),
            refused(Inputs { position_ids: Some(array![[0, 1]]), ..ids() }),
            refused(Inputs { position_ids: Some(Array2::zeros((3, 3))), ..ids() }),
            refused(labels(Labels::Ids(array![[1, 2, 3], [4, 5, 10]]))),
            refused(labels(Labels::Ids(array![[1, 2, 3]]))),
            refused(labels(Labels::Classes(array![1, 2]))),
            refused(Inputs { logits_to_keep: Some(LogitsToKeep::Positions(vec![0, 3])), ..ids() }),
            refused(Inputs { logits_to_keep: Some(LogitsToKeep::Mask(Array2::from_elem((1, 3), true))), ..ids() }),
            refused(Inputs { num_items_in_batch: Some(-1), ..ids() }),
        ];
        insta::assert_snapshot!(messages.join("\n"));
    }

    #[test]
    fn a_classifier_has_labels_of_its_own() {
        let expected = Expected { num_labels: Some(3), ..EXPECTED };
        let with = |labels| check(&Inputs { labels: Some(labels), ..ids() }, &expected).map_err(|e| e.to_string());
        with(Labels::Classes(array![0, 2])).unwrap();
        with(Labels::Targets(array![[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]].into_dyn())).unwrap();
        let messages = [
            with(Labels::Classes(array![0, 3])),
            with(Labels::Classes(Array1::zeros(3))),
            with(Labels::Ids(array![[0, 1]])),
            with(Labels::Targets(array![[0.0, 1.0]].into_dyn())),
            with(Labels::Targets(array![0.0, f32::NAN].into_dyn())),
        ];
        insta::assert_snapshot!(messages.map(Result::unwrap_err).join("\n"));
    }
}
