//! A device of a rank: what is asked for waits in the rank's stream until something is waited for.

use std::sync::Arc;

use ptx_emulator::{Arg, Grid};

use super::Posted;
use super::world::World;
use crate::device::{Counts, Graph};
use crate::{Device, Emulated, Error, Kernel, Result};

/// Something that a stream holds.
#[derive(Debug)]
pub(super) enum Step {
    Launch(Kernel, Grid, Vec<Arg>),
    Copy { from: u64, to: u64, bytes: usize },
    Fill { address: u64, byte: u8, bytes: usize },
    Write { address: u64, data: Vec<u8> },
    Free(u64),
    Collective(Posted),
}

impl Step {
    /// The collective that it is, if it is one.
    pub(super) fn call(&self) -> Option<&Posted> {
        match self {
            Step::Collective(call) => Some(call),
            _ => None,
        }
    }

    /// Does what needs no other rank.
    pub(super) fn perform(&self, device: &Emulated) -> Result<()> {
        match self {
            Step::Launch(kernel, grid, args) => device.launch(kernel, *grid, args),
            Step::Copy { from, to, bytes } => device.copy(*from, *to, *bytes),
            Step::Fill { address, byte, bytes } => device.fill(*address, *byte, *bytes),
            Step::Write { address, data } => device.write(*address, data),
            Step::Free(address) => {
                device.free(*address);
                Ok(())
            }
            Step::Collective(call) => Err(Error::operand("stream", "step", "one that needs no other rank", call)),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Launch(kernel, ..) => write!(f, "{kernel}"),
            Step::Copy { .. } => write!(f, "a copy on the device"),
            Step::Fill { .. } => write!(f, "filling memory"),
            Step::Write { .. } => write!(f, "a copy from the host"),
            Step::Free(_) => write!(f, "giving memory back"),
            Step::Collective(call) => write!(f, "{call}"),
        }
    }
}

/// The device of one rank.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) world: Arc<World>,
    pub(super) rank: usize,
}

impl Streamed {
    fn inner(&self) -> &Emulated {
        self.world.device(self.rank)
    }
}

impl Device for Streamed {
    fn name(&self) -> String {
        format!("emulator, rank {} of {}", self.rank, self.world.ranks())
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.inner().allocate(bytes)
    }

    fn free(&self, address: u64) {
        self.world.push(self.rank, Step::Free(address));
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.world.push(self.rank, Step::Write { address, data: data.to_vec() });
        Ok(())
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.world.wait(self.rank)?;
        self.inner().read(address, data)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.world.push(self.rank, Step::Copy { from, to, bytes });
        Ok(())
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        self.world.push(self.rank, Step::Fill { address, byte, bytes });
        Ok(())
    }

    fn launch(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        self.world.push(self.rank, Step::Launch(kernel.clone(), grid, args.to_vec()));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.world.wait(self.rank)?;
        self.inner().synchronize()
    }

    fn capture(self: Arc<Self>, _: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        Err(Error::operand("capture", "device", "one without other ranks", self.name()))
    }

    fn counts(&self) -> Counts {
        self.inner().counts()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.inner().memory()
    }
}
