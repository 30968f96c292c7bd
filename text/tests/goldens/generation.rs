use dsv2_text::generation::{padding, sampler};
use dsv2_text::{GenerationConfig, Lengths};
use serde_json::{Value, json};

use super::{golden, ids, list, object};

#[test]
fn lengths_are_those_of_transformers() {
    let golden = golden("generation.json");
    for case in list(&golden["lengths"]) {
        let prompt = case[2].as_u64().unwrap() as usize;
        let lengths = GenerationConfig::from_json(object(&case[0]), object(&case[1]))
            .and_then(|config| Lengths::new(&config, prompt, Some(64)));
        let lengths = lengths.map_or(Value::Null, |lengths| json!([lengths.most, lengths.fewest]));
        assert_eq!(lengths, case[3], "{case}");
    }
}

#[test]
fn settings_of_file_call_and_default_are_combined_as_transformers_does() {
    for case in list(&golden("generation.json")["settings"]) {
        let config = GenerationConfig::from_json(object(&case[0]), object(&case[1])).unwrap();
        let eos = (!config.eos_token_id.is_empty()).then_some(&config.eos_token_id);
        let ours = json!({
            "do_sample": config.do_sample, "temperature": config.temperature, "top_k": config.top_k,
            "top_p": config.top_p, "min_p": config.min_p, "repetition_penalty": config.repetition_penalty,
            "bos_token_id": config.bos_token_id, "eos": eos, "pad": config.padding(),
        });
        assert_eq!(ours, case[2], "{case}");
    }
}

#[test]
fn the_inferred_mask_is_that_of_transformers() {
    for case in list(&golden("generation.json")["masks"]) {
        let pad = padding::padding_token(case[1].as_i64(), &ids(&case[2]));
        let mask = |row: &Value| ids(row).iter().map(|id| i64::from(Some(*id) != pad)).collect::<Vec<_>>();
        let masks: Vec<_> = list(&case[0]).iter().map(mask).collect();
        assert_eq!(json!(masks), case[3], "{case}");
    }
}

#[test]
fn what_is_drawn_by_is_chacha20_of_seed_sequence_and_step() {
    for draw in list(&golden("draws.json")) {
        let number = |at: usize| draw[at].as_u64().unwrap();
        assert_eq!(sampler::uniform(number(0), number(1), number(2)), draw[3].as_f64().unwrap(), "{draw}");
    }
}
