//! Weights that are not exact in the run's type. A bf16 program may round each of them when it loads it (Transformers 5.23
//! does so with all, 5.24 not with the router's), so both are right, for each tensor by itself. The truth has them as they are
//! stored; a stage that fails so and passes with all of them rounded is judged by these, and that is said.

use std::collections::HashMap;
use std::sync::Arc;

use dsv2_reference::stage::{Stage, flow};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{Dtype, Error, Tensor};
use ndarray::{ArrayD, IxDyn};

use super::{Judged, dispositions};
use crate::case::Case;
use crate::check::dump::Dump;
use crate::check::request::Request;
use crate::check::truth::Truth;
use crate::error::Result;
use crate::local::Local;
use crate::precision::Precision;

/// What is said of stages that pass with rounded weights, and how they are then judged.
pub struct Rounded {
    pub says: String,
    pub judged: Judged,
}

/// Judges the stages that fail with rounded weights, if there are weights to round.
///
/// # Errors
/// If the reference refuses the case.
pub fn with_rounded_weights(request: &Request, dump: &Dump, truth: &Truth, judged: &Judged) -> Result<Option<Rounded>> {
    let Some(narrow) = dump.precision.narrow().filter(|_| judged.failures() > 0) else { return Ok(None) };
    let Some(case) = rounded(&request.case, narrow, dump.precision)? else { return Ok(None) };
    let mut local = Local::of(&case, &dump.trace, &truth.trace, dump.precision, request.cache)?;
    let by_rounded = dispositions(request, &local, truth, &dump.trace)?;
    let explained: Vec<&str> = dump
        .trace
        .iter()
        .map(|(name, _)| name)
        .filter(|name| judged.fails(name) && by_rounded.get(*name).is_some_and(|held| !held.fails()))
        .collect();
    if explained.is_empty() {
        return Ok(None);
    }
    // all others keep the weights as they are stored, and so do the stages between that the dump does not hold
    let config = &request.case.config;
    let mut by_these: Vec<String> = Vec::new();
    for stage in &explained {
        let exists = |name: &str| truth.names.contains(name);
        let held = |name: &str| dump.trace.get(name).is_some();
        by_these.extend(flow::sources(stage, config, exists, held).not_held);
        by_these.push((*stage).to_owned());
    }
    local.take_others_from(&judged.local, &by_these);
    let dispositions = dispositions(request, &local, truth, &dump.trace)?;
    let leaf = |name: &&str| Stage::parse(name)?.kind.rsplit('.').find(|part| *part != "*");
    let mut kinds: Vec<&str> = explained.iter().filter_map(leaf).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let says = format!(
        "weights that {} does not have are rounded to it on load, as these show: {} (for all others it makes no difference, or \
         they are not)",
        dump.precision,
        kinds.join(", "),
    );
    Ok(Some(Rounded { says, judged: Judged { local, dispositions } }))
}

/// Whether a run in `precision` may have rounded some weights: whether one is stored in another type.
///
/// # Errors
/// If a weight cannot be read.
pub fn may_be_rounded(case: &Case, precision: Precision) -> Result<bool> {
    let Some(narrow) = precision.narrow() else { return Ok(false) };
    for (name, shape) in case.weight_shapes() {
        let tensor = case.weights.tensor(&name, &shape)?;
        if is_rounded(&tensor, narrow, precision) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_rounded(tensor: &Tensor, narrow: Dtype, precision: Precision) -> bool {
    let as_stored = precision == Precision::Fp8 && tensor.is_scaled();
    tensor.dtype() != narrow && !as_stored
}

/// The case with every weight rounded that is not read in 8 bits; nothing, if that changes none.
fn rounded(case: &Case, narrow: Dtype, precision: Precision) -> Result<Option<Case>> {
    let mut tensors = HashMap::new();
    let mut any = false;
    for (name, shape) in case.weight_shapes() {
        let tensor = case.weights.tensor(&name, &shape)?;
        let tensor = if is_rounded(&tensor, narrow, precision) {
            let values: ArrayD<f64> = tensor.to_array::<f64, IxDyn>();
            let rounded = Tensor::from_values(narrow, &shape, values.iter().copied());
            let inexact = rounded.to_array::<f64, IxDyn>() != values;
            any |= inexact;
            if inexact { rounded } else { tensor }
        } else {
            tensor
        };
        tensors.insert(name, tensor);
    }
    let case = || Case { weights: Arc::new(Held(tensors)), ..case.clone() };
    Ok(any.then(case))
}

/// Weights that are there already.
struct Held(HashMap<String, Tensor>);

impl WeightSource for Held {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let found = self.0.get(name).filter(|tensor| tensor.shape() == shape);
        found.cloned().ok_or_else(|| Error::weight(name, format!("shape {shape:?}"), "no such tensor"))
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.0.keys().cloned().collect())
    }
}
