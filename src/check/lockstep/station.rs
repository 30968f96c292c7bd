//! Where a run waits: it says which stage it has computed, shows as much of it as it is asked for, is told what takes the place
//! of it, and to go on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dsv2_reference::Real;
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexSet;
use ndarray::{ArrayViewMutD, Axis};

use super::pieces::shown;
use crate::precision::Precision;
use crate::taps::recorded;
use crate::trace::as_held;
use crate::values::Values;

/// What a run says.
enum Says {
    /// It has computed this stage, of one chunk.
    Computed(Computed),
    /// What it has computed.
    Shows(Values),
}

/// A stage of one chunk.
#[derive(Clone, PartialEq)]
pub struct Computed {
    pub name: String,
    pub shape: Vec<usize>,
}

/// What a run is told.
enum Told {
    /// To show what it has computed: some rows of it, or all.
    Show(Option<Range<usize>>),
    /// To put these in the place of some rows of it.
    Put(Range<usize>, Arc<Values>),
    GoOn,
}

/// The end that compares.
pub struct Station {
    said: Receiver<Says>,
    told: SyncSender<Told>,
}

/// Another run has failed, or this one: it says itself why.
pub struct Ended;

impl Station {
    /// The next stage; nothing, if the run has ended.
    pub fn next(&self) -> Option<Computed> {
        match self.said.recv().ok()? {
            Says::Computed(computed) => Some(computed),
            Says::Shows(_) => None,
        }
    }

    /// The stage at which it waits.
    pub fn show(&self) -> Result<Values, Ended> {
        self.tell(Told::Show(None))?;
        self.shown()
    }

    /// Asks for some rows of it, to be [shown](Self::shown).
    pub fn ask(&self, rows: Range<usize>) -> Result<(), Ended> {
        self.tell(Told::Show(Some(rows)))
    }

    /// What was asked for.
    pub fn shown(&self) -> Result<Values, Ended> {
        match self.said.recv() {
            Ok(Says::Shows(values)) => Ok(values),
            _ => Err(Ended),
        }
    }

    /// Puts something in the place of some rows of it.
    pub fn put(&self, rows: Range<usize>, values: Arc<Values>) -> Result<(), Ended> {
        self.tell(Told::Put(rows, values))
    }

    pub fn go_on(&self) -> Result<(), Ended> {
        self.tell(Told::GoOn)
    }

    fn tell(&self, what: Told) -> Result<(), Ended> {
        self.told.send(what).map_err(|_| Ended)
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
    fn stage(&mut self, name: &str, mut value: StageValue<'_, T>) {
        if !(self.wanted)(name) {
            return;
        }
        let shape = match &value {
            StageValue::Real(a) => a.shape().to_vec(),
            StageValue::Index(a) => a.shape().to_vec(),
        };
        if self.says.send(Says::Computed(Computed { name: name.to_owned(), shape })).is_err() {
            return;
        }
        while let Ok(told) = self.told.recv() {
            match told {
                Told::Show(rows) => {
                    let shown = match rows {
                        Some(rows) => shown(self.precision, name, &value, rows),
                        None => as_held(name, recorded(self.precision, name, &value)),
                    };
                    if self.says.send(Says::Shows(shown)).is_err() {
                        return;
                    }
                }
                Told::Put(rows, values) => match (&mut value, &*values) {
                    (StageValue::Real(a), Values::Real(_, from)) => {
                        put(a, rows, from.as_slice().unwrap_or_default(), None, |&x| T::from_f64(x));
                    }
                    (StageValue::Index(a), Values::Index(from)) => {
                        put(a, rows, from.as_slice().unwrap_or_default(), None, |&x| x);
                    }
                    _ => {}
                },
                Told::GoOn => return,
            }
        }
    }
}

/// Puts numbers in the place of some rows, but for those that are not to be `taken`.
pub fn put<A, B>(
    to: &mut ArrayViewMutD<'_, A>,
    rows: Range<usize>,
    from: &[B],
    taken: Option<&[bool]>,
    convert: impl Fn(&B) -> A,
) {
    let width = to.shape().last().copied().unwrap_or(1);
    if from.len() != rows.len() * width {
        return;
    }
    let is_taken = |row: usize| taken.is_none_or(|taken| taken[row]);
    if let Some(all) = to.as_slice_mut() {
        let places = all[rows.start * width..rows.end * width].chunks_mut(width.max(1));
        let rows = places.zip(from.chunks(width.max(1))).enumerate().filter(|(row, _)| is_taken(*row));
        rows.for_each(|(_, (to, from))| to.iter_mut().zip(from).for_each(|(to, x)| *to = convert(x)));
    } else {
        let last = Axis(to.ndim() - 1);
        let places = to.lanes_mut(last).into_iter().skip(rows.start).zip(from.chunks(width.max(1)));
        let rows = places.enumerate().filter(|(row, _)| is_taken(*row));
        rows.for_each(|(_, (mut to, from))| to.iter_mut().zip(from).for_each(|(to, x)| *to = convert(x)));
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
