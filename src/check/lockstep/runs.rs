//! The runs, and what is compared of them stage by stage.
//!
//! All chunks of the sequences go through a layer before any goes through the next. The truth goes ahead by a layer, and then waits
//! at the next one, where it holds next to nothing; then the others go through the same layer side by side. So there are never
//! more than two runs within a layer (but for small models, where several plain runs tell the noise). What is compared is compared
//! in [pieces](super::pieces): no stage is copied as a whole, of whatever run, nor is one of the dump, if it lies in its file as it
//! is.

mod ahead;
mod behind;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::Builder;

use dsv2_metrics::{Comparing, Comparison};
use dsv2_reference::Dtype;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{INPUT_LAYERNORM, KV_B_PROJ, NORM};
use dsv2_reference::tap::NoTap;

use super::measured::{Measured, is_compared_with_help_of};
use super::pieces::Held;
use super::station::{Computed, Ended, Names, Station, Waiting, station};
use super::visit::{Chunks, Progress};
use super::{PlainDump, Reached};
use crate::backend::{Reference, Settings};
use crate::check::Request;
use crate::error::{Error, Result};
use crate::local::{draws, plain};
use crate::precision::Precision;
use crate::taps::AnyTap;
use crate::values::Values;
use behind::Open;

/// What the runs go on with.
pub struct Way<'a> {
    /// What the plain ones compute in, and copies are stored in.
    pub precision: Precision,
    /// The stages of the dump that take the place of the runs'.
    pub given: &'a (dyn Fn(&str) -> bool + Sync),
    /// In these layers, the residual stream after attention, rounded, takes the place of the one before it, and nothing is added.
    pub rounded_stream: Option<(Dtype, &'a BTreeSet<usize>)>,
}

impl Way<'_> {
    /// With all that the dump holds, in its own type.
    pub fn of(dump: &PlainDump) -> Self {
        Way { precision: dump.precision(), given: &|_| true, rounded_stream: None }
    }
}

/// Runs the model, and measures a dump; nothing, if it has to be read whole.
///
/// # Errors
/// If the reference refuses the case, or a tensor cannot be decoded.
pub fn measure(request: &Request, dump: &PlainDump, way: &Way<'_>, reached: Reached<'_>) -> Result<Option<Measured>> {
    let case = &request.case;
    let holds: BTreeSet<&str> = dump.names().collect();
    let held = |name: &str| holds.contains(name) && (way.given)(name);
    let (narrow, cache, draws) = (plain(way.precision), request.cache, draws(case));
    let is_expanded = |name: &str| Stage::parse(name).is_some_and(|stage| stage.kind == KV_B_PROJ);
    // some of many plain runs have the other form of attention, unless the dump's own stages lack it
    let expands = draws == 1 || holds.iter().any(|name| held(name) && is_expanded(name));
    let wanted = |name: &str| {
        let asked = holds.contains(name) || is_compared_with_help_of(name) || begins_a_layer(name);
        asked && (expands || !is_expanded(name))
    };
    let truthful = |tap: &mut dyn AnyTap, at: &mut Waiting<'_>| {
        let settings = Settings { precision: Precision::F64, ..Settings::default() };
        Reference.show_by_layer(case, &settings, &held, tap, at)
    };
    let as_plain = |draw: u64, at: &mut Waiting<'_>| {
        let attention =
            if expands || draw.is_multiple_of(2) { AttentionForm::Expanded } else { AttentionForm::Absorbed };
        let settings =
            Settings { precision: narrow, cache, plain_errors: true, draw, attention, ..Settings::default() };
        Reference.show_by_layer(case, &settings, &held, &mut NoTap, at)
    };
    let mut names = Names::default();
    let mut measured = Measured::nothing(case, way.precision);
    let compared = std::thread::scope(|scope| {
        let (mut at_truth, to_truth) = station(&wanted, Precision::F64);
        let (mut at_own, to_own) = station(&wanted, Precision::F64);
        let (names, as_plain) = (&mut names, &as_plain);
        let begin = |run| Builder::new().spawn_scoped(scope, run);
        let mut runs = Vec::new();
        let mut to_plain = Vec::new();
        let truth = Box::new(move || truthful(names, &mut at_truth)) as Box<dyn FnOnce() -> Result<()> + Send>;
        runs.push(begin(truth));
        runs.push(begin(Box::new(move || truthful(&mut NoTap, &mut at_own))));
        for draw in 0..draws {
            let (mut at_plain, to) = station(&wanted, narrow);
            to_plain.push(to);
            runs.push(begin(Box::new(move || as_plain(draw, &mut at_plain))));
        }
        // there are no threads to be had; what has been begun ends when nobody asks any more
        let Ok(runs) = runs.into_iter().collect::<std::io::Result<Vec<_>>>() else { return Ok(false) };
        let mut comparer = Comparer {
            request,
            dump,
            way,
            chunks: Chunks::of(case),
            to_truth,
            to_own,
            to_plain,
            progress: Default::default(),
            measured: &mut measured,
            ahead: BTreeMap::new(),
            open: BTreeMap::new(),
            experts: None,
        };
        let compared = comparer.layer_by_layer(reached);
        // runs that still wait for an answer go on without
        drop(comparer);
        let ended = runs.into_iter().map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let ended = ended.collect::<Result<Vec<()>>>();
        match compared {
            Err(Stopped::Whole) => Ok(false),
            Err(Stopped::Refused(error)) => ended.and(Err(error)),
            Err(Stopped::Ended) => {
                let expected = "runs of the same stages";
                ended.and(Err(Error::request("--model", expected, "one that ends before the others")))
            }
            Ok(()) => ended.map(|_| true),
        }
    })?;
    measured.names = names.0;
    Ok(compared.then_some(measured))
}

