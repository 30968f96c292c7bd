//! A model from a folder: its name, its settings, its chat template.

use std::path::Path;

use dsv2_text::embedded;
use serde_json::{Value, json};

use crate::client::{Server, with};

/// The model in the program as a folder, with another template and other settings.
pub fn folder(at: &Path, template: &str, settings: &Value) -> String {
    let folder = at.join("Tiny-Chat");
    std::fs::create_dir(&folder).unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(folder.join(name), content).unwrap();
    write("config.json", embedded::CONFIG.as_bytes());
    write("model.safetensors", embedded::WEIGHTS);
    write("tokenizer.json", embedded::TOKENIZER.as_bytes());
    write("tokenizer_config.json", embedded::TOKENIZER_CONFIG.as_bytes());
    write("chat_template.jinja", template.as_bytes());
    write("generation_config.json", settings.to_string().as_bytes());
    folder.to_str().unwrap().to_owned()
}

/// Knows tools, forgets what tools say, and does not like shouting.
const TEMPLATE: &str = "{%- for message in messages %}{%- if message.role != 'tool' %}{%- if message.content.isupper() %}\
{{ raise_exception('do not shout') }}{%- endif %}{{ message.role + ': ' + message.content + '\n' }}{%- endif %}{%- endfor %}\
{%- if tools %}{{ tools | tojson }}{%- endif %}";

fn chat(server: &Server, messages: Value, more: Value) -> crate::client::Answer {
    let body = json!({"model": "Tiny-Chat", "messages": messages, "max_tokens": 1, "return_token_ids": true});
    server.post("/v1/chat/completions", &with(&body, more))
}

#[test]
fn a_template_gets_the_tools_and_says_itself_what_it_refuses() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&["--model", &folder(place.path(), TEMPLATE, &json!({}))]);
    let fed = |answer: crate::client::Answer| {
        let ids: Vec<i64> = serde_json::from_value(answer.ok()["prompt_token_ids"].clone()).unwrap();
        server.api.folder.tokenizer.decode(&ids, false).unwrap()
    };
    let said = json!([{"role": "developer", "content": "be short"}, {"role": "user", "content": "hi"}]);
    let tools = json!({"tools": [{"type": "function", "function": {"name": "f"}}]});
    assert_eq!(fed(chat(&server, said.clone(), json!({}))), "system: be short\nuser: hi\n");
    let with_tools = fed(chat(&server, said.clone(), tools.clone()));
    assert!(with_tools.ends_with(r#"[{"type": "function", "function": {"name": "f"}}]"#), "{with_tools}");
    let none = with(&tools, json!({"tool_choice": "none"}));
    assert!(!fed(chat(&server, said.clone(), none)).contains("function"));
    let (status, raised) = chat(&server, json!([{"role": "user", "content": "HI"}]), json!({})).error();
    assert!(status == 400 && raised.contains(r#""messages" chat template: do not shout"#), "{raised}");
    let forgets = json!([{"role": "user", "content": "hi"}, {"role": "tool", "content": "5", "tool_call_id": "x"}]);
    let (status, left_out) = chat(&server, forgets, json!({})).error();
    assert!(status == 400 && left_out.contains("no place for the role"), "{left_out}");
    let nothing = json!([{"role": "user", "content": "hi", "name": null, "refusal": "", "tool_calls": []}]);
    assert_eq!(fed(chat(&server, nothing, json!({}))), "user: hi\n");
    let calls = json!([{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for (name, value) in [("name", json!("bob")), ("tool_calls", calls), ("prefix", json!(true))] {
        let more = json!([said[0], with(&said[1], json!({name: value}))]);
        let (status, left_out) = chat(&server, more, json!({})).error();
        assert!(status == 400 && left_out.contains(&format!("no place for `{name}` of a message")), "{left_out}");
    }
    let many: Value = (0..9).map(|number| (format!("field{number}"), json!(1))).collect();
    let (status, too_many) = chat(&server, json!([with(&said[1], many)]), json!({})).error();
    assert!(status == 400 && too_many.contains("at most 8 fields"), "{too_many}");
}

#[test]
fn fields_of_messages_that_the_template_reads_are_taken() {
    let place = tempfile::tempdir().unwrap();
    let template = "{%- for message in messages %}{{ message.name }}: {{ message.content }}{%- endfor %}";
    let server = Server::start(&["--model", &folder(place.path(), template, &json!({}))]);
    let answer = chat(&server, json!([{"role": "user", "content": "hi", "name": "bob"}]), json!({})).ok();
    let ids: Vec<i64> = serde_json::from_value(answer["prompt_token_ids"].clone()).unwrap();
    assert_eq!(server.api.folder.tokenizer.decode(&ids, false).unwrap(), "bob: hi");
}

#[test]
fn settings_that_a_request_leaves_out_are_those_of_the_folder() {
    let settings =
        json!({"eos_token_id": 1, "do_sample": false, "temperature": 0.0001, "top_k": 1, "max_new_tokens": 7});
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&["--model", &folder(place.path(), TEMPLATE, &settings)]);
    let complete = |more: Value| {
        let body = json!({"model": "Tiny-Chat", "prompt": "DeepSeek-V2 is", "return_token_ids": true});
        server.complete(with(&body, more))["choices"][0]["token_ids"].clone()
    };
    let greedy = complete(json!({"temperature": 0}));
    assert_eq!((greedy.as_array().unwrap().len(), complete(json!({}))), (7, greedy.clone()));
    // top_k is still 1
    assert_eq!(complete(json!({"temperature": 5})), greedy);
    assert_ne!(complete(json!({"temperature": 5, "top_k": -1, "max_tokens": 30, "seed": 1})), greedy);
}

#[test]
fn without_a_word_in_the_folder_all_tokens_may_be_drawn() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&["--model", &folder(place.path(), TEMPLATE, &json!({"do_sample": false}))]);
    let body =
        json!({"model": "Tiny-Chat", "prompt": "a", "max_tokens": 40, "logprobs": 20, "temperature": 50, "seed": 3});
    let answer = server.complete(body);
    // Transformers' 50 of 1024 tokens would leave some that are among the 20 likeliest
    let told = answer["choices"][0]["logprobs"]["top_logprobs"].as_array().unwrap();
    let among = told.iter().filter(|top| top.as_object().unwrap().len() == 20).count();
    assert!(among < 8, "{among} of 40 tokens are among the 20 likeliest");
}
