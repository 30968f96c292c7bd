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
    let args = [Arg::from(gpu.upload(&0u32.to_le_bytes())?)];
    let (mut races, mut profile) = (RaceDetector::new(), Profile::new());
    gpu.launch_watched(&module, "count", Grid::linear(1, 64), &args, Options::default(), &mut races)?;
    gpu.launch_watched(&module, "count", Grid::linear(1, 64), &args, Options::default(), &mut profile)?;
    races.races().iter().for_each(|race| println!("{race}"));
    println!("\n{profile}");
    Ok(())
}
