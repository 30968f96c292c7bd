//! Failures that somebody knows about: accepted for now, with a reason, a link and a day on which that ends.
//!
//! ```toml
//! [[waiver]]
//! implementation = "cuda"
//! case = "rope-dynamic*"
//! reason = "dynamic NTK is not implemented yet"
//! link = "https://example.org/issues/7"
//! expires = 2027-01-31
//! ```
//!
//! A waived failure is shown as such and does not count. From the day after `expires` on it fails again. A waiver never
//! hides a pass, and never a case that was not run.

use std::path::Path;

use glob::Pattern;
use serde::Deserialize;
use time::{Date, OffsetDateTime};
use toml::value::Datetime;

use crate::error::{Error, Result};
use crate::outcome::{Outcome, Waiver};

/// The longest waivers.toml that is read, in bytes.
pub const LONGEST: u64 = 1 << 20;

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    implementation: String,
    case: String,
    reason: String,
    link: String,
    expires: Datetime,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    waiver: Vec<Entry>,
}

/// The waivers of a file, as of a day.
#[derive(Clone, Debug)]
pub struct Waivers {
    waivers: Vec<Waiver>,
    today: Date,
}

impl Default for Waivers {
    fn default() -> Self {
        Waivers { waivers: Vec::new(), today: OffsetDateTime::now_utc().date() }
    }
}

impl Waivers {
    /// Reads a waivers.toml.
    ///
    /// # Errors
    /// If it cannot be read, or an entry is not complete.
    pub fn read(path: &Path) -> Result<Self> {
        let text = dsv2_reference::file::read_text(path, LONGEST)?;
        Waivers::parse(path, &text, OffsetDateTime::now_utc().date())
    }

    /// The same of a text, as of `today`.
    fn parse(path: &Path, text: &str, today: Date) -> Result<Self> {
        let expected = "[[waiver]] with implementation, case, reason, link and expires";
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Error::file(path, expected, format!("line {line}: {}", error.message()))
        })?;
        let waiver = |entry: Entry| {
            let expires = date(&entry.expires)
                .ok_or_else(|| Error::file(path, "a day such as 2027-01-31 in `expires`", entry.expires.to_string()))?;
            let case = Pattern::new(&entry.case).map_err(|error| {
                Error::file(path, "a pattern of *, ? and [..] in `case`", format!("{:?} ({error})", entry.case))
            })?;
            Ok(Waiver { implementation: entry.implementation, case, reason: entry.reason, link: entry.link, expires })
        };
        Ok(Waivers { waivers: file.waiver.into_iter().map(waiver).collect::<Result<_>>()?, today })
    }

    /// The outcome, waived if it fails and a waiver that has not ended says so.
    pub fn apply(&self, implementation: &str, case: &str, outcome: Outcome) -> Outcome {
        let about = |waiver: &&Waiver| waiver.implementation == implementation && waiver.case.matches(case);
        match self.waivers.iter().filter(about).find(|waiver| waiver.expires >= self.today) {
            Some(waiver) if outcome.fails() => Outcome::Waived(Box::new(outcome), Box::new(waiver.clone())),
            _ => outcome,
        }
    }
}

fn date(written: &Datetime) -> Option<Date> {
    let date = written.date?;
    Date::from_calendar_date(date.year.into(), date.month.try_into().ok()?, date.day).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Conclusion;

    const FILE: &str = r#"
        [[waiver]]
        implementation = "cuda"
        case = "rope-*"
        reason = "not there yet"
        link = "https://example.org/7"
        expires = 2027-01-31
    "#;

    fn waivers(year: i32, day: u8) -> Waivers {
        let today = Date::from_calendar_date(year, time::Month::January, day).unwrap();
        Waivers::parse(Path::new("waivers.toml"), FILE, today).unwrap()
    }

    fn conclusion(waivers: &Waivers, implementation: &str, case: &str) -> Conclusion {
        waivers.apply(implementation, case, Outcome::Crashed("boom".into())).conclusion()
    }

    #[test]
    fn a_known_failure_is_waived_until_its_day() {
        let (before, after) = (waivers(2027, 31), waivers(2028, 1));
        assert_eq!(conclusion(&before, "cuda", "rope-linear"), Conclusion::Waived);
        assert_eq!(conclusion(&after, "cuda", "rope-linear"), Conclusion::Crashed);
        assert_eq!(conclusion(&before, "cuda", "v2"), Conclusion::Crashed);
        assert_eq!(conclusion(&before, "reference", "rope-linear"), Conclusion::Crashed);
    }

    #[test]
    fn a_waiver_hides_nothing_but_failures() {
        let outcome = waivers(2027, 1).apply("cuda", "rope-linear", Outcome::NotSupported("no device".into()));
        assert_eq!(outcome.conclusion(), Conclusion::NotSupported);
    }

    #[test]
    fn what_is_no_waiver_is_refused() {
        let refused = |text: &str| {
            let today = OffsetDateTime::now_utc().date();
            Waivers::parse(Path::new("waivers.toml"), text, today).unwrap_err().to_string()
        };
        insta::assert_snapshot!(
            [
                refused("waiver = 3"),
                refused(&FILE.replace("reason", "because")),
                refused(&FILE.replace("2027-01-31", "07:00:00")),
                refused(&FILE.replace("rope-*", "rope-[")),
            ]
            .join("\n")
        );
    }
}
