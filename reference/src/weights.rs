//! Where weights come from: a checkpoint on disk, or a generator. The model asks for each tensor by name and shape.
//!
//! A name is the checkpoint's, such as `model.layers.1.mlp.experts.3.gate_proj.weight`, and a linear layer's weight
//! is `[out, in]`. Whatever a [`WeightSource`] hands over has the shape that was asked for and one of the types of
//! [`crate::Dtype`]. Whether its elements are finite numbers shows when they are read: see [`finite`].
//!
//! What people have on disk comes in more forms than one: without the prefix `model.`, with the experts of a layer in
//! one tensor, in 8 bits. [`model_weights::ModelWeights`] reads them all under the names of the one form.

pub mod changed;
pub mod checkpoint;
pub mod finite;
pub mod generator;
pub mod model_weights;
pub mod quantization;
pub mod safetensors_file;
mod scaled;
pub(crate) mod tensor;

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::one_line;
use crate::{Error, Result, Tensor};

/// Something that has the tensors of a model.
pub trait WeightSource {
    /// The tensor `name`, in the type it is stored in. It has exactly the shape `shape`. Elements that are not finite
    /// are known to [`WeightSource::watch`] once they are read.
    ///
    /// # Errors
    /// If there is no such tensor, or its type or its shape is impossible.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The names of all tensors, or `None` where tensors are made on demand.
    fn names(&self) -> Option<Vec<String>>;

    /// The shape of tensor `name`, at no cost; `None` if there is none, or if it is made in any shape asked for.
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let _ = name;
        None
    }

    /// What was found in the tensors that were read.
    fn watch(&self) -> Arc<finite::Watch> {
        Arc::default()
    }

    /// What to say of the source beyond its tensors, a line each: what was not read, and what was taken for what.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Checks that `source` has all tensors of `expected` (name and shape), and returns the names of those that it has
/// beyond them, in the order of the alphabet: they are not read, as in Transformers, which warns.
///
/// Not among these are those that `tolerated` names, and `*.rotary_emb.inv_freq`, a table that old versions of Transformers
/// saved and of which today's says nothing either. A source that makes its tensors on demand is always complete.
///
/// # Errors
/// One line that names the first missing tensor, else the first of a wrong shape, in the order of `expected`; and how
/// many there are of each kind.
pub fn check_complete(
    source: &dyn WeightSource,
    expected: &[(String, Vec<usize>)],
    tolerated: &[&str],
) -> Result<Vec<String>> {
    let Some(names) = source.names() else { return Ok(Vec::new()) };
    let held: HashSet<&str> = names.iter().map(String::as_str).collect();
    let wanted: HashSet<&str> =
        expected.iter().map(|(name, _)| name.as_str()).chain(tolerated.iter().copied()).collect();

    let missing: Vec<_> = expected.iter().filter(|(name, _)| !held.contains(name.as_str())).collect();
    let misshapen: Vec<_> = expected
        .iter()
        .filter_map(|(name, shape)| source.shape(name).filter(|found| found != shape).map(|found| (name, shape, found)))
        .collect();
    let ignored = |name: &str| name.ends_with(".rotary_emb.inv_freq") || wanted.contains(&name);
    let mut extra: Vec<_> = held.into_iter().filter(|name| !ignored(name)).collect();
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
    Ok(extra.into_iter().map(str::to_owned).collect())
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

    fn check(held: &[(&str, &[usize])], tolerated: &[&str]) -> Result<Vec<String>, String> {
        let expected = list(&[("embed", &[9, 4]), ("a.weight", &[4, 2]), ("b.weight", &[2, 4])]);
        check_complete(&Shapes(list(held)), &expected, tolerated).map_err(|error| error.to_string())
    }

    #[test]
    fn complete() {
        let all: &[(&str, &[usize])] = &[("b.weight", &[2, 4]), ("a.weight", &[4, 2]), ("embed", &[9, 4])];
        assert_eq!(check(all, &[]), Ok(vec![]));
        let more: &[(&str, &[usize])] =
            &[("layers.0.rotary_emb.inv_freq", &[2]), ("lm_head.weight", &[9, 4]), ("c", &[])];
        let more = [all, more].concat();
        assert_eq!(check(&more, &["lm_head.weight"]), Ok(vec!["c".into()]));
        assert_eq!(check(&more, &[]), Ok(vec!["c".into(), "lm_head.weight".into()]));
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
