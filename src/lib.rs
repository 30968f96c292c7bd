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
//! | [`backend`], [`taps`], [`trace`], [`values`] | running it and keeping every stage |
//! | [`stage`], [`layouts`], [`rows`], [`metrics`], [`budget`], [`local`], [`judge`] | comparing |
//! | [`report`], [`output`] | saying what came of it |
//! | [`mutants`] | planted bugs: whether the judge finds them, and what a wrong dump comes from |
//! | [`verify`], [`waivers`], [`mod@check`], [`mod@materialize`], [`kv_cache`] | the commands |

pub mod backend;
pub mod budget;
pub mod case;
pub mod check;
mod error;
pub mod golden;
pub mod inputs;
pub mod integers;
pub mod judge;
pub mod kv_cache;
pub mod layouts;
pub mod local;
pub mod materialize;
pub use dsv2_metrics as metrics;
pub mod mutants;
pub mod output;
pub mod report;
pub mod rows;
pub mod stage;
pub mod suite;
pub mod taps;
pub mod trace;
pub mod values;
pub mod verify;
pub mod waivers;

pub use error::{Error, Result};
