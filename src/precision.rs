//! What a computation is done in, and how finely its types resolve.

use std::fmt;
use std::str::FromStr;

use dsv2_reference::Dtype;
use dsv2_reference::round::RoundingTap;

use crate::error::{Error, Result};

/// What a backend computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Double precision: the truth.
    #[default]
    F64,
    /// Single precision.
    F32,
    /// Single precision whose matrix products read their operands with 10 bits of fraction.
    Tf32,
    /// Every stage stored in IEEE half around fp32 arithmetic; router and rotary tables in fp32.
    F16,
    /// The same in bf16.
    Bf16,
    /// bf16 around matrix products of fp8 numbers: weights that the checkpoint has in 8 bits are multiplied with operands of 8
    /// bits, which are made for each product, with a scale for as many neighbours of a token as share one in the weight (128,
    /// or all). Router, head and whatever the checkpoint has in more bits are as in bf16.
    Fp8,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 6] =
        [Precision::F64, Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16, Precision::Fp8];

    /// The type in which a computation of this precision stores a stage.
    pub fn stored(self, stage: &str) -> Dtype {
        match self {
            Precision::F64 => Dtype::F64,
            Precision::F16 if RoundingTap::rounds(stage) => Dtype::F16,
            Precision::Bf16 | Precision::Fp8 if RoundingTap::rounds(stage) => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }

    /// The type narrower than fp32 in which most stages are stored.
    pub fn narrow(self) -> Option<Dtype> {
        match self {
            Precision::F16 => Some(Dtype::F16),
            Precision::Bf16 | Precision::Fp8 => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Fp8 => "fp8",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Precision::ALL.into_iter().find(|precision| precision.to_string() == text);
        named.ok_or_else(|| Error::request("dtype", "f64, f32, tf32, f16, bf16 or fp8", format!("{text:?}")))
    }
}

/// Whether a stage, by its name, is one of those asked for.
pub type Choice<'a> = &'a dyn Fn(&str) -> bool;

/// Half the distance of neighbours, relative.
pub fn unit_roundoff(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => 2.0_f64.powi(-8),
        Dtype::F16 => 2.0_f64.powi(-11),
        Dtype::F32 => 2.0_f64.powi(-24),
        Dtype::F64 => 2.0_f64.powi(-53),
    }
}
