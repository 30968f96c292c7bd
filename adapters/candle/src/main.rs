//! `dsv2-adapter-candle MODEL INPUTS OUTPUT DTYPE`: candle's DeepSeek-V2 on a checkpoint folder, logits to a safetensors file.
//!
//! candle returns the logits of the last position only, so every prefix of the sequence is run afresh, without its cache.
//! Exit status 2: candle takes no such model or inputs. 1: it took them, and stopped with an error.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::{env, panic};

use candle_core::{DType, Device, Error, Result, Tensor, safetensors};
use candle_transformers::models::deepseek2::DeepSeekV2;
use dsv2_adapter_candle::{load, one_line};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, inputs, output, dtype] = arguments.as_slice() else {
        eprintln!("usage: dsv2-adapter-candle MODEL INPUTS OUTPUT f32|bf16");
        return ExitCode::from(2);
    };
    // A panic is reported like an error: in one line.
    panic::set_hook(Box::new(|panic| eprintln!("{}", one_line(panic))));
    let (model, ids) = match load(Path::new(model), dtype).and_then(|model| Ok((model, read_ids(Path::new(inputs))?))) {
        Ok(loaded) => loaded,
        Err(refused) => {
            eprintln!("{}", one_line(refused));
            return ExitCode::from(2);
        }
    };
    match logits(model, &ids).and_then(|logits| safetensors::save(&HashMap::from([("lm_head", logits)]), output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{}", one_line(failed));
            ExitCode::FAILURE
        }
    }
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
