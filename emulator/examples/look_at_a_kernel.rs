//! What the emulator says of a kernel beyond its result: who races with whom, and what a launch costs.
//!
//! ```text
//! cargo run --release -p ptx-emulator --example look_at_a_kernel
//! ```

use ptx_emulator::profile::Profile;
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Arg, Emulator, Error, Grid, Module, Options};

/// Two threads add to one number without an atomic: whose sum stays is anybody's guess.
const COUNT: &str = "
    .version 8.4
    .target sm_80
    .address_size 64
    .visible .entry count(.param .u64 counter)
    {
        .reg .b32 %r<3>;
        .reg .b64 %rd<2>;
        ld.param.u64 %rd1, [counter];
        ld.global.u32 %r1, [%rd1];
        add.u32 %r2, %r1, 1;
        st.global.u32 [%rd1], %r2;
        ret;
    }";

fn main() -> Result<(), Error> {
    let module = Module::parse(COUNT)?;
    let mut gpu = Emulator::new();
    let counter = gpu.upload(&0u32.to_le_bytes())?;
    let (grid, args) = (Grid::linear(1, 64), [Arg::from(counter)]);

    let mut races = RaceDetector::new();
    gpu.launch_watched(&module, "count", grid, &args, Options::default(), &mut races)?;
    races.races().iter().for_each(|race| println!("{race}"));

    let mut profile = Profile::new();
    gpu.launch_watched(&module, "count", grid, &args, Options::default(), &mut profile)?;
    println!("\n{profile}");
    Ok(())
}
