//! The environment that templates run in: Transformers' settings of Jinja.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Output, State, Value, escape_formatter};

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
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        let raised = Raised(message);
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    environment
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
