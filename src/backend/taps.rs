//! The taps of a run of the reference, one after another.

use dsv2_reference::Real;
use dsv2_reference::round::RoundingTap;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{CACHED_K_PE, CACHED_KV};
use dsv2_reference::tap::{StageValue, Tap};

use super::Settings;
use crate::case::Case;
use crate::precision::{Choice, Precision};
use crate::taps::storage::{PlainErrors, Tf32Operands};
use crate::taps::{Drawn, Forced, RoundedParts, again};

/// What a run with some settings does at each stage.
pub struct Taps<'a, T> {
    case: &'a Case,
    replay: Option<Forced<'a>>,
    tap: &'a mut dyn Tap<T>,
    plain_errors: Option<PlainErrors<'a>>,
    parts: Option<RoundedParts<'a>>,
    rounding: Option<RoundingTap>,
    stored: Option<Drawn<'a>>,
    sink: &'a mut dyn Tap<T>,
    /// Whether the sink sees stages of the tokens before those that are looked at, too.
    sees_all: bool,
    teacher: Option<Forced<'a>>,
    operands: Option<Tf32Operands>,
    read: Option<Drawn<'a>>,
    /// How many tokens of each sequence have been fed.
    pub fed: usize,
}

impl<'a, T: Real> Taps<'a, T> {
    /// Of a run; `held` are the stages that are given to it.
    pub fn new(
        case: &'a Case,
        settings: &Settings<'a>,
        held: Choice<'a>,
        tap: &'a mut dyn Tap<T>,
        sink: &'a mut dyn Tap<T>,
    ) -> Self {
        let &Settings { precision, plain_errors, draw, .. } = settings;
        let forced = |trace| Forced::new(trace, case.inputs.tokens.dim());
        let narrow = precision.narrow();
        let operands = (precision == Precision::Tf32).then_some(Tf32Operands { cached: case.use_cache });
        let drawn = plain_errors && draw > 0;
        Taps {
            case,
            replay: settings.replay.map(forced),
            tap,
            plain_errors: plain_errors.then(|| PlainErrors::new(&case.config, narrow, draw)),
            parts: narrow.map(|narrow| RoundedParts::new(case.partial_sums, narrow, draw, held)),
            rounding: narrow.map(RoundingTap),
            stored: drawn.then(|| Drawn::stored(precision, draw)),
            sink,
            sees_all: false,
            teacher: settings.teacher.map(forced),
            operands,
            read: drawn.then(|| Drawn::read(precision, draw, Some(held), operands)),
            fed: 0,
        }
    }

    /// The same whose sink sees all stages, also of the tokens before those that are looked at.
    pub fn that_show_all(self) -> Self {
        Taps { sees_all: true, ..self }
    }

    /// Of the tokens before those that are looked at, nothing is but what is cached; and that when it is cached, if a teacher then
    /// puts something else in its place.
    fn is_looked_at(&self, name: &str) -> bool {
        let past = self.case.inputs.past();
        match Stage::parse(name).map(|stage| stage.kind) {
            Some(CACHED_KV | CACHED_K_PE) if self.case.inputs.cache_before => self.fed < past,
            Some(CACHED_KV | CACHED_K_PE) if self.teacher.is_some() => true,
            _ => self.fed >= past,
        }
    }
}

impl<T: Real> Tap<T> for Taps<'_, T> {
    fn stage(&mut self, name: &str, mut value: StageValue<'_, T>) {
        let shown = self.sees_all || self.is_looked_at(name);
        let mut show =
            |tap: Option<&mut dyn Tap<T>>| tap.into_iter().for_each(|tap| tap.stage(name, again(&mut value)));
        show(self.replay.as_mut().map(|tap| tap as _));
        show(Some(&mut *self.tap));
        show(self.plain_errors.as_mut().map(|tap| tap as _));
        show(self.parts.as_mut().map(|tap| tap as _));
        match &mut self.stored {
            Some(stored) => show(Some(stored)),
            None => show(self.rounding.as_mut().map(|tap| tap as _)),
        }
        show(shown.then_some(&mut *self.sink));
        show(self.teacher.as_mut().map(|tap| tap as _));
        match &mut self.read {
            Some(read) => show(Some(read)),
            None => show(self.operands.as_mut().map(|tap| tap as _)),
        }
    }
}
