//! Device memory: allocations in one address space, every byte with a shadow bit that says whether it was written.

pub(crate) mod address;
pub(crate) mod store;
pub(crate) mod undo;

use std::collections::VecDeque;

use crate::error::Cause;
use crate::{Error, Space};
use store::Store;

/// How many windows of the address space are used before one is used again.
///
/// So an address that was given back stays invalid while this many allocations follow (less those that are alive): long
/// enough for a use of it to be found.
const WINDOWS: usize = 1 << 20;

/// A device address, as a kernel gets it in its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePointer(u64);

impl DevicePointer {
    /// The pointer to a number, as it stands in a kernel's argument.
    pub fn from_address(address: u64) -> Self {
        Self(address)
    }

    /// The address as a number.
    pub fn address(self) -> u64 {
        self.0
    }

    /// The pointer `bytes` further on (or back).
    #[must_use]
    pub fn offset(self, bytes: i64) -> Self {
        Self(self.0.wrapping_add_signed(bytes))
    }
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) store: Store,
    /// Only `ld.const` and generic loads may touch it.
    pub(crate) constant: bool,
    pub(crate) name: String,
}

/// All allocations. Freed ones stay as `None`, so that an old pointer is not valid.
#[derive(Debug)]
pub(crate) struct Memory {
    allocations: Vec<Option<Allocation>>,
    /// Windows that were given back, the first of them the longest ago.
    freed: VecDeque<usize>,
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Self {
        Self { allocations: vec![], freed: VecDeque::new(), used: 0, limit }
    }

    pub(crate) fn allocate(&mut self, bytes: u64, name: Option<&str>, constant: bool) -> Result<DevicePointer, Error> {
        let no_room = Error::Memory(Cause::NoRoom { bytes, used: self.used, limit: self.limit });
        if bytes > (self.limit - self.used).min(address::LARGEST) {
            return Err(no_room);
        }
        let index = self.window().ok_or(no_room)?;
        let name = name.map_or_else(|| format!("allocation {index}"), str::to_string);
        self.allocations[index] = Some(Allocation { store: Store::new(bytes, true), constant, name });
        self.used += bytes;
        Ok(DevicePointer(address::base(index)))
    }

    /// A window that nobody has: one that nobody ever had, as long as there are any, then the one that was given back
    /// the longest ago.
    fn window(&mut self) -> Option<usize> {
        if self.allocations.len() == WINDOWS {
            return self.freed.pop_front();
        }
        self.allocations.push(None);
        Some(self.allocations.len() - 1)
    }

    pub(crate) fn free(&mut self, pointer: DevicePointer) -> Result<(), Error> {
        let (index, offset) = address::split(pointer.0);
        let slot = self.allocations.get_mut(index).filter(|_| offset == 0);
        let freed = slot.and_then(Option::take).ok_or(Error::Memory(missing(pointer.0, 0)))?;
        self.used -= freed.store.bytes();
        self.freed.push_back(index);
        Ok(())
    }

    /// The allocation that holds all of `bytes` bytes at an address, and where in it they are.
    #[inline]
    pub(crate) fn locate(&self, address: u64, bytes: u64) -> Result<(&Allocation, u64), Cause> {
        let (index, offset) = address::split(address);
        let Some(Some(allocation)) = self.allocations.get(index) else {
            return Err(missing(address, bytes as u32));
        };
        let size = allocation.store.bytes();
        if offset < 0 || offset as u64 > size || size - (offset as u64) < bytes {
            let (name, space, bytes) = (allocation.name.clone(), Space::Global, bytes as u32);
            return Err(Cause::OutOfBounds { space, address, bytes, offset, name, size });
        }
        Ok((allocation, offset as u64))
    }

    /// From an address to the end of its allocation.
    pub(crate) fn rest(&self, pointer: DevicePointer) -> Result<u64, Error> {
        let (allocation, offset) = self.locate(pointer.0, 0).map_err(Error::Memory)?;
        Ok(allocation.store.bytes() - offset)
    }

    pub(crate) fn write(&self, pointer: DevicePointer, data: &[u8]) -> Result<(), Error> {
        let (allocation, offset) = self.locate(pointer.0, data.len() as u64).map_err(Error::Memory)?;
        allocation.store.write(offset, data);
        Ok(())
    }

    pub(crate) fn read_written(&self, pointer: DevicePointer, out: &mut [u8]) -> Result<u64, Error> {
        let (allocation, offset) = self.locate(pointer.0, out.len() as u64).map_err(Error::Memory)?;
        Ok(allocation.store.read_written(offset, out))
    }

    pub(crate) fn read(&self, pointer: DevicePointer, bytes: u64) -> Result<Vec<u8>, Error> {
        let (allocation, offset) = self.locate(pointer.0, bytes).map_err(Error::Memory)?;
        allocation.store.read(offset, bytes).map_err(|at| {
            Error::Memory(Cause::Uninitialised {
                space: Space::Global,
                address: pointer.0 + (at - offset),
                bytes: 1,
                offset: at,
                name: allocation.name.clone(),
                hint: "",
            })
        })
    }
}

fn missing(address: u64, bytes: u32) -> Cause {
    Cause::NoAllocation { space: Space::Global, address, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_end_to_allocations_and_an_old_address_stays_invalid_for_long() {
        let mut memory = Memory::new(100);
        let kept = memory.allocate(4, None, false).unwrap();
        memory.write(kept, &[1, 2, 3, 4]).unwrap();
        let first = memory.allocate(8, None, false).unwrap();
        memory.write(first, &[7; 8]).unwrap();
        memory.free(first).unwrap();
        // With the two before, as many as there are windows.
        for _ in 2..WINDOWS {
            let next = memory.allocate(8, None, false).unwrap();
            assert_ne!(next, first);
            memory.free(next).unwrap();
        }
        assert!(memory.read(first, 1).is_err() && memory.free(first).is_err(), "freed, and nobody else's yet");
        let again = memory.allocate(16, None, false).unwrap();
        assert_eq!(again, first, "the one given back the longest ago");
        // What was there before is not: neither its bytes nor its bounds.
        assert!(matches!(memory.read(again, 8), Err(Error::Memory(Cause::Uninitialised { .. }))));
        assert_eq!(memory.rest(again).unwrap(), 16);
        assert_eq!((memory.read(kept, 4).unwrap(), memory.used), (vec![1, 2, 3, 4], 20));
    }
}
