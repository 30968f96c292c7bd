//! How far a bug moves what a dump holds, beside what a right implementation of a type may differ.
//!
//! Both are measured without rounding in what is measured: the bug is planted in the f64 reference, and each stage of the
//! dump that this gives is held against what the f64 reference makes of the dump's own values of the stages before it. What it
//! may differ is the judge's budget: factors and floors of the error that a plain implementation of the type makes there,
//! *which follows the truth's choices of experts*: an expert that falls the other way never makes room for a bug.
//!
//! A bug may also send tokens elsewhere where a right implementation may do so, too, at near ties of the type. Then it is held
//! against the reference that goes there.

use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{ROUTER_LOGITS, TOPK_INDICES};
use dsv2_reference::tap::NoTap;

use crate::backend::{Backend, Reference, Settings};
use crate::budget::{Budgets, LOCAL_FACTORS, NARROW_LOCAL_FACTORS};
use crate::case::Case;
use crate::error::Result;
use crate::judge::Truth;
use crate::judge::routing::judge_choice;
use crate::local::{noise, plain};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::storage;
use crate::trace::Trace;
use crate::values::Values;

/// How far something is moved, at the stage where that is most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// In budgets, by the measure that takes most of its own.
    pub budgets: f64,
    /// In errors of the plain implementation, in the Euclidean norm.
    pub noises: f64,
}

/// What is not there in the truth, or no number.
const FAR: Moved = Moved { budgets: f64::INFINITY, noises: f64::INFINITY };

/// What a bug has in f64, in a case whose candidates compute in some type.
pub struct Planted<'a> {
    /// The case.
    pub case: &'a Case,
    /// The stages that the dump holds.
    pub held: &'a Trace,
    /// The experts that its tokens go to.
    pub choices: &'a Trace,
    /// What candidates compute in.
    pub precision: Precision,
}

impl Planted<'_> {
    /// How far what the dump holds is moved.
    ///
    /// # Errors
    /// If the reference refuses the case.
    pub fn moved(&self) -> Result<Moved> {
        let moved = self.against(None)?.moved;
        if moved.budgets <= 1.0 {
            return Ok(moved);
        }
        let there = self.against(Some(self.choices))?;
        Ok(if there.acceptable && there.moved.budgets < moved.budgets { there.moved } else { moved })
    }

    /// Against the reference that goes where it must, or where it is told to go.
    fn against(&self, choices: Option<&Trace>) -> Result<Against> {
        let Planted { case, held, precision, .. } = *self;
        let routing =
            |name: &str| Stage::parse(name).is_some_and(|stage| [ROUTER_LOGITS, TOPK_INDICES].contains(&stage.kind));
        let wanted = |name: &str| held.get(name).is_some() || routing(name);
        let run = |precision, replay, plain_errors| {
            let (teacher, stages) = (Some(held), Some(&wanted as &dyn Fn(&str) -> bool));
            let settings = Settings { precision, plain_errors, replay, teacher, stages, ..Settings::default() };
            Reference.run(case, &settings, &mut NoTap)
        };
        let truth = run(Precision::F64, choices, false)?;
        let plain = run(plain(precision), Some(&truth.choices()), true)?;
        let rows = ComparedRows::of(&case.inputs);
        let mut noise = noise(&plain, &truth, &rows);
        if let Some(narrow) = precision.narrow() {
            for (name, noise) in noise.iter_mut().filter(|(name, _)| precision.stored(name) == narrow) {
                noise.l2 = noise.l2.max(storage::usual_rounding(name, &case.config, narrow));
            }
        }
        let factors = if precision.narrow().is_some() { NARROW_LOCAL_FACTORS } else { LOCAL_FACTORS };
        let budgets = Budgets::new(&noise, &truth, &rows, factors);

        let method = case.config.topk_method()?;
        let judged = Truth { trace: &truth, budgets: &budgets, rows: &rows };
        let accepted = |name: &str, chosen: &Values| {
            let held = judge_choice(name, chosen.index()?, held, &judged, method)?;
            Some(!held.disposition.fails())
        };
        let acceptable = self.choices.iter().all(|(name, chosen)| accepted(name, chosen) == Some(true));
        let mut moved = Moved::default();
        for (name, got) in held.iter() {
            let at = match (got, truth.get(name)) {
                (Values::Real(..), Some(want)) => {
                    let known = rows.measure(name, got, want).zip(budgets.get(name));
                    known.map_or(Moved::default(), |(compared, budget)| match compared.nonfinite {
                        Some(_) => FAR,
                        None => Moved {
                            budgets: compared.metrics.zip(&budget, part).values().into_iter().fold(0.0, f64::max),
                            noises: part(compared.metrics.l2, noise[name].l2),
                        },
                    })
                }
                (got, Some(want)) if got != want => FAR,
                _ => Moved::default(),
            };
            moved = Moved { budgets: moved.budgets.max(at.budgets), noises: moved.noises.max(at.noises) };
        }
        Ok(Against { moved, acceptable })
    }
}

/// What comes of one comparison.
struct Against {
    moved: Moved,
    /// Whether a right implementation may make the choices.
    acceptable: bool,
}

fn part(error: f64, whole: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / whole }
}
