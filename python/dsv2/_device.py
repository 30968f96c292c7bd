"""Memory of the emulated device that lives from launch to launch."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from dsv2 import _dsv2
from dsv2._checked import count
from dsv2._dsv2 import LaunchError

MEMORY = 4 << 30


class Device:
    """Memory that lives from launch to launch, for whoever wants more than arrays that come and go with each launch.

    memory: how many bytes it has; the host provides them as they are allocated, 1.25 bytes for each.
    """

    def __init__(self, memory: int = MEMORY):
        self._device = _dsv2.Device(count("memory", memory, 1, 63))

    def allocate(self, shape: int | tuple[int, ...], dtype: Any = np.uint8, name: str = "an array") -> DeviceArray:
        """An array that nobody wrote yet; to read it before is an error."""
        sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        try:
            kind = np.dtype(dtype)
        except TypeError:
            raise LaunchError(f"dtype: expected a type of NumPy, found {dtype!r}") from None
        if kind.hasobject:
            raise LaunchError(f"dtype: expected a type of numbers, found {kind}")
        return DeviceArray(self, tuple(count("shape", size, bits=63) for size in sizes), kind, str(name))

    def upload(self, array: Any, name: str = "an array") -> DeviceArray:
        """A copy of an array of NumPy (or what NumPy makes one of), of any shape."""
        values = _numbers(name, array)
        made = self.allocate(values.shape, values.dtype, name)
        made.write(values)
        return made

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that are taken, and bytes that there are."""
        return self._device.memory

    def __repr__(self) -> str:
        used, limit = self.memory
        return f"Device({used} of {limit} bytes taken)"


class DeviceArray:
    """An allocation of a Device. It is given back with the last reference to it."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype, name: str):
        self.device, self.shape, self.dtype, self.name = device, shape, dtype, name
        self.nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        self.address = device._device.allocate(self.nbytes, name)
        self._finalizer = weakref.finalize(self, device._device.free, self.address)

    def write(self, array: Any) -> None:
        """Copies an array of the same shape and type to the device."""
        values = _numbers(self.name, array)
        if (values.shape, values.dtype) != (self.shape, self.dtype):
            raise LaunchError(f"{self.name}: expected {self.dtype}{list(self.shape)}, found {values.dtype}{list(values.shape)}")
        self.device._device.write(self.address, memoryview(values.reshape(-1).view(np.uint8)))

    def read(self) -> np.ndarray:
        """A copy of it. Raises LaunchError, if something of it was never written."""
        data = self.device._device.read(self.address, self.nbytes)
        return np.frombuffer(bytearray(data), self.dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"DeviceArray({self.name}, {self.dtype}{list(self.shape)} at {self.address:#x})"


def _numbers(name: str, array: Any) -> np.ndarray:
    """What NumPy makes of an array, if that is numbers."""
    try:
        values = np.ascontiguousarray(array)
    except (TypeError, ValueError):
        values = None
    if values is None or values.dtype.hasobject:
        raise LaunchError(f"{name}: expected an array of numbers, found {type(array).__name__}")
    return values


_default: list[Device] = []


def default() -> Device:
    """The device of launches that name none."""
    if not _default:
        _default.append(Device())
    return _default[0]
