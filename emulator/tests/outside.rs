//! An outside test: kernels of our own that call CUB's and CUDA's libraries, compiled by nvcc. Nobody wrote that code with
//! this emulator in mind. Every result is compared with a plain formula, every launch watched for races, unwritten bytes
//! followed.
//!
//! `tests/outside/*.ptx` are what `tests/outside/nvcc.py` makes of the `.cu` files beside them.

mod cub;
mod formats;
pub mod groups;
mod math;
mod sources;
mod tiles;

use crate::common::{Bench, Number};
use ptx_emulator::race::{Race, RaceDetector};
use ptx_emulator::{Arg, Grid, Options, Unwritten};

/// One of the modules, on a device of its own.
pub struct Outside(Bench);

impl Outside {
    pub fn new(text: &str) -> Self {
        Self(Bench::new(text))
    }

    /// Runs a kernel on `input`; what it leaves in `count` numbers. `space` is what a third parameter points to.
    pub fn run<I: Number, O: Number>(
        &mut self,
        kernel: &str,
        grid: Grid,
        input: &[I],
        output: &[O],
        space: Option<&[u32]>,
    ) -> Vec<O> {
        let (out, races) = self.run_watched(kernel, grid, input, output, space);
        assert!(races.is_empty(), "{}", races[0]);
        out
    }

    /// The same, with the races that were found.
    pub fn run_watched<I: Number, O: Number>(
        &mut self,
        kernel: &str,
        grid: Grid,
        input: &[I],
        output: &[O],
        space: Option<&[u32]>,
    ) -> (Vec<O>, Vec<Race>) {
        let Self(bench) = self;
        let (from, to) = (bench.put(input), bench.put(output));
        let mut args: Vec<Arg> = vec![from.into(), to.into()];
        args.extend(space.map(|space| Arg::from(bench.put(space))));
        let options = Options { cooperative: true, unwritten: Unwritten::Follow, ..Options::default() };
        let mut races = RaceDetector::new();
        let launched = bench.gpu.launch_watched(&bench.module, kernel, grid, &args, options, &mut races);
        let report = launched.unwrap_or_else(|error| panic!("{error}"));
        assert!(report.unwritten.is_empty(), "{}", report.unwritten[0]);
        (bench.get(to), races.races().to_vec())
    }

    /// The names of the kernels.
    pub fn kernels(&self) -> usize {
        self.0.module.kernels().count()
    }
}

#[test]
fn there_are_more_than_sixty_of_them() {
    let count = |text: &str| Outside::new(text).kernels();
    assert!(count(math::PTX) + count(formats::PTX) + count(cub::PTX) + count(groups::PTX) >= 100);
}
