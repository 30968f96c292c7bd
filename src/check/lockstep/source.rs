//! Where the numbers of a tensor are: in one file, or in parts in the files of several ranks. Either is read some rows at a time.

use std::ops::Range;

use dsv2_reference::{Dtype, Tensor};
use ndarray::{ArrayD, Axis, Slice};

use super::pieces::{as_rows, pieces};
use crate::check::shards::parts::Joined;
use crate::error::Result;
use crate::files::{Decoded, Element, TensorFile};
use crate::values::Values;

/// A tensor under the name that it came by.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub element: Element,
    pub shape: Vec<usize>,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    Alone(Place),
    /// Parts side by side in each row.
    Columns(Vec<Place>),
    /// Parts one after another along an axis before the last one.
    Rows(usize, Vec<Place>),
    /// Parts to be added, then rounded to the type of the first.
    Added(Vec<Place>),
    /// Some columns of another one, and its first rows.
    Cut(Box<Source>, Range<usize>),
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct Place {
    pub file: usize,
    pub name: String,
    pub element: Element,
    pub shape: Vec<usize>,
}

impl Place {
    fn rows(&self, files: &[TensorFile], rows: Range<usize>) -> Result<Option<Values>> {
        files[self.file].rows(&self.name, rows)
    }

    pub fn whole(&self, files: &[TensorFile]) -> Result<Option<Values>> {
        Ok(match files[self.file].tensor(&self.name)? {
            Decoded::Values(values) => Some(row_major(values)),
            Decoded::Narrow(..) | Decoded::Complex(..) => None,
        })
    }
}

impl Source {
    /// All of it in one file.
    pub fn alone(name: &str, place: Place) -> Self {
        let Place { element, ref shape, .. } = place;
        Source { name: name.to_owned(), element, shape: shape.clone(), how: How::Alone(place) }
    }

    /// Some of its columns.
    pub fn columns(&self, columns: Range<usize>) -> Self {
        let mut shape = self.shape.clone();
        shape.iter_mut().last().into_iter().for_each(|width| *width = columns.len());
        Source { shape, how: How::Cut(Box::new(self.clone()), columns), ..self.clone() }
    }

    /// As many of its first rows as this shape has, which are as wide.
    pub fn first_rows(&self, shape: &[usize]) -> Self {
        let width = shape.last().copied().unwrap_or(1);
        Source { shape: shape.to_vec(), how: How::Cut(Box::new(self.clone()), 0..width), ..self.clone() }
    }

    /// Whether all of it is in the same file as another.
    pub fn is_beside(&self, other: &Source) -> bool {
        self.file().is_some_and(|file| other.file() == Some(file))
    }

    /// The file that all of it is in.
    fn file(&self) -> Option<usize> {
        match &self.how {
            How::Alone(place) => Some(place.file),
            How::Cut(of, _) => of.file(),
            How::Columns(_) | How::Rows(..) | How::Added(_) => None,
        }
    }

    /// The parts of all ranks, in their order; nothing, if they are several stages.
    pub fn joined(name: &str, joined: Joined, parts: Vec<Place>) -> Option<Self> {
        let Place { element, mut shape, .. } = parts.first()?.clone();
        let how = match joined {
            Joined::Along { axis, whole } => {
                let length: usize = parts.iter().map(|part| part.shape[axis]).sum();
                shape[axis] = whole.min(length);
                if axis + 1 == shape.len() { How::Columns(parts) } else { How::Rows(axis, parts) }
            }
            Joined::Added => How::Added(parts),
            Joined::GateAndUp => return None,
        };
        Some(Source { name: name.to_owned(), element, shape, how })
    }

    /// Some rows of it; nothing, if they do not lie in the files as they are.
    ///
    /// # Errors
    /// If they are damaged.
    pub fn rows(&self, files: &[TensorFile], rows: Range<usize>) -> Result<Option<Values>> {
        match &self.how {
            How::Alone(place) => place.rows(files, rows),
            How::Cut(of, columns) => Ok(of.rows(files, rows)?.and_then(|rows| columns_in(rows, columns))),
            How::Columns(parts) | How::Rows(_, parts) | How::Added(parts) => {
                // Whoever asks for no rows wants to know whether there will be any: of every part.
                for part in parts.iter().filter(|_| rows.is_empty()) {
                    if part.rows(files, 0..0)?.is_none() {
                        return Ok(None);
                    }
                }
                self.of_parts(parts, rows, |part, rows| parts[part].rows(files, rows))
            }
        }
    }

