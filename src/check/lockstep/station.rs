//! Where a run waits: it hands over what it has computed of a stage, and is told what to go on with.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dsv2_reference::Real;
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexSet;

use crate::precision::Precision;
use crate::taps::recorded;
use crate::values::Values;

/// The end that compares.
pub struct Station {
    computed: Receiver<(String, Values)>,
    answers: SyncSender<Option<Arc<Values>>>,
}

impl Station {
    /// The next stage; nothing, if the run has ended.
    pub fn next(&self) -> Option<(String, Values)> {
        self.computed.recv().ok()
    }

    /// What takes the place of the stage that was handed over last, if anything does.
    pub fn go_on(&self, with: Option<Arc<Values>>) {
        // a run that has failed waits for nothing; it says itself why
        let _ = self.answers.send(with);
    }
}

/// The end that computes: the sink of a run.
pub struct Waiting<'a> {
    wanted: &'a (dyn Fn(&str) -> bool + Sync),
    precision: Precision,
    computed: SyncSender<(String, Values)>,
    answers: Receiver<Option<Arc<Values>>>,
}

/// Both ends, for the stages that are `wanted` of a run in `precision`.
pub fn station<'a>(wanted: &'a (dyn Fn(&str) -> bool + Sync), precision: Precision) -> (Waiting<'a>, Station) {
    let ((computed, taken), (answers, answered)) = (sync_channel(0), sync_channel(1));
    (Waiting { wanted, precision, computed, answers: answered }, Station { computed: taken, answers })
}

impl<T: Real> Tap<T> for Waiting<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if !(self.wanted)(name)
            || self.computed.send((name.to_owned(), recorded(self.precision, name, &value))).is_err()
        {
            return;
        }
        let answer = self.answers.recv().ok().flatten();
        match (value, answer.as_deref()) {
            (StageValue::Real(mut value), Some(Values::Real(_, a))) if value.shape() == a.shape() => {
                value.zip_mut_with(a, |to, &x| *to = T::from_f64(x));
            }
            (StageValue::Index(mut value), Some(Values::Index(a))) if value.shape() == a.shape() => value.assign(a),
            _ => {}
        }
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
