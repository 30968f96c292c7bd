//! What the environment asks of the driver: how old and how large it is, and which calls fail.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};

use crate::driver::is_call;
use crate::status::Status;

/// What `EMULATED_CUDA_FAIL` is.
const FAULT: &str = "CALL:N:ERROR or CALL:N:ERROR:later, several with commas (a call of this library, a number from 1, \
                     an error by number or name)";

/// What a driver is made from.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `EMULATED_CUDA_MEMORY`: bytes of the GPU's memory.
    pub(crate) memory: u64,
    /// `EMULATED_CUDA_DEVICES`: how many GPUs there are, 0 or 1.
    pub(crate) devices: i32,
    /// `EMULATED_CUDA_CAPABILITY`: as `9.0`.
    pub(crate) capability: (i32, i32),
    /// `EMULATED_CUDA_PTX`: the newest version of PTX that the driver takes, as `8.4`.
    pub(crate) ptx: (u32, u32),
    /// `EMULATED_CUDA_TRACE`: a file that gets a line for each call.
    pub(crate) trace: Option<File>,
    /// `EMULATED_CUDA_FAIL`: which calls fail.
    pub(crate) faults: Faults,
}

/// Calls that fail, and how often each was made.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    planned: Vec<Fault>,
    made: HashMap<&'static str, u64>,
}

/// `CALL:N:ERROR`, or `CALL:N:ERROR:later`: the call numbered N (the first is 1) answers the error; or it answers that all
/// is well, and the error comes with the work that it asked for.
#[derive(Clone, Debug, PartialEq)]
struct Fault {
    call: String,
    number: u64,
    status: Status,
    later: bool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fate {
    /// What it answers, if it fails.
    pub(crate) now: Option<Status>,
    /// What its work answers, if that fails.
    pub(crate) later: Option<Status>,
}

impl Settings {
    /// From the environment.
    pub(crate) fn from_environment() -> Result<Self, String> {
        Settings::read(|name| std::env::var_os(name))
    }

    /// From variables. What cannot be read may be a slip in a test, which would then test nothing: it is refused.
    fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let usual = Settings::default();
        Ok(Settings {
            memory: value(&variable, "EMULATED_CUDA_MEMORY", usual.memory, "a number of bytes", |text| {
                text.parse().ok()
            })?,
            devices: value(&variable, "EMULATED_CUDA_DEVICES", usual.devices, "0 or 1", |text| {
                text.parse().ok().filter(|devices| (0..=1).contains(devices))
            })?,
            capability: value(&variable, "EMULATED_CUDA_CAPABILITY", usual.capability, "a version as 9.0", version)?,
            ptx: value(&variable, "EMULATED_CUDA_PTX", usual.ptx, "a version as 8.4", version)?,
            faults: value(&variable, "EMULATED_CUDA_FAIL", usual.faults, FAULT, Faults::parse)?,
            trace: match variable("EMULATED_CUDA_TRACE") {
                None => None,
                Some(path) => {
                    let file = OpenOptions::new().create(true).append(true).open(&path);
                    let refused =
                        |error| format!("EMULATED_CUDA_TRACE: expected a file to write to, found {path:?} ({error})");
                    Some(file.map_err(refused)?)
                }
            },
        })
    }
}

impl Default for Settings {
    /// Of a driver of which nothing is asked.
    fn default() -> Self {
        Settings {
            memory: 4 << 30,
            devices: 1,
            capability: (9, 0),
            ptx: (8, 4),
            trace: None,
            faults: Faults::default(),
        }
    }
}

/// The value of a variable, or the usual one.
fn value<T>(
    variable: impl Fn(&str) -> Option<OsString>,
    name: &str,
    usual: T,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, String> {
    let Some(text) = variable(name) else { return Ok(usual) };
    text.to_str().and_then(parse).ok_or_else(|| format!("{name}: expected {expected}, found {text:?}"))
}

fn version<T: From<u8>>(text: &str) -> Option<(T, T)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse::<u8>().ok()?.into(), minor.parse::<u8>().ok()?.into()))
}

impl Faults {
    fn parse(text: &str) -> Option<Self> {
        let planned = text.split(',').filter(|fault| !fault.is_empty()).map(Fault::parse).collect::<Option<_>>()?;
        Some(Faults { planned, made: HashMap::new() })
    }

