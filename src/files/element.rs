//! The types that files hold their numbers in, and what they are read as.

use dsv2_reference::Dtype;
use dsv2_reference::weights::safetensors_file::FileDtype;
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};

use super::Refusal;
use crate::values::Values;

/// A type of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called what they are")]
pub enum Element {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F8E8M0,
    F16,
    Bf16,
    F32,
    F64,
    C64,
    C128,
}

/// All types that are read, for messages.
pub const KNOWN: &str = "BOOL, U8 to U64, I8 to I64, F8, F16, BF16, F32, F64 or C64";

/// A tensor out of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// Numbers, whole numbers or truth values.
    Values(Values),
    /// Numbers of 8 bits. Each is a bf16 number too, and is read as one; a scale, if there is one, lies elsewhere.
    Narrow(&'static str, ArrayD<f64>),
    /// Complex numbers: their real parts, and their imaginary ones.
    Complex(Dtype, [ArrayD<f64>; 2]),
}

impl Element {
    /// A type of safetensors; `None` if it is one that does not fill bytes (F4, F6).
    pub fn of(dtype: FileDtype) -> Option<Self> {
        Some(match dtype {
            FileDtype::BOOL => Element::Bool,
            FileDtype::U8 => Element::U8,
            FileDtype::U16 => Element::U16,
            FileDtype::U32 => Element::U32,
            FileDtype::U64 => Element::U64,
            FileDtype::I8 => Element::I8,
            FileDtype::I16 => Element::I16,
            FileDtype::I32 => Element::I32,
            FileDtype::I64 => Element::I64,
            FileDtype::F8_E4M3 => Element::F8E4M3,
            FileDtype::F8_E5M2 => Element::F8E5M2,
            FileDtype::F8_E4M3FNUZ => Element::F8E4M3Fnuz,
            FileDtype::F8_E5M2FNUZ => Element::F8E5M2Fnuz,
            FileDtype::F8_E8M0 => Element::F8E8M0,
            FileDtype::F16 => Element::F16,
            FileDtype::BF16 => Element::Bf16,
            FileDtype::F32 => Element::F32,
            FileDtype::F64 => Element::F64,
            FileDtype::C64 => Element::C64,
            _ => return None,
        })
    }

    /// Bytes for each element.
    pub fn size(self) -> usize {
        match self {
            Element::Bool | Element::U8 | Element::I8 | Element::F8E8M0 => 1,
            Element::F8E4M3 | Element::F8E5M2 | Element::F8E4M3Fnuz | Element::F8E5M2Fnuz => 1,
            Element::U16 | Element::I16 | Element::F16 | Element::Bf16 => 2,
            Element::U32 | Element::I32 | Element::F32 => 4,
            Element::U64 | Element::I64 | Element::F64 | Element::C64 => 8,
            Element::C128 => 16,
        }
    }

