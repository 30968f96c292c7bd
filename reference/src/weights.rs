//! Where weights come from: a checkpoint on disk, or a generator. The model asks for each tensor by name and shape.
//!
//! A name is the checkpoint's, such as `model.layers.1.mlp.experts.3.gate_proj.weight`, and a linear layer's weight
//! is `[out, in]`. Whatever a [`WeightSource`] hands over, it has checked: the shape is the one asked for, the type is
//! one of [`crate::Dtype`], and every element is a finite number. So the model never meets a NaN that it did not
//! compute itself.
//!
//! Asking tensor by tensor finds a missing one late, and an extra one never. An extra tensor is a fault as well: it is
//! how a config.json with too few layers, or with tied embeddings that are not tied, shows itself.
//! [`check_complete`] compares the two lists of names before anything is read.

pub mod checkpoint;
pub mod generator;
pub mod safetensors_file;
pub(crate) mod tensor;

use std::collections::HashSet;

use crate::error::one_line;
use crate::{Error, Result, Tensor};

/// Something that has the tensors of a model.
pub trait WeightSource {
    /// The tensor `name`, in the type it is stored in. It has exactly the shape `shape` and only finite elements.
    ///
    /// # Errors
    /// If there is no such tensor, or its type, its shape or an element is impossible.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The names of all tensors, or `None` where tensors are made on demand.
    fn names(&self) -> Option<Vec<String>>;

    /// The shape of tensor `name`, at no cost; `None` if there is none, or if it is made in any shape asked for.
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let _ = name;
        None
    }
}

/// Checks that `source` has all tensors of `expected` (name and shape) and no others.
///
/// Two kinds of extra tensor are accepted: those that `tolerated` names (a checkpoint whose embeddings are tied may
/// still store `lm_head.weight`), and `*.rotary_emb.inv_freq`, a table that old versions of Transformers saved and that
/// Hugging Face too ignores without a word. A source that makes its tensors on demand is always complete.
///
/// # Errors
/// One line that names the first missing tensor, else the first of a wrong shape, else the first extra one, in the
/// order of `expected` (extra ones: of the alphabet); and how many there are of each kind.
pub fn check_complete(source: &dyn WeightSource, expected: &[(String, Vec<usize>)], tolerated: &[&str]) -> Result<()> {
    let Some(names) = source.names() else { return Ok(()) };
    let held: HashSet<&str> = names.iter().map(String::as_str).collect();
    let wanted: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();

    let missing: Vec<_> = expected.iter().filter(|(name, _)| !held.contains(name.as_str())).collect();
    let misshapen: Vec<_> = expected
        .iter()
        .filter_map(|(name, shape)| source.shape(name).filter(|found| found != shape).map(|found| (name, shape, found)))
        .collect();
    let ignored = |name: &str| name.ends_with(".rotary_emb.inv_freq") || tolerated.contains(&name);
    let mut extra: Vec<_> = held.into_iter().filter(|name| !wanted.contains(name) && !ignored(name)).collect();
    extra.sort_unstable();

    let counts = [(missing.len(), "missing"), (misshapen.len(), "of a wrong shape"), (extra.len(), "too many")];
    let counts = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
    let counts = format!("in all {} of {} tensors", counts.collect::<Vec<_>>().join(", "), expected.len());

    if let Some((name, shape)) = missing.first() {
        let also = extra.first().map(|name| format!(", one too many is `{}`", one_line(name))).unwrap_or_default();
        return Err(Error::weight(name, format!("shape {shape:?}"), format!("no such tensor ({counts}{also})")));
    }
    if let Some((name, shape, found)) = misshapen.first() {
        let found = one_line(&format!("shape {found:?}"));
        return Err(Error::weight(*name, format!("shape {shape:?}"), format!("{found} ({counts})")));
    }
    if let Some(name) = extra.first() {
        let found = format!("one in the checkpoint ({counts})");
        return Err(Error::weight(one_line(name), "no such tensor in a model of this config", found));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shapes(Vec<(String, Vec<usize>)>);

    impl WeightSource for Shapes {
        fn tensor(&self, _: &str, _: &[usize]) -> Result<Tensor> {
            unreachable!("a check of names and shapes reads nothing")
        }
        fn names(&self) -> Option<Vec<String>> {
            Some(self.0.iter().map(|(name, _)| name.clone()).collect())
        }
        fn shape(&self, name: &str) -> Option<Vec<usize>> {
            self.0.iter().find(|(held, _)| held == name).map(|(_, shape)| shape.clone())
        }
    }

    fn list(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    fn check(held: &[(&str, &[usize])], tolerated: &[&str]) -> Result<(), String> {
        let expected = list(&[("embed", &[9, 4]), ("a.weight", &[4, 2]), ("b.weight", &[2, 4])]);
        check_complete(&Shapes(list(held)), &expected, tolerated).map_err(|error| error.to_string())
    }

    #[test]
    fn complete() {
        let all: &[(&str, &[usize])] = &[("b.weight", &[2, 4]), ("a.weight", &[4, 2]), ("embed", &[9, 4])];
        assert_eq!(check(all, &[]), Ok(()));
        let more = [all, &[("layers.0.rotary_emb.inv_freq", &[2]), ("lm_head.weight", &[9, 4])]].concat();
        assert_eq!(check(&more, &["lm_head.weight"]), Ok(()));
        let refused = check(&more, &[]).unwrap_err();
        assert_eq!(
            refused,
            "weight `lm_head.weight`: expected no such tensor in a model of this config, \
             found one in the checkpoint (in all 1 too many of 3 tensors)"
        );
    }

    #[test]
    fn missing_misshapen_extra() {
        let refused = check(&[("a.weight", &[2, 4]), ("x", &[1]), ("c\n", &[1])], &[]).unwrap_err();
        assert_eq!(
            refused,
            "weight `embed`: expected shape [9, 4], found no such tensor \
             (in all 2 missing, 1 of a wrong shape, 2 too many of 3 tensors, one too many is `c\\n`)"
        );
        let refused = check(&[("embed", &[9, 4]), ("a.weight", &[2, 4]), ("b.weight", &[2, 4])], &[]).unwrap_err();
        assert_eq!(
            refused,
            "weight `a.weight`: expected shape [4, 2], found shape [2, 4] (in all 1 of a wrong shape of 3 tensors)"
        );
    }
}
