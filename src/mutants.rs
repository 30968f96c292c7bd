//! Mutants: deliberately wrong DeepSeek-V2s, which the judge must catch, and benign variants, which it must let pass.
//!
//! A judge that passes everything looks just like one that works, until somebody plants a bug. A mutant is a bug: at one or
//! a few kinds of stage the value is replaced by what a wrong implementation would compute there *from the stages before
//! it*. Nothing in the reference is changed for that; mutants are planted by a tap ([`tap::Planted`]). Many of them are
//! bugs that real implementations had ([`Mutant::report`]).
//!
//! | class | what | must be |
//! |---|---|---|
//! | [`Class::Structural`] | another function | found in every type, at the stage where it is planted |
//! | [`Class::Precision`] | the same function up to rounding, an epsilon or an approximation | found in f32 |
//! | [`Class::Equivalent`] | the same outputs from other values in between | found there, and *not* at the outputs |
//!
//! [`benign`] has correct implementations that round or sum in another way; none of them may be flagged.
//! [`crate::score`] runs all of that and counts; [`mod@explain`] goes the other way, from a wrong dump to the mutant that has it.
//!
//! # What cannot be expressed
//!
//! A tap changes values, never shapes, and has no say before the first stage. So there is no mutant for: a router of too
//! few logits, wrong token ids, NaN from unused cache slots (a read of them is a NaN, which every comparison sees), a cache
//! that is never rolled back, a shared expert or a whole layer that was never loaded (`moe_layer_freq`; the nearest is
//! `shared_dropped`), and rotary tables of `[B,S]` positions where the model has one row for all (`pad_pos_abs` is planted
//! at `q_pe` and `k_pe` instead). `softmax_after_topk` is the same function as `renorm`. A mask of zeros in place of minus
//! infinity in the selection of groups selects the same experts unless a score underflows, and is left out.

pub mod arithmetic;
pub mod benign;
mod catalogue;
pub mod explain;
pub mod parts;
pub mod scene;
pub mod tap;
pub mod weights;

use dsv2_reference::stage::table::TOPK_INDICES;
use ndarray::ArrayD;

pub use catalogue::catalogue;

use crate::case::Case;
use scene::Scene;

/// What a mutant is wrong in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// It computes another function.
    Structural,
    /// It computes the same function less well than its type can.
    Precision,
    /// It has other values in between and the same outputs.
    Equivalent,
}

/// A wrong implementation.
pub struct Mutant {
    /// Its name.
    pub id: &'static str,
    /// What it is wrong in.
    pub class: Class,
    /// What it does, in a sentence.
    pub what: &'static str,
    /// Where an implementation that did so was reported.
    pub report: Option<&'static str>,
    /// Whether it can differ from the right one on a case: there are groups, there is YaRN, ...
    pub applies: fn(&Case) -> bool,
    /// What it does differently.
    pub variant: Variant,
}

impl Mutant {
    /// One that applies to every case, that no implementation is known to have been, and that does nothing yet.
    const fn new(class: Class, id: &'static str, what: &'static str) -> Self {
        Mutant { id, class, what, report: None, applies: |_| true, variant: Variant::NONE }
    }

    /// It applies to these cases only.
    const fn when(mut self, applies: fn(&Case) -> bool) -> Self {
        self.applies = applies;
        self
    }

    /// An implementation that did so was reported there.
    const fn reported(mut self, report: &'static str) -> Self {
        self.report = Some(report);
        self
    }

    /// What it has at stages of numbers.
    const fn at(mut self, kinds: &'static [&'static str], act: RealAct) -> Self {
        self.variant = self.variant.and((kinds, Act::Real(act)));
        self
    }

    /// Which experts it chooses.
    const fn choosing(mut self, act: IndexAct) -> Self {
        self.variant = self.variant.and((&[TOPK_INDICES], Act::Index(act)));
        self
    }

    /// The kind of stage at which it begins to be wrong, of those that a model may have; a model that lacks it (`q_b_proj`)
    /// shows it at the next.
    pub fn stage(&self) -> &'static str {
        self.variant.acts().next().and_then(|(kinds, _)| kinds.first()).copied().unwrap_or_default()
    }
}

/// Where an act takes place.
#[derive(Clone, Copy)]
pub struct At<'v> {
    /// The kind of stage.
    pub kind: &'static str,
    /// The layer; 0 where there is none.
    pub layer: usize,
    /// What the reference has computed there.
    pub value: &'v ArrayD<f64>,
}

/// What a variant has at a stage of numbers, or nothing if it has there what the reference has.
pub type RealAct = fn(&Scene<'_>, At<'_>) -> Option<ArrayD<f64>>;

/// Which experts a variant chooses in a layer, or nothing if it chooses those that the reference chooses.
pub type IndexAct = fn(&Scene<'_>, usize) -> Option<ArrayD<i64>>;

/// What a variant does at a stage.
#[derive(Clone, Copy)]
pub enum Act {
    /// Of a stage of numbers.
    Real(RealAct),
    /// Of the choice of experts of a layer.
    Index(IndexAct),
}

/// Kinds of stage and what happens there.
pub type Step = (&'static [&'static str], Act);

/// Another implementation, as far as it differs: what it does, and at which kinds of stage, in forward order.
#[derive(Clone, Copy)]
pub struct Variant {
    /// What happens where; nothing after the first `None`.
    acts: [Option<Step>; 3],
}

impl Variant {
    /// The reference.
    const NONE: Variant = Variant { acts: [None; 3] };

    /// One more step.
    const fn and(mut self, step: Step) -> Self {
        let mut steps = 0;
        while self.acts[steps].is_some() {
            steps += 1;
        }
        self.acts[steps] = Some(step);
        self
    }

    /// What happens where.
    pub fn acts(&self) -> impl Iterator<Item = &Step> {
        self.acts.iter().flatten()
    }

    /// What the variant has at a stage of numbers, if it differs there.
    pub fn real(
        &self,
        scene: &Scene<'_>,
        kind: &'static str,
        layer: usize,
        value: &ArrayD<f64>,
    ) -> Option<ArrayD<f64>> {
        match self.act(kind)? {
            Act::Real(act) => act(scene, At { kind, layer, value }),
            Act::Index(_) => None,
        }
    }

    /// Which experts the variant chooses, if it differs there.
    pub fn index(&self, scene: &Scene<'_>, kind: &'static str, layer: usize) -> Option<ArrayD<i64>> {
        match self.act(kind)? {
            Act::Index(act) => act(scene, layer),
            Act::Real(_) => None,
        }
    }

    fn act(&self, kind: &str) -> Option<Act> {
        self.acts().find(|(kinds, _)| kinds.contains(&kind)).map(|(_, act)| *act)
    }
}
