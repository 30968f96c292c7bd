//! What the tests share: modules, typed copies, launches.

use ptx_emulator::{Arg, DevicePointer, Emulator, Error, Fault, Grid, Module, Options};

pub const BASICS: &str = include_str!("ptx/basics.ptx");
pub const ARITHMETIC: &str = include_str!("ptx/arithmetic.ptx");
pub const GEMM: &str = include_str!("ptx/gemm.ptx");

/// A device and a module.
pub struct Bench {
    pub gpu: Emulator,
    pub module: Module,
}

impl Bench {
    pub fn new(text: &str) -> Self {
        Self { gpu: Emulator::new(), module: Module::parse(text).unwrap() }
    }

    pub fn put<T: Number>(&mut self, data: &[T]) -> DevicePointer {
        self.gpu.upload(&bytes(data)).unwrap()
    }

    pub fn room<T: Number>(&mut self, count: usize) -> DevicePointer {
        self.gpu.allocate((count * T::BYTES) as u64).unwrap()
    }

    pub fn get<T: Number>(&self, pointer: DevicePointer) -> Vec<T> {
        self.gpu.read(pointer).unwrap().chunks_exact(T::BYTES).map(T::from_bytes).collect()
    }

    pub fn run(&mut self, kernel: &str, grid: Grid, args: &[Arg]) {
        self.try_run(kernel, grid, args).unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn try_run(&mut self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<(), Error> {
        self.gpu.launch(&self.module, kernel, grid, args, Options::default()).map(|_| ())
    }
}

/// A number that is copied to and from the device.
pub trait Number: Copy {
    const BYTES: usize;
    fn to_bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Number for $number {
            const BYTES: usize = size_of::<$number>();
            fn to_bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )+};
}

numbers!(u16, u32, i32, u64, f32, f64);

pub fn bytes<T: Number>(data: &[T]) -> Vec<u8> {
    data.iter().flat_map(|number| number.to_bytes()).collect()
}

/// A small generator of test data, the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let x = self.0 ^ self.0 >> 32;
        x.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ x >> 29
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A module with one kernel around a body; its parameters are 64-bit pointers `p0`, `p1`, ...
pub fn module(params: usize, body: &str) -> String {
    let list: Vec<String> = (0..params).map(|index| format!(".param .u64 p{index}")).collect();
    format!(
        ".version 8.4\n.target sm_80\n.address_size 64\n.visible .entry kernel({})\n{{\n{body}\n}}\n",
        list.join(", ")
    )
}

/// The fault that a launch must end with.
pub fn fault<T: std::fmt::Debug>(result: Result<T, Error>) -> Fault {
    match result {
        Err(Error::Fault(fault)) => *fault,
        other => panic!("no fault: {other:?}"),
    }
}