    /// How many bytes a tensor of this shape takes; `None` if no memory could hold it.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        shape.iter().try_fold(self.size(), |size, &n| size.checked_mul(n))
    }

    /// Reads all elements of a tensor, which lie row-major and little-endian.
    ///
    /// # Errors
    /// If they are not as many as the shape says, or one is none of its type.
    pub fn decode(self, bytes: &[u8], shape: &[usize]) -> Result<Decoded, Refusal> {
        if self.bytes(shape) != Some(bytes.len()) {
            return Err(Refusal::new(format!("the bytes of shape {shape:?}"), format!("{} bytes", bytes.len())));
        }
        let narrow = |name, value: fn(u8) -> f64| {
            Ok(Decoded::Narrow(name, array(shape, bytes.iter().map(|&b| value(b)).collect())?))
        };
        let real = |dtype, values| Ok(Decoded::Values(Values::Real(dtype, array(shape, values)?)));
        let index = |values| Ok(Decoded::Values(Values::Index(array(shape, values)?)));
        match self {
            Element::Bool => match bytes.iter().find(|&&b| b > 1) {
                Some(other) => Err(Refusal::new("0 or 1 in the BOOL tensor", other)),
                None => Ok(Decoded::Values(Values::Bool(array(shape, bytes.iter().map(|&b| b == 1).collect())?))),
            },
            Element::U8 => index(each(bytes, |[b]| b.into())),
            Element::U16 => index(each(bytes, |b| u16::from_le_bytes(b).into())),
            Element::U32 => index(each(bytes, |b| u32::from_le_bytes(b).into())),
            Element::U64 => {
                let values: Vec<_> = each(bytes, |b| i64::try_from(u64::from_le_bytes(b)));
                let values: Result<Vec<_>, _> = values.into_iter().collect();
                index(values.map_err(|_| Refusal::new(format!("U64 of at most {}", i64::MAX), "a larger one"))?)
            }
            Element::I8 => index(each(bytes, |b| i8::from_le_bytes(b).into())),
            Element::I16 => index(each(bytes, |b| i16::from_le_bytes(b).into())),
            Element::I32 => index(each(bytes, |b| i32::from_le_bytes(b).into())),
            Element::I64 => index(each(bytes, i64::from_le_bytes)),
            Element::F8E4M3 => narrow("F8_E4M3", |b| if b & 0x7f == 0x7f { f64::NAN } else { small::<4>(b, 7) }),
            Element::F8E5M2 => narrow("F8_E5M2", |b| f16::from_bits(u16::from(b) << 8).to_f64()),
            Element::F8E4M3Fnuz => narrow("F8_E4M3FNUZ", |b| if b == 0x80 { f64::NAN } else { small::<4>(b, 8) }),
            Element::F8E5M2Fnuz => narrow("F8_E5M2FNUZ", |b| if b == 0x80 { f64::NAN } else { small::<5>(b, 16) }),
            Element::F8E8M0 => {
                narrow("F8_E8M0", |b| if b == 0xff { f64::NAN } else { f64::powi(2.0, i32::from(b) - 127) })
            }
            Element::F16 => real(Dtype::F16, each(bytes, |b| f16::from_le_bytes(b).to_f64())),
            Element::Bf16 => real(Dtype::Bf16, each(bytes, |b| bf16::from_le_bytes(b).to_f64())),
            Element::F32 => real(Dtype::F32, each(bytes, |b| f32::from_le_bytes(b).into())),
            Element::F64 => real(Dtype::F64, each(bytes, f64::from_le_bytes)),
            Element::C64 => complex(Dtype::F32, shape, &each(bytes, |b| f32::from_le_bytes(b).into())),
            Element::C128 => complex(Dtype::F64, shape, &each(bytes, f64::from_le_bytes)),
        }
    }
}

fn each<const N: usize, V>(bytes: &[u8], value: impl Fn([u8; N]) -> V) -> Vec<V> {
    bytes.as_chunks().0.iter().map(|&b| value(b)).collect()
}

fn array<V>(shape: &[usize], values: Vec<V>) -> Result<ArrayD<V>, Refusal> {
    ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|_| Refusal::new("a possible shape", format!("{shape:?}")))
}

fn complex(dtype: Dtype, shape: &[usize], parts: &[f64]) -> Result<Decoded, Refusal> {
    let part = |which: usize| array(shape, parts.iter().skip(which).step_by(2).copied().collect());
    Ok(Decoded::Complex(dtype, [part(0)?, part(1)?]))
}

/// A number of 8 bits: a sign, `E` bits of exponent with this bias, and a fraction, with no infinities.
fn small<const E: u32>(bits: u8, bias: i32) -> f64 {
    let fraction_bits = 7 - E;
    let exponent = i32::from(bits >> fraction_bits) & ((1 << E) - 1);
    let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
    let size = match exponent {
        0 => fraction * f64::powi(2.0, 1 - bias),
        _ => (1.0 + fraction) * f64::powi(2.0, exponent - bias),
    };
    if bits & 0x80 == 0 { size } else { -size }
}
