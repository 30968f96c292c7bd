//! The memory that a warp sees, and the checks of every access to it.

use super::block::Failed;
use super::registers::{FULL, LANES, lanes};
use crate::Space;
use crate::error::Cause;
use crate::memory::Memory;
use crate::memory::address;
use crate::memory::store::Store;

/// All state spaces, as the lanes of one warp see them.
pub(crate) struct View<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) params: &'a Store,
    pub(crate) shared: &'a Store,
    pub(crate) local: &'a Store,
    /// Whether reading what was never written is an error.
    pub(crate) checked: bool,
}

/// Bytes that may be accessed.
pub(crate) struct Spot<'a> {
    pub(crate) store: &'a Store,
    pub(crate) offset: u64,
}

/// Bytes of one piece of memory that several lanes may access.
pub(crate) struct Group<'a> {
    pub(crate) store: &'a Store,
    /// The address of its first byte.
    pub(crate) base: u64,
    /// If all lanes are there, and each is as far behind the one before it: how far. Nothing, or as much as it accesses.
    pub(crate) step: Option<u64>,
}

/// What is asked of an access.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) space: Space,
    pub(crate) bytes: u32,
    pub(crate) writes: bool,
    pub(crate) reads: bool,
}

impl<'a> View<'a> {
    /// Finds the bytes at an address of a lane: right space, alignment, bounds, and written if they are read.
    #[inline]
    pub(crate) fn locate(&self, request: Request, lane: usize, address: u64) -> Result<Spot<'a>, Failed> {
        self.find(request, lane, address).map_err(|cause| (lane, cause))
    }

    #[inline]
    fn find(&self, request: Request, lane: usize, address: u64) -> Result<Spot<'a>, Cause> {
        let Request { space, bytes, writes, reads } = request;
        if address & u64::from(bytes - 1) != 0 {
            return Err(Cause::Misaligned { space, address, bytes });
        }
        let spot = match space {
            Space::Global | Space::Const => self.device(request, address)?,
            Space::Shared => within(self.shared, request, address)?,
            Space::Local => self.local(request, lane, address)?,
            Space::Param => within(self.params, request, address)?,
            Space::Generic => match address::generic(address) {
                (Space::Shared, offset) => within(self.shared, Request { space: Space::Shared, ..request }, offset)?,
                (Space::Local, offset) => self.local(Request { space: Space::Local, ..request }, lane, offset)?,
                (Space::Param, _) if writes => {
                    return Err(Cause::ReadOnly { space: Space::Param, address, bytes });
                }
                (Space::Param, offset) => within(self.params, Request { space: Space::Param, ..request }, offset)?,
                _ => self.device(request, address)?,
            },
        };
        if writes && matches!(space, Space::Const | Space::Param) {
            return Err(Cause::ReadOnly { space, address, bytes });
        }
        if reads && self.checked && !spot.store.is_written(spot.offset, bytes) {
            return Err(self.unwritten(request, address, spot.offset));
        }
        Ok(spot)
    }

    /// The usual case, faster: all lanes of `mask` point into one piece of memory, and nothing is wrong. `None` says
    /// nothing but that each lane must be looked at.
    #[inline]
    pub(crate) fn together(&self, request: Request, mask: u32, addresses: &[u64; LANES]) -> Option<Group<'a>> {
        let Request { space, bytes, writes, reads } = request;
        let first = addresses[mask.trailing_zeros() as usize % LANES];
        let (home, base) = match space {
            Space::Generic => match address::generic(first).0 {
                home @ Space::Shared => (home, address::SHARED),
                home @ Space::Param => (home, address::PARAM),
                home => (home, 0),
            },
            space => (space, 0),
        };
        let (store, base) = match home {
            Space::Shared => (self.shared, base),
            Space::Param if !writes => (self.params, base),
            Space::Global | Space::Const => {
                let (allocation, offset) = self.memory.locate(first, u64::from(bytes)).ok()?;
                let fits = allocation.constant == (home == Space::Const) && !(writes && allocation.constant);
                (&allocation.store, fits.then(|| first.wrapping_sub(offset))?)
            }
            _ => return None,
        };
        let last = store.bytes().checked_sub(u64::from(bytes))?;
        let group = |step| Some(Group { store, base, step });
        if let Some(step) = even_step(mask, addresses, u64::from(bytes)) {
            let offset = first.wrapping_sub(base);
            let size = bytes + step as u32 * (LANES as u32 - 1);
            let fits = offset <= last && offset + u64::from(size) <= store.bytes();
            let aligned = offset & u64::from(bytes - 1) == 0;
            let written = |lane: u64| store.is_written(offset + lane * step, bytes);
            let all_written =
                || if bytes < 4 { (0..LANES as u64).all(written) } else { store.is_written(offset, size) };
            return if fits && aligned && (!reads || !self.checked || all_written()) {
                group(Some(step))
            } else {
                None
            };
        }
        let wrong = lanes(mask).fold(false, |wrong, lane| {
            let offset = addresses[lane].wrapping_sub(base);
            wrong | (offset > last) | (offset & u64::from(bytes - 1) != 0)
        });
        if wrong {
            return None;
        }
        let written = |lane: usize| store.is_written(addresses[lane].wrapping_sub(base), bytes);
        if !reads || !self.checked || lanes(mask).all(written) { group(None) } else { None }
    }

    #[inline]
    fn device(&self, request: Request, address: u64) -> Result<Spot<'a>, Cause> {
        let Request { space, bytes, writes, .. } = request;
        let (allocation, offset) = self.memory.locate(address, u64::from(bytes))?;
        let wanted = match space {
            Space::Const => allocation.constant,
            Space::Global => !allocation.constant,
            _ => true,
        };
        if !wanted {
            return Err(Cause::NoAllocation { space, address, bytes });
        }
        if writes && allocation.constant {
            return Err(Cause::ReadOnly { space: Space::Const, address, bytes });
        }
        Ok(Spot { store: &allocation.store, offset })
    }

    fn local(&self, request: Request, lane: usize, address: u64) -> Result<Spot<'a>, Cause> {
        let size = self.local.bytes() / LANES as u64;
        if address > size || size - address < u64::from(request.bytes) {
            return Err(outside(request, address, size));
        }
        Ok(Spot { store: self.local, offset: lane as u64 * size + address })
    }

    /// The error about bytes that were never written.
    #[cold]
    fn unwritten(&self, request: Request, address: u64, offset: u64) -> Cause {
        let Request { space, bytes, .. } = request;
        let home = if space == Space::Generic { address::generic(address).0 } else { space };
        let name = match home {
            Space::Global | Space::Const => {
                self.memory.locate(address, 0).map(|(allocation, _)| allocation.name.clone())
            }
            _ => Ok(region(home).to_string()),
        };
        let offset = if home == Space::Local { offset % (self.local.bytes() / LANES as u64) } else { offset };
        let hint =
            if home == Space::Shared { " (never stored, or an asynchronous copy is not waited for)" } else { "" };
        Cause::Uninitialised { space, address, bytes, offset, name: name.unwrap_or_default(), hint }
    }
}

