//! Memory: what a run will need, what there is, and a refusal before anything is begun.
//!
//! What is counted are the stages, and what computing them holds beside them. Weights are mapped files, of which the system drops
//! what it has no room for: they are not counted.

pub mod given_back;
pub(crate) mod held;
mod side_by_side;

use std::fmt;
use std::str::FromStr;

use dsv2_foreign::Words;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::Stage;
use indexmap::IndexMap;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::case::Case;
use crate::error::{Error, Result};
use crate::planned::Planned;
use crate::precision::Precision;
pub use side_by_side::side_by_side;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// What units are called, the larger ones first: by thousands, and by 1024.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl fmt::Display for Size {
    /// Rounded down: what is there is not less.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, |bytes, tenth| bytes / tenth)
    }
}

impl Size {
    /// Rounded up: who asks for what is shown has enough.
    fn asked_for(self) -> impl fmt::Display {
        fmt::from_fn(move |f| self.write(f, u64::div_ceil))
    }

    fn write(self, f: &mut fmt::Formatter<'_>, tenths: fn(u64, u64) -> u64) -> fmt::Result {
        let (unit, tenth) = match self.0 {
            0..=999_999 => ("kB", 100),
            1_000_000..=999_999_999 => ("MB", 100_000),
            _ => ("GB", 100_000_000),
        };
        let tenths = tenths(self.0, tenth);
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// A text that says no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a size above 0, such as 8GB or 512MiB, found {}", Words(format_args!("{_0:?}")))]
pub struct NoSize(String);

impl FromStr for Size {
    type Err = NoSize;

    /// `8GB`, `512 MiB`, or a number of bytes.
    fn from_str(text: &str) -> Result<Self, NoSize> {
        let trimmed = text.trim();
        let unit = UNITS.iter().find_map(|(unit, bytes)| {
            let end = trimmed.len().checked_sub(unit.len())?;
            trimmed.get(end..).filter(|found| found.eq_ignore_ascii_case(unit)).map(|_| (&trimmed[..end], *bytes))
        });
        let (number, bytes) = unit.unwrap_or((trimmed, 1));
        let number = number.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
        let size = number.map(|number| Size((number * bytes as f64).round() as u64));
        size.ok_or_else(|| NoSize(text.to_owned()))
    }
}

/// What a run will need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// About so much.
    pub size: Size,
    /// What would take less.
    pub less: &'static str,
}

/// A run that needs more than this says so before it begins.
const WORTH_A_WORD: Size = Size(1_000_000_000);

impl Need {
    /// What is to be said beforehand, if it is much; `limit` is what may be used at most.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn checked(self, limit: Option<Size>) -> Result<Option<String>> {
        self.of(within(limit))
    }

    fn of(self, available: Option<Size>) -> Result<Option<String>> {
        let Need { size, less } = self;
        let asked_for = size.asked_for();
        match available {
            Some(available) if available < size => {
                let found = format!("{available}; {less}");
                Err(Error::request("memory", format!("about {asked_for} that is free"), found))
            }
            Some(available) if size >= WORTH_A_WORD => {
                Ok(Some(format!("needs about {asked_for} of memory, of {available}")))
            }
            None if size >= WORTH_A_WORD => Ok(Some(format!("needs about {asked_for} of memory"))),
            _ => Ok(None),
        }
    }
}

/// What may be used: what is there, and no more than `limit`; nothing, if nobody knows.
pub fn within(limit: Option<Size>) -> Option<Size> {
    limit.into_iter().chain(available()).min()
}

/// What may be used of this machine's memory, by this process's control group; nothing, if nobody knows.
fn available() -> Option<Size> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    let of_machine = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let of_group = system.cgroup_limits().map(|limits| limits.free_memory);
    of_machine.into_iter().chain(of_group).min().map(Size)
}

/// What files are read and written through, and what threads have of their own.
const BUFFERS: held::Count = held::count(128 << 10);

/// About so many bytes a run of the reference holds at a time, beside its weights: what a layer does, or what comes behind the layers,
/// of a chunk; the cache of all layers; masks as the chunks are given them; and the weights' names. `planned` are the stages.
pub fn of_run(case: &Case, planned: &IndexMap<String, Planned>, form: AttentionForm, precision: Precision) -> u64 {
    let at_once = held::most_in_layers(case, form).max(held::most_behind_layers(case, planned));
    let cached =
        if case.use_cache { held::cache(case) * held::count(held::layers(case).len()) } else { held::count(0) };
    let masks = held::Chunk::all(case).iter().fold(held::count(0), |sum, chunk| sum + chunk.given_mask(case));
    let size = if precision == Precision::F64 { 8 } else { 4 };
    ((at_once + cached) * held::count(size) + masks * held::count(4) + held::of_weights(case) + BUFFERS).0
}

