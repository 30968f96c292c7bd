//! What the observer of a launch is told.

use super::block::Block;
use super::launch::Launch;
use crate::observe::{Access, Site, Sync};

impl Block<'_> {
    pub(super) fn tell_access(&mut self, warp: usize, pc: usize, lanes: u32, access: &Access<'_>) {
        if let Some(observer) = &mut self.observer {
            observer.access(&site(self.launch, self.id, warp, pc, lanes), access);
        }
    }

    pub(super) fn tell_sync(&mut self, warp: usize, pc: usize, lanes: u32, event: Sync) {
        if let Some(observer) = &mut self.observer {
            observer.sync(&site(self.launch, self.id, warp, pc, lanes), event);
        }
    }
}

pub(super) fn site<'a>(launch: &'a Launch<'a>, block: [u32; 3], warp: usize, pc: usize, lanes: u32) -> Site<'a> {
    let instruction = &launch.kernel.code[pc];
    let source = instruction.source.and_then(|(file, line)| {
        let (_, name) = launch.kernel.files.iter().find(|(index, _)| *index == file)?;
        Some((name.as_str(), line))
    });
    Site {
        kernel: &launch.kernel.name,
        opcode: &instruction.opcode,
        line: instruction.line,
        source,
        block,
        warp: warp as u32,
        lanes,
    }
}
