#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod context;
mod device;
mod driver;
mod faults;
mod graphs;
mod memory;
mod modules;
mod status;
mod streams;
mod work;
