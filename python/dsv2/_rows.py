"""One row of an operator's inputs alone: a token, or a sequence. Of a kernel that is batch-invariant, a row has the bits that it has
among others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv2._tensors import copy, is_tensor

if TYPE_CHECKING:
    from dsv2.operators import Contract

# At most so many rows of a workload are given alone.
TRIED = 8


def rows_to_try(known: Contract, given: Mapping[str, Any]) -> list[int]:
    """Some rows of these inputs, the first and the last among them."""
    axis, offsets = known.rows.get("axis"), known.rows.get("offsets", {})
    counts = [
        given[name].shape[spec["shape"].index(axis)] for name, spec in known.inputs.items() if name in given and axis in spec["shape"]
    ]
    counts += [given[name].shape[0] - 1 for name in offsets if name in given]
    return sorted({round(row) for row in np.linspace(0, counts[0] - 1, min(TRIED, counts[0]))}) if counts and counts[0] else []


def alone(known: Contract, given: Mapping[str, Any], row: int) -> dict[str, Any]:
    """The inputs of one row, as they are for a batch of one."""
    made = {}
    for name, value in given.items():
        if along := known.rows.get("offsets", {}).get(name):
            begin, end = _span(known, given, along, row)
            made[name] = _offsets(value, end - begin)
        else:
            made[name] = part(known, given, known.inputs[name]["shape"], value, row)
    return made


def part(known: Contract, given: Mapping[str, Any], shape: list[str], value: Any, row: int) -> Any:
    """What of a tensor with these axes belongs to a row; all of it where rows lie along none of them."""
    spans = [_span(known, given, axis, row) for axis in shape]
    return copy(value[tuple(slice(*span) if span else slice(None) for span in spans)]) if any(spans) else copy(value)


def has_rows(known: Contract, shape: list[str]) -> bool:
    """Whether rows lie along one of these axes."""
    return any(axis == known.rows.get("axis") or axis in known.rows.get("offsets", {}).values() for axis in shape)


def _span(known: Contract, given: Mapping[str, Any], axis: str, row: int) -> tuple[int, int] | None:
    if axis == known.rows.get("axis"):
        return row, row + 1
    name = next((name for name, along in known.rows.get("offsets", {}).items() if along == axis), None)
    return None if name is None else (int(given[name][row]), int(given[name][row + 1]))


def _offsets(like: Any, length: int) -> Any:
    if is_tensor(like):
        return like.new_tensor([0, length])
    return np.array([0, length], like.dtype)
