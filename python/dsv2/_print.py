"""What kernels print: formats of C, written by Python."""

from __future__ import annotations

import re
import sys
from typing import Any

SPEC = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+)?)?(?:hh|h|ll|l|j|z|t|L)?([diuxXocspfFeEgGaA%])|%")
DOT = re.compile(r"%[-+ #0]*(?:\*|\d+)?\.")


def text(form: str, values: list[Any]) -> str:
    """A call of `printf` as text."""
    left = iter(values)

    def one(found: re.Match[str]) -> str:
        flags, width, precision, kind = found.groups()
        if kind in (None, "%"):
            return "%"
        width = str(next(left)) if width == "*" else width or ""
        if DOT.match(found[0]):
            precision = f".{next(left) if precision == '*' else precision or 0}"
        value = next(left)
        if kind in "aA":
            return value.hex()
        if kind == "p":
            return f"%{flags}{width}s" % hex(value)
        return f"%{flags}{width}{precision or ''}{'d' if kind in 'iu' else kind}" % value

    return SPEC.sub(one, form)


def flush(device: Any) -> None:
    """Writes what a launch printed to stdout."""
    for _, _, form, values in device.printed():
        sys.stdout.write(text(form, values))
