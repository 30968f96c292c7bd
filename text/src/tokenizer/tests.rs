use std::fs;

use serde_json::json;

use super::*;

/// A byte-level tokenizer of 256 tokens, and one that ends a text.
fn bytes() -> serde_json::Value {
    let printed = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=b' ' => char::from_u32(256 + u32::from(byte)).unwrap(),
        0x7f..=0xa0 => char::from_u32(256 + 33 + u32::from(byte) - 0x7f).unwrap(),
        0xad => char::from_u32(256 + 67).unwrap(),
    };
    let vocabulary: serde_json::Map<_, _> = (0..=255).map(|byte| (printed(byte).to_string(), byte.into())).collect();
    let end = json!({"id": 256, "content": "<end>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    json!({"version": "1.0", "added_tokens": [end], "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(bytes().to_string().as_bytes(), Some(br#"{"eos_token": "<end>"}"#)).unwrap()
}

#[test]
fn any_bytes_come_out_of_a_stream_as_they_come_out_of_decoding() {
    let tokenizer = tokenizer();
    for text in
        [&b"a\xe4\xb8\xad\xf0\x9f\x98\x80b"[..], b"\xe4\xb8", b"\xe4a\xff\xfe\x80", b"\xef\xbf\xbd\xef\xbf\xbd!", b""]
    {
        let mut ids: Vec<i64> = text.iter().map(|byte| i64::from(*byte)).collect();
        ids.insert(ids.len() / 2, 256);
        // the second time, what tokens say by themselves is known
        for skip_special_tokens in [true, false, true, false] {
            let mut stream = tokenizer.stream(skip_special_tokens);
            let mut said: String = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
            said.extend(stream.finish().unwrap());
            assert_eq!(said, tokenizer.decode(&ids, skip_special_tokens).unwrap());
            if skip_special_tokens {
                assert_eq!(said, String::from_utf8_lossy(text));
            }
        }
    }
}

#[test]
fn a_character_of_many_tokens_comes_at_once_with_its_last() {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.stream(false);
    let pieces: Vec<_> = [0xf0, 0x9f, 0x98, 0x80].map(|id| stream.push(id).unwrap()).into_iter().collect();
    assert_eq!(pieces, [None, None, None, Some("😀".to_owned())]);
}

#[test]
fn a_number_that_is_no_token_is_refused() {
    for id in [-1, 257, i64::MAX, i64::from(u32::MAX) + 1] {
        let refused = tokenizer().decode(&[65, id], false).unwrap_err().to_string();
        assert_eq!(refused, format!("token {id}: expected an id of the tokenizer's 257 tokens"));
        let tokenizer = tokenizer();
        assert!((0..2).all(|_| tokenizer.stream(false).push(id).is_err()));
    }
}

#[test]
fn tokens_have_their_names() {
    let tokenizer = tokenizer();
    assert_eq!((tokenizer.eos_token_id(), tokenizer.bos_token_id()), (Some(256), None));
    assert_eq!((tokenizer.id_of("<end>"), tokenizer.token_of(256).as_deref()), (Some(256), Some("<end>")));
    assert!(tokenizer.is_special(256) && !tokenizer.is_special(65) && !tokenizer.is_special(-1));
    assert_eq!(tokenizer.token_of(257), None);
}

#[test]
fn folders_without_a_tokenizer_or_with_another_thing_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, content: &[u8]| {
        fs::write(folder.path().join(name), content).unwrap();
        let refused = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(name) || refused.starts_with("tokenizer: "), "{refused}");
        assert!(!refused.contains('\n') && refused.len() < 700, "{refused}");
        refused
    };
    assert!(Tokenizer::from_folder(folder.path()).unwrap_err().to_string().contains("cannot read"));
    refused("tokenizer.json", b"");
    refused("tokenizer.json", b"{}");
    refused("tokenizer.json", b"\xff\xfe");
    let unknown = refused(
        "tokenizer.json",
        br#"{"version": "1.0", "added_tokens": [], "model": {"type": "Runes", "vocab": {}}}"#,
    );
    assert!(unknown.contains("expected a tokenizer.json of a known model"), "{unknown}");
    fs::write(folder.path().join("tokenizer.json"), bytes().to_string()).unwrap();
    assert!(Tokenizer::from_folder(folder.path()).is_ok());
    refused("tokenizer_config.json", b"[]");
    refused("tokenizer_config.json", b"{\"eos_token\": 7}");
    refused("tokenizer_config.json", b"{\"added_tokens_decoder\": {\"x\": {}}}");
    refused("tokenizer_config.json", b"\xff");
}

#[test]
fn streams_of_tokenizers_that_fall_back_to_bytes_say_what_decoding_says() {
    let words = ["<unk>", "▁", "▁the", "cat", "中", "a"].map(str::to_owned);
    let all = words.into_iter().chain((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let vocabulary: serde_json::Map<_, _> = all.zip(0..).map(|(token, id)| (token, id.into())).collect();
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let decoder = json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]});
    let json = json!({"version": "1.0", "added_tokens": [], "decoder": decoder,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": true, "unk_token": "<unk>"}});
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    let bytes = [0xe4, 0xb8, 0xad, 0xff, 0x41].map(|byte| byte + 6);
    let mut state = 1u64;
    for _ in 0..2000 {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let ids: Vec<i64> =
            (0..12).map(|_| if next() % 2 == 0 { bytes[next() % 5] } else { (next() % 6) as i64 }).collect();
        let mut stream = tokenizer.stream(false);
        let mut said: String = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
        said.extend(stream.finish().unwrap());
        assert_eq!(said, tokenizer.decode(&ids, false).unwrap(), "{ids:?}");
    }
}

#[test]
fn a_file_at_which_tokenizers_panics_is_refused() {
    // A key without a value in the decoder, which it parses as if nothing could be wrong any more.
    let torn = bytes().to_string().replace(r#""decoder":{"#, r#""decoder":{"a" "#);
    let refused = Tokenizer::from_bytes(torn.as_bytes(), None).unwrap_err().to_string();
    assert!(refused.starts_with("tokenizer: expected JSON, found expected `:` at line 1"), "{refused}");

    let mut precompiled = bytes();
    precompiled["normalizer"] =
        json!({"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "not base 64"}]});
    let refused = Tokenizer::from_bytes(precompiled.to_string().as_bytes(), None).unwrap_err().to_string();
    assert_eq!(refused, "tokenizer: expected a normalizer that a DeepSeek model may have, found Precompiled");
}
