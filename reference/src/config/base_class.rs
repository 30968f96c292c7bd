//! Keys that are no fields of DeepSeek-V2 and that Transformers' base class, masks and caches read all the same.

use serde_json::Value;

use super::DeepseekV2Config;
use super::read::shortened;
use crate::{Error, Result};

/// A key, the values with which the model stays this model, and what others would do.
struct Key {
    name: &'static str,
    harmless: fn(&Value) -> bool,
    expected: &'static str,
}

/// Not read anywhere here: with any other value Transformers computes another model, or none.
///
/// **Trap.** `sliding_window` and its kin reach the cache, and never the mask: the same tokens give one result in one call
/// and another one in pieces (logits off by 9).
const KEYS: &[Key] = &[
    Key {
        name: "sliding_window",
        harmless: Value::is_null,
        expected: "null: Transformers' cache then drops keys that its mask lets be seen",
    },
    Key {
        name: "attention_chunk_size",
        harmless: Value::is_null,
        expected: "null: Transformers' cache then drops keys that its mask lets be seen",
    },
    Key {
        name: "kv_sharing_modes",
        harmless: Value::is_null,
        expected: "null: Transformers then keeps no cache of some layers",
    },
    Key {
        name: "is_causal",
        harmless: |value| *value == Value::Bool(true),
        expected: "true: Transformers then lets tokens see those behind them",
    },
    Key {
        name: "per_layer_config",
        harmless: |value| value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty),
        expected: "null or {}: all layers of this model are alike",
    },
];

/// The layers' kinds, which decide which cache they get.
const LAYER_TYPES: &str = "layer_types";
/// The only kind that MLA's layers are.
const FULL_ATTENTION: &str = "full_attention";

impl DeepseekV2Config {
    /// Refuses what would make another model of this one in Transformers.
    pub(super) fn validate_base_class(&self) -> Result<()> {
        let of_kind = |kind: &Value| kind == FULL_ATTENTION;
        let kinds = self.extra.get(LAYER_TYPES).filter(|kinds| !kinds.is_null());
        if let Some(kinds) = kinds {
            let all = kinds.as_array().filter(|all| all.len() == self.num_hidden_layers && all.iter().all(of_kind));
            if all.is_none() {
                let expected =
                    format!("\"{FULL_ATTENTION}\" for each of the {} layers, or null", self.num_hidden_layers);
                return Err(Error::config(LAYER_TYPES, expected, shortened(kinds)));
            }
        }
        for Key { name, harmless, expected } in KEYS {
            // Where the layers' kinds are given, they decide, and not the windows.
            let overruled = kinds.is_some() && ["sliding_window", "attention_chunk_size"].contains(name);
            if let Some(value) = self.extra.get(*name).filter(|value| !overruled && !harmless(value)) {
                return Err(Error::config(*name, *expected, shortened(value)));
            }
        }
        Ok(())
    }

    /// Is the last of the hidden states the one after the final norm? `tie_last_hidden_states: false` says no; Transformers
    /// alone reads it.
    pub(crate) fn ties_last_hidden_state(&self) -> bool {
        self.extra.get("tie_last_hidden_states") != Some(&Value::Bool(false))
    }
}
