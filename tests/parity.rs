//! Every golden case against the reference: one test for each case, type and form of attention, named after the case.
//!
//! `cargo test --test parity v2-lite` runs those of one case.

dsv2::conformance_suite!(dsv2::backend::Reference);
