//! Benign variants: correct implementations that round elsewhere, sum in another order, or take another way to the same
//! numbers. What is wrong with a judge that flags one of them is the judge.

mod experts;
mod orders;
mod roundings;

use super::{Act, RealAct, Variant};
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
    /// The reference in its expanded form, with all stages, for every case and type.
    const fn new(id: &'static str, what: &'static str) -> Self {
        Benign { id, what, applies: |_, _| true, absorbed: false, absent: &[], variant: None }
    }

    /// It differs from the reference in these cases only.
    const fn when(mut self, applies: fn(&Case, Precision) -> bool) -> Self {
        self.applies = applies;
        self
    }

    /// Attention runs on the latents.
    const fn absorbed(mut self) -> Self {
        self.absorbed = true;
        self
    }

    /// It lacks the stages whose names end so.
    const fn without(mut self, absent: &'static [&'static str]) -> Self {
        self.absent = absent;
        self
    }

    /// What it has at stages of numbers.
    const fn at(mut self, kinds: &'static [&'static str], act: RealAct) -> Self {
        let variant = match self.variant {
            Some(variant) => variant,
            None => Variant::NONE,
        };
        self.variant = Some(variant.and((kinds, Act::Real(act))));
        self
    }
}

/// All of them.
pub fn benign() -> impl Iterator<Item = &'static Benign> {
    ABSORBED.iter().chain(orders::BENIGN).chain(roundings::BENIGN).chain(experts::BENIGN)
}

const ABSORBED: &[Benign] = &[Benign::new("absorbed", "Attention on the latents.").absorbed()];

/// Whether stages are rounded for keeping.
fn narrow(_: &Case, precision: Precision) -> bool {
    !matches!(precision, Precision::F64 | Precision::F32 | Precision::Tf32)
}
