//! Memory of the device, pinned memory of the host, copies and fills.

use std::ffi::{c_uchar, c_uint};

use ptx_emulator::DevicePointer;

use crate::driver::{Answer, DEFAULT, Driver, Pinned, entry, give};
use crate::faults::Fate;
use crate::status::Status;
use crate::work::{HostRange, Work};

entry! {
    /// Takes memory.
    Context fn cuMemAlloc_v2(place: *mut u64, bytes: usize) |driver, _| {
        driver.unsafe_while_capturing()?;
        if bytes == 0 {
            return Err(Status::ERROR_INVALID_VALUE);
        }
        let pointer = driver.emulator.allocate(bytes as u64).map_err(|_| Status::ERROR_OUT_OF_MEMORY)?;
        driver.taken.insert(pointer.address(), bytes);
        // SAFETY: as the manual wants it.
        unsafe { give(place, pointer.address()) }
    }

    /// Gives it back, at once: work that still uses it fails when it is done. (A real driver may wait for that work.)
    Context fn cuMemFree_v2(address: u64) |driver, _| {
        driver.unsafe_while_capturing()?;
        driver.taken.remove(&address).ok_or(Status::ERROR_INVALID_VALUE)?;
        driver.emulator.free(DevicePointer::from_address(address)).map_err(|_| Status::ERROR_INVALID_VALUE)
    }

    /// Free and total bytes.
    Context fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |driver, _| {
        let (used, all) = driver.emulator.memory();
        // SAFETY: as the manual wants it.
        unsafe { give(free, (all - used) as usize).and_then(|()| give(total, all as usize)) }
    }

    /// Takes pinned memory.
    Context fn cuMemHostAlloc(place: *mut usize, bytes: usize, _flags: c_uint) |driver, _| {
        driver.unsafe_while_capturing()?;
        if bytes == 0 {
            return Err(Status::ERROR_INVALID_VALUE);
        }
        let (mut memory, words) = (vec![], bytes.div_ceil(8));
        memory.try_reserve_exact(words).map_err(|_| Status::ERROR_OUT_OF_MEMORY)?;
        memory.resize(words, 0_u64);
        let mut memory = memory.into_boxed_slice();
        let (address, number) = (memory.as_mut_ptr() as usize, driver.handle());
        driver.pinned.insert(address, Pinned { number, _memory: memory, bytes });
        // SAFETY: as the manual wants it.
        unsafe { give(place, address) }
    }

    /// Gives it back, at once, as device memory.
    Context fn cuMemFreeHost(address: usize) |driver, _| {
        driver.unsafe_while_capturing()?;
        driver.pinned.remove(&address).map(|_| ()).ok_or(Status::ERROR_INVALID_VALUE)
    }

    /// Copies from the host and waits for it, in the default stream.
    Context fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) |driver, fate| {
        driver.now(fate, Work::Upload { to, from: HostRange { start: from, bytes, pinned: None } })
    }

    /// Copies to the host and waits for it, in the default stream.
    Context fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) |driver, fate| {
        driver.now(fate, Work::Download { from, to: HostRange { start: to, bytes, pinned: None } })
    }

    /// Copies within the device, in the default stream. (It does not wait.)
    Context fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) |driver, fate| {
        driver.later(0, fate, Work::Copy { from, to, bytes })
    }

    /// Fills memory, in the default stream. (It does not wait.)
    Context fn cuMemsetD8_v2(address: u64, byte: c_uchar, bytes: usize) |driver, fate| {
        driver.later(0, fate, Work::Fill { address, byte, bytes })
    }

    /// Copies from the host; the host's memory is read as late as the manual allows.
    Context fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, bytes: usize, stream: usize) |driver, fate| {
        let from = driver.host_range(from, bytes);
        driver.later(stream, fate, Work::Upload { to, from })
    }

    /// Copies to the host; the host's memory is written as late as the manual allows.
    Context fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, bytes: usize, stream: usize) |driver, fate| {
        let to = driver.host_range(to, bytes);
        driver.later(stream, fate, Work::Download { from, to })
    }

    /// Copies within the device.
    Context fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) |driver, fate| {
        driver.later(stream, fate, Work::Copy { from, to, bytes })
    }

    /// Fills memory.
    Context fn cuMemsetD8Async(address: u64, byte: c_uchar, bytes: usize, stream: usize) |driver, fate| {
        driver.later(stream, fate, Work::Fill { address, byte, bytes })
    }
}

impl Driver {
    /// Memory of the host, and which pinned memory it is a part of.
    fn host_range(&self, start: usize, bytes: usize) -> HostRange {
        let below = self.pinned.range(..=start).next_back();
        let within = below.filter(|(at, pinned)| start + bytes <= *at + pinned.bytes);
        HostRange { start, bytes, pinned: within.map(|(at, pinned)| (*at, pinned.number)) }
    }

    /// Work that the caller waits for, in the default stream.
    fn now(&mut self, fate: Fate, work: Work) -> Answer {
        self.unsafe_while_capturing()?;
        self.later(0, fate, work)?;
        self.wait_for(DEFAULT)
    }
}
