//! What a benchmark leaves: one JSON file ([`Results`]), the report that is made of it ([`report`]) and the gate between
//! two of them ([`compare`]).
//!
//! ```text
//! cargo run --release -p dsv2-bench-report -- report FILE... [--output DIR]
//! cargo run --release -p dsv2-bench-report -- compare OLD NEW [--all]
//! ```
//!
//! The programs that measure (`cargo bench`, peers/measure.py) know what their numbers mean and make tables and
//! plots of them; this crate knows how to keep, show and compare them.

#![deny(missing_docs)]

pub mod compare;
mod error;
mod plot;
pub mod report;
mod results;

pub use error::{Error, Result};
pub use results::{Axis, Better, Machine, Measurement, NotRun, Plot, Results, Run, Series, Table};
