//! Laws of the model on the device, each tried on random small models, and on wrong kernels that it must catch.
//!
//! Everything runs on the emulator, in fp32. Errors are judged as they are in the golden cases: by what the reference
//! errs in the same type, in both forms of attention, times the factors of `dsv2-metrics`.

mod bitwise;
mod experts;
mod masks;
mod near;
mod runs;
mod tiny;
mod truth;
