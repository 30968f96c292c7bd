//! Every golden case against the CUDA kernels, run by the emulator: one test for each case, type and form of attention.
//!
//! `cargo test --test emulated v2-lite` runs those of one case.

dsv2::conformance_suite!(dsv2::backend::OnDevice::Emulator { races: false });
