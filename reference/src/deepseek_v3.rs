//! **Not DeepSeek-V2.** Two parts of DeepSeek-V3 ("DeepSeek-V3 Technical Report", arXiv 2412.19437), as extensions.
//!
//! The usage tips in the Transformers documentation of DeepSeek-V2 speak of load balancing without an auxiliary loss and
//! of multi-token prediction. Neither is in DeepSeek-V2, its paper, its code or its checkpoints; both are V3's. Here
//! they are for readers who followed the tips:
//!
//! | module | V3 report | what |
//! |---|---|---|
//! | [`router`] | 2.1.2, eq. 13-16 | sigmoid scores, and a bias that decides the choice but not the weights |
//! | [`load_balancing`] | 2.1.2, eq. 16-20 | how that bias moves in training; the small loss beside it |
//! | [`mtp`] | 2.2, eq. 21-23 | a module that predicts the token after the next one |
//!
//! Everything else of V3 that these parts need (attention, rotary embedding, norms, experts) is V2's, and is used as it
//! is here. A whole DeepSeek-V3 model is not made of them.

pub mod load_balancing;
pub mod mtp;
pub mod router;

use serde_json::Value;

use crate::{DeepseekV2Config, Error, Result};

/// DeepSeek-V3's config.json, read as far as it means the same as V2's. Which of its differences the modules here do
/// not have is refused.
///
/// A key that is missing has V2's default; the published files have them all.
///
/// # Errors
/// If it is no config.json of DeepSeek-V3, a field is impossible, or it asks for rotary halves (`rope_interleave`:
/// false).
pub fn config_from_value(mut config: Value) -> Result<DeepseekV2Config> {
    for (field, only) in [
        ("model_type", Value::from("deepseek_v3")),
        ("topk_method", "noaux_tc".into()),
        ("scoring_func", "sigmoid".into()),
        ("rope_interleave", true.into()),
    ] {
        if let Some(found) = config.get(field).filter(|found| **found != only) {
            return Err(Error::config(field, format!("{only} in a DeepSeek-V3 with the parts that are here"), found));
        }
    }
    if let Some(fields) = config.as_object_mut() {
        fields.insert("model_type".into(), "deepseek_v2".into());
    }
    DeepseekV2Config::from_value(config)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn v3s_config_is_read_and_v2s_refused() {
        let v3 = json!({"model_type": "deepseek_v3", "topk_method": "noaux_tc", "scoring_func": "sigmoid"});
        assert_eq!(config_from_value(v3).unwrap().topk_method.as_deref(), Some("noaux_tc"));
        for (config, refusal) in [
            (json!({"model_type": "deepseek_v2"}), "config: model_type: expected \"deepseek_v3\""),
            (json!({"rope_interleave": false}), "config: rope_interleave: expected true"),
        ] {
            let found = config_from_value(config).unwrap_err().to_string();
            assert!(found.starts_with(refusal), "{found}");
        }
    }
}