/// Where a run waits that is a layer ahead: it holds no more there than the residual stream, twice.
fn begins_a_layer(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| [INPUT_LAYERNORM, NORM].contains(&stage.kind))
}

/// A layer, with what comes before all of them if it is the `first`, or what comes behind.
fn layer(name: &str, first: usize) -> Option<(usize, usize)> {
    let (section, layer, _) = Stage::parse(name)?.place();
    Some(if section == 0 { (1, first) } else { (section, layer) })
}

/// Why nothing more is compared.
enum Stopped {
    /// A run has ended, and says itself why.
    Ended,
    Refused(Error),
    /// The dump has to be read whole for more to be known.
    Whole,
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
    Routing { got: Option<Values>, truth: Option<Values>, lesson: Option<Arc<Values>> },
    /// Any other stage of the dump.
    Numbers {
        held: Held<'a>,
        comparing: Option<Comparing>,
        carried: Option<Comparison>,
        /// The truth's rows that nobody may read, chunk by chunk, if the dump's do not count there.
        unread: Vec<Vec<f64>>,
    },
}

/// Who compares.
struct Comparer<'a> {
    request: &'a Request,
    dump: &'a PlainDump,
    way: &'a Way<'a>,
    chunks: Chunks,
    to_truth: Station,
    to_own: Station,
    to_plain: Vec<Station>,
    /// How far the truth has got, and the others.
    progress: [Progress; 2],
    measured: &'a mut Measured,
    ahead: BTreeMap<String, Ahead<'a>>,
    /// What has been measured of stages of which chunks are to come.
    open: BTreeMap<String, Open>,
    /// The dump's experts of the layer at hand, until its `mlp` comes.
    experts: Option<(usize, Held<'a>)>,
}

impl<'a> Comparer<'a> {
    fn layer_by_layer(&mut self, reached: Reached<'_>) -> Result<(), Stopped> {
        // the number of stages that are waited at: those of the dump, and a few of routing
        let steps = self.dump.names().count();
        let first = self.request.case.part.as_ref().map_or(0, |part| part.layers.0.start);
        let others = |comparer: &Self| {
            let own = comparer.to_own.next();
            let alike = |plain: &Station| match (&own, plain.next()) {
                (Some(own), Some(plain)) => *own == plain,
                (None, None) => true,
                _ => false,
            };
            if comparer.to_plain.iter().all(alike) { Ok(own) } else { Err(Ended) }
        };
        let (mut of_truth, mut of_others) = (self.to_truth.next(), others(self)?);
        while let Some(Computed { name, .. }) = &of_others {
            let at = layer(name, first);
            while let Some(computed) = of_truth.take_if(|computed| layer(&computed.name, first) == at) {
                self.hold_against_truth(&computed)?;
                of_truth = self.to_truth.next();
            }
            while let Some(computed) = of_others.take_if(|computed| layer(&computed.name, first) == at) {
                if self.hold_against_own(&computed)? {
                    reached(self.measured.noise.len().min(steps), steps, &computed.name);
                }
                of_others = others(self)?;
            }
        }
        if of_truth.is_some() { Err(Stopped::Ended) } else { Ok(()) }
    }
}

/// A stage by its name.
fn known(name: &str) -> Result<Stage, Stopped> {
    Stage::parse(name).ok_or(Stopped::Ended)
}
