//! Engines run an 8-bit checkpoint in one of two ways: they widen its matrices, or they multiply them with numbers of 8 bits. A
//! dump of bf16 tensors does not say which.

use crate::check::{Checked, Conclusion, Request, check_without_hint};
use crate::error::Result;
use crate::precision::Precision;
use crate::taps::has_8_bits;

/// What is said where the other way explains all that is wrong.
pub const FITS_FP8: &str = "as an engine that multiplies numbers of 8 bits computes this checkpoint, all of the dump is within \
                            budget: `--dtype fp8`, if yours does";

/// Whether a dump that fails as bf16 passes as that of such an engine.
///
/// # Errors
/// If the reference refuses the case.
pub fn fits_fp8(request: &Request, checked: &Checked) -> Result<bool> {
    if checked.precision != Precision::Bf16 || request.expected.is_some() || !has_8_bits(&request.case)? {
        return Ok(false);
    }
    let Request { case, candidate, cache, .. } = request;
    let (case, candidate) = (case.clone(), candidate.clone());
    let other = Request { precision: Some(Precision::Fp8), cache: *cache, ..Request::new(case, candidate) };
    Ok(check_without_hint(&other)?.conclusion() == Conclusion::Pass)
}
