//! What an operator is given and returns: numbers as their type holds them, wide enough for any computation.

use dsv2_reference::Dtype;
use float8::F8E4M3;
use half::{bf16, f16};
use indexmap::IndexMap;
use ndarray::ArrayD;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

/// Tensors by name, in the order of the contract.
pub type Tensors = IndexMap<String, Tensor>;

/// The type of a tensor's elements, by FlashInfer-Bench's (and PyTorch's) names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// bfloat16.
    Bfloat16,
    /// IEEE half.
    Float16,
    /// IEEE single.
    Float32,
    /// 8 bits, 4 of exponent and 3 of fraction, without infinities: at most 448.
    #[serde(rename = "float8_e4m3fn")]
    Float8,
    /// 32-bit integers.
    Int32,
    /// 64-bit integers.
    Int64,
}

impl ElementType {
    /// The type of numbers; `None` for integers, and for those that the reference has no type for.
    pub fn real(self) -> Option<Dtype> {
        match self {
            ElementType::Bfloat16 => Some(Dtype::Bf16),
            ElementType::Float16 => Some(Dtype::F16),
            ElementType::Float32 => Some(Dtype::F32),
            ElementType::Float8 | ElementType::Int32 | ElementType::Int64 => None,
        }
    }

    /// Whether it is a type of numbers, not of whole ones.
    pub fn is_real(self) -> bool {
        !matches!(self, ElementType::Int32 | ElementType::Int64)
    }

    fn file_dtype(self) -> safetensors::Dtype {
        match self {
            ElementType::Bfloat16 => safetensors::Dtype::BF16,
            ElementType::Float16 => safetensors::Dtype::F16,
            ElementType::Float32 => safetensors::Dtype::F32,
            ElementType::Float8 => safetensors::Dtype::F8_E4M3,
            ElementType::Int32 => safetensors::Dtype::I32,
            ElementType::Int64 => safetensors::Dtype::I64,
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::Bfloat16 => "bfloat16",
            ElementType::Float16 => "float16",
            ElementType::Float32 => "float32",
            ElementType::Float8 => "float8_e4m3fn",
            ElementType::Int32 => "int32",
            ElementType::Int64 => "int64",
        }
    }

    /// `x` as the type holds it: to nearest, ties to even; beyond the largest number, infinity (in fp8, the largest number).
    pub fn round(self, x: f64) -> f64 {
        match self {
            ElementType::Bfloat16 => bf16::from_f32(x as f32).to_f64(),
            ElementType::Float16 => f16::from_f32(x as f32).to_f64(),
            ElementType::Float32 => f64::from(x as f32),
            ElementType::Float8 => F8E4M3::from_f32(x as f32).to_f64(),
            ElementType::Int32 | ElementType::Int64 => x.round(),
        }
    }
}

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// Numbers.
    Real(ArrayD<f64>),
    /// Whole numbers.
    Index(ArrayD<i64>),
}

/// A tensor; a scalar is one without axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The type that its elements are stored in.
    pub element: ElementType,
    /// The elements, as that type holds them.
    pub elements: Elements,
}

impl Tensor {
    /// Numbers, rounded to the type.
    pub fn real(element: ElementType, values: ArrayD<f64>) -> Self {
        Tensor { element, elements: Elements::Real(values.mapv_into(|x| element.round(x))) }
    }

    /// Whole numbers.
    pub fn index(element: ElementType, values: ArrayD<i64>) -> Self {
        Tensor { element, elements: Elements::Index(values) }
    }

    /// The lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        match &self.elements {
            Elements::Real(values) => values.shape(),
            Elements::Index(values) => values.shape(),
        }
    }

    /// The numbers, if it holds numbers.
    pub fn as_real(&self) -> Option<&ArrayD<f64>> {
        if let Elements::Real(values) = &self.elements { Some(values) } else { None }
    }

    /// The whole numbers, if it holds such.
    pub fn as_index(&self) -> Option<&ArrayD<i64>> {
        if let Elements::Index(values) = &self.elements { Some(values) } else { None }
    }
}

impl Tensor {
    /// The elements, little-endian and row-major.
    fn bytes(&self) -> Vec<u8> {
        match (&self.elements, self.element) {
            (Elements::Real(values), ElementType::Bfloat16) => {
                values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect()
            }
            (Elements::Real(values), ElementType::Float16) => {
                values.iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect()
            }
            (Elements::Real(values), ElementType::Float8) => {
                values.iter().map(|&x| F8E4M3::from_f32(x as f32).to_bits()).collect()
            }
            (Elements::Real(values), _) => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            (Elements::Index(values), ElementType::Int32) => {
                values.iter().flat_map(|&i| (i as i32).to_le_bytes()).collect()
            }
            (Elements::Index(values), _) => values.iter().flat_map(|&i| i.to_le_bytes()).collect(),
        }
    }
}

/// The tensors as a safetensors file, each in its type.
///
/// # Panics
/// Never: names of contracts differ, and shapes fit.
pub fn to_safetensors(tensors: &Tensors) -> Vec<u8> {
    let bytes: Vec<_> = tensors.values().map(Tensor::bytes).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
        let view = TensorView::new(tensor.element.file_dtype(), tensor.shape().to_vec(), bytes);
        (name, view.expect("as many bytes as the shape has"))
    });
    safetensors::serialize(views, None).expect("names that differ")
}
