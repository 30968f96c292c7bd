//! What the environment asks of the driver: how old and how large it is, and which calls fail.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};

use crate::status::Status;

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
    /// From the environment. What cannot be read is an error in a test, so the program ends.
    pub(crate) fn from_environment() -> Self {
        let asked = |name: &str| std::env::var(name).ok();
        fn read<T>(name: &str, text: Option<String>, usual: T, parse: impl FnOnce(&str) -> Option<T>) -> T {
            text.map_or(usual, |text| parse(&text).unwrap_or_else(|| panic!("{name}={text}: not understood")))
        }
        fn version<T: std::str::FromStr>(text: &str) -> Option<(T, T)> {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        }
        let get = |name: &'static str| (name, asked(name));
        let (name, text) = get("EMULATED_CUDA_MEMORY");
        let memory = read(name, text, 4 << 30, |text| text.parse().ok());
        let (name, text) = get("EMULATED_CUDA_DEVICES");
        let devices = read(name, text, 1, |text| text.parse().ok());
        let (name, text) = get("EMULATED_CUDA_CAPABILITY");
        let capability = read(name, text, (9, 0), version);
        let (name, text) = get("EMULATED_CUDA_PTX");
        let ptx = read(name, text, (8, 4), version);
        let (name, text) = get("EMULATED_CUDA_FAIL");
        let faults = read(name, text, Faults::default(), Faults::parse);
        let (name, text) = get("EMULATED_CUDA_TRACE");
        let open = |path: &str| OpenOptions::new().create(true).append(true).open(path).ok();
        let trace = read(name, text, None, |path| open(path).map(Some));
        Settings { trace, memory, devices, capability, ptx, faults }
    }
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
    use super::*;

    #[test]
    fn a_call_fails_once_and_the_one_that_was_named() {
        let mut faults = Faults::parse("cuMemAlloc_v2:2:2,cuLaunchKernel:1:CUDA_ERROR_ILLEGAL_ADDRESS:later").unwrap();
        let fates: Vec<Fate> = (0..3).map(|_| faults.fate("cuMemAlloc_v2")).collect();
        let out = Fate { now: Some(Status::ERROR_OUT_OF_MEMORY), later: None };
        assert_eq!(fates, [Fate::default(), out, Fate::default()]);
        let fault = Fate { now: None, later: Some(Status::ERROR_ILLEGAL_ADDRESS) };
        assert_eq!(faults.fate("cuLaunchKernel"), fault);
        for wrong in ["cuInit", "cuInit:1", "cuInit:x:2", "cuInit:1:12345", "cuInit:1:2:soon", "cuInit:1:2:later:3"] {
            assert!(Faults::parse(wrong).is_none(), "{wrong}");
        }
    }
}
