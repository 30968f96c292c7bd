"""Arguments that are what they should be, or one line that says what was expected."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from dsv2._dsv2 import Error, LaunchError


def count(what: str, value: Any, least: int = 0, bits: int = 32) -> int:
    """A whole number, of Python or NumPy: 1.7 and True are none."""
    try:
        number = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = -1
    if not least <= number < 1 << bits:
        raise LaunchError(f"{what}: expected a whole number of {bits} bits, {least} or more, found {value!r}")
    return number


def flag(what: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise LaunchError(f"{what}: expected True or False, found {value!r}")
    return bool(value)


def one_of(what: str, value: Any, known: Iterable[str]) -> str:
    """One of several words."""
    *words, last = known
    if not isinstance(value, str) or value not in known:
        raise LaunchError(f"{what}: expected {', '.join(words)} or {last}, found {value!r}")
    return value


def several(what: str, value: Any, kinds: tuple[type, ...], kind: str, error: type[Error] = LaunchError) -> list[Any]:
    """A list of values of these types; a single one counts as a list of one."""
    found = [value] if isinstance(value, kinds) else list(value) if isinstance(value, (list, tuple)) else None
    if found is None or not all(isinstance(entry, kinds) for entry in found):
        raise error(f"{what}: expected a list of {kind}, found {value!r}")
    return found
