//! The behaviour of the model, part by part. One program: the model is compiled once for all of them.

mod attention;
mod behaviour_list;
mod bits;
mod cache;
mod cache_bytes;
mod checkpoint_forms;
mod classification;
mod common;
mod config;
mod deepseek_v3;
mod generation;
mod masks_and_positions;
mod moe;
mod outputs_and_losses;
mod paper_table;
mod regressions;
mod rope;
mod routing;
mod trained_cache;
mod yarn_and_scale;
