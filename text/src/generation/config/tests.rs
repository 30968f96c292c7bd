use serde_json::json;

use super::*;

fn read(file: Value, arguments: Value) -> Result<GenerationConfig> {
    GenerationConfig::from_json(file.as_object().unwrap(), arguments.as_object().unwrap())
}

#[test]
fn what_is_set_and_not_supported_is_refused_by_name() {
    for (file, refused) in [
        (json!({"num_beams": 4}), "`num_beams`: expected nothing or 1, since others are not supported, found 4"),
        (
            json!({"penalty_alpha": 0.6}),
            "`penalty_alpha`: expected nothing or 0, since others are not supported, found 0.6",
        ),
        (json!({"top_h": 0.5}), "`top_h`: expected nothing, since this is not supported, found 0.5"),
        (json!({"temperature": "hot"}), "`temperature`: expected a number, found \"hot\""),
        (
            json!({"do_sample": true, "temperature": 0}),
            "`temperature`: expected a number above 0 (for the likeliest token, set `do_sample` to false), found 0",
        ),
        (json!({"do_sample": true, "top_p": 1.5}), "`top_p`: expected a number from 0 to 1, found 1.5"),
        (json!({"top_k": -1}), "`top_k`: expected a whole number, 0 or more, found -1"),
        (json!({"eos_token_id": [1, -2]}), "`eos_token_id`: expected a token's id or a list of them, found [1,-2]"),
        (json!({"repetition_penalty": 0.0}), "`repetition_penalty`: expected a number above 0, found 0"),
        (json!({"max_new_tokens": 0}), "`max_new_tokens`: expected at least 1, found 0"),
        (json!({"stop_strings": ["a", ""]}), "`stop_strings`: expected texts, found an empty one"),
        (json!({"bad_words_ids": []}), "`bad_words_ids`: expected a list of lists of tokens' ids, found []"),
    ] {
        for (file, arguments) in [(file.clone(), json!({})), (json!({}), file)] {
            assert_eq!(read(file, arguments).unwrap_err().to_string(), format!("generation config: {refused}"));
        }
    }
    let refused = read(json!({}), json!({"tempature": 1})).unwrap_err().to_string();
    assert_eq!(refused, "generation config: `tempature`: expected a setting of a generation, found another name");
}

#[test]
fn what_changes_nothing_is_taken() {
    let file = json!({"num_beams": 1, "use_cache": true, "typical_p": 1.0, "renormalize_logits": false, "early_stopping": true,
        "cache_implementation": "static", "temperature": 0.0, "transformers_version": "4.39.3", "of_another": [1]});
    let config = read(file, json!({"num_beams": null})).unwrap();
    assert_eq!(config, GenerationConfig { temperature: Some(0.0), ..GenerationConfig::default() });
    // What a call sets back is not refused.
    assert!(read(json!({"num_beams": 4}), json!({"num_beams": 1})).is_ok());
}

#[test]
fn a_folder_is_read_from_one_file_or_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: Value| std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    let eos = || GenerationConfig::from_folder(folder.path(), &Map::new()).map(|config| config.eos_token_id);
    assert!(eos().unwrap().is_empty());
    write("config.json", json!({"eos_token_id": 7, "hidden_size": 5}));
    assert_eq!(eos().unwrap(), [7]);
    write("generation_config.json", json!({"do_sample": true}));
    assert!(eos().unwrap().is_empty());
    write("generation_config.json", json!([]));
    assert!(
        eos()
            .unwrap_err()
            .to_string()
            .ends_with("generation_config.json: expected an object of JSON, found another value")
    );
}
