//! The behaviour of the model, part by part. One program: the model is compiled once for all of them.

mod attention;
mod cache;
mod cache_bytes;
mod common;
mod config;
mod conformance_list;
mod deepseek_v3;
mod generation;
mod masks_and_positions;
mod moe;
mod outputs_and_losses;
mod paper_table;
mod regressions;
mod rope_and_scale;
mod trained_cache;
