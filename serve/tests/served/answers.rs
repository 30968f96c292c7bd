//! What is answered is what the model says.

use dsv2::generate::decoder::OnHost;
use dsv2::generate::{Completion, ModelFolder, Rules, Silent, generate};
use dsv2::precision::Precision;
use dsv2_reference::Dialect;
use dsv2_reference::model::causal_lm::{CausalLmInput, DeepseekV2ForCausalLM, LogitsToKeep};
use dsv2_reference::model::{ModelInput, Run};
use dsv2_reference::tap::NoTap;
use dsv2_text::generation::sampler::LogProbabilities;
use ndarray::{Array2, s};
use serde_json::{Value, json};

use crate::client::{Server, with};

/// More tokens than are read at a time.
pub fn long_prompt() -> String {
    "The cache of multi-head latent attention holds a short vector of each token. ".repeat(12)
}

fn embedded() -> ModelFolder {
    ModelFolder::embedded(Dialect::Hf).unwrap()
}

/// What `dsv2 generate --greedy` says.
fn generated(prompt: &[i64], tokens: usize) -> Completion {
    let folder = embedded();
    let mut rules = Rules { logprobs: true, ..Rules::greedy(tokens) };
    rules.config.eos_token_id = vec![1];
    let mut decoder = OnHost::<f32>::load(&folder, Precision::F32).unwrap();
    generate(&folder, &mut decoder, &[prompt.to_vec()], &rules, &mut Silent).unwrap().remove(0)
}

/// As it is read from JSON.
fn read(number: f64) -> Value {
    serde_json::from_str(&json!(number).to_string()).unwrap()
}

#[test]
fn greedy_answers_and_their_logarithms_are_the_bits_of_generate() {
    let server = Server::start(&[]);
    let tokenizer = embedded().tokenizer;
    let encode = |text: &str| tokenizer.encode(text, true).unwrap();
    for prompt in [encode("DeepSeek-V2 is"), encode(&long_prompt()), vec![5], encode("x")] {
        let expected = generated(&prompt, 24);
        let body =
            json!({"prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 2, "return_token_ids": true});
        let answer = server.complete(body);
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], json!(expected.text));
        assert_eq!(choice["token_ids"], json!(expected.tokens.iter().map(|chosen| chosen.id).collect::<Vec<_>>()));
        let logprobs: Vec<Value> = expected.tokens.iter().map(|chosen| read(chosen.logprob.unwrap())).collect();
        assert_eq!(choice["logprobs"]["token_logprobs"], json!(logprobs));
        let usage = json!({"prompt_tokens": prompt.len(), "completion_tokens": expected.tokens.len(),
            "total_tokens": prompt.len() + expected.tokens.len()});
        assert_eq!(answer["usage"], usage);
        for (token, top) in choice["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .zip(choice["logprobs"]["top_logprobs"].as_array().unwrap())
        {
            let top = top.as_object().unwrap();
            assert_eq!(
                (top.len(), top.keys().next().unwrap().as_str()),
                (2, token.as_str().unwrap()),
                "the likeliest comes first"
            );
        }
    }
}

#[test]
fn an_echo_has_the_log_softmax_of_the_whole_prompt() {
    let server = Server::start(&[]);
    let folder = embedded();
    let model = DeepseekV2ForCausalLM::<f32>::load(&folder.config, folder.dialect, &*folder.weights).unwrap();
    for text in ["MLA is", &long_prompt()] {
        let tokens = folder.tokenizer.encode(text, true).unwrap();
        let ids = Array2::from_shape_fn((1, tokens.len()), |(_, s)| tokens[s]);
        let input =
            CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::default(), labels: None };
        let logits = model.forward(&input, None, &Run::default(), &mut NoTap).unwrap().logits;
        let expected: Vec<Value> = (1..tokens.len())
            .map(|at| read(LogProbabilities::new(&logits.slice(s![0, at - 1, ..]).to_vec()).of(tokens[at] as usize)))
            .collect();
        for (prompt, new) in [(json!(text), 0), (json!(tokens), 1)] {
            let body = json!({"prompt": prompt, "max_tokens": new, "echo": true, "logprobs": 1, "temperature": 0});
            let choice = server.complete(body.clone())["choices"][0].clone();
            let told = &choice["logprobs"];
            assert_eq!(told["token_logprobs"].as_array().unwrap().len(), tokens.len() + new);
            assert_eq!((&told["token_logprobs"][0], &told["top_logprobs"][0]), (&Value::Null, &Value::Null));
            assert_eq!(told["token_logprobs"].as_array().unwrap()[1..tokens.len()], expected);
            let said = choice["text"].as_str().unwrap();
            assert!(said.starts_with(text));
            // offsets are where the tokens are in the text
            for (token, at) in
                told["tokens"].as_array().unwrap().iter().zip(told["text_offset"].as_array().unwrap()).skip(1)
            {
                let rest: String = said.chars().skip(at.as_u64().unwrap() as usize).collect();
                assert!(rest.starts_with(token.as_str().unwrap()), "{token} at {at}");
            }
            let parts: Vec<Value> = server.stream("/v1/completions", &body).collect();
            let joined: String = parts.iter().map(|part| part["choices"][0]["text"].as_str().unwrap()).collect();
            let lists = |name: &str| -> Vec<Value> {
                parts
                    .iter()
                    .filter_map(|part| part["choices"][0]["logprobs"][name].as_array().cloned())
                    .flatten()
                    .collect()
            };
            assert_eq!(joined, said);
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(json!(lists(name)), told[name], "{name}");
            }
        }
    }
}

