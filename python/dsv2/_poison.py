"""Memory that nobody wrote, made to be seen: while a kernel is judged, what `torch.empty` and `numpy.empty` give holds a pattern
of bytes that no computation makes, and what of it comes back was never written. What such memory holds by luck (often the
result of the call before) counts for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dsv2._shadow import bytes_of, fill, filled_with, memory, storage_of, torch_makers, watch

# NaN in f16, bf16 and f32 (another one than arithmetic makes), and in the integers a number that is no index.
PATTERNS = (b"\xa5\xff", b"\xda\x7f")


@contextmanager
def poisoned(pattern: bytes) -> Iterator[None]:
    """Fills with the pattern what is made without a value."""
    torch = sys.modules.get("torch")
    undo = [watch([(np, "empty"), (np, "empty_like")], lambda array: _fill_numpy(array, pattern))]
    if torch is not None:
        undo.append(watch(torch_makers(torch), lambda tensor: _fill_torch(torch, tensor, pattern)))
        filled_with.append(pattern)
    try:
        yield
    finally:
        if torch is not None:
            filled_with.pop()
        for end in reversed(undo):
            end()


def _fill_numpy(array: Any, pattern: bytes) -> None:
    if type(array) is np.ndarray and not array.dtype.hasobject and array.size:
        start, end = np.lib.array_utils.byte_bounds(array)
        memory(start, end)[:] = bytes_of(pattern, end - start)


def _fill_torch(torch: Any, tensor: Any, pattern: bytes) -> None:
    storage = storage_of(tensor)
    if storage is None:
        return
    if tensor.device.type == "cpu":
        fill(storage, pattern)
    elif tensor.device.type == "cuda":
        whole = torch.tensor([], dtype=torch.uint8, device=tensor.device).set_(storage)
        whole[0::2], whole[1::2] = pattern[0], pattern[1]


def untouched(values: Any, pattern: bytes) -> np.ndarray:
    """Which elements, in order, hold nothing but the pattern. Of types of one byte this says nothing: any byte may be a number."""
    raw = raw_bytes(values)
    if values.dtype.itemsize < 2 or not raw.size:
        return np.zeros(len(raw), bool)
    return (raw == bytes_of(pattern, raw.shape[-1])).all(-1)


def raw_bytes(values: Any) -> np.ndarray:
    """The bytes of an array, a row for each element."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8)
    flat = values.detach().cpu().contiguous().flatten()
    return flat.view(sys.modules["torch"].uint8).numpy().reshape(-1, values.element_size())
