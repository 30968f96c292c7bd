//! `dsv2`: is this implementation DeepSeek-V2, and if not, which stage is wrong and by how much?
//!
//! ```text
//! case = config + weights + inputs          a golden case, or any Hugging Face checkpoint folder
//!   -> Backend::run(case, tap) -> Trace     the reference, or a dump read from disk
//!   -> judge(trace, truth, budget)          one verdict for each stage
//!   -> report                               tables for people, JSON for programs
//! ```
//!
//! | module | |
//! |---|---|
//! | [`case`], [`golden`], [`inputs`] | what is run |
//! | [`precision`], [`planned`], [`memory`], [`backend`], [`taps`], [`trace`], [`values`] | running it and keeping every stage |
//! | [`files`] | tensors that other programs wrote |
//! | [`mod@stage`], [`rows`], [`metrics`], [`budget`], [`judge`], [`local`] | comparing |
//! | [`outcome`], [`waivers`], [`report`], [`output`] | saying what came of it |
//! | [`mod@generate`] | text from a model, over any backend |
//! | [`kernels`] | what a kernel returned for an operator's workload, judged |
//! | [`transcripts`] | text that an engine answered, judged |
//! | [`mutants`], [`score`] | known bugs, planted: whether the judge finds them, and what a wrong dump comes from |
//! | [`verify`], [`conformance`], [`integers`], [`mod@check`], [`mod@materialize`], [`kv_cache`], [`plan`] | the commands, and the golden cases as tests |

// The command line is written as a user of the library.
extern crate self as dsv2;

pub mod backend;
pub mod budget;
pub mod case;
pub mod check;
#[doc(hidden)]
pub mod cli;
pub mod conformance;
mod error;
pub mod files;
pub mod generate;
pub mod golden;
pub mod inputs;
pub mod integers;
pub mod judge;
pub mod kernels;
pub mod kv_cache;
mod lines;
pub mod local;
pub mod materialize;
pub mod memory;
pub mod mutants;
pub mod outcome;
pub mod output;
pub mod plan;
pub mod planned;
pub mod precision;
pub mod report;
pub mod rows;
mod schedule;
pub mod score;
#[cfg(test)]
mod stage_checks;
mod table;
pub mod taps;
pub mod trace;
pub mod transcripts;
pub mod values;
pub mod verify;
pub mod waivers;

pub use dsv2_foreign as foreign;
pub use dsv2_metrics as metrics;
pub use dsv2_reference::stage;
pub use error::{Error, Result, one_line};
