//! The runs, and what is compared of them stage by stage.
//!
//! The truth goes ahead by a layer, and then waits at the next one, where it holds next to nothing; then the other two go through
//! the same layer side by side. So there are never more than two runs within a layer. What is compared is compared in
//! [pieces](super::pieces): no stage is copied as a whole, of whatever run, nor is one of the dump, if it lies in its file as it is.

mod ahead;
mod behind;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dsv2_metrics::Comparison;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{INPUT_LAYERNORM, NORM};
use dsv2_reference::tap::NoTap;

use super::measured::{Measured, is_compared_with_help_of};
use super::pieces::Held;
use super::station::{Ended, Names, Station, Waiting, station};
use super::{PlainDump, Reached};
use crate::backend::{Reference, Settings, Streaming};
use crate::check::Request;
use crate::error::{Error, Result};
use crate::local::plain;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::values::Values;

/// Runs the model, and measures a dump.
///
/// # Errors
/// If the reference refuses the case, or a tensor cannot be decoded.
pub fn measure(request: &Request, dump: &PlainDump, reached: Reached<'_>) -> Result<Measured> {
    let case = &request.case;
    let held: BTreeSet<&str> = dump.names().collect();
    let wanted = |name: &str| held.contains(name) || is_compared_with_help_of(name) || begins_a_layer(name);
    let (narrow, cache) = (plain(dump.precision()), request.cache);
    let truthful = |tap: &mut dyn AnyTap, at: &mut Waiting<'_>| {
        let settings = Settings { precision: Precision::F64, ..Settings::default() };
        Reference.show(case, &settings, tap, at)
    };
    let as_plain = |at: &mut Waiting<'_>| {
        let settings = Settings { precision: narrow, cache, plain_errors: true, ..Settings::default() };
        Reference.show(case, &settings, &mut NoTap, at)
    };
    let mut names = Names::default();
    let mut measured = Measured::nothing(ComparedRows::of(&case.inputs));
    std::thread::scope(|scope| {
        let (mut at_truth, to_truth) = station(&wanted, Precision::F64);
        let (mut at_own, to_own) = station(&wanted, Precision::F64);
        let (mut at_plain, to_plain) = station(&wanted, narrow);
        let names = &mut names;
        let runs = [
            scope.spawn(move || truthful(names, &mut at_truth)),
            scope.spawn(move || truthful(&mut NoTap, &mut at_own)),
            scope.spawn(move || as_plain(&mut at_plain)),
        ];
        let mut comparer = Comparer {
            request,
            dump,
            to_truth,
            to_own,
            to_plain,
            measured: &mut measured,
            ahead: BTreeMap::new(),
            experts: None,
        };
        let compared = comparer.layer_by_layer(reached);
        // runs that still wait for an answer go on without
        drop(comparer);
        let ended = runs.map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.into_iter().collect::<Result<()>>()?;
        compared.map_err(|stopped| match stopped {
            Stopped::Refused(error) => error,
            Stopped::Ended => {
                Error::request("--model", "three runs of the same stages", "one that ends before the others")
            }
        })
    })?;
    measured.names = names.0;
    Ok(measured)
}

/// Where a run waits that is a layer ahead: it holds no more there than the residual stream, twice.
fn begins_a_layer(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| [INPUT_LAYERNORM, NORM].contains(&stage.kind))
}

/// A layer, what comes before all of them, or what comes behind.
fn layer(name: &str) -> Option<(usize, usize)> {
    Stage::parse(name).map(|stage| stage.place()).map(|(section, layer, _)| (section, layer))
}

/// Why nothing more is compared.
enum Stopped {
    /// A run has ended, and says itself why.
    Ended,
    Refused(Error),
}

impl From<Ended> for Stopped {
    fn from(_: Ended) -> Self {
        Stopped::Ended
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Stopped::Refused(error)
    }
}

/// What the run of the truth leaves for the others to compare.
enum Ahead<'a> {
    /// Nothing: the dump does not hold it.
    Nothing,
    /// A stage of routing, as it is: that of the dump, the truth, and what of the dump takes the place of the others'.
    Routing { got: Option<Values>, truth: Values, lesson: Option<Arc<Values>> },
    /// Any other stage of the dump.
    Numbers {
        held: Held<'a>,
        carried: Comparison,
        /// The truth's rows that nobody may read, if the dump's do not count there.
        unread: Vec<f64>,
    },
}

/// Who compares.
struct Comparer<'a> {
    request: &'a Request,
    dump: &'a PlainDump,
    to_truth: Station,
    to_own: Station,
    to_plain: Station,
    measured: &'a mut Measured,
    ahead: BTreeMap<String, Ahead<'a>>,
    /// The dump's experts of the layer at hand, until its `mlp` comes.
    experts: Option<(usize, Held<'a>)>,
}

impl<'a> Comparer<'a> {
    fn layer_by_layer(&mut self, reached: Reached<'_>) -> Result<(), Stopped> {
        // the number of stages that are waited at: those of the dump, and a few of routing
        let steps = self.dump.names().count();
        let both = |comparer: &Self| match (comparer.to_own.next(), comparer.to_plain.next()) {
            (Some(own), plain) if plain.as_ref() == Some(&own) => Ok(Some(own)),
            (None, None) => Ok(None),
            _ => Err(Ended),
        };
        let (mut of_truth, mut of_others) = (self.to_truth.next(), both(self)?);
        while let Some(first) = &of_others {
            let at = layer(first);
            while let Some(name) = of_truth.take_if(|name| layer(name) == at) {
                let ahead = self.hold_against_truth(&name)?;
                self.ahead.insert(name, ahead);
                of_truth = self.to_truth.next();
            }
            while let Some(name) = of_others.take_if(|name| layer(name) == at) {
                if self.hold_against_own(&name)? {
                    reached(self.measured.noise.len().min(steps), steps, &name);
                }
                of_others = both(self)?;
            }
        }
        if of_truth.is_some() { Err(Stopped::Ended) } else { Ok(()) }
    }
}

/// A stage by its name.
fn known(name: &str) -> Result<Stage, Stopped> {
    Stage::parse(name).ok_or(Stopped::Ended)
}

/// How many rows there are.
fn rows(values: &Values) -> usize {
    values.len().checked_div(values.shape().last().copied().unwrap_or(1)).unwrap_or(0)
}
