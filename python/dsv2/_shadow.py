"""Which bytes of PyTorch's storages nobody wrote yet: those of `torch.empty`, until somebody writes them."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv2._arrays import HostArray, Transfer


def torch_makers(torch: Any) -> list[tuple[Any, str]]:
    """The functions of PyTorch that make tensors without values, as owner and name."""
    functions = [(torch, name) for name in ("empty", "empty_like", "empty_strided", "empty_permuted")]
    return [*functions, (torch.Tensor, "new_empty"), (torch.Tensor, "new_empty_strided")]


@dataclass
class Watched:
    """A function that makes arrays, and what stands in its place while somebody watches: always the same, since a module that is
    imported meanwhile keeps it."""

    make: Callable[..., Any]
    notes: list[Callable[[Any], None]]
    noting: Callable[..., Any]
    places: list[tuple[Any, str]]

    @classmethod
    def of(cls, make: Callable[..., Any]) -> Watched:
        notes: list[Callable[[Any], None]] = []

        @functools.wraps(make)
        def noting(*args: Any, **kwargs: Any) -> Any:
            array = make(*args, **kwargs)
            if kwargs.get("out") is None:
                for note in list(notes):
                    note(array)
            return array

        return cls(make, notes, noting, [])


# By the function, and by what stands in its place.
_watched: dict[Any, Watched] = {}


def watch(makers: list[tuple[Any, str]], note: Callable[[Any], None]) -> Callable[[], None]:
    """Shows `note` what these functions, each an owner's attribute, make from now on; gives what ends that. They are watched under
    the names, too, that modules have imported them by (`from torch import empty`)."""
    found = []
    for owner, name in makers:
        make = getattr(owner, name)
        if make not in _watched:
            watched = Watched.of(make)
            _watched.update({make: watched, watched.noting: watched})
        found.append((owner, name, _watched[make]))
    begin = {id(watched.make): watched for _, _, watched in found if not watched.notes}
    for owner, name, watched in found:
        if id(watched.make) in begin:
            watched.places.append((owner, name))
    for module in list(sys.modules.values()) if begin else []:
        # Not what the libraries themselves make.
        if getattr(module, "__name__", "").partition(".")[0] not in ("torch", "numpy"):
            names = getattr(module, "__dict__", {})
            for key, value in list(names.items()):
                if (watched := begin.get(id(value))) is not None:
                    watched.places.append((module, key))
    for watched in begin.values():
        for owner, name in watched.places:
            setattr(owner, name, watched.noting)
    for _, _, watched in found:
        watched.notes.append(note)

    def undo() -> None:
        for _, _, watched in found:
            watched.notes.remove(note)
            if not watched.notes:
                for owner, name in watched.places:
                    if getattr(owner, name, None) is watched.noting:
                        setattr(owner, name, watched.make)
                watched.places.clear()

    return undo


# What `torch.empty` gives while somebody watches: bytes that nobody makes by chance, so that whatever is written there shows,
# by whatever means. A few bytes may be alike by chance, so many not.
PATTERN = os.urandom(4096)
SURE = 8

# The largest storage that is watched: as much as the device has.
MOST = 1 << 32

# What `dsv2.operators` fills such memory of PyTorch with while it judges, for looking at it later; the newest at the end. Then
# nobody else fills it.
filled_with: list[bytes] = []


def version_of(tensor: Any) -> int | None:
    """What PyTorch counts its writes with; None where it does not count: in tensors made in inference mode."""
    try:
        return getattr(tensor, "_version", None)
    except RuntimeError:
        return None


def bytes_of(pattern: bytes, count: int, first: int = 0) -> np.ndarray:
    """A pattern over and over, from some byte of it on."""
    first %= len(pattern)
    rolled = pattern[first:] + pattern[:first]
    return np.frombuffer(rolled * -(-count // len(pattern)), np.uint8, count)


def memory(start: int, end: int) -> np.ndarray:
    """Bytes of the host."""
    return np.ctypeslib.as_array((ctypes.c_ubyte * (end - start)).from_address(start))


def storage_of(tensor: Any) -> Any:
    """The storage of what such a function made; None if it has none: subclasses, such as those of torch.compile, may have no memory."""
    if type(tensor) is not sys.modules["torch"].Tensor or tensor.is_sparse or tensor.is_quantized:
        return None
    storage = tensor.untyped_storage()
    return storage if storage.nbytes() else None


def fill(storage: Any, pattern: bytes) -> None:
    """Fills a storage on the CPU, past PyTorch, which counts its own writes."""
    memory(storage.data_ptr(), storage.data_ptr() + storage.nbytes())[:] = bytes_of(pattern, storage.nbytes())


def stretches(which: np.ndarray, first: int) -> list[tuple[int, int]]:
    """Where a row of truths is true, as addresses."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], which.astype(np.int8), [0]))))
    return [(first + int(start), first + int(end)) for start, end in edges.reshape(-1, 2)]