/// The elements of all stages of these kinds.
pub fn of_kinds(planned: &IndexMap<String, Planned>, kinds: &[&str]) -> u64 {
    let is = |name: &str| Stage::parse(name).is_some_and(|stage| kinds.contains(&stage.kind));
    let of = planned.iter().filter(|(name, _)| is(name)).map(|(_, planned)| planned.elements());
    of.fold(0, u64::saturating_add)
}

/// How many elements the stages have that a run has in memory at a time: those of a layer, or those behind the layers.
pub fn at_a_time(planned: &IndexMap<String, Planned>) -> u64 {
    let mut groups: IndexMap<Option<usize>, u64> = IndexMap::new();
    for (name, planned) in planned {
        let of = groups.entry(Stage::parse(name).and_then(|stage| stage.layer)).or_default();
        *of = of.saturating_add(planned.elements());
    }
    groups.into_values().max().unwrap_or(0)
}

/// The elements of all stages.
pub fn all(planned: &IndexMap<String, Planned>) -> u64 {
    planned.values().fold(0, |sum: u64, planned| sum.saturating_add(planned.elements()))
}

/// The elements of the largest stage.
pub fn largest(planned: &IndexMap<String, Planned>) -> u64 {
    planned.values().map(Planned::elements).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        let read = |text: &str| text.parse::<Size>().map(|size| size.0).map_err(|error| error.to_string());
        assert_eq!([read("8GB"), read("1.5 gib"), read("300")], [Ok(8_000_000_000), Ok(1_610_612_736), Ok(300)]);
        for wrong in ["", "GB", "-1", "nan", "1e400GB", "8 bytes"] {
            let line = format!("expected a size above 0, such as 8GB or 512MiB, found {wrong:?}");
            assert_eq!(read(wrong), Err(line));
        }
        let shown = [Size(1), Size(1_000_000), Size(40_000_000_000)].map(|size| size.to_string());
        assert_eq!(shown, ["0.0 kB", "1.0 MB", "40.0 GB"]);
    }

    #[test]
    fn who_asks_for_what_is_shown_is_never_refused() {
        let sizes =
            (1..40).flat_map(|i| [7_u64.pow(i % 18), 10_u64.pow(i % 17) + 1, 50_049_999 + u64::from(i) * 3_333]);
        let sizes = sizes.chain([999_999, 1_000_000, 999_999_999, 1_000_000_000, 85_049_999_999]);
        // less than a tenth of a kilobyte is shown as nothing
        for size in sizes.filter(|size| *size >= 100) {
            let need = Need { size: Size(size), less: "" };
            let refused = need.of(Some(Size(size - 1))).unwrap_err().to_string();
            let shown =
                refused.strip_prefix("memory: expected about ").and_then(|rest| rest.split(" that").next()).unwrap();
            let limit: Size = shown.parse().unwrap();
            assert!((size..=size + size / 10 + 100).contains(&limit.0), "{size}: {shown}");
            assert!(need.of(Some(limit)).is_ok(), "{size}: {shown}");
            // what is there is not shown as more than it is
            assert!(Size(size).to_string().parse::<Size>().unwrap().0 <= size, "{size}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_in_a_line_and_what_is_much_is_said() {
        let need = |gigabytes: u64| Need { size: Size(gigabytes * 1_000_000_000), less: "--layers takes less" };
        let there_are = |gigabytes: u64| Some(Size(gigabytes * 1_000_000_000));
        let refused = need(40).of(there_are(8)).unwrap_err().to_string();
        assert_eq!(refused, "memory: expected about 40.0 GB that is free, found 8.0 GB; --layers takes less");
        assert_eq!(need(4).of(there_are(8)).unwrap().unwrap(), "needs about 4.0 GB of memory, of 8.0 GB");
        assert_eq!(need(4).of(None).unwrap().unwrap(), "needs about 4.0 GB of memory");
        assert_eq!(need(0).of(there_are(8)).unwrap(), None);
        assert!(need(1_000_000).checked(None).is_err(), "no machine has a petabyte");
        assert!(need(2).checked(Some(Size(1))).is_err());
    }
}
