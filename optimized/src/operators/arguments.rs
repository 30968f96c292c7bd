//! The arguments of a kernel.

use ptx_emulator::{Arg, Grid};

use crate::{Kernel, Result, Tensor};

/// The arguments of a kernel, in its order.
#[derive(Default)]
pub(super) struct Arguments(Vec<Arg>);

impl Arguments {
    /// Pointers to the first elements.
    pub(super) fn tensors<const N: usize>(mut self, tensors: [&Tensor; N]) -> Self {
        self.0.extend(tensors.map(Tensor::arg));
        self
    }

    /// The pointer to the first element; null if there is no tensor.
    pub(super) fn optional(self, tensor: Option<&Tensor>) -> Self {
        self.and(tensor.map_or(0, Tensor::address))
    }

    /// The pointer to the first element, then the steps along the first `axes` axes.
    pub(super) fn strided(mut self, tensor: &Tensor, axes: usize) -> Self {
        self.0.push(tensor.arg());
        self.0.extend(tensor.strides()[..axes].iter().map(|stride| Arg::from(*stride as i64)));
        self
    }

    /// The pointer to a mask (null if there is none) and its steps along sequences and tokens; 0 where it is the same for all.
    pub(super) fn mask(self, mask: Option<&Tensor>) -> Self {
        let step =
            |axis: usize| mask.filter(|mask| mask.shape()[axis] != 1).map_or(0, |mask| mask.strides()[axis] as i64);
        self.optional(mask).and(step(0)).and(step(1))
    }

    /// Sizes, each an `int`.
    pub(super) fn sizes<const N: usize>(mut self, sizes: [usize; N]) -> Self {
        self.0.extend(sizes.map(|size| Arg::from(size as i32)));
        self
    }

    /// Others after them.
    pub(super) fn followed_by(mut self, others: Arguments) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Anything else.
    pub(super) fn and(mut self, argument: impl Into<Arg>) -> Self {
        self.0.push(argument.into());
        self
    }

    /// Launches a kernel of a module with them, on the device of a tensor.
    pub(super) fn launch(&self, on: &Tensor, module: &'static str, entry: String, grid: Grid) -> Result<()> {
        on.device().launch(&Kernel::new(module, entry), grid, &self.0)
    }
}
