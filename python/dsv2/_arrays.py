"""Arrays of the host: where their bytes are, and what they are a view of."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dsv2._dsv2 import LaunchError


@dataclass
class HostArray:
    """An array: the address of its first element, and the bytes of the storage that it is a view of."""

    value: Any
    pointer: int
    start: int
    end: int
    nbytes: int
    contiguous: bool
    writable: bool
    said: str


@dataclass
class Out:
    """See `dsv2.emulator.out`."""

    array: Any


@dataclass
class Span:
    """Bytes of the host that become one allocation of the device, and where that is."""

    start: int
    end: int
    names: list[str] = field(default_factory=list)
    writable: bool = True
    blank: list[tuple[int, int]] = field(default_factory=list)
    address: int = 0
    pad: int = 0

    def view(self, start: int | None = None, end: int | None = None) -> memoryview:
        start, end = self.start if start is None else start, self.end if end is None else end
        return memoryview((ctypes.c_ubyte * (end - start)).from_address(start)).cast("B")

    def device(self, pointer: int) -> int:
        return self.address + self.pad + pointer - self.start

    def written_by_host(self) -> list[tuple[int, int]]:
        """The pieces between those that count as unwritten."""
        pieces, at = [], self.start
        for start, end in sorted(self.blank):
            if start > at:
                pieces.append((at, start))
            at = max(at, end)
        return pieces + [(at, self.end)] if at < self.end else pieces


def host_array(value: Any) -> HostArray | None:
    """What an array is to the emulator; None if it is none. Raises for arrays that are not in this process's memory."""
    if isinstance(value, np.ndarray):
        return _numpy(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch(value)
    if hasattr(value, "__dlpack__") and hasattr(value, "__array__"):
        raise LaunchError(f"{type(value).__name__}: the emulator takes NumPy arrays and CPU tensors of PyTorch")
    return None


def _bounds(array: np.ndarray) -> tuple[int, int]:
    pointer = array.__array_interface__["data"][0]
    return np.lib.array_utils.byte_bounds(array) if array.size else (pointer, pointer)


def no_numbers(dtype: np.dtype) -> bool:
    """Whether a type of NumPy is of something else: objects, text, dates. Records may hold numbers."""
    return dtype.hasobject or dtype.kind in "USMm"


def _numpy(array: np.ndarray) -> HostArray:
    if no_numbers(array.dtype):
        raise LaunchError(f"an array of {array.dtype}: expected numbers")
    root: Any = array
    while isinstance(base := getattr(root, "base", None), np.ndarray) or type(base).__name__ == "DummyArray":
        root = base
    start, end = _bounds(root if isinstance(root, np.ndarray) else array)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(base, torch.Tensor):  # `tensor.numpy()`
        storage = base.untyped_storage()
        start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    pointer = array.__array_interface__["data"][0]
    said = f"{array.dtype}{list(array.shape)}"
    return HostArray(
        array,
        pointer,
        min(start, pointer),
        max(end, _bounds(array)[1]),
        array.nbytes,
        array.flags.c_contiguous,
        array.flags.writeable,
        said,
    )


def _torch(tensor: Any) -> HostArray:
    try:
        return _in_memory(tensor)
    except (RuntimeError, NotImplementedError) as error:
        # Tensors that stand for others: nested ones, those of a transformation or of a compiler.
        raise LaunchError(f"a {type(tensor).__name__} without memory of its own: {' '.join(str(error).split())[:100]}") from None


def _in_memory(tensor: Any) -> HostArray:
    if tensor.is_nested:
        raise LaunchError("a nested tensor: expected one of one shape")
    kind = str(tensor.dtype).removeprefix("torch.")
    said = f"{kind}{list(tensor.shape)}"
    if tensor.device.type != "cpu":
        raise LaunchError(f"a tensor {said} on {tensor.device}: the emulator takes tensors on the CPU (.cpu())")
    if str(tensor.layout) != "torch.strided":
        raise LaunchError(f"a tensor {said} in layout {tensor.layout}: expected torch.strided")
    if tensor.is_conj() or tensor.is_neg():
        raise LaunchError(f"a tensor {said} with a conjugation or negation that is not carried out: .resolve_conj(), .resolve_neg()")
    storage = tensor.untyped_storage()
    start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    pointer = tensor.data_ptr() or start
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1
        if not start or not start <= pointer <= pointer + last * tensor.element_size() <= end:
            there = storage.nbytes() if start else 0
            raise LaunchError(f"a {type(tensor).__name__} {said} of which {there} bytes are in memory: it needs more")
    return HostArray(tensor, pointer, start, end, nbytes, tensor.is_contiguous(), True, said)


class Transfer:
    """The arrays of one launch, on their way to the device and back. Views of one storage are one allocation."""

    def __init__(self, device: Any):
        self.device = device
        self.arrays: list[tuple[HostArray, str, bool]] = []
        self.spans: list[Span] = []
        # Pieces of the host's memory that count as unwritten.
        self.blank: list[tuple[int, int]] = []

    def add(self, array: HostArray, name: str, unwritten: bool = False) -> None:
        if unwritten and not array.contiguous:
            raise LaunchError(f"out() of {name}, {array.said}: expected an array without gaps")
        self.arrays.append((array, name, unwritten))
        if unwritten:
            self.blank.append((array.pointer, array.pointer + array.nbytes))

    def upload(self) -> None:
        """Gives each storage its allocation."""
        for array, name, _ in sorted(self.arrays, key=lambda entry: entry[0].start):
            last = self.spans[-1] if self.spans else None
            if last is not None and (array.start < last.end or (array.start, array.end) == (last.start, last.end)):
                last.end = max(last.end, array.end)
            else:
                self.spans.append(last := Span(array.start, array.end))
            last.names += [name] if name not in last.names else []
            last.writable &= array.writable
        for span in self.spans:
            span.blank = [(start, end) for start, end in self.blank if span.start <= start and end <= span.end]
            # Whoever looks at the last bits of the host's address must find the device's the same.
            span.pad = span.start % 16
            span.address = self.device.allocate(span.end - span.start + span.pad, ", ".join(span.names))
            for start, end in span.written_by_host():
                self.device.write(span.device(start), span.view(start, end))

    def address(self, array: HostArray) -> int:
        """Where the first element of an array is on the device."""
        span = next(span for span in self.spans if span.start <= array.start and array.end <= span.end)
        return span.device(array.pointer)

    def download(self) -> dict[str, int]:
        """Writes back what the device wrote, and says how many bytes of what `out` marked it did not write."""
        left = {}
        for span in self.spans:
            if span.end == span.start:
                continue
            if not span.writable:
                if self.device.read(span.device(span.start), span.end - span.start) != bytes(span.view()):
                    raise LaunchError(f"{', '.join(span.names)}: a read-only array, and the kernel wrote to it")
                continue
            written = self.device.read_written(span.device(span.start), span.view())
            if missing := span.end - span.start - written:
                left[", ".join(span.names)] = missing
        return left

    def free(self) -> None:
        for span in self.spans:
            if span.address:
                self.device.free(span.address)
        self.spans = []