/// How far each lane is behind the one before it, if that is nothing or so many bytes and all lanes are there.
#[inline]
fn even_step(mask: u32, addresses: &[u64; LANES], bytes: u64) -> Option<u64> {
    let [first, second, ..] = *addresses;
    let step = second.wrapping_sub(first);
    if mask != FULL || step != 0 && step != bytes {
        return None;
    }
    // One loop without a branch, which becomes vector code.
    let mut expected = first;
    let apart = addresses.iter().fold(0, |apart, address| {
        let differs = address ^ expected;
        expected = expected.wrapping_add(step);
        apart | differs
    });
    (apart == 0).then_some(step)
}

/// The bytes at an offset of a memory that has no allocations.
#[inline]
fn within<'a>(store: &'a Store, request: Request, offset: u64) -> Result<Spot<'a>, Cause> {
    let size = store.bytes();
    if offset > size || size - offset < u64::from(request.bytes) {
        return Err(outside(request, offset, size));
    }
    Ok(Spot { store, offset })
}

fn region(space: Space) -> &'static str {
    match space {
        Space::Shared => "the block's shared memory",
        Space::Local => "the thread's local memory",
        Space::Param => "the parameters",
        _ => "the memory",
    }
}

#[cold]
fn outside(request: Request, offset: u64, size: u64) -> Cause {
    let Request { space, bytes, .. } = request;
    let name = region(space).to_string();
    // A 32-bit address that went below zero is a large number; show it as what it was meant to be.
    let signed = if offset >> 31 == 1 { i64::from(offset as u32 as i32) } else { offset as i64 };
    Cause::OutOfBounds { space, address: offset, bytes, offset: signed, name, size }
}
