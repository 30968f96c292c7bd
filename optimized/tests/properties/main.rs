//! Laws of the model on the device, each tried on random small models, and on wrong kernels that it must catch.
//!
//! Everything runs on the emulator, in fp32. Errors are judged as they are in the golden cases: by what the reference
//! errs in the same type, in both forms of attention, times the factors of `dsv2-metrics`.

#[path = "../support/mutants.rs"]
mod archive;
mod bitwise;
mod experts;
mod masks;
mod near;
// How a law is stated is the same everywhere in this repository.
#[path = "../../../tests/properties/property.rs"]
mod property;
mod runs;
mod tiny;
mod truth;
