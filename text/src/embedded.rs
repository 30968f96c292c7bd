//! The small model in the program: a DeepSeek-V2 of a million parameters, as a folder from the hub has it. `text/train` made it.

/// chat_template.jinja
pub const CHAT_TEMPLATE: &str = include_str!("../model/chat_template.jinja");

/// config.json
pub const CONFIG: &str = include_str!("../model/config.json");

/// generation_config.json
pub const GENERATION_CONFIG: &str = include_str!("../model/generation_config.json");

/// model.safetensors
pub const WEIGHTS: &[u8] = include_bytes!("../model/model.safetensors");

/// tokenizer.json
pub const TOKENIZER: &str = include_str!("../model/tokenizer.json");

/// tokenizer_config.json
pub const TOKENIZER_CONFIG: &str = include_str!("../model/tokenizer_config.json");

/// What messages call it.
pub const NAME: &str = "the model in the program";
