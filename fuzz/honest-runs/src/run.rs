//! An honest run of a case, and the dumps that are made of it.

use dsv2::Result;
use dsv2::backend::{Backend, OnDevice, Precision, Reference, Settings};
use dsv2::case::Case;
use dsv2::check::{Request, check_without_hint};
use dsv2::judge::{StageVerdict, Verdict, routing};
use dsv2::mutants::tap::Planted;
use dsv2::mutants::weights::Wide;
use dsv2::mutants::{Class, Mutant, catalogue};
use dsv2::stage::Stage;
use dsv2::trace::Trace;
use dsv2::values::Values;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::{CacheFormat, PackedFormat};
use dsv2_reference::tap::NoTap;
use fastrand::Rng;

use crate::model::pick;

/// What runs a case, and in what.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Whether the kernels run it, on the emulator.
    pub emulated: bool,
    /// What is computed in.
    pub precision: Precision,
    /// The form of attention.
    pub form: AttentionForm,
    /// How the cache is kept.
    pub cache: CacheFormat,
}

impl Way {
    /// One of all that there are.
    pub fn any(case: &Case, rng: &mut Rng) -> Self {
        let emulated = rng.f64() < 0.4;
        // fp8 takes checkpoints that are stored so
        let precisions: Vec<Precision> = match emulated {
            true => vec![Precision::F32, Precision::Bf16],
            false => Precision::ALL.into_iter().filter(|precision| *precision != Precision::Fp8).collect(),
        };
        let packed = !emulated && case.use_cache && rng.f64() < 0.1;
        Way {
            emulated,
            precision: pick(rng, &precisions),
            form: pick(rng, &[AttentionForm::Expanded, AttentionForm::Absorbed]),
            cache: if packed { CacheFormat::Packed(pick(rng, &PackedFormat::ALL)) } else { CacheFormat::Plain },
        }
    }

    /// Runs a case.
    ///
    /// # Errors
    /// If it is refused.
    pub fn run(&self, case: &Case) -> Result<Trace> {
        let Way { precision, form: attention, cache, .. } = *self;
        let settings = Settings { precision, attention, cache, ..Settings::default() };
        match self.emulated {
            true => OnDevice::Emulator { races: false }.run(case, &settings, &mut NoTap),
            false => Reference.run(case, &settings, &mut NoTap),
        }
    }
}

/// The parts of a run that are judged by themselves, by the names of the dumps.
pub fn dumps(whole: &Trace, rng: &mut Rng) -> Vec<(&'static str, Trace)> {
    let part = |held: &mut dyn FnMut(&str) -> bool| -> Trace {
        let held = whole.iter().filter(|(name, _)| held(name));
        held.map(|(name, values)| (name.to_owned(), values.clone())).collect()
    };
    let logits = ["lm_head", "score"];
    let hidden = ["model.embed_tokens", "model.layers.*", "model.norm", "lm_head", "score"];
    vec![
        ("all stages", whole.clone()),
        ("logits", part(&mut |name| logits.contains(&name))),
        ("hidden states", part(&mut |name| Stage::parse(name).is_some_and(|stage| hidden.contains(&stage.kind)))),
        ("some stages", part(&mut |name| name == "model.norm" || rng.bool())),
    ]
}

/// Judges a dump, and gives the case back.
///
/// # Errors
/// If the check is refused.
pub fn judge(case: Case, candidate: Trace, way: &Way) -> Result<(Case, Verdict)> {
    let request = Request { precision: Some(way.precision), cache: way.cache, ..Request::new(case, candidate) };
    let verdict = check_without_hint(&request)?.verdict;
    Ok((request.case, verdict))
}

/// A dump of all stages of a wrong run: the reference with a random one of the structural mutants that change something here.
/// Nothing, if ten of them change nothing.
///
/// # Errors
/// If the case is refused.
pub fn wrong(case: &Case, precision: Precision, rng: &mut Rng) -> Result<Option<(&'static str, Trace)>> {
    let structural = |mutant: &&Mutant| mutant.class == Class::Structural && (mutant.applies)(case);
    let mut mutants: Vec<&'static Mutant> = catalogue().filter(structural).collect();
    rng.shuffle(&mut mutants);
    let (weights, settings) = (Wide::new(case), Settings { precision, ..Settings::default() });
    for mutant in mutants.into_iter().take(10) {
        let mut tap = Planted::new(&mutant.variant, &weights, precision)?;
        let trace = Reference.run(case, &settings, &mut tap)?;
        if !tap.acted().is_empty() {
            return Ok(Some((mutant.id, trace)));
        }
    }
    Ok(None)
}

/// How many choices of experts of a run are not those of the f64 reference: near ties that fell the other way.
///
/// # Errors
/// If the case is refused.
pub fn flips(case: &Case, run: &Trace) -> Result<usize> {
    let settings = Settings { precision: Precision::F64, ..Settings::default() };
    let truth = Reference.run(case, &settings, &mut NoTap)?;
    let other = |(name, chosen): (&str, &Values)| {
        let moved = routing::elsewhere(chosen.index()?, truth.get(name)?.index()?, None) > 0.0;
        Some(usize::from(moved))
    };
    Ok(run.iter().filter_map(other).sum())
}

/// What is wrong with a stage, in one line.
pub fn describe(stage: &StageVerdict) -> String {
    let number = stage.worst_metric().map(|(metric, error, budget)| {
        format!(" {metric} {error:.2e}, budget {budget:.2e}, {:.2} times", error / budget)
    });
    let note = stage.note.as_ref().map(|note| format!(" ({note})"));
    format!("{} {:?}{}{}", stage.stage, stage.disposition, number.unwrap_or_default(), note.unwrap_or_default())
}
