//! FlashInfer-Bench's files: a definition for each set of sizes that a kernel is compiled for, and its workloads, one a line.

mod read;
mod write;

use super::Workload;

pub use read::{Given, Source, recognise, workloads};
pub use write::{Instance, files};

/// A workload's name as part of a file's: letters and digits, one `_` for whatever lies between.
pub fn file_stem(workload: &Workload) -> String {
    stem(&workload.name)
}

fn stem(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_").to_lowercase()
}