    /// All of it; nothing, if it holds no numbers that a stage may have.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn whole(&self, files: &[TensorFile]) -> Result<Option<Values>> {
        let parts = match &self.how {
            How::Alone(place) => return place.whole(files),
            How::Cut(of, columns) => {
                let Some(whole) = of.whole(files)? else { return Ok(None) };
                let rows = rows_in(&whole, 0..rows_of(&self.shape));
                return Ok(rows.and_then(|rows| columns_in(rows, columns)?.in_shape(&self.shape)));
            }
            How::Columns(parts) | How::Rows(_, parts) | How::Added(parts) => parts,
        };
        let all = 0..rows_of(&self.shape);
        let whole = match self.rows(files, all.clone())? {
            Some(whole) => Some(whole),
            None => {
                let Some(decoded) = parts.iter().map(|part| part.whole(files)).collect::<Result<Option<Vec<_>>>>()?
                else {
                    return Ok(None);
                };
                self.of_parts(parts, all, |part, rows| Ok(rows_in(&decoded[part], rows)))?
            }
        };
        Ok(whole.and_then(|whole| whole.in_shape(&self.shape)))
    }

    /// Some rows of it, of parts of which some rows can be `read`.
    fn of_parts(
        &self,
        parts: &[Place],
        rows: Range<usize>,
        read: impl Fn(usize, Range<usize>) -> Result<Option<Values>>,
    ) -> Result<Option<Values>> {
        let of_all = || (0..parts.len()).map(|part| read(part, rows.clone())).collect::<Result<Option<Vec<_>>>>();
        Ok(match &self.how {
            How::Alone(_) | How::Cut(..) => None,
            How::Columns(_) => of_all()?.and_then(|of_all| side_by_side(&of_all, rows.len(), &self.shape)),
            How::Added(_) => of_all()?.and_then(|of_all| added(&of_all)),
            How::Rows(axis, _) => {
                let mut found = Vec::new();
                for (part, rows) in spans(rows, *axis, &self.shape, parts) {
                    let Some(rows) = read(part, rows)? else { return Ok(None) };
                    found.push(rows);
                }
                one_after_another(found, &self.shape)
            }
        })
    }
}

/// Whether a copy holds the same numbers in the same order; `place` is a tensor of the same stage.
///
/// # Errors
/// If one is damaged.
pub fn are_identical(files: &[TensorFile], first: &Place, other: &Place) -> Result<bool> {
    let in_rows = first.shape.last() == other.shape.last() && rows_of(&first.shape) == rows_of(&other.shape);
    if in_rows && first.rows(files, 0..0)?.is_some() && other.rows(files, 0..0)?.is_some() {
        for piece in pieces(&first.shape) {
            match (first.rows(files, piece.clone())?, other.rows(files, piece)?) {
                (Some(first), Some(other)) if first.identical(&other) => {}
                _ => return Ok(false),
            }
        }
        return Ok(true);
    }
    Ok(first.whole(files)?.zip(other.whole(files)?).is_some_and(|(first, other)| first.identical(&other)))
}

/// The sums of the squares of two parts of a sum, and of their difference.
///
/// # Errors
/// If one is damaged.
pub fn squares(files: &[TensorFile], first: &Place, other: &Place) -> Result<[f64; 3]> {
    let in_order = first.rows(files, 0..0)?.is_some() && other.rows(files, 0..0)?.is_some();
    let decoded = match in_order {
        true => None,
        false => first.whole(files)?.zip(other.whole(files)?),
    };
    let mut sums = [0.0; 3];
    for piece in pieces(&first.shape) {
        let both = match &decoded {
            Some((first, other)) => rows_in(first, piece.clone()).zip(rows_in(other, piece)),
            None => first.rows(files, piece.clone())?.zip(other.rows(files, piece)?),
        };
        let Some((Values::Real(_, a), Values::Real(_, b))) = both else { continue };
        for (x, y) in a.iter().zip(&b) {
            let difference = y - x;
            [x * x, y * y, difference * difference].iter().zip(&mut sums).for_each(|(square, sum)| *sum += square);
        }
    }
    Ok(sums)
}

/// The same elements, row by row in memory: a file may hold them column by column.
fn row_major(values: Values) -> Values {
    fn laid<A: Clone>(a: ArrayD<A>) -> ArrayD<A> {
        if a.is_standard_layout() { a } else { a.as_standard_layout().into_owned() }
    }
    match values {
        Values::Real(dtype, a) => Values::Real(dtype, laid(a)),
        Values::Index(a) => Values::Index(laid(a)),
        Values::Bool(a) => Values::Bool(laid(a)),
    }
}

/// How many rows a tensor of this shape has.
fn rows_of(shape: &[usize]) -> usize {
    shape.iter().rev().skip(1).product()
}

