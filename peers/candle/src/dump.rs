//! `dump MODEL INPUTS OUTPUT DTYPE`: logits of every position, to a safetensors file.
//!
//! candle returns the logits of the last position only, so every prefix of the sequence is run afresh, without its cache.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, safetensors};
use candle_transformers::models::deepseek2::DeepSeekV2;

use crate::{Outcome, load};

/// Takes exactly four arguments. Exit status 2: candle takes no such model or inputs. 1: it took them, and stopped.
pub fn dump(arguments: &[String]) -> Outcome {
    let (refused, stopped) = (|error| (2, error), |error| (1, error));
    let model = load(Path::new(&arguments[0]), &arguments[3]).map_err(refused)?;
    let ids = read_ids(Path::new(&arguments[1])).map_err(refused)?;
    let logits = logits(model, &ids).map_err(stopped)?;
    safetensors::save(&HashMap::from([("lm_head", logits)]), &arguments[2]).map_err(stopped)
}

/// `input_ids`, if that is all there is: candle's forward function has no argument for masks or positions.
fn read_ids(path: &Path) -> Result<Tensor> {
    let mut inputs = safetensors::load(path, &Device::Cpu)?;
    let ids = inputs.remove("input_ids").ok_or_else(|| Error::Msg("takes input_ids only".into()))?;
    match inputs.keys().next() {
        Some(other) => Err(Error::Msg(format!("has no argument for {other}"))),
        None => ids.to_dtype(DType::U32),
    }
}

/// `[B,S,V]`
fn logits(mut model: DeepSeekV2, ids: &Tensor) -> Result<Tensor> {
    let last = |length| {
        model.clear_kv_cache();
        model.forward(&ids.narrow(1, 0, length)?, 0)
    };
    Tensor::stack(&(1..=ids.dim(1)?).map(last).collect::<Result<Vec<_>>>()?, 1)
}
