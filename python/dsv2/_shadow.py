"""Which bytes of PyTorch's storages nobody wrote yet: those of `torch.empty`, until PyTorch or a kernel writes them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv2._arrays import HostArray, Transfer

MAKERS = ("empty", "empty_like", "empty_strided", "empty_permuted")


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


def version_of(tensor: Any) -> int | None:
    """What PyTorch counts its writes with; None where it does not count: in tensors made in inference mode."""
    try:
        return getattr(tensor, "_version", None)
    except RuntimeError:
        return None


@dataclass
class Fresh:
    """A storage that `torch.empty` made: the version of its tensors when it was last looked at, and what is unwritten."""

    storage: Any
    version: int
    blank: list[tuple[int, int]]


class Shadow:
    """What is known of storages, by their address."""

    def __init__(self) -> None:
        self.fresh: dict[int, Fresh] = {}

    def watch_torch(self) -> Callable[[], None]:
        """Notes what `torch.empty` and its like make from now on; gives what ends that."""
        torch = sys.modules.get("torch")
        if torch is None:
            return lambda: None
        return watch([(torch, name) for name in MAKERS] + [(torch.Tensor, "new_empty"), (torch.Tensor, "new_empty_strided")], self._note)

    def _note(self, tensor: Any) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        # Subclasses, such as those of torch.compile, may have no memory at all.
        if type(tensor) is not sys.modules["torch"].Tensor or tensor.device.type != "cpu" or tensor.is_sparse or tensor.is_quantized:
            return
        self.fresh = {start: fresh for start, fresh in self.fresh.items() if not fresh.storage.expired()}
        storage, version = tensor.untyped_storage(), version_of(tensor)
        if storage.nbytes() and version is not None:
            start = storage.data_ptr()
            self.fresh[start] = Fresh(StorageWeakRef(storage), version, [(start, start + storage.nbytes())])

    def _of(self, array: HostArray) -> Fresh | None:
        """What is known of an array's storage, if nobody wrote to it by other means."""
        fresh = self.fresh.get(array.start)
        version = version_of(array.value)
        if fresh is None or fresh.storage.expired() or version != fresh.version:
            self.fresh.pop(array.start, None)
            return None
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
            edges = np.flatnonzero(np.diff(np.concatenate(([0], (zeros != ones).astype(np.int8), [0]))))
            fresh.blank = [(array.start + int(a), array.start + int(b)) for a, b in edges.reshape(-1, 2)]
            if fresh.blank:
                left[name] = sum(end - start for start, end in fresh.blank)
        return left
