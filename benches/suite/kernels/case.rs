//! What a kernel's benchmark is: an operator on operands of some shape, and what that costs at least.

use std::cell::Cell;
use std::sync::Arc;

use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::weights::generator::splitmix64;

use crate::bench::Profile;

/// For which machine shapes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// An emulator that counts: the models' widths, but few rows and few columns of weights.
    Counts(Profile),
    /// A GPU: the models' shapes.
    Gpu(Profile),
}

/// Bytes and operations that an operator cannot do without: each byte of its operands read once, each of its results
/// written once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub read: usize,
    pub written: usize,
    /// Floating-point operations; a multiplication with addition is two, any function one.
    pub flops: usize,
}

impl Work {
    pub fn bytes(&self) -> usize {
        self.read + self.written
    }
}

/// The shape of a published model, as far as kernels see it.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub name: &'static str,
    /// D
    pub hidden: usize,
    /// H
    pub heads: usize,
    /// E
    pub experts: usize,
    /// I
    pub inner: usize,
    /// Groups of experts, and how many of them a token may go to.
    pub groups: (usize, usize),
}

pub const LITE: Model = Model { name: "V2-Lite", hidden: 2048, heads: 16, experts: 64, inner: 1408, groups: (1, 1) };
pub const V2: Model = Model { name: "V2", hidden: 5120, heads: 128, experts: 160, inner: 1536, groups: (8, 3) };

/// What both have: c, r, n, v, k, and tokens of the vocabulary.
pub const LATENT: usize = 512;
pub const ROPE: usize = 64;
pub const NOPE: usize = 128;
pub const VALUE: usize = 128;
pub const TOP_K: usize = 6;
pub const VOCAB: usize = 102_400;

/// Launches an operator on operands that are there.
pub type Launch = Box<dyn Fn() -> Result<()>>;

type Prepare = Box<dyn Fn(&Data) -> Result<Launch>>;

/// One benchmark.
pub struct Case {
    pub operator: &'static str,
    pub variant: Variant,
    pub element: Element,
    pub model: &'static str,
    sizes: Vec<(&'static str, usize)>,
    pub work: Work,
    /// Whether tensor cores can do its operations.
    pub matrix: bool,
    prepare: Prepare,
}

/// Which kernel of an operator.
pub type Kind = (Variant, Element);

impl Case {
    pub fn new(
        operator: &'static str,
        (variant, element): Kind,
        model: Model,
        sizes: &[(&'static str, usize)],
        work: Work,
        prepare: impl Fn(&Data) -> Result<Launch> + 'static,
    ) -> Self {
        let (model, prepare) = (model.name, Box::new(prepare));
        Case { operator, variant, element, model, sizes: sizes.to_vec(), work, matrix: false, prepare }
    }

    /// A matrix product: in bf16 its floor is that of tensor cores.
    pub fn of_matrices(self) -> Self {
        Case { matrix: self.element == Element::Bf16, ..self }
    }

    /// `kernels/OPERATOR/VARIANT/TYPE`
    pub fn group(&self) -> String {
        format!("kernels/{}/{}/{}", self.operator, self.variant, self.element)
    }

    /// Such as `H=16_B=1_T=256`.
    pub fn shape(&self) -> String {
        self.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join("_")
    }

    /// The size of an axis.
    pub fn size(&self, axis: &str) -> Option<usize> {
        self.sizes.iter().find(|(name, _)| *name == axis).map(|(_, size)| *size)
    }

    /// `kernels/OPERATOR/VARIANT/TYPE/SHAPE`
    pub fn id(&self) -> String {
        format!("{}/{}", self.group(), self.shape())
    }

    /// Puts operands on a device; another seed, other numbers.
    pub fn prepare(&self, device: &Arc<dyn Device>, seed: u64) -> Result<Launch> {
        (self.prepare)(&Data::new(device, seed))
    }
}

impl Scale {
    /// The kernels that are looked at: of a small shape the naive one and fp32 as well.
    pub fn kinds(self, small: bool) -> Vec<Kind> {
        use Element::{Bf16, F32};
        use Variant::{Naive, Tuned};
        match self {
            Scale::Counts(Profile::Quick) if small => vec![(Naive, Bf16), (Tuned, Bf16)],
            Scale::Gpu(Profile::Quick) if small => vec![(Tuned, Bf16)],
            Scale::Counts(Profile::Quick) | Scale::Gpu(Profile::Quick) => vec![],
            _ if small => vec![(Naive, Bf16), (Tuned, Bf16), (Tuned, F32)],
            _ => vec![(Tuned, Bf16)],
        }
    }

    /// One of two lists of shapes.
    pub fn pick<T>(self, counts: T, gpu: T) -> T {
        match self {
            Scale::Counts(_) => counts,
            Scale::Gpu(_) => gpu,
        }
    }
}

/// Random numbers, the same for the same seed.
pub struct Random(Cell<u64>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(Cell::new(splitmix64(seed)))
    }

    fn next(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(1));
        splitmix64(self.0.get())
    }

    /// A number from 0 on, below `bound`.
    pub fn below(&self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// The numbers below `bound` in a random order.
    pub fn shuffled(&self, bound: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..bound).collect();
        for at in (1..bound).rev() {
            numbers.swap(at, self.below(at + 1));
        }
        numbers
    }
}

/// Makes operands.
pub struct Data {
    device: Arc<dyn Device>,
    pub random: Random,
}

/// So many numbers are made on the host; a larger tensor holds them several times.
const DISTINCT: usize = 1 << 22;

impl Data {
    pub fn new(device: &Arc<dyn Device>, seed: u64) -> Self {
        Data { device: device.clone(), random: Random::new(seed) }
    }

    /// Random numbers of mean 0 and this standard deviation.
    pub fn numbers(&self, element: Element, shape: &[usize], deviation: f32) -> Result<Tensor> {
        let (count, width) = (shape.iter().product::<usize>(), deviation * 12_f32.sqrt());
        let number = |_| ((self.random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * width;
        let values: Vec<f32> = (0..count.min(DISTINCT)).map(number).collect();
        if count <= DISTINCT {
            return Tensor::from_f32(&self.device, element, shape, &values);
        }
        let whole = self.room(element, &[count])?;
        whole.narrow(0, 0..DISTINCT)?.write_f32(&values)?;
        let mut done = DISTINCT;
        while done < count {
            let more = done.min(count - done);
            self.device.copy(whole.address(), whole.narrow(0, done..count)?.address(), more * element.bytes())?;
            done += more;
        }
        whole.reshape(shape)
    }

    /// Integers, row by row.
    pub fn integers(&self, shape: &[usize], values: impl IntoIterator<Item = usize>) -> Result<Tensor> {
        let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
        Tensor::from_i32(&self.device, shape, &values)
    }

    /// Room for a result.
    pub fn room(&self, element: Element, shape: &[usize]) -> Result<Tensor> {
        Tensor::empty(&self.device, element, shape)
    }
}
