//! Where a run waits: it says which stage it has computed, shows it if it is asked to, and is told what to go on with.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dsv2_reference::Real;
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexSet;

use crate::precision::Precision;
use crate::taps::recorded;
use crate::trace::as_held;
use crate::values::Values;

/// What a run says.
enum Says {
    /// It has computed this stage.
    Computed(String),
    /// What it has computed.
    Shows(Values),
}

/// What a run is told.
enum Told {
    /// To show what it has computed.
    Show,
    /// To go on, with something else in the place of what it has computed, if there is something.
    GoOn(Option<Arc<Values>>),
}

/// The end that compares.
pub struct Station {
    said: Receiver<Says>,
    told: SyncSender<Told>,
}

impl Station {
    /// The next stage; nothing, if the run has ended.
    pub fn next(&self) -> Option<String> {
        match self.said.recv().ok()? {
            Says::Computed(name) => Some(name),
            Says::Shows(_) => None,
        }
    }

    /// The stage at which it waits, of this name. No more than one run need have a copy of it at a time.
    pub fn show(&self, name: &str) -> Option<Values> {
        self.told.send(Told::Show).ok()?;
        match self.said.recv().ok()? {
            Says::Shows(values) => Some(as_held(name, values)),
            Says::Computed(_) => None,
        }
    }

    /// What takes the place of the stage at which it waits, if anything does.
    pub fn go_on(&self, with: Option<Arc<Values>>) {
        // a run that has failed waits for nothing; it says itself why
        let _ = self.told.send(Told::GoOn(with));
    }
}

/// The end that computes: the sink of a run.
pub struct Waiting<'a> {
    wanted: &'a (dyn Fn(&str) -> bool + Sync),
    precision: Precision,
    says: SyncSender<Says>,
    told: Receiver<Told>,
}

/// Both ends, for the stages that are `wanted` of a run in `precision`.
pub fn station<'a>(wanted: &'a (dyn Fn(&str) -> bool + Sync), precision: Precision) -> (Waiting<'a>, Station) {
    let ((says, said), (tells, told)) = (sync_channel(0), sync_channel(1));
    (Waiting { wanted, precision, says, told }, Station { said, told: tells })
}

impl<T: Real> Tap<T> for Waiting<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if !(self.wanted)(name) || self.says.send(Says::Computed(name.to_owned())).is_err() {
            return;
        }
        while let Ok(told) = self.told.recv() {
            match told {
                Told::Show if self.says.send(Says::Shows(recorded(self.precision, name, &value))).is_err() => return,
                Told::Show => {}
                Told::GoOn(with) => {
                    if let Some(with) = with {
                        put(value, &with);
                    }
                    return;
                }
            }
        }
    }
}

/// Puts `values` in the place of a stage, if they are of its shape.
pub fn put<T: Real>(stage: StageValue<'_, T>, values: &Values) {
    match (stage, values) {
        (StageValue::Real(mut stage), Values::Real(_, a)) if stage.shape() == a.shape() => {
            stage.zip_mut_with(a, |to, &x| *to = T::from_f64(x));
        }
        (StageValue::Index(mut stage), Values::Index(a)) if stage.shape() == a.shape() => stage.assign(a),
        _ => {}
    }
}

/// The names of all stages, in the order in which they are computed.
#[derive(Default)]
pub struct Names(pub IndexSet<String>);

impl<T> Tap<T> for Names {
    fn stage(&mut self, name: &str, _: StageValue<'_, T>) {
        if !self.0.contains(name) {
            self.0.insert(name.to_owned());
        }
    }
}
