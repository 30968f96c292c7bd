//! The tap that puts a variant of the model into the reference.

use dsv2_reference::Real;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table;
use dsv2_reference::tap::{StageValue, Tap};
use ndarray::ArrayD;

use super::scene::Scene;
use super::weights::Wide;
use super::{Variant, arithmetic};
use crate::error::Result;
use crate::precision::Precision;
use crate::taps::Forced;
use crate::trace::Trace;

/// Replaces the values of the stages at which a variant acts by what the variant has there.
///
/// It remembers each stage as it is kept after the tap, rounded to the type of the computation, because that is what the
/// stages after it are computed from.
pub struct Planted<'a> {
    variants: Vec<&'a Variant>,
    scene: Scene<'a>,
    teacher: Option<Forced<'a>>,
    acted: Vec<&'static str>,
}

/// Values that differ by less than this part of the largest are the same: fp32 rounds by more.
const SAME: f64 = 1.0 / (1 << 22) as f64;

impl<'a> Planted<'a> {
    /// `variant` in the model of `weights`, computed in `precision`.
    ///
    /// # Errors
    /// If the chunks of the case do not fit its inputs.
    pub fn new(variant: &'a Variant, weights: &'a Wide<'a>, precision: Precision) -> Result<Self> {
        Planted::all(vec![variant], weights, precision)
    }

    /// Several variants at once; where two act at one stage, the later one goes on from the other's value.
    ///
    /// # Errors
    /// If the chunks of the case do not fit its inputs.
    pub fn all(variants: Vec<&'a Variant>, weights: &'a Wide<'a>, precision: Precision) -> Result<Self> {
        Ok(Planted { variants, scene: Scene::new(weights, precision)?, teacher: None, acted: Vec::new() })
    }

    /// The same where the stages that `trace` holds are put in place of the computed ones, after they have been recorded.
    #[must_use]
    pub fn taught(mut self, trace: &'a Trace) -> Self {
        self.teacher = Some(Forced::new(trace, self.scene.case().inputs.tokens.dim()));
        self
    }

    /// The kinds of stage that the variant has changed, the first one first.
    pub fn acted(self) -> Vec<&'static str> {
        self.acted
    }

    fn plant<T: Real>(&mut self, stage: &Stage, value: &mut StageValue<'_, T>) {
        for place in 0..self.variants.len() {
            self.plant_one(self.variants[place], stage, value);
        }
    }

    fn plant_one<T: Real>(&mut self, variant: &Variant, stage: &Stage, value: &mut StageValue<'_, T>) {
        let layer = stage.layer.unwrap_or(0);
        if !variant.acts().any(|(kinds, _)| kinds.contains(&stage.kind)) {
            return;
        }
        let changed = match value {
            StageValue::Real(a) => {
                let found = a.mapv(Real::to_f64);
                let planted = variant.real(&self.scene, stage.kind, layer, &found);
                planted.filter(|planted| planted.shape() == found.shape()).is_some_and(|planted| {
                    a.zip_mut_with(&planted, |to, from| *to = T::from_f64(*from));
                    differ(&found, &planted)
                })
            }
            StageValue::Index(a) => {
                let planted = variant.index(&self.scene, stage.kind, layer);
                planted.filter(|planted| planted.shape() == a.shape()).is_some_and(|planted| {
                    let differ = *a != planted;
                    a.assign(&planted);
                    differ
                })
            }
        };
        if changed && !self.acted.contains(&stage.kind) {
            self.acted.push(stage.kind);
        }
    }

    fn remember<T: Real>(&mut self, name: &str, value: &StageValue<'_, T>) {
        match value {
            StageValue::Real(a) => {
                let unrounded = a.mapv(Real::to_f64);
                let dtype = self.scene.precision().stored(name);
                let mut kept = unrounded.mapv(|x| arithmetic::rounded(dtype, x));
                if let Some(teacher) = &mut self.teacher {
                    teacher.stage(name, StageValue::<f64>::Real(kept.view_mut()));
                }
                self.scene.remember(name, unrounded, kept);
            }
            StageValue::Index(a) => {
                let mut kept = a.to_owned();
                if let Some(teacher) = &mut self.teacher {
                    teacher.stage(name, StageValue::<f64>::Index(kept.view_mut()));
                }
                self.scene.remember_index(name, kept);
            }
        }
    }
}

fn differ(a: &ArrayD<f64>, b: &ArrayD<f64>) -> bool {
    let largest = a.iter().filter(|x| x.is_finite()).fold(0.0f64, |largest, x| largest.max(x.abs()));
    let apart = |x: f64, y: f64| (x - y).abs() > SAME * largest || (x - y).is_nan();
    a.iter().zip(b).any(|(&x, &y)| x != y && apart(x, y))
}

impl<T: Real> Tap<T> for Planted<'_> {
    fn stage(&mut self, name: &str, mut value: StageValue<'_, T>) {
        if name == table::EMBED_TOKENS {
            self.scene.next_chunk();
        }
        if let Some(stage) = Stage::parse(name) {
            self.plant(&stage, &mut value);
        }
        self.remember(name, &value);
    }
}
