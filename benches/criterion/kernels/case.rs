//! What a kernel's benchmark is: an operator on operands of some shape, and what that costs at least: each byte of its
//! operands read once, each byte of its results written once, the operations of its formula.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::DeepseekV2Config;
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

/// A published model.
#[derive(Clone, Copy)]
pub struct Model {
    pub name: &'static str,
    config: &'static DeepseekV2Config,
}

impl Deref for Model {
    type Target = DeepseekV2Config;

    fn deref(&self) -> &DeepseekV2Config {
        self.config
    }
}

impl Model {
    /// V2-Lite, V2.
    pub fn all() -> [Self; 2] {
        static CONFIGS: LazyLock<[DeepseekV2Config; 2]> =
            LazyLock::new(|| ["v2-lite", "v2"].map(|name| DeepseekV2Config::preset(name).expect("a published model")));
        [("V2-Lite", &CONFIGS[0]), ("V2", &CONFIGS[1])].map(|(name, config)| Model { name, config })
    }

    /// Of the kernels in all forms the smaller model has to do.
    pub fn is_lite(self) -> bool {
        self.name == "V2-Lite"
    }
}

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
    /// Floating-point operations that it cannot do without; a multiplication with addition is two, any function one.
    pub flops: usize,
    /// Whether tensor cores can do its operations.
    pub matrix: bool,
    prepare: Prepare,
}

/// A case with its operands on a device.
pub struct Prepared {
    pub launch: Launch,
    /// Bytes that it cannot do without: each byte of its operands once.
    pub read: usize,
    /// And each of its results.
    pub written: usize,
}

/// Which kernel of an operator.
pub type Kind = (Variant, Element);

impl Case {
    pub fn new(
        operator: &'static str,
        (variant, element): Kind,
        model: Model,
        sizes: &[(&'static str, usize)],
        flops: usize,
        prepare: impl Fn(&Data) -> Result<Launch> + 'static,
    ) -> Self {
        let (model, prepare) = (model.name, Box::new(prepare));
        Case { operator, variant, element, model, sizes: sizes.to_vec(), flops, matrix: false, prepare }
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

    /// `kernels/OPERATOR/VARIANT/TYPE/SHAPE`
    pub fn id(&self) -> String {
        format!("{}/{}", self.group(), self.shape())
    }

    /// Puts operands on a device; another seed, other numbers.
    pub fn prepare(&self, device: &Arc<dyn Device>, seed: u64) -> Result<Prepared> {
        let data = Data::new(device, (self.variant, self.element), seed);
        let launch = (self.prepare)(&data)?;
        Ok(Prepared { launch, read: data.read.get(), written: data.written.get() })
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

    /// A case for each shape and kernel; with a shape, whether it is a small one.
    pub fn each<S: Copy>(
        self,
        shapes: impl IntoIterator<Item = (bool, Model, S)>,
        case: impl Fn(Kind, Model, S) -> Case,
    ) -> Vec<Case> {
        let of_shape = |(small, model, sizes)| self.kinds(small).into_iter().map(move |kind| (kind, model, sizes));
        shapes.into_iter().flat_map(of_shape).map(|(kind, model, sizes)| case(kind, model, sizes)).collect()
    }

    /// The same for some models and numbers of tokens.
    pub fn rows(self, models: &[Model], case: impl Fn(Kind, Model, usize) -> Case) -> Vec<Case> {
        let tokens = self.pick(vec![16], vec![16, 4096]);
        let of_tokens = |n| models.iter().map(move |model| (n == 16 && model.is_lite(), *model, n));
        self.each(tokens.into_iter().flat_map(of_tokens), case)
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

/// Makes operands, and counts the bytes that have to be read and written.
pub struct Data {
    device: Arc<dyn Device>,
    pub variant: Variant,
    pub element: Element,
    pub random: Random,
    read: Cell<usize>,
    written: Cell<usize>,
}

/// So many numbers are made on the host; a larger tensor holds them several times.
const DISTINCT: usize = 1 << 22;

impl Data {
    pub fn new(device: &Arc<dyn Device>, (variant, element): Kind, seed: u64) -> Self {
        let (read, written) = (Cell::new(0), Cell::new(0));
        Data { device: device.clone(), variant, element, random: Random::new(seed), read, written }
    }

    /// An operand of the case's type, all of which is read.
    pub fn numbers(&self, shape: &[usize], deviation: f32) -> Result<Tensor> {
        self.numbers_of(self.element, shape, deviation)
    }

    /// An operand of another type.
    pub fn numbers_of(&self, element: Element, shape: &[usize], deviation: f32) -> Result<Tensor> {
        let count = shape.iter().product::<usize>();
        self.reads(count * element.bytes());
        self.fill(element, shape, deviation)
    }

    /// An operand of the case's type, of which so many numbers are read.
    pub fn partly_read(&self, shape: &[usize], deviation: f32, read: usize) -> Result<Tensor> {
        self.reads(read * self.element.bytes());
        self.fill(self.element, shape, deviation)
    }

    fn reads(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes);
    }

    /// Random numbers of mean 0 and this standard deviation.
    fn fill(&self, element: Element, shape: &[usize], deviation: f32) -> Result<Tensor> {
        let (count, width) = (shape.iter().product::<usize>(), deviation * 12_f32.sqrt());
        let number = |_| ((self.random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * width;
        let values: Vec<f32> = (0..count.min(DISTINCT)).map(number).collect();
        if count <= DISTINCT {
            return Tensor::from_f32(&self.device, element, shape, &values);
        }
        let whole = Tensor::empty(&self.device, element, &[count])?;
        whole.narrow(0, 0..DISTINCT)?.write_f32(&values)?;
        let mut done = DISTINCT;
        while done < count {
            let more = done.min(count - done);
            self.device.copy(whole.address(), whole.narrow(0, done..count)?.address(), more * element.bytes())?;
            done += more;
        }
        whole.reshape(shape)
    }

    /// Integers that are read, row by row.
    pub fn integers(&self, shape: &[usize], values: impl IntoIterator<Item = usize>) -> Result<Tensor> {
        let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
        self.reads(4 * values.len());
        Tensor::from_i32(&self.device, shape, &values)
    }

    /// Room for a result of the case's type.
    pub fn room(&self, shape: &[usize]) -> Result<Tensor> {
        self.room_of(self.element, shape)
    }

    /// Room for a result of another type.
    pub fn room_of(&self, element: Element, shape: &[usize]) -> Result<Tensor> {
        self.partly_written(element, shape, shape.iter().product())
    }

    /// Room in which so many numbers are written.
    pub fn partly_written(&self, element: Element, shape: &[usize], written: usize) -> Result<Tensor> {
        self.written.set(self.written.get() + written * element.bytes());
        Tensor::empty(&self.device, element, shape)
    }
}