#[test]
fn parts_joined_are_the_whole_and_split_no_character() {
    let server = Server::start(&[]);
    for seed in 0..6 {
        // hot enough for bytes that are no characters
        let body = json!({"prompt": "中文", "max_tokens": 60, "temperature": 3.0 + f64::from(seed), "top_p": 1, "seed": seed,
            "return_token_ids": true, "ignore_eos": true});
        let whole = server.complete(body.clone())["choices"][0].clone();
        let parts: Vec<Value> = server.stream("/v1/completions", &body).collect();
        let text: String = parts.iter().map(|part| part["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(json!(text), whole["text"]);
        let ids: Vec<i64> = serde_json::from_value(whole["token_ids"].clone()).unwrap();
        assert_eq!(text, embedded().tokenizer.decode(&ids, true).unwrap());
        let told: Vec<&Value> = parts.iter().filter_map(|part| part["choices"][0].get("prompt_token_ids")).collect();
        assert_eq!(told, [&whole["prompt_token_ids"]]);
        assert!(parts.last().unwrap()["choices"][0]["finish_reason"] == "length" && ids.len() == 60);
    }
}

/// Offsets are where the tokens are in the text, also where bytes are no characters and become `�`.
#[test]
fn offsets_count_what_stands_for_bytes_that_are_no_characters() {
    let server = Server::start(&[]);
    // all single bytes, and characters of two to four bytes whose ends do not come
    let halves: Vec<i64> = (0..4).flat_map(|number| (100..260).map(move |id| 2 + (id * (7 + number)) % 1000)).collect();
    let hot = json!({"prompt": "中文😀é", "max_tokens": 150, "temperature": 8, "seed": 2, "ignore_eos": true});
    for body in [json!({"prompt": halves, "max_tokens": 0}), hot] {
        let body = with(&body, json!({"echo": true, "logprobs": 0}));
        let choice = server.complete(body.clone())["choices"][0].clone();
        let said: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        let many = said.iter().filter(|character| **character == '�').count();
        assert!(many > 5, "{many}");
        let told = &choice["logprobs"];
        for (token, at) in told["tokens"].as_array().unwrap().iter().zip(told["text_offset"].as_array().unwrap()) {
            let (token, at) = (token.as_str().unwrap(), at.as_u64().unwrap() as usize);
            let rest: String = said[at..].iter().collect();
            assert!(
                token.starts_with("bytes:") || token.starts_with("<｜") || rest.starts_with(token),
                "{token} at {at}"
            );
        }
        let parts: Vec<Value> = server.stream("/v1/completions", &body).collect();
        let lists = parts.iter().filter_map(|part| part["choices"][0]["logprobs"]["text_offset"].as_array().cloned());
        assert_eq!(json!(lists.flatten().collect::<Vec<Value>>()), told["text_offset"]);
    }
}

#[test]
fn a_stop_string_ends_an_answer_wherever_tokens_begin() {
    let server = Server::start(&[]);
    let body = json!({"prompt": "What is MLA?", "max_tokens": 40, "temperature": 0, "logprobs": 0});
    let free = server.complete(body.clone())["choices"][0].clone();
    let text = free["text"].as_str().unwrap();
    let offsets: Vec<usize> = serde_json::from_value(free["logprobs"]["text_offset"].clone()).unwrap();
    let characters: Vec<char> = text.chars().collect();
    // one that begins within a token and ends within a later one
    let (begin, end) = (offsets[4] + 1, offsets[7] + 1);
    let stop: String = characters[begin..end].iter().collect();
    let begin = text.find(&stop).unwrap();
    for stop in [json!(stop), json!(["never said", stop])] {
        let body = with(&body, json!({"stop": stop}));
        let choice = server.complete(body.clone())["choices"][0].clone();
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text[..begin]), &json!("stop")));
        let parts: Vec<Value> = server.stream("/v1/completions", &body).collect();
        let joined: String = parts.iter().map(|part| part["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(
            (joined, &parts.last().unwrap()["choices"][0]["finish_reason"]),
            (text[..begin].to_owned(), &json!("stop"))
        );
    }
}

