//! Benign variants: correct implementations that round elsewhere, sum in another order, or take another way to the same
//! numbers. What is wrong with a judge that flags one of them is the judge.

mod experts;
mod orders;
mod roundings;

use super::Variant;
use crate::case::Case;
use crate::precision::Precision;

/// A correct implementation.
pub struct Benign {
    /// Its name.
    pub id: &'static str,
    /// What it does differently, in a sentence.
    pub what: &'static str,
    /// Whether it differs from the reference on a case, in a type.
    pub applies: fn(&Case, Precision) -> bool,
    /// Whether attention runs on the latents.
    pub absorbed: bool,
    /// The ends of the names of those stages that it does not have.
    pub absent: &'static [&'static str],
    /// What it does differently, if that is not all.
    pub variant: Option<Variant>,
}

impl Benign {
    /// A variant of the expanded form, with all stages.
    const fn of(id: &'static str, what: &'static str, applies: fn(&Case, Precision) -> bool, variant: Variant) -> Self {
        Benign { id, what, applies, absorbed: false, absent: &[], variant: Some(variant) }
    }
}

/// All of them.
pub fn benign() -> impl Iterator<Item = &'static Benign> {
    ABSORBED.iter().chain(orders::BENIGN).chain(roundings::BENIGN).chain(experts::BENIGN)
}

const ABSORBED: &[Benign] = &[Benign {
    id: "absorbed",
    what: "Attention on the latents.",
    applies: any,
    absorbed: true,
    absent: &[],
    variant: None,
}];

fn any(_: &Case, _: Precision) -> bool {
    true
}

/// Whether stages are rounded for keeping.
fn narrow(_: &Case, precision: Precision) -> bool {
    !matches!(precision, Precision::F64 | Precision::F32 | Precision::Tf32)
}
