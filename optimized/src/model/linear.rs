//! Linear layers: by our own kernel, or by a library, as the model's settings say.

use super::weights::Loader;
use super::{Products, Settings};
use crate::operators::gemm::{linear, linear_by_library, linear_shared};
use crate::operators::rms_norm::{linear_add_rms_norm, linear_rms_norm};
use crate::operators::scratch::Scratch;
use crate::{Result, Tensor};

/// A weight and perhaps a bias.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn load(loader: &mut Loader, path: &str, out: usize, into: usize, bias: bool) -> Result<Self> {
        let weight = loader.load(&format!("{path}.weight"), &[out, into])?;
        let bias = bias.then(|| loader.load(&format!("{path}.bias"), &[out])).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// Several layers of one input, the rows of one below those of another: one product makes all their results. If one has
    /// a bias all have one, of zeros.
    pub(super) fn stacked(loader: &mut Loader, into: usize, parts: &[(String, usize, bool)]) -> Result<Self> {
        let &mut Loader { device, settings, .. } = loader;
        let out = parts.iter().map(|(_, out, _)| out).sum();
        let weight = Tensor::empty(device, settings.element, &[out, into])?;
        let has_bias = parts.iter().any(|(.., bias)| *bias);
        let bias = has_bias.then(|| Tensor::empty(device, settings.element, &[out])).transpose()?;
        let mut row = 0;
        for (path, out, has_bias) in parts {
            loader.load_into(&format!("{path}.weight"), &[*out, into], &weight.narrow(0, row..row + out)?)?;
            if let Some(bias) = &bias {
                let place = bias.narrow(0, row..row + out)?;
                match has_bias {
                    true => loader.load_into(&format!("{path}.bias"), &[*out], &place)?,
                    false => loader.fill_zero(&place)?,
                }
            }
            row += out;
        }
        Ok(Linear { weight, bias })
    }

    /// The same into `out`, by our own kernels, with several blocks for each tile where there are few.
    pub(super) fn forward_shared(&self, scratch: &Scratch, x: &Tensor, out: &Tensor) -> Result<()> {
        linear_shared(scratch, x, &self.weight, self.bias.as_ref(), out)
    }

    /// [`Linear::forward_shared`] into `out`, then the norm of its first columns into `y`.
    pub(super) fn forward_norm(
        &self,
        scratch: &Scratch,
        x: &Tensor,
        out: &Tensor,
        [gain, y]: [&Tensor; 2],
        eps: f32,
    ) -> Result<()> {
        linear_rms_norm(scratch, x, &self.weight, self.bias.as_ref(), out, gain, eps, y)
    }

    /// The same, added to `stream`; the norm of the sum goes into `y`.
    pub(super) fn forward_add_norm(
        &self,
        scratch: &Scratch,
        x: &Tensor,
        [stream, gain, y]: [&Tensor; 3],
        eps: f32,
    ) -> Result<()> {
        linear_add_rms_norm(scratch, x, &self.weight, self.bias.as_ref(), stream, gain, eps, stream, y)
    }

    /// x W^T + b: \[N,in\] -> \[N,out\].
    pub(super) fn forward(&self, settings: Settings, x: &Tensor) -> Result<Tensor> {
        let y = Tensor::empty(x.device(), x.element(), &[x.shape()[0], self.weight.shape()[0]])?;
        product(settings, x, &self.weight, self.bias.as_ref(), &y)?;
        Ok(y)
    }
}

/// `out = x Wᵀ + b`. A library makes the plain ones alone: a bias is added by our kernel, before it rounds.
pub(super) fn product(
    settings: Settings,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    out: &Tensor,
) -> Result<()> {
    match (settings.products, bias) {
        (Products::Library, None) => linear_by_library(x, weight, out),
        _ => linear(settings.variant, x, weight, bias, out),
    }
}
