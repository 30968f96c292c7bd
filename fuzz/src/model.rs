//! The small good model of `golden/hostile/good`.

use std::path::Path;
use std::sync::Arc;

use dsv2::backend::{Backend, Reference, Settings};
use dsv2::case::Case;
use dsv2::inputs::Inputs;
use dsv2::trace::Trace;
use dsv2::values;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::{DeepseekV2Config, Dialect, NoTap};

/// Its config.json.
pub const CONFIG: &[u8] = include_bytes!("../../golden/hostile/good/config.json");
/// Its weights.
pub const WEIGHTS: &[u8] = include_bytes!("../../golden/hostile/good/model.safetensors");
/// Three tokens for it.
pub const INPUTS: &[u8] = include_bytes!("../../golden/hostile/good/inputs.safetensors");

/// The inputs that a safetensors file holds.
///
/// # Errors
/// If it does not hold inputs.
pub fn inputs(bytes: Vec<u8>) -> dsv2::Result<Inputs> {
    let path = Path::new("inputs.safetensors");
    Inputs::from_tensors(path, values::parse(path, bytes)?)
}

/// The model with some inputs.
///
/// # Errors
/// If the inputs are none for this model.
pub fn case(inputs: Inputs) -> dsv2::Result<Case> {
    let text = std::str::from_utf8(CONFIG).expect("it is good");
    let config = DeepseekV2Config::from_json_str(text).expect("it is good");
    let weights = Checkpoint::from_bytes("model.safetensors", Arc::new(WEIGHTS)).expect("they are good");
    Case::of_language_model(config, Dialect::Hf, Arc::new(weights), inputs).checked()
}

/// The model with its three tokens.
///
/// # Panics
/// Never: they are good.
pub fn good_case() -> Case {
    case(inputs(INPUTS.to_vec()).expect("good inputs")).expect("a good case")
}

/// What the model makes of them: every stage.
///
/// # Panics
/// Never: they are good.
pub fn good_trace() -> Trace {
    Reference.run(&good_case(), &Settings::default(), &mut NoTap).expect("it runs")
}
