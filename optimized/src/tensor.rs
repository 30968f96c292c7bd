//! Tensors in a device's memory: a shape, strides, and a share of an allocation.

mod element;

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use ptx_emulator::Arg;

use crate::device::{Allocation, Device};
use crate::{Error, Result};
pub use element::Element;

/// A tensor, or a view of one: clones and views share the memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    allocation: Arc<Allocation>,
    element: Element,
    /// In elements, from the allocation's start.
    offset: usize,
    shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
}

impl Tensor {
    /// A row-major tensor whose elements are not set.
    ///
    /// # Errors
    /// If there is no room.
    pub fn empty(device: &Arc<dyn Device>, element: Element, shape: &[usize]) -> Result<Self> {
        let allocation = Allocation::new(device, shape.iter().product::<usize>() * element.bytes())?;
        Ok(Tensor { allocation, element, offset: 0, shape: shape.to_vec(), strides: row_major(shape) })
    }

    /// A tensor from numbers, row by row. Integers are refused as such, not rounded.
    ///
    /// # Errors
    /// If there are not as many as the shape says, `element` is an integer type, or there is no room.
    pub fn from_f32(device: &Arc<dyn Device>, element: Element, shape: &[usize], values: &[f32]) -> Result<Self> {
        let data: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Element::I32 => return Err(Error::operand("Tensor::from_f32", "element", "f32 or bf16", element)),
        };
        Tensor::from_bytes(device, element, shape, &data)
    }

    /// A tensor from integers, row by row.
    ///
    /// # Errors
    /// If there are not as many as the shape says, or there is no room.
    pub fn from_i32(device: &Arc<dyn Device>, shape: &[usize], values: &[i32]) -> Result<Self> {
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor::from_bytes(device, Element::I32, shape, &data)
    }

    /// A tensor from the bytes of its elements (little endian), row by row.
    ///
    /// # Errors
    /// If there are not as many as the shape says, or there is no room.
    pub fn from_bytes(device: &Arc<dyn Device>, element: Element, shape: &[usize], data: &[u8]) -> Result<Self> {
        let tensor = Tensor::empty(device, element, shape)?;
        if data.len() != tensor.allocation.bytes() {
            let expected = format!("{} bytes for the shape {shape:?}", tensor.allocation.bytes());
            return Err(Error::operand("Tensor::from_bytes", "data", expected, data.len()));
        }
        device.write(tensor.address(), data)?;
        Ok(tensor)
    }

    /// Puts elements in, row by row: the bytes of all of them, little endian.
    ///
    /// # Errors
    /// If there are not as many as the shape says, or the elements are no neighbours.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        if !self.is_contiguous() || data.len() != self.len() * self.element.bytes() {
            let expected = format!("{} bytes for neighbouring elements", self.len() * self.element.bytes());
            let found = format!("{} bytes for {:?} with strides {:?}", data.len(), self.shape, self.strides);
            return Err(Error::operand("Tensor::write", "data", expected, found));
        }
        self.device().write(self.address(), data)
    }

    /// Puts numbers in, row by row; the elements may be anywhere.
    ///
    /// # Errors
    /// If there are not as many as the shape says, or the elements are integers.
    pub fn write_f32(&self, values: &[f32]) -> Result<()> {
        match self.element {
            Element::F32 => self.scatter(values, |x| x.to_le_bytes()),
            Element::Bf16 => self.scatter(values, |x| bf16::from_f32(*x).to_le_bytes()),
            Element::I32 => Err(Error::operand("Tensor::write_f32", "element", "f32 or bf16", self.element)),
        }
    }

    /// Puts integers in, row by row; the elements may be anywhere.
    ///
    /// # Errors
    /// If there are not as many as the shape says, or the elements are no integers.
    pub fn write_i32(&self, values: &[i32]) -> Result<()> {
        match self.element {
            Element::I32 => self.scatter(values, |x| x.to_le_bytes()),
            _ => Err(Error::operand("Tensor::write_i32", "element", "i32", self.element)),
        }
    }

    fn scatter<const N: usize, T>(&self, values: &[T], encode: impl Fn(&T) -> [u8; N]) -> Result<()> {
        if values.len() != self.len() {
            return Err(Error::operand("Tensor::write", "values", self.len(), values.len()));
        }
        let (starts, length) = self.runs();
        let bytes: Vec<u8> = values.iter().flat_map(encode).collect();
        for (start, run) in starts.into_iter().zip(bytes.chunks(length.max(1) * N)) {
            self.device().write(self.allocation.address() + (start * N) as u64, run)?;
        }
        Ok(())
    }

    /// The elements, row by row, widened to `f32`.
    ///
    /// # Errors
    /// If they are integers, the work that makes them failed, or (on the emulator) one was never set.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.element {
            Element::F32 => self.gather(|bytes: [u8; 4]| f32::from_le_bytes(bytes)),
            Element::Bf16 => self.gather(|bytes: [u8; 2]| bf16::from_le_bytes(bytes).to_f32()),
            Element::I32 => Err(Error::operand("Tensor::to_f32", "element", "f32 or bf16", self.element)),
        }
    }

    /// The elements, row by row.
    ///
    /// # Errors
    /// If they are no integers, the work that makes them failed, or (on the emulator) one was never set.
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        match self.element {
            Element::I32 => self.gather(|bytes: [u8; 4]| i32::from_le_bytes(bytes)),
            _ => Err(Error::operand("Tensor::to_i32", "element", "i32", self.element)),
        }
    }

    /// Reads runs of neighbours: whole tensors at once, views row by row.
    fn gather<const N: usize, T>(&self, decode: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let (starts, length) = self.runs();
        let mut values = Vec::with_capacity(self.len());
        let mut bytes = vec![0; length * N];
        for start in starts.into_iter().filter(|_| length > 0) {
            self.device().read(self.allocation.address() + (start * N) as u64, &mut bytes)?;
            values.extend(bytes.as_chunks::<N>().0.iter().map(|bytes| decode(*bytes)));
        }
        Ok(values)
    }

    /// The elements as runs of neighbours: where each begins in the allocation, row by row, and how long they are.
    fn runs(&self) -> (Vec<usize>, usize) {
        let mut length = 1;
        let mut axis = self.shape.len();
        while axis > 0 && (self.strides[axis - 1] == length || self.shape[axis - 1] == 1) {
            axis -= 1;
            length *= self.shape[axis];
        }
        let mut starts = vec![self.offset];
        for (size, stride) in self.shape[..axis].iter().zip(&self.strides) {
            starts = starts.iter().flat_map(|start| (0..*size).map(move |i| start + i * stride)).collect();
        }
        (starts, length)
    }

    /// The slice `range` of an axis, in the same memory.
    ///
    /// # Errors
    /// If there is no such axis, or it is shorter.
    pub fn narrow(&self, axis: usize, range: Range<usize>) -> Result<Self> {
        if axis >= self.shape.len() || range.start > range.end || range.end > self.shape[axis] {
            let expected = format!("a slice of {:?}", self.shape);
            return Err(Error::operand("Tensor::narrow", "range", expected, format!("{range:?} of axis {axis}")));
        }
        let mut view = self.clone();
        view.offset += range.start * self.strides[axis];
        view.shape[axis] = range.len();
        Ok(view)
    }

    /// The slice at one place of an axis, without that axis.
    ///
    /// # Errors
    /// If there is no such axis or place.
    pub fn index(&self, axis: usize, at: usize) -> Result<Self> {
        let mut view = self.narrow(axis, at..at.saturating_add(1))?;
        view.shape.remove(axis);
        view.strides.remove(axis);
        Ok(view)
    }

    /// The same elements in another row-major shape.
    ///
    /// # Errors
    /// If the elements are not neighbours, or there are not as many.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if !self.is_contiguous() || shape.iter().product::<usize>() != self.len() {
            let found = format!("{:?} with strides {:?}", self.shape, self.strides);
            return Err(Error::operand("Tensor::reshape", "shape", format!("{shape:?}"), found));
        }
        Ok(Tensor { shape: shape.to_vec(), strides: row_major(shape), ..self.clone() })
    }

    /// The same elements with one axis cut into several, in the same memory: they need not be neighbours.
    ///
    /// # Errors
    /// If there is no such axis, or the sizes are not those of its parts.
    pub fn unflatten(&self, axis: usize, sizes: &[usize]) -> Result<Self> {
        if self.shape.get(axis) != Some(&sizes.iter().product()) {
            let found = format!("axis {axis} of {:?} into {sizes:?}", self.shape);
            return Err(Error::operand("Tensor::unflatten", "sizes", "the sizes of the axis's parts", found));
        }
        let mut view = self.clone();
        let step = self.strides[axis];
        view.shape.splice(axis..=axis, sizes.iter().copied());
        view.strides.splice(axis..=axis, row_major(sizes).into_iter().map(|stride| stride * step));
        Ok(view)
    }

    /// The same elements with the axes in another order.
    ///
    /// # Errors
    /// If `axes` is no order of the axes.
    pub fn permute(&self, axes: &[usize]) -> Result<Self> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.shape.len()) {
            let expected = format!("an order of the axes of {:?}", self.shape);
            return Err(Error::operand("Tensor::permute", "axes", expected, format!("{axes:?}")));
        }
        let pick = |of: &[usize]| axes.iter().map(|axis| of[*axis]).collect();
        Ok(Tensor { shape: pick(&self.shape), strides: pick(&self.strides), ..self.clone() })
    }

    /// Whether the elements are neighbours in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let usual = row_major(&self.shape);
        self.shape
            .iter()
            .zip(self.strides.iter().zip(&usual))
            .all(|(size, (stride, usual))| *size == 1 || stride == usual)
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Steps along the axes, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Whose memory it is.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.allocation.device()
    }

    /// Where the first element is.
    pub fn address(&self) -> u64 {
        self.allocation.address() + (self.offset * self.element.bytes()) as u64
    }

    /// The pointer to the first element, as a kernel's argument.
    pub fn arg(&self) -> Arg {
        Arg::from(self.address())
    }
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}
