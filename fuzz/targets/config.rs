//! Any text as config.json, in every dialect.

#![no_main]

use dsv2_fuzz::check_message;
use dsv2_fuzz::memory::bounded;
use dsv2_reference::config::Head;
use dsv2_reference::{DeepseekV2Config, Dialect};
use libfuzzer_sys::fuzz_target;

/// A config may ask for many weights, up to a limit that keeps the list of them in memory. Here, lists are short.
const EXPERTS_TO_LIST: usize = 2000;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let config = match bounded(bytes.len(), 4, || DeepseekV2Config::from_json_str(text)) {
        Ok(config) => config,
        Err(error) => return check_message(&error),
    };
    // What was read is written as a text that means the same.
    let again = DeepseekV2Config::from_value(config.to_json()).expect("a config that was accepted");
    assert_eq!(again, config);

    for dialect in Dialect::ALL {
        match bounded(bytes.len(), 4, || config.validate(dialect)) {
            Err(error) => check_message(&error),
            Ok(()) if config.num_hidden_layers * config.num_experts().max(1) > EXPERTS_TO_LIST => {}
            Ok(()) => {
                for head in [Head::CausalLm, Head::SequenceClassification] {
                    assert!(!config.weight_shapes(head, dialect).is_empty());
                }
            }
        }
    }
    if config.num_hidden_layers * config.num_experts().max(1) <= EXPERTS_TO_LIST {
        assert!(config.active_parameter_count() <= config.parameter_count());
    }
});
