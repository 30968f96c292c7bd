//! What the adapters for candle share: loading its DeepSeek-V2 from a checkpoint folder.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, safetensors};
use candle_nn::VarBuilder;
use candle_transformers::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};

/// candle's model, with its weights in `dtype` ("f32" or "bf16").
///
/// # Errors
/// If the name of the type is another one, or candle takes no such model.
pub fn load(folder: &Path, dtype: &str) -> Result<DeepSeekV2> {
    let dtype = match dtype {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => return Err(Error::Msg(format!("no type f32 or bf16: {other}"))),
    };
    let config: DeepSeekV2Config =
        serde_json::from_slice(&fs::read(folder.join("config.json"))?).map_err(Error::wrap)?;
    let mut tensors = HashMap::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            tensors.extend(safetensors::load(folder.join(name), &Device::Cpu)?);
        }
    }
    DeepSeekV2::new(&config, VarBuilder::from_tensors(tensors, dtype, &Device::Cpu))
}

/// A message without the backtrace that candle puts below it.
pub fn one_line(message: impl ToString) -> String {
    let message = message.to_string();
    let is_frame =
        |line: &&str| line.trim_start().split(": ").next().is_some_and(|number| number.parse::<u32>().is_ok());
    message.lines().take_while(|line| !is_frame(line)).flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}
