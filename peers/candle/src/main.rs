//! candle's DeepSeek-V2 as a peer: its logits on a checkpoint folder, and its speed. `README.md` of `peers/` has both contracts.
//!
//! ```text
//! dsv2-peer-candle dump MODEL INPUTS OUTPUT f32|bf16
//! dsv2-peer-candle speed MODEL --dtype f32|bf16 --threads N SESSION...
//! ```

mod dump;
mod speed;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, panic};

use candle_core::{DType, Device, Error, Result, safetensors};
use candle_nn::VarBuilder;
use candle_transformers::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};

const USAGE: &str = "usage: dsv2-peer-candle dump MODEL INPUTS OUTPUT f32|bf16, or \
                     dsv2-peer-candle speed MODEL --dtype f32|bf16 --threads N SESSION...";

/// All went well, or the exit status and why.
type Outcome = std::result::Result<(), (u8, Error)>;

fn main() -> ExitCode {
    // A panic is reported like an error: in one line.
    panic::set_hook(Box::new(|panic| eprintln!("{}", one_line(panic))));
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((part, rest)) if part == "dump" && rest.len() == 4 => dump::dump(rest),
        Some((part, rest)) if part == "speed" && !rest.is_empty() => speed::speed(rest).map_err(|error| (1, error)),
        _ => Err((2, Error::Msg(USAGE.into()))),
    };
    let Err((status, error)) = outcome else { return ExitCode::SUCCESS };
    eprintln!("{}", one_line(error));
    ExitCode::from(status)
}

/// candle's model, with its weights in `dtype` ("f32" or "bf16").
///
/// # Errors
/// If the name of the type is another one, or candle takes no such model.
fn load(folder: &Path, dtype: &str) -> Result<DeepSeekV2> {
    let dtype = match dtype {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => return Err(Error::Msg(format!("expected f32 or bf16, found {other}"))),
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
fn one_line(message: impl ToString) -> String {
    let message = message.to_string();
    let is_frame =
        |line: &&str| line.trim_start().split(": ").next().is_some_and(|number| number.parse::<u32>().is_ok());
    message.lines().take_while(|line| !is_frame(line)).flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}
