//! NumPy's arrays: a Python dictionary of three keys, then the elements.
//!
//! The crates for it (npyz, ndarray-npy) parse the dictionary with a recursive parser for all of Python's literals, which a
//! header of 64 KiB of brackets takes to the end of the stack; there are three keys, whose values do not nest.

use std::borrow::Cow;

use ndarray::{ArrayD, ShapeBuilder};

use super::Refusal;
use super::element::{Decoded, Element, KNOWN};
use crate::values::Values;

/// What every array begins with.
pub const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// What the header of an array says.
#[derive(Debug, PartialEq, Eq)]
pub struct Npy {
    element: Element,
    big_endian: bool,
    /// Whether the first axis is the one along which elements are neighbours.
    columns: bool,
    shape: Vec<usize>,
    /// Where the elements begin.
    start: usize,
}

impl Npy {
    /// At most so many bytes are a header, with what it begins with.
    pub const LONGEST_HEADER: usize = (1 << 16) + 12;

    /// The type and the shape.
    pub fn is(&self) -> (Element, &[usize]) {
        (self.element, &self.shape)
    }

    /// Reads the header.
    ///
    /// # Errors
    /// If it is none, or of an array of something else than numbers.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let damaged = |what: &str| Refusal::new("the header of a NumPy array", what);
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("another beginning"))?;
        let short = || damaged("an early end");
        let (length, start) = match rest {
            [1, _, a, b, ..] => (u16::from_le_bytes([*a, *b]) as usize, 10),
            [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
            [1..=3, ..] | [] => return Err(short()),
            [version, ..] => return Err(damaged(&format!("version {version}"))),
        };
        if length > 1 << 16 {
            return Err(damaged(&format!("{length} bytes of it")));
        }
        let header = bytes.get(start..start + length).ok_or_else(short)?;
        let header = std::str::from_utf8(header).map_err(|_| damaged("no text"))?;
        let mut text = Text(header);
        let (mut descr, mut columns, mut shape) = (None, None, None);
        text.take("{").ok_or_else(|| damaged("no dictionary"))?;
        while text.take("}").is_none() {
            let key = text.string().ok_or_else(|| damaged("a key that is no text"))?;
            text.take(":").ok_or_else(|| damaged("a key without a value"))?;
            match key {
                "descr" => {
                    descr = Some(text.string().ok_or_else(|| {
                        Refusal::new(format!("an array of numbers ({KNOWN})"), "a structured array (with named fields)")
                    })?);
                }
                "fortran_order" => columns = Some(text.boolean().ok_or_else(|| damaged("a fortran_order of neither"))?),
                "shape" => shape = Some(text.shape().ok_or_else(|| damaged("a shape that is none"))?),
                other => return Err(damaged(&format!("a key `{other}`"))),
            }
            let _ = text.take(",");
        }
        let missing = || damaged("one of descr, fortran_order and shape missing");
        let (big_endian, element) = element(descr.ok_or_else(missing)?)?;
        let (columns, shape) = (columns.ok_or_else(missing)?, shape.ok_or_else(missing)?);
        Ok(Npy { element, big_endian, columns, shape, start: start + length })
    }

    /// The bytes of the elements, if they lie row by row, the low byte of each first.
    pub fn in_order<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        (!self.columns && !self.big_endian).then(|| bytes.get(self.start..))?
    }

    /// Reads the elements behind the header.
    ///
    /// # Errors
    /// If they are not as many as the shape says.
    pub fn decode(&self, bytes: &[u8]) -> Result<Decoded, Refusal> {
        let (bytes, size) = (&bytes[self.start..], self.element.size());
        let bytes = match self.big_endian {
            true => {
                // a complex number is two numbers
                let size = if matches!(self.element, Element::C64 | Element::C128) { size / 2 } else { size };
                Cow::Owned(bytes.chunks(size).flat_map(|element| element.iter().rev().copied()).collect())
            }
            false => Cow::Borrowed(bytes),
        };
        let decoded = self.element.decode(&bytes, &self.shape)?;
        Ok(match (self.columns, decoded) {
            (false, decoded) => decoded,
            (true, Decoded::Values(Values::Real(dtype, a))) => Decoded::Values(Values::Real(dtype, in_rows(a))),
            (true, Decoded::Values(Values::Index(a))) => Decoded::Values(Values::Index(in_rows(a))),
            (true, Decoded::Values(Values::Bool(a))) => Decoded::Values(Values::Bool(in_rows(a))),
            (true, Decoded::Narrow(name, a)) => Decoded::Narrow(name, in_rows(a)),
            (true, Decoded::Complex(dtype, parts)) => Decoded::Complex(dtype, parts.map(in_rows)),
        })
    }
}