#[test]
fn a_chat_is_what_the_template_makes_of_it_and_tells_what_it_was_asked_to() {
    let server = Server::start(&[]);
    let body = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}], "temperature": 0,
        "logprobs": true, "top_logprobs": 3, "return_token_ids": true});
    let answer = server.post("/v1/chat/completions", &body).ok();
    let choice = &answer["choices"][0];
    let fed = embedded().tokenizer.encode("<｜begin▁of▁sentence｜>User: hello\n\nAssistant:", false).unwrap();
    assert_eq!((&answer["object"], &answer["prompt_token_ids"]), (&json!("chat.completion"), &json!(fed)));
    let expected = generated(&fed, 256);
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(expected.text), &json!("stop")));
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), expected.tokens.len());
    for (told, chosen) in content.iter().zip(&expected.tokens) {
        assert_eq!(told["logprob"], read(chosen.logprob.unwrap()));
        assert_eq!(
            (told["top_logprobs"].as_array().unwrap().len(), &told["top_logprobs"][0]["token"]),
            (3, &told["token"])
        );
        let bytes: Vec<u8> = serde_json::from_value(told["bytes"].clone()).unwrap();
        assert_eq!(Ok(told["token"].as_str().unwrap()), std::str::from_utf8(&bytes));
    }
    let parts: Vec<Value> = server
        .stream("/v1/chat/completions", &with(&body, json!({"stream_options": {"include_usage": true}})))
        .collect();
    let (usage, parts) = parts.split_last().unwrap();
    assert_eq!((&usage["usage"], &usage["choices"]), (&answer["usage"], &json!([])));
    assert_eq!(parts[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(parts[0]["prompt_token_ids"], json!(fed));
    assert!(parts[1..].iter().all(|part| part.get("prompt_token_ids").is_none()));
    assert!(parts.iter().all(|part| part["usage"].is_null() && part["object"] == "chat.completion.chunk"));
    let text: String = parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(text), choice["message"]["content"]);
    let streamed: Vec<Value> = parts
        .iter()
        .filter_map(|part| part["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(streamed, *content);
    assert_eq!(parts.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[test]
fn several_prompts_and_several_answers_have_numbers_and_draw_apart() {
    let server = Server::start(&[]);
    let prompts = json!([[5, 6, 7], [8, 9]]);
    let body = json!({"prompt": prompts, "n": 3, "max_tokens": 12, "seed": 7, "temperature": 1.5, "ignore_eos": true, "return_token_ids": true});
    let (answer, again) = (server.complete(body.clone()), server.complete(body.clone()));
    assert_eq!(answer["choices"], again["choices"], "the same seed");
    let choices = answer["choices"].as_array().unwrap();
    let of = |index: usize| (choices[index]["index"].as_u64().unwrap(), choices[index]["prompt_token_ids"].clone());
    assert_eq!(of(2), (2, json!([5, 6, 7])));
    assert_eq!(of(3), (3, json!([8, 9])));
    assert_eq!(
        (choices.len(), &answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]),
        (6, &json!(5), &json!(72))
    );
    assert!(choices[0]["token_ids"] != choices[1]["token_ids"] && choices[3]["token_ids"] != choices[4]["token_ids"]);
    let unseeded = with(&body, json!({"seed": null}));
    assert_ne!(server.complete(unseeded.clone())["choices"], server.complete(unseeded)["choices"], "without a seed");
    // a bias that no logit withstands
    let biased = json!({"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0, "logit_bias": {"9": 100}, "return_token_ids": true});
    assert_eq!(server.complete(biased)["choices"][0]["token_ids"], json!([9, 9, 9]));
}

#[test]
fn the_model_and_the_servers_health_can_be_asked_for() {
    let server = Server::start(&["--name", "deepseek-chat"]);
    assert_eq!(server.get("/health").ok(), json!({"status": "ok", "running": 0, "waiting": 0}));
    let models = server.get("/v1/models").ok();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("deepseek-chat"), &json!(1024))
    );
    assert_eq!(server.get("/v1/models/deepseek-chat").ok(), models["data"][0]);
    let body = json!({"model": "deepseek-chat", "messages": [{"role": "user", "content": "hello"}]});
    assert!(server.post("/v1/chat/completions", &body).ok()["choices"][0]["message"]["content"].is_string());
}
