//! Methods of Python's strings and dictionaries that templates use.

use minijinja::value::{Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Calls a method: those of `minijinja-contrib`, and some that it does not have.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str().map(|text| of_text(text, method, args)) {
        Some(Some(result)) => result,
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let tuple = |parts: [&str; 3]| Value::from(Tuple::new(parts.into_iter().map(Value::from).collect()));
    let list = |parts: &[&str]| parts.iter().map(|part| Value::from(*part)).collect::<Value>();
    let with = |what: fn(&str, &str) -> Value| from_args(args).map(|(other,): (&str,)| what(text, other));
    Some(match method {
        "removeprefix" => with(|text, prefix| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => with(|text, suffix| text.strip_suffix(suffix).unwrap_or(text).into()),
        "partition" | "rpartition" => from_args(args).and_then(|(separator,): (&str,)| {
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let first = method == "partition";
            let split = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
            Ok(match split {
                Some((before, after)) => tuple([before, separator, after]),
                None if first => tuple([text, "", ""]),
                None => tuple(["", "", text]),
            })
        }),
        "rsplit" => from_args(args).and_then(|(separator, most): (&str, Option<usize>)| {
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let parts = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<&str> = text.rsplitn(parts, separator).collect();
            parts.reverse();
            Ok(list(&parts))
        }),
        _ => return None,
    })
}
