//! `tojson`, as Transformers has it: Python's `json.dumps`.

use std::fmt::Write;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// How `json.dumps` writes.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// The filter: `ensure_ascii`, `indent` (a number, or a text), `separators` and `sort_keys` as in Python. No character is
/// escaped for HTML.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    separators: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let refused = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    if value.is_undefined() {
        return Err(refused("tojson: there is no such value".into()));
    }
    let indent = indent.or(named.get("indent")?);
    let separators = separators.or(named.get("separators")?);
    let ensure_ascii = ensure_ascii.or(named.get("ensure_ascii")?).unwrap_or(false);
    let sort_keys = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) => " ".repeat(width.clamp(0, 64) as usize),
            (None, None) => return Err(refused(format!("tojson: expected an indent, found {indent}"))),
        }),
    };
    let between = if indent.is_some() { "," } else { ", " };
    let separators = separators.filter(|given| !given.is_none());
    let (item, key) =
        match separators.as_ref().map(|given| serde_json::to_value(given).and_then(serde_json::from_value)) {
            None => (between.to_owned(), ": ".to_owned()),
            Some(Ok(pair)) => pair,
            Some(Err(error)) => return Err(refused(format!("tojson: separators: {error}"))),
        };
    let style = Style { ensure_ascii, indent, item, key, sort_keys };
    let json: Json = serde_json::to_value(value).map_err(|error| refused(format!("tojson: {error}")))?;
    let mut out = String::new();
    style.write(&json, 0, &mut out);
    Ok(Value::from(out))
}

impl Style {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(number) => out.push_str(&as_python_writes_it(number)),
                None => out.push_str(&number.to_string()),
            },
            Json::String(text) => self.text(text, out),
            Json::Array(items) => {
                self.list(('[', ']'), items, depth, out, |item, out| self.write(item, depth + 1, out))
            }
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(name, _)| name.chars().collect::<Vec<_>>());
                }
                self.list(('{', '}'), &entries, depth, out, |(name, value), out| {
                    self.text(name, out);
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out);
                });
            }
        }
    }

    fn list<T>(&self, ends: (char, char), items: &[T], depth: usize, out: &mut String, each: impl Fn(&T, &mut String)) {
        out.push(ends.0);
        for (number, item) in items.iter().enumerate() {
            if number > 0 {
                out.push_str(&self.item);
            }
            self.line(depth + 1, out);
            each(item, out);
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push(ends.1);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python's `repr` writes it: the shortest digits that mean it, with an exponent outside 1e-4 to 1e16.
pub(super) fn as_python_writes_it(number: f64) -> String {
    if !number.is_finite() {
        let infinity = if number > 0.0 { "Infinity" } else { "-Infinity" };
        return if number.is_nan() { "NaN".into() } else { infinity.into() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}