@dataclass
class Fresh:
    """A storage that `torch.empty` made: where it begins, what it was filled with, the version of its tensors when it was last
    looked at, and what is unwritten."""

    storage: Any
    start: int
    pattern: bytes
    version: int | None
    blank: list[tuple[int, int]]

    def look(self, version: int | None) -> None:
        """Takes from what is unwritten all that holds something else by now."""
        still = []
        for start, end in self.blank:
            same = memory(start, end) == bytes_of(self.pattern, end - start, start - self.start)
            if same.all() and version == self.version:
                still.append((start, end))
            else:
                still += [(a, b) for a, b in stretches(same, start) if b - a >= SURE]
        self.blank, self.version = still, version


class Shadow:
    """What is known of storages, by their address."""

    def __init__(self) -> None:
        self.fresh: dict[int, Fresh] = {}

    def watch_torch(self) -> Callable[[], None]:
        """Notes what `torch.empty` and its like make from now on; gives what ends that."""
        torch = sys.modules.get("torch")
        if torch is None:
            return lambda: None
        return watch(torch_makers(torch), self._note)

    def _note(self, tensor: Any) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        self.fresh = {start: fresh for start, fresh in self.fresh.items() if not fresh.storage.expired()}
        storage = storage_of(tensor)
        if storage is None or tensor.device.type != "cpu" or storage.nbytes() > MOST:
            return
        if not filled_with:
            fill(storage, PATTERN)
        pattern = filled_with[-1] if filled_with else PATTERN
        start = storage.data_ptr()
        self.fresh[start] = Fresh(StorageWeakRef(storage), start, pattern, version_of(tensor), [(start, start + storage.nbytes())])

    def _of(self, array: HostArray) -> Fresh | None:
        """What is known of an array's storage."""
        fresh = self.fresh.get(array.start)
        if fresh is None or fresh.storage.expired():
            self.fresh.pop(array.start, None)
            return None
        fresh.look(version_of(array.value))
        return fresh

    def mark(self, transfer: Transfer) -> None:
        """Says of the arrays of a launch which bytes are unwritten."""
        for array, _, _ in transfer.arrays:
            if fresh := self._of(array):
                transfer.blank += fresh.blank

    def keep(self, transfer: Transfer) -> dict[str, int]:
        """Looks after a launch which bytes are unwritten still, and says how many, by the argument's name."""
        left = {}
        for array, name, _ in transfer.arrays:
            fresh = self._of(array)
            if fresh is None:
                continue
            bytes_ = array.end - array.start
            zeros, ones = np.zeros(bytes_, np.uint8), np.full(bytes_, 255, np.uint8)
            address = transfer.address(array) - (array.pointer - array.start)
            for seen in (zeros, ones):
                transfer.device.read_written(address, seen)
            # Nothing was put over what nobody wrote.
            fresh.blank = stretches(zeros != ones, array.start)
            if fresh.blank:
                left[name] = sum(end - start for start, end in fresh.blank)
        return left
