use serde_json::json;

use super::*;

fn rendered(source: &str, messages: &[Message]) -> Result<String> {
    ChatTemplate::from_source(source, &SpecialTokens::default())?.render(messages, &ChatOptions::default())
}

#[test]
fn what_a_template_raises_is_said_in_its_words() {
    let source =
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no ' ~ m.role) }}{% endif %}{% endfor %}";
    let refused = rendered(source, &[Message::new("wizard", "hi")]).unwrap_err().to_string();
    assert_eq!(refused, "chat template: no wizard");
}

#[test]
fn a_template_without_end_is_refused() {
    let counting = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    let doubling = "{% set n = namespace(x='ab') %}{% for i in range(200) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    let calling = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    for source in [counting, doubling, calling] {
        let refused = rendered(source, &[Message::new("user", "hi")]).unwrap_err().to_string();
        assert!(refused.starts_with("chat template: "), "{refused}");
        assert!(refused.len() < 400, "{refused}");
    }
}

#[test]
fn json_is_written_as_python_writes_it() {
    let value = json!({"b": [1, 2.0, 1e16, 1e-5, 0.0001, true, null], "a": "<é>\n", "c": {}, "d": []});
    let shown = |filter: &str| {
        let message = Message::new("user", "").with("v", value.clone());
        rendered(&format!("{{{{ messages[0].v | {filter} }}}}"), &[message]).unwrap()
    };
    let plain = r#"{"b": [1, 2.0, 1e+16, 1e-05, 0.0001, true, null], "a": "<é>\n", "c": {}, "d": []}"#;
    assert_eq!(shown("tojson"), plain);
    assert_eq!(
        shown("tojson(sort_keys=true, separators=(',', ':'))"),
        r#"{"a":"<é>\n","b":[1,2.0,1e+16,1e-05,0.0001,true,null],"c":{},"d":[]}"#
    );
    assert_eq!(shown("tojson(true)"), plain.replace('é', "\\u00e9"));
    assert!(shown("tojson(indent=2)").starts_with("{\n  \"b\": [\n    1,\n    2.0,"));
}

#[test]
fn a_folder_may_keep_its_template_in_several_places() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
    let said = |options: &ChatOptions<'_>| {
        ChatTemplate::from_folder(folder.path())?.render(&[Message::new("user", "hi")], options)
    };
    let (plain, tools) = (ChatOptions::default(), [json!({})]);
    let with_tools = ChatOptions { tools: Some(&tools), ..ChatOptions::default() };
    assert!(said(&plain).unwrap_err().to_string().contains("expected chat_template.jinja"));

    write("chat_template.json", r#"{"chat_template": "legacy"}"#);
    assert_eq!(said(&plain).unwrap(), "legacy");
    write("tokenizer_config.json", r#"{"chat_template": "one {{ bos_token }}", "bos_token": {"content": "<b>"}}"#);
    assert_eq!(said(&plain).unwrap(), "one <b>");
    let named = r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#;
    write("tokenizer_config.json", named);
    assert_eq!((said(&plain).unwrap(), said(&with_tools).unwrap()), ("d".to_owned(), "t".to_owned()));
    write("chat_template.jinja", "file");
    assert_eq!((said(&plain).unwrap(), said(&with_tools).unwrap()), ("file".to_owned(), "file".to_owned()));
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "more");
    assert_eq!(said(&with_tools).unwrap(), "more");
    let none = ChatOptions { template: Some("rag"), ..ChatOptions::default() };
    assert_eq!(said(&none).unwrap_err().to_string(), "chat template: expected one of default, tool_use, found rag");
    write("chat_template.jinja", "{% if %}");
    assert!(said(&plain).unwrap_err().to_string().starts_with("chat template: syntax error"));
    std::fs::write(folder.path().join("chat_template.jinja"), b"\xff").unwrap();
    assert!(said(&plain).unwrap_err().to_string().contains("chat_template.jinja: expected text in UTF-8"));
}

#[test]
fn what_are_no_messages_is_refused_in_one_line() {
    for (json, refused) in [
        ("{}", "message 1: expected a list of messages, found {}"),
        ("[{}, 7]", "message 2: expected an object with a role and a content, found 7"),
    ] {
        assert_eq!(Message::list(json).unwrap_err().to_string(), refused);
    }
    assert!(
        Message::list("[{").unwrap_err().to_string().starts_with("message 1: expected a list of messages, found EOF")
    );
    assert!(rendered("x", &[]).unwrap_err().to_string().contains("at least one message"));
}

#[test]
fn a_template_that_asks_for_the_time_is_refused_without_one() {
    let refused = rendered("{{ strftime_now('%Y') }}", &[Message::new("user", "hi")]).unwrap_err().to_string();
    assert!(refused.contains("asks for the time"), "{refused}");
}