/// Some rows of a tensor that was decoded.
fn rows_in(values: &Values, rows: Range<usize>) -> Option<Values> {
    let shape = values.shape();
    let width = shape.last().copied().unwrap_or(1);
    let span = rows.start * width..rows.end * width;
    Some(match values {
        Values::Real(dtype, a) => Values::Real(*dtype, as_rows(a.as_slice()?.get(span)?.to_vec(), shape)),
        Values::Index(a) => Values::Index(as_rows(a.as_slice()?.get(span)?.to_vec(), shape)),
        Values::Bool(_) => return None,
    })
}

/// Some columns of `[rows, width]`.
fn columns_in(rows: Values, columns: &Range<usize>) -> Option<Values> {
    fn cut<A: Clone>(a: ArrayD<A>, columns: &Range<usize>) -> Option<ArrayD<A>> {
        let width = *a.shape().last()?;
        if *columns == (0..width) {
            return Some(a);
        }
        let columns = Slice::from(columns.start..columns.end.min(width));
        Some(a.slice_axis(Axis(a.ndim() - 1), columns).as_standard_layout().into_owned())
    }
    Some(match rows {
        Values::Real(dtype, a) => Values::Real(dtype, cut(a, columns)?),
        Values::Index(a) => Values::Index(cut(a, columns)?),
        Values::Bool(a) => Values::Bool(cut(a, columns)?),
    })
}

/// Which rows of which part are these, of parts along an axis.
fn spans(rows: Range<usize>, axis: usize, shape: &[usize], parts: &[Place]) -> Vec<(usize, Range<usize>)> {
    let inner: usize = shape[axis + 1..shape.len() - 1].iter().product();
    let all: usize = parts.iter().map(|part| part.shape[axis]).sum();
    let along = shape[axis].min(all).max(1);
    let mut found: Vec<(usize, Range<usize>)> = Vec::new();
    for row in rows {
        let (outer, mut at, behind) = (row / (along * inner), row / inner % along, row % inner);
        let mut part = 0;
        while at >= parts[part].shape[axis] {
            at -= parts[part].shape[axis];
            part += 1;
        }
        let row = (outer * parts[part].shape[axis] + at) * inner + behind;
        match found.last_mut() {
            Some((last, span)) if *last == part && span.end == row => span.end += 1,
            _ => found.push((part, row..row + 1)),
        }
    }
    found
}

/// The rows of all parts, side by side, of which the first columns count that the `shape` has.
fn side_by_side(parts: &[Values], rows: usize, shape: &[usize]) -> Option<Values> {
    fn joined<A: Copy>(parts: &[&[A]], rows: usize, width: usize) -> Vec<A> {
        let mut all = Vec::with_capacity(rows * width);
        for row in 0..rows {
            let of_part = |part: &&[A]| part.len() / rows;
            let columns = parts.iter().flat_map(|part| &part[row * of_part(part)..(row + 1) * of_part(part)]);
            all.extend(columns.take(width));
        }
        all
    }
    let width = shape.last().copied()?;
    Some(match parts.first()? {
        Values::Real(dtype, _) => {
            let parts: Option<Vec<&[f64]>> = parts.iter().map(|part| part.real()?.as_slice()).collect();
            Values::Real(*dtype, as_rows(joined(&parts?, rows, width), shape))
        }
        _ => {
            let parts: Option<Vec<&[i64]>> = parts.iter().map(|part| part.index()?.as_slice()).collect();
            Values::Index(as_rows(joined(&parts?, rows, width), shape))
        }
    })
}

fn one_after_another(parts: Vec<Values>, shape: &[usize]) -> Option<Values> {
    let (mut numbers, mut whole, mut dtype) = (Vec::new(), Vec::new(), None);
    for part in parts {
        match part {
            Values::Real(of_part, a) => {
                dtype = dtype.or(Some(of_part));
                numbers.extend(a);
            }
            Values::Index(a) => whole.extend(a),
            Values::Bool(_) => return None,
        }
    }
    Some(match dtype {
        Some(dtype) => Values::Real(dtype, as_rows(numbers, shape)),
        None => Values::Index(as_rows(whole, shape)),
    })
}

fn added(parts: &[Values]) -> Option<Values> {
    let Values::Real(dtype, first) = parts.first()? else { return None };
    let mut sum = first.clone();
    for part in &parts[1..] {
        sum += part.real()?;
    }
    Some(rounded(*dtype, &sum))
}

/// As it is stored in a type.
pub fn rounded(dtype: Dtype, a: &ndarray::ArrayD<f64>) -> Values {
    Values::Real(dtype, Tensor::from_values(dtype, a.shape(), a.iter().copied()).to_array())
}
