//! The bytes of tensors, and the part of the model that each belongs to.

use std::fmt;
use std::str::FromStr;

use dsv2_optimized::model::Settings;
use dsv2_optimized::{Element, Variant};
use serde::Serialize;

use super::Weights;
use crate::error::{Error, Result};

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// As published: two bytes a number.
    Bf16,
    /// Four.
    F32,
    /// Matrices of linear layers with a byte a number and an fp32 scale for each 128 x 128; embedding, head, router, norms and
    /// biases in bf16. The CUDA model does not load it.
    Fp8,
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            WeightFormat::Bf16 => "bf16",
            WeightFormat::F32 => "f32",
            WeightFormat::Fp8 => "fp8",
        })
    }
}

impl FromStr for WeightFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [WeightFormat::Bf16, WeightFormat::F32, WeightFormat::Fp8];
        let found = all.into_iter().find(|format| format.to_string() == text);
        found.ok_or_else(|| Error::request("--weights", "bf16, f32 or fp8", format!("{text:?}")))
    }
}

impl WeightFormat {
    /// The type of activations, and of a cache that is not packed.
    pub fn computed_in(self) -> Element {
        if self == WeightFormat::F32 { Element::F32 } else { Element::Bf16 }
    }

    pub(super) fn settings(self) -> Settings {
        Settings::new(self.computed_in(), Variant::Tuned)
    }

    fn bytes(self, part: Part, shape: &[usize]) -> u64 {
        let plain = self.computed_in().bytes() as u64;
        let numbers = shape.iter().fold(1, |product: u64, side| product.saturating_mul(*side as u64));
        match (self, shape) {
            (WeightFormat::Fp8, [rows, columns]) if part.is_linear() => {
                let scales = (rows.div_ceil(128) as u64).saturating_mul(columns.div_ceil(128) as u64);
                numbers.saturating_add(scales.saturating_mul(4))
            }
            _ => numbers.saturating_mul(plain),
        }
    }
}

/// A part of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The embedding and the head.
    Vocabulary,
    /// All projections of attention.
    Attention,
    /// The feed-forward networks of layers without experts.
    DenseMlps,
    /// The experts that every token visits.
    SharedExperts,
    /// The others.
    RoutedExperts,
    /// What chooses them.
    Routers,
    /// The gains of all norms.
    Norms,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Part::Vocabulary => "embedding, head",
            Part::Attention => "attention",
            Part::DenseMlps => "dense MLPs",
            Part::SharedExperts => "shared experts",
            Part::RoutedExperts => "routed experts",
            Part::Routers => "routers",
            Part::Norms => "norms",
        })
    }
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Vocabulary,
        Self::Attention,
        Self::DenseMlps,
        Self::SharedExperts,
        Self::RoutedExperts,
        Self::Routers,
        Self::Norms,
    ];

    /// That of a checkpoint's tensor.
    fn of(name: &str) -> Self {
        let module = name.rsplit('.').nth(1).unwrap_or_default();
        let within = |part: &str| name.contains(part);
        match module {
            "embed_tokens" | "lm_head" => Part::Vocabulary,
            "gate" => Part::Routers,
            _ if module.ends_with("norm") => Part::Norms,
            _ if within(".self_attn.") => Part::Attention,
            _ if within(".mlp.experts.") => Part::RoutedExperts,
            _ if within(".mlp.shared_experts.") => Part::SharedExperts,
            _ => Part::DenseMlps,
        }
    }

    /// Whether its matrices are those of linear layers that are kept in 8 bits.
    fn is_linear(self) -> bool {
        matches!(self, Part::Attention | Part::DenseMlps | Part::SharedExperts | Part::RoutedExperts)
    }
}

/// The bytes of each part of which there is something.
pub(super) fn by_part(tensors: &[(String, Vec<usize>)], format: WeightFormat) -> Vec<Weights> {
    let mut parts = Part::ALL.map(|part| Weights { part, bytes: 0 });
    for (name, shape) in tensors {
        let part = Part::of(name);
        let of_part = parts.iter_mut().filter(|weights| weights.part == part);
        of_part.for_each(|weights| weights.bytes = weights.bytes.saturating_add(format.bytes(part, shape)));
    }
    parts.into_iter().filter(|weights| weights.bytes > 0).collect()
}

#[cfg(test)]
mod tests {
    use dsv2_reference::config::Head;
    use dsv2_reference::{DeepseekV2Config, Dialect};

    use super::*;

    fn numbers(preset: &str, format: WeightFormat) -> Vec<(String, u64)> {
        let tensors = DeepseekV2Config::preset(preset).unwrap().weight_shapes(Head::CausalLm, Dialect::Hf);
        by_part(&tensors, format).into_iter().map(|weights| (weights.part.to_string(), weights.bytes)).collect()
    }

    #[test]
    fn every_tensor_belongs_to_the_part_that_its_name_says() {
        // 60 layers, the first of them dense; D = 5120, 128 heads
        let attention = 5120 * (1536 + 576) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 5120;
        let expected: [(&str, u64); 7] = [
            ("embedding, head", 2 * 102_400 * 5120),
            ("attention", 60 * attention),
            ("dense MLPs", 3 * 5120 * 12_288),
            ("shared experts", 59 * 3 * 5120 * 3072),
            ("routed experts", 59 * 160 * 3 * 5120 * 1536),
            ("routers", 59 * 160 * 5120),
            ("norms", 60 * (2 * 5120 + 1536 + 512) + 5120),
        ];
        let expected = expected.map(|(part, numbers)| (part.to_owned(), 2 * numbers));
        assert_eq!(numbers("v2", WeightFormat::Bf16), expected);
        let sum: u64 = expected.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(sum, 2 * DeepseekV2Config::preset("v2").unwrap().parameter_count());
    }

    #[test]
    fn in_eight_bits_a_matrix_has_a_scale_for_each_block_and_the_rest_is_as_it_was() {
        let (plain, fp8) = (numbers("v2-lite", WeightFormat::Bf16), numbers("v2-lite", WeightFormat::Fp8));
        for ((part, plain), (_, fp8)) in plain.iter().zip(&fp8) {
            match part.as_str() {
                // 1408 is 11 times 128, and so are all other sides multiples of it, or the 576 of attention's latents
                "routed experts" | "shared experts" => assert_eq!(*fp8, plain / 2 + 4 * (plain / 2 / 128 / 128)),
                "attention" => assert!(*fp8 > plain / 2 && *fp8 < plain / 2 + plain / 4096, "{plain}, {fp8}"),
                "dense MLPs" => assert!(*fp8 > plain / 2 && *fp8 < plain / 2 + plain / 4096, "{plain}, {fp8}"),
                _ => assert_eq!(fp8, plain, "{part}"),
            }
        }
    }
}
