use std::fs;

use dsv2_text::{ChatOptions, ChatTemplate, Error, Message, SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};
use time::{Date, Month, PrimitiveDateTime, Time};

use super::{folder, golden, list, object, text};

/// The special tokens of the goldens, as a tokenizer has them.
fn special() -> SpecialTokens {
    let config = golden("chats.json")["special_tokens"].to_string();
    let tokenizer = fs::read(folder().join("tokenizer.json")).unwrap();
    Tokenizer::from_bytes(&tokenizer, Some(config.as_bytes())).unwrap().special_tokens().clone()
}

/// When all of it was rendered.
fn now() -> Option<PrimitiveDateTime> {
    let date = Date::from_calendar_date(2026, Month::February, 3).unwrap();
    Some(PrimitiveDateTime::new(date, Time::from_hms_micro(4, 5, 6, 70809).unwrap()))
}

fn messages(chat: &Value) -> Vec<Message> {
    Message::list(&chat.to_string()).unwrap()
}

/// What comes out, in the words of the goldens.
fn outcome(source: &str, chat: &[Message], options: &Map<String, Value>) -> Value {
    let mut variables = options.clone();
    let mut list = |name: &str| variables.remove(name).map(|value| value.as_array().unwrap().clone());
    let (tools, documents) = (list("tools"), list("documents"));
    let add_generation_prompt = variables.remove("add_generation_prompt") == Some(Value::Bool(true));
    let options = ChatOptions {
        tools: tools.as_deref(),
        documents: documents.as_deref(),
        add_generation_prompt,
        variables,
        template: None,
        now: now(),
    };
    let rendered = ChatTemplate::from_source(source, &special()).and_then(|template| template.render(chat, &options));
    match rendered {
        Ok(text) => json!({ "text": text }),
        Err(Error::Raised { message }) => json!({ "raised": message }),
        Err(error) => json!({ "refused": error.to_string() }),
    }
}

/// Whether both say the same. Why a template is refused is said otherwise.
fn same(ours: &Value, theirs: &Value) -> bool {
    let either = |key| ours.get(key).or(theirs.get(key)).is_some();
    match either("refused") {
        true => ours.get("refused").is_some() && theirs.get("refused").is_some(),
        false => ["text", "raised"].into_iter().all(|key| ours.get(key) == theirs.get(key)),
    }
}

#[test]
fn chats_are_rendered_as_transformers_renders_them() {
    let golden = golden("chats.json");
    for case in list(&golden["rendered"]) {
        let (template, chat, options) = (text(&case["template"]), text(&case["chat"]), text(&case["options"]));
        let source = fs::read_to_string(folder().join(format!("templates/{template}.jinja"))).unwrap();
        let ours = outcome(&source, &messages(&golden["chats"][chat]), object(&golden["options"][options]));
        assert!(same(&ours, case), "{template}, {chat}, {options}:\n{ours}\n{case}");
    }
}

/// What Jinja knows and we refuse: nothing that chat templates use. A refusal is seen; another text would not be.
const NOT_KNOWN: [&str; 7] = [
    "{{ '%s-%d' % ('a', 3) }}",
    "{{ 'ab cd' | wordcount }} {{ 'abcdefghijkl mno' | truncate(9) }} {{ 'abc def ghi jkl' | truncate(9, true, '..') }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{% set j = joiner(', ') %}{{ j() }}x{{ j() }}y",
    "{{ 'ab'.index('b') }}",
    "{{ 'a'.zfill(3) }}",
    "{{ 'a'.center(3) }}",
    "{{ l | pprint }}",
];

#[test]
fn expressions_and_blocks_mean_what_they_mean_in_jinja_or_are_refused() {
    let golden = golden("chats.json");
    let (mut wrong, mut refused) = (Vec::new(), Vec::new());
    for (key, variables) in [("expressions", object(&golden["variables"])), ("blocks", &Map::new())] {
        for case in list(&golden[key]) {
            let ours = outcome(text(&case[0]), &messages(&json!([{"role": "user", "content": "q"}])), variables);
            match same(&ours, &case[1]) {
                true => {}
                false if ours.get("refused").is_some() => refused.push(text(&case[0])),
                false => wrong.push(format!("{}\n  {ours}\n  {}", text(&case[0]), case[1])),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(refused, NOT_KNOWN);
}
