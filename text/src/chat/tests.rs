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
