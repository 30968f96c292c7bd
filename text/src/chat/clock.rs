//! `strftime_now`: the time, which is passed in.

use minijinja::{Error, ErrorKind, Value};
use time::{PrimitiveDateTime, format_description};

/// The function that tells this time, in the words of Python's `strftime`.
pub(super) fn strftime_now(now: Option<PrimitiveDateTime>) -> Value {
    Value::from_function(move |format: &str| -> Result<String, Error> {
        let refused = |what: String| Error::new(ErrorKind::InvalidOperation, what);
        let now = now.ok_or_else(|| refused("it asks for the time, which it was not told".into()))?;
        let format = in_time_words(format, now);
        let items = format_description::parse_strftime_owned(&format);
        let items = items.map_err(|error| refused(format!("strftime_now: {error}")))?;
        now.format(&items).map_err(|error| refused(format!("strftime_now: {error}")))
    })
}

/// What the crate `time` writes otherwise than Python, replaced by what Python writes: `%f` and `%w` (where Sunday is 0), and
/// `%z` and `%Z`, which are empty for a time that names no zone.
fn in_time_words(format: &str, now: PrimitiveDateTime) -> String {
    let mut out = String::with_capacity(format.len());
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        match (c, rest.clone().next()) {
            ('%', Some('f')) => out += &format!("{:06}", now.microsecond()),
            ('%', Some('w')) => out += &now.weekday().number_days_from_sunday().to_string(),
            ('%', Some('z' | 'Z')) => {}
            ('%', Some(other)) => out.extend(['%', other]),
            _ => {
                out.push(c);
                continue;
            }
        }
        rest.next();
    }
    out
}
