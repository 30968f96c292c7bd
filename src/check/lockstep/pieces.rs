//! Stages some rows at a time, a row being a slice along the last axis: as many as fit into a cache, whatever is compared.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use dsv2_metrics::{Comparing, Comparison};
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{LM_HEAD, NORM, SCORE};
use dsv2_reference::tap::StageValue;
use dsv2_reference::{Dtype, Real};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn};

use super::PlainDump;
use crate::error::Result;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::as_held;
use crate::values::Values;

/// About so many elements are looked at at a time.
pub const PIECE: usize = 1 << 13;

/// The rows of a tensor of this shape, piece by piece.
pub fn pieces(shape: &[usize]) -> impl Iterator<Item = Range<usize>> + use<> {
    let width = shape.last().copied().unwrap_or(1);
    let count = shape.iter().product::<usize>().checked_div(width).unwrap_or(0);
    let step = (PIECE / width.max(1)).max(1);
    (0..count).step_by(step).map(move |start| start..(start + step).min(count))
}

/// Some rows of a tensor, one after another.
fn rows_of<A: Clone>(a: &ArrayViewD<'_, A>, rows: Range<usize>) -> Vec<A> {
    let width = a.shape().last().copied().unwrap_or(1);
    match a.as_slice() {
        Some(all) => all[rows.start * width..rows.end * width].to_vec(),
        None => {
            let lanes = a.lanes(Axis(a.ndim() - 1)).into_iter();
            lanes.skip(rows.start).take(rows.len()).flat_map(|row| row.to_vec()).collect()
        }
    }
}

/// Some rows of a stage as a computation in `precision` stores it.
pub fn shown<T: Real>(precision: Precision, name: &str, value: &StageValue<'_, T>, rows: Range<usize>) -> Values {
    let shown = match value {
        StageValue::Real(a) => {
            let numbers = rows_of(&a.view(), rows).into_iter().map(Real::to_f64).collect();
            Values::Real(precision.stored(name), as_rows(numbers, a.shape()))
        }
        StageValue::Index(a) => Values::Index(as_rows(rows_of(&a.view(), rows), a.shape())),
    };
    as_held(name, shown)
}

/// The numbers of some rows.
pub fn numbers(rows: &Values) -> &[f64] {
    rows.real().and_then(|a| a.as_slice()).unwrap_or_default()
}

/// Numbers as `[rows, width]`.
pub fn as_rows<A>(numbers: Vec<A>, shape: &[usize]) -> ArrayD<A> {
    let width = shape.last().copied().unwrap_or(1);
    let rows = numbers.len().checked_div(width).unwrap_or(0);
    ArrayD::from_shape_vec(IxDyn(&[rows, width]), numbers).expect("whole rows")
}

/// Which rows of a stage of a dump take the place of the reference's; all, if it is not said. Where nobody may read them, they
/// hold anything. (A loss, or what a classifier pools, may read what a mask masks, and no other token reads it from these.)
pub fn taken(stage: &Stage, shape: &[usize], rows: &ComparedRows) -> Option<Vec<bool>> {
    rows.of_stage(stage, shape).filter(|_| ![NORM, LM_HEAD, SCORE].contains(&stage.kind))
}

/// A stage of the dump.
#[derive(Clone)]
pub struct Held<'a> {
    pub shape: Vec<usize>,
    /// The type that its numbers are stored in.
    pub dtype: Option<Dtype>,
    lies: Lies<'a>,
}

#[derive(Clone)]
enum Lies<'a> {
    /// In its file, as the model has it.
    InFile(&'a PlainDump, String),
    /// In its file otherwise (compressed, say): it is decoded while it is looked at.
    Otherwise(&'a PlainDump, String, OnceCell<Arc<Values>>),
    /// Not in its file: other than it lies there.
    Decoded(Arc<Values>),
}

impl<'a> Held<'a> {
    /// One that lies in a file of `dump`, as the model has it or not.
    pub fn in_file(
        dump: &'a PlainDump,
        name: &str,
        shape: Vec<usize>,
        dtype: Option<Dtype>,
        as_the_model_has_it: bool,
    ) -> Self {
        let name = name.to_owned();
        let lies = match as_the_model_has_it {
            true => Lies::InFile(dump, name),
            false => Lies::Otherwise(dump, name, OnceCell::new()),
        };
        Held { shape, dtype, lies }
    }

    /// The same, of which nothing is kept that lies in its file.
    pub fn put_down(self) -> Self {
        match self.lies {
            Lies::Otherwise(dump, name, _) => Held { lies: Lies::Otherwise(dump, name, OnceCell::new()), ..self },
            _ => self,
        }
    }

    /// One that has been decoded.
    pub fn decoded(values: Values) -> Self {
        Held { shape: values.shape().to_vec(), dtype: values.dtype(), lies: Lies::Decoded(Arc::new(values)) }
    }

    /// The same numbers in another shape, of rows of the same width.
    pub fn in_shape(self, shape: &[usize]) -> Option<Self> {
        let is = |shape: &[usize]| (shape.iter().product::<usize>(), shape.last().copied());
        (is(&self.shape) == is(shape)).then(|| Held { shape: shape.to_vec(), ..self })
    }

    /// Some rows of it.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn rows(&self, rows: Range<usize>) -> Result<Values> {
        let values = match &self.lies {
            Lies::InFile(dump, name) => return dump.rows(name, rows),
            Lies::Otherwise(dump, name, decoded) => match decoded.get() {
                Some(values) => values,
                None => {
                    let values = dump.stage(name)?.ok_or_else(|| dump.lacks(name))?;
                    decoded.get_or_init(|| Arc::new(values))
                }
            },
            Lies::Decoded(values) => values,
        };
        Ok(match &**values {
            Values::Real(dtype, a) => Values::Real(*dtype, as_rows(rows_of(&a.view(), rows), &self.shape)),
            Values::Index(a) => Values::Index(as_rows(rows_of(&a.view(), rows), &self.shape)),
            Values::Bool(a) => Values::Bool(as_rows(rows_of(&a.view(), rows), &self.shape)),
        })
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`Held::rows`].
    pub fn whole(&self) -> Result<Option<Values>> {
        match &self.lies {
            Lies::InFile(dump, name) | Lies::Otherwise(dump, name, _) => dump.stage(name),
            Lies::Decoded(values) => Ok(Some((**values).clone())),
        }
    }

    /// How far off it is from `want`, of which `rows` are asked for piece by piece.
    ///
    /// # Errors
    /// As [`Held::rows`].
    pub fn against(
        &self,
        stage: &Stage,
        rows: &ComparedRows,
        want: impl Fn(Range<usize>) -> Result<Values>,
    ) -> Result<Comparison> {
        let compared = rows.of_stage(stage, &self.shape);
        let mut comparing = Comparing::new(&self.shape);
        for piece in pieces(&self.shape) {
            let compared = compared.as_deref().map(|rows| &rows[piece.clone()]);
            comparing.add(numbers(&self.rows(piece.clone())?), numbers(&want(piece)?), compared);
        }
        Ok(comparing.finish())
    }
}