/// Elements that lie column by column, row by row.
fn in_rows<V: Clone>(a: ArrayD<V>) -> ArrayD<V> {
    let shape = a.raw_dim();
    let by_columns = ArrayD::from_shape_vec(shape.f(), a.into_raw_vec_and_offset().0);
    by_columns.expect("as many elements as before").as_standard_layout().into_owned()
}

/// Byte order and type of NumPy's `descr`.
fn element(descr: &str) -> Result<(bool, Element), Refusal> {
    let order = descr.chars().next().filter(|order| "<>|=".contains(*order));
    let code = order.map_or(descr, |order| &descr[order.len_utf8()..]);
    let element = match code {
        "b1" | "?" => Element::Bool,
        "u1" => Element::U8,
        "u2" => Element::U16,
        "u4" => Element::U32,
        "u8" => Element::U64,
        "i1" => Element::I8,
        "i2" => Element::I16,
        "i4" => Element::I32,
        "i8" => Element::I64,
        "f2" => Element::F16,
        "f4" => Element::F32,
        "f8" => Element::F64,
        "c8" => Element::C64,
        "c16" => Element::C128,
        // NumPy has no name for the bfloat16 of ml_dtypes, the one type of two bytes that is saved so.
        "V2" => Element::Bf16,
        _ => {
            let what = match code.chars().next() {
                Some('O') => "an object array, whose elements are pickled".to_owned(),
                Some('V') => format!("`{descr}`: raw bytes, as ml_dtypes' 8-bit floats are saved (use safetensors)"),
                Some('U' | 'S') => format!("`{descr}`: texts"),
                _ => format!("`{descr}`"),
            };
            return Err(Refusal::new(KNOWN, what));
        }
    };
    Ok((order == Some('>'), element))
}

/// What is left of a header.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn take(&mut self, what: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(what)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|quote| "'\"".contains(*quote))?;
        let (string, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        Some(string)
    }

    fn boolean(&mut self) -> Option<bool> {
        self.take("True").map(|()| true).or_else(|| self.take("False").map(|()| false))
    }

    /// `()`, `(3,)`, `(2, 3)`
    fn shape(&mut self) -> Option<Vec<usize>> {
        self.take("(")?;
        let (numbers, rest) = self.0.split_once(')')?;
        self.0 = rest;
        let numbers = numbers.split(',').map(str::trim).filter(|number| !number.is_empty());
        numbers.map(|number| number.trim_end_matches('L').parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(header: &str, data: &[u8]) -> Vec<u8> {
        [MAGIC, &[1, 0][..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn refused(header: &str) -> String {
        let Refusal { found, .. } = Npy::parse(&array(header, &[])).unwrap_err();
        found
    }

    #[test]
    fn columns_and_foreign_byte_orders_are_turned() {
        let bytes =
            array("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }", &[0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 1, 0]);
        let Decoded::Values(Values::Index(a)) = Npy::parse(&bytes).unwrap().decode(&bytes).unwrap() else { panic!() };
        assert_eq!(a, ndarray::array![[1, 3, 5], [2, 4, 256]].into_dyn());
    }

    #[test]
    fn headers_of_something_else_are_refused_in_words() {
        insta::assert_snapshot!(
            [
                refused(""),
                refused("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"),
                refused("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }"),
                refused("{'descr': '<U5', 'fortran_order': False, 'shape': (), }"),
                refused("{'descr': '|V1', 'fortran_order': False, 'shape': (), }"),
                refused("{'descr': '<f4', 'fortran_order': 0, 'shape': (), }"),
                refused("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
                refused("{'descr': '<f4', 'fortran_order': False, 'shape': ((2, 3), 4), }"),
                refused("{'descr': '<f4', 'shape': (), }"),
                refused("{'descr': '<f4', 'd\n': 3}"),
                refused(&"(".repeat(60_000)),
            ]
            .join("\n")
        );
    }
}
