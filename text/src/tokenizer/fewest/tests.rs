use serde_json::{Value, json};

use crate::{Tokenizer, embedded};

fn embedded() -> Value {
    serde_json::from_str(embedded::TOKENIZER).unwrap()
}

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap()
}

/// Numbers that look drawn.
fn drawn() -> impl FnMut(usize) -> usize {
    let mut state = 1u64;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}

#[test]
fn what_is_certainly_longer_is_longer() {
    let mut whole = embedded();
    let added = json!({"id": 1024, "content": "several words at once", "single_word": true, "lstrip": false, "rstrip": false,
        "normalized": true, "special": false});
    whole["added_tokens"].as_array_mut().unwrap().push(added);
    let tokenizer = tokenizer(&whole);
    let pieces = [
        " the latent",
        "attention",
        " ",
        "   ",
        "\n",
        "7",
        "١",
        "é",
        "中",
        "😀",
        "\0",
        "several words at once",
        "<｜end▁of▁sentence｜>",
        "DeepSeek-V2",
        "q",
        "x",
        "\u{a0}",
        "'s",
        "ing",
        ".",
    ];
    let mut next = drawn();
    let (mut told, mut all) = (0, 0);
    for _ in 0..3000 {
        let text: String = (0..next(40)).map(|_| pieces[next(pieces.len())]).collect();
        let tokens = tokenizer.encode(&text, false).unwrap().len();
        assert!(!tokenizer.is_certainly_longer(&text, tokens), "{text:?} has {tokens} tokens");
        told += (0..tokens).take_while(|fewer| tokenizer.is_certainly_longer(&text, *fewer)).count();
        all += tokens;
    }
    assert!(told * 10 > all * 8, "{told} of {all} tokens are known before there are any");
}

#[test]
fn a_token_for_a_byte_is_known_exactly() {
    let tokenizer = tokenizer(&embedded());
    let text = "1234567890".repeat(1000);
    assert!(tokenizer.is_certainly_longer(&text, 9_999) && !tokenizer.is_certainly_longer(&text, 10_000));
    assert!(!tokenizer.is_certainly_longer("", 0) && tokenizer.is_certainly_longer("1", 0));
}

#[test]
fn nothing_is_certain_where_a_token_may_say_more_than_its_own_text() {
    let added = |strips: &str| {
        let mut token = json!({"id": 1024, "content": "<mask>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        token[strips] = json!(true);
        json!([token])
    };
    let splits = |behavior: &str| {
        let split = json!({"type": "Split", "pattern": {"String": "7"}, "behavior": behavior, "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}]})
    };
    let twice = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let nothing_of_it = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"a": {"id": "a", "ids": [5], "tokens": ["a"]}}});
    type Change = Box<dyn Fn(&mut Value)>;
    let put = |part: &'static str, value: Value| -> Change { Box::new(move |whole| whole[part] = value.clone()) };
    let cases: [(&str, Change, bool); 16] = [
        ("as it is", Box::new(|_| ()), true),
        ("no normalizers", put("normalizer", json!({"type": "Sequence", "normalizers": []})), true),
        ("stripped", put("normalizer", json!({"type": "Strip", "strip_left": true, "strip_right": true})), false),
        (
            "replaced",
            put(
                "normalizer",
                json!({"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"Regex": "7+"}, "content": "7"}]}),
            ),
            false,
        ),
        ("split", put("pre_tokenizer", splits("Isolated")), true),
        ("removed", put("pre_tokenizer", splits("Removed")), false),
        ("white space dropped", put("pre_tokenizer", json!({"type": "Whitespace"})), false),
        ("bytes of bytes", put("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [twice, twice]})), false),
        ("no bytes", put("pre_tokenizer", Value::Null), false),
        ("space before is taken", put("added_tokens", added("lstrip")), false),
        ("space after is taken", put("added_tokens", added("rstrip")), false),
        ("the text is left out", put("post_processor", nothing_of_it), false),
        ("a byte of texts without a token", Box::new(|whole| without('ä', &mut whole["model"])), false),
        ("a byte of no text without a token", Box::new(|whole| without('ÿ', &mut whole["model"])), true),
        ("two with one id", Box::new(|whole| whole["model"]["vocab"]["another"] = json!(9)), false),
        ("words", put("model", json!({"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"})), false),
    ];
    for (name, change, certain) in cases {
        let mut whole = embedded();
        change(&mut whole);
        let found = tokenizer(&whole).is_certainly_longer(&"7".repeat(100), 50);
        assert_eq!(found, certain, "{name}");
    }
}

/// Such a byte is no token then, and leaves no trace.
fn without(byte: char, model: &mut Value) {
    model["vocab"].as_object_mut().unwrap().shift_remove(&byte.to_string()).unwrap();
    model["merges"].as_array_mut().unwrap().retain(|merge| !merge.to_string().contains(byte));
}