    /// A call is made: what becomes of it.
    pub(crate) fn fate(&mut self, call: &'static str) -> Fate {
        let made = self.made.entry(call).or_default();
        *made += 1;
        let Some(fault) = self.planned.iter().find(|fault| fault.call == call && fault.number == *made) else {
            return Fate::default();
        };
        if fault.later {
            Fate { later: Some(fault.status), now: None }
        } else {
            Fate { now: Some(fault.status), later: None }
        }
    }
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (call, number, status) = (parts.next()?, parts.next()?.parse().ok()?, Status::find(parts.next()?)?);
        // Those would never fail.
        if !is_call(call) || number == 0 || status == Status::SUCCESS {
            return None;
        }
        let later = match (parts.next(), parts.next()) {
            (None, None) => false,
            (Some("later"), None) => true,
            _ => return None,
        };
        Some(Fault { call: call.into(), number, status, later })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_call_fails_once_and_the_one_that_was_named() {
        let mut faults = Faults::parse("cuMemAlloc_v2:2:2,cuLaunchKernel:1:CUDA_ERROR_ILLEGAL_ADDRESS:later").unwrap();
        let fates: Vec<Fate> = (0..3).map(|_| faults.fate("cuMemAlloc_v2")).collect();
        let out = Fate { now: Some(Status::ERROR_OUT_OF_MEMORY), later: None };
        assert_eq!(fates, [Fate::default(), out, Fate::default()]);
        let fault = Fate { now: None, later: Some(Status::ERROR_ILLEGAL_ADDRESS) };
        assert_eq!(faults.fate("cuLaunchKernel"), fault);
    }

    #[test]
    fn a_value_that_means_nothing_is_refused_in_a_line_that_names_the_variable() {
        let read = |name: &str, text: &OsStr| Settings::read(|asked| (asked == name).then(|| text.into()));
        let faults = ["cuInit", "cuInit:1", "cuInit:x:2", "cuInit:1:12345", "cuInit:1:2:soon", "cuInit:1:2:later:3"];
        let never = ["cuInit:0:2", "cuInitialise:1:2", "cuInit:1:0"];
        for (name, expected, wrong) in [
            ("EMULATED_CUDA_MEMORY", "a number of bytes", &["", "lots", "-1", "4GiB", "18446744073709551616"][..]),
            ("EMULATED_CUDA_DEVICES", "0 or 1", &["", "2", "-1", "one"]),
            ("EMULATED_CUDA_CAPABILITY", "a version as 9.0", &["", "9", "9.x", "9.0.0", "-9.0", "9.256"]),
            ("EMULATED_CUDA_PTX", "a version as 8.4", &["", "8", ".", "99999999999.0"]),
            ("EMULATED_CUDA_FAIL", FAULT, &faults),
            ("EMULATED_CUDA_FAIL", FAULT, &never),
        ] {
            for text in wrong {
                let refused = read(name, OsStr::new(text)).expect_err(text);
                assert_eq!(refused, format!("{name}: expected {expected}, found {text:?}"));
            }
        }
        let folder = std::env::temp_dir();
        let refused = read("EMULATED_CUDA_TRACE", folder.as_os_str()).expect_err("a folder is no file");
        let expected = format!("EMULATED_CUDA_TRACE: expected a file to write to, found {folder:?} (");
        assert!(refused.starts_with(&expected) && refused.lines().count() == 1, "{refused}");
    }

    #[test]
    #[cfg(unix)]
    fn a_value_that_is_no_text_is_refused_and_not_overlooked() {
        use std::os::unix::ffi::OsStrExt;
        let refused =
            Settings::read(|name| (name == "EMULATED_CUDA_DEVICES").then(|| OsStr::from_bytes(b"0\xff").to_owned()));
        let expected = "EMULATED_CUDA_DEVICES: expected 0 or 1, found \"0\\xFF\"";
        assert_eq!(refused.expect_err("no text"), expected);
    }

    #[test]
    fn a_value_that_means_something_is_taken() {
        let read = |text: &str| {
            let texts: HashMap<String, OsString> = text
                .split(' ')
                .map(|part| part.split_once('=').expect("a variable"))
                .map(|(name, value)| (format!("EMULATED_CUDA_{name}"), value.into()))
                .collect();
            Settings::read(|name| texts.get(name).cloned()).expect("nothing is wrong")
        };
        let found = read("MEMORY=8000000 DEVICES=0 CAPABILITY=7.5 PTX=8.10 FAIL=,cuInit:1:2,");
        let taken = (found.memory, found.devices, found.capability, found.ptx, found.faults.planned.len());
        assert_eq!(taken, (8_000_000, 0, (7, 5), (8, 10), 1));
    }
}
