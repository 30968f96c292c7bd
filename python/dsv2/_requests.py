"""What is asked of an operator, or one line that says what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv2._arrays import no_numbers
from dsv2._dsv2 import RequestError
from dsv2._tensors import is_tensor

if TYPE_CHECKING:
    from dsv2.operators import Contract


def several(what: str, names: Any) -> list[str]:
    """A list of names; a single one in its place would be taken for its letters."""
    found = None if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if found is None or not all(isinstance(name, str) for name in found):
        raise RequestError(f"{what}: expected a list of names, found {names!r}")
    if not found:
        raise RequestError(f"{what}: expected at least one, found none")
    return found


def workload(known: Contract, workload: Any) -> None:
    """The name of a workload."""
    if not isinstance(workload, str) or workload not in known.workloads:
        raise RequestError(f"workload {workload!r} of {known.name}: expected one of {', '.join(known.workloads)}")


def some_outputs(known: Contract, outputs: Any) -> None:
    """Names of outputs, or None for all."""
    chosen = [] if outputs is None else several(f"outputs of {known.name}", outputs)
    if unknown := set(chosen) - set(known.outputs):
        raise RequestError(f"outputs of {known.name}: expected some of {', '.join(known.outputs)}, found {', '.join(sorted(unknown))}")


def repeats(repeats: Any) -> None:
    """How often a kernel is called."""
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise RequestError(f"repeats: expected a number of calls, 1 or more, found {repeats!r}")


def rows(known: Contract, batch_invariant: Any) -> None:
    """Whether single rows are looked at."""
    if not isinstance(batch_invariant, bool):
        raise RequestError(f"batch_invariant: expected True or False, found {batch_invariant!r}")
    if batch_invariant and known.rows is None:
        raise RequestError(f"batch_invariant: nothing of the inputs of {known.name} can be given alone")


def array(what: str, value: Any) -> None:
    """An array of NumPy or a tensor of PyTorch, with numbers in it."""
    if not isinstance(value, np.ndarray) and not is_tensor(value):
        raise RequestError(f"{what}: expected an array or a tensor, found {type(value).__name__}")
    numbers(what, value)


def numbers(what: str, value: Any) -> None:
    """Of a tensor, that it has its numbers in a row in memory."""
    if isinstance(value, np.ndarray) and no_numbers(value.dtype):
        raise RequestError(f"{what}: expected numbers, found an array of {value.dtype}")
    if not is_tensor(value):
        return
    if value.is_nested:
        raise RequestError(f"{what}: expected a tensor of one shape, found a nested one")
    if value.device.type == "meta":
        raise RequestError(f"{what}: expected numbers, found a tensor on meta, which has none")
    if str(value.layout) != "torch.strided" or value.is_quantized:
        found = "a quantized tensor" if value.is_quantized else f"layout {value.layout}"
        raise RequestError(f"{what}: expected layout torch.strided, found {found}")


def function(name: str, kernel: Any) -> None:
    """What can be called."""
    if not callable(kernel):
        raise RequestError(f"operator {name!r}: expected a callable, found {type(kernel).__name__}")
