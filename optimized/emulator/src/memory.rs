//! Device memory: allocations in one address space, every byte with a shadow bit that says whether it was written.

pub(crate) mod address;
pub(crate) mod store;

use crate::error::Cause;
use crate::{Error, Space};
use store::Store;

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

/// All allocations. Freed ones stay as `None`, so that an old pointer never becomes valid again.
#[derive(Debug)]
pub(crate) struct Memory {
    allocations: Vec<Option<Allocation>>,
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Self {
        Self { allocations: vec![], used: 0, limit }
    }

    pub(crate) fn allocate(&mut self, bytes: u64, name: Option<&str>, constant: bool) -> Result<DevicePointer, Error> {
        if bytes > (self.limit - self.used).min(address::LARGEST) || self.allocations.len() >= 1 << 20 {
            return Err(Error::Memory(Cause::NoRoom { bytes, used: self.used, limit: self.limit }));
        }
        let index = self.allocations.len();
        let name = name.map_or_else(|| format!("allocation {index}"), str::to_string);
        self.allocations.push(Some(Allocation { store: Store::new(bytes, true), constant, name }));
        self.used += bytes;
        Ok(DevicePointer(address::base(index)))
    }

    pub(crate) fn free(&mut self, pointer: DevicePointer) -> Result<(), Error> {
        let (index, offset) = address::split(pointer.0);
        let slot = self.allocations.get_mut(index).filter(|_| offset == 0);
        let freed = slot.and_then(Option::take).ok_or(Error::Memory(missing(pointer.0, 0)))?;
        self.used -= freed.store.bytes();
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
