//! The environment that templates run in: Transformers' settings of Jinja.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, Value, escape_formatter, filters, tests};

use super::{json, methods};
use crate::error::Error;

/// How much a template may do: one for each instruction, one for each 64 bytes that it makes. A conversation of a million
/// characters takes some ten thousands.
const FUEL: u64 = 4 << 20;

/// What `raise_exception` says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    if let Ok(syntax) = syntax.trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(write);
    // What minijinja has and Jinja does not, or means otherwise: a template that uses it is refused there.
    for filter in ["bool", "chain", "lines", "pprint", "split", "zip"] {
        environment.remove_filter(filter);
    }
    for test in ["endingwith", "int", "safe", "startingwith"] {
        environment.remove_test(test);
    }
    environment.remove_global("debug");
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("e", escaped);
    environment.add_filter("escape", escaped);
    // Of a dictionary it is a Python attribute that Jinja looks for, and what a template may see has none.
    environment.add_filter("attr", |_: &Value, _: &Value| Value::UNDEFINED);
    environment.add_test("sequence", |value: &Value| {
        tests::is_sequence(value) || matches!(value.kind(), ValueKind::String | ValueKind::Map)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        let raised = Raised(message);
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    environment
}

/// Escaped for HTML by the library that Jinja escapes with; minijinja names the quotation mark.
fn escaped(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut out = String::new();
    for c in value.to_string().chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// Jinja's filter: 0 where minijinja's refuses.
fn int(
    state: &State<'_, '_>,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    named: Kwargs,
) -> Result<Value, minijinja::Error> {
    let default = default.or(named.get("default")?).unwrap_or_else(|| 0.into());
    filters::int(state, value, Some(default), base, named)
}

/// The same for numbers with a fraction.
fn float(
    state: &State<'_, '_>,
    value: &Value,
    default: Option<Value>,
    named: Kwargs,
) -> Result<Value, minijinja::Error> {
    let default = default.or(named.get("default")?).unwrap_or_else(|| 0.0.into());
    filters::float(state, value, Some(default), named)
}

/// Writes a value as Python does.
fn write(out: &mut Output, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    match f64::try_from(value.clone()) {
        Ok(number) if value.is_number() && !value.is_integer() => {
            escape_formatter(out, state, &Value::from(json::as_python_writes_it(number)))
        }
        _ => escape_formatter(out, state, value),
    }
}

/// Our error for one of minijinja's.
pub(super) fn refused(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(raised) = this.downcast_ref::<Raised>() {
            return Error::Raised { message: raised.0.clone() };
        }
        if this.downcast_ref::<minijinja::Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return Error::template("expected an end, found none after more work than any conversation makes");
        }
        cause = this.source();
    }
    Error::template(error)
}
