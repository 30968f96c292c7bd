"""Arguments of a kernel as the bytes of its parameters."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from dsv2._dsv2 import LaunchError, Parameter

FLOATS = {"f16": "<e", "f32": "<f", "f64": "<d"}


class Struct:
    """A struct of C, with the alignment that C gives it. Fields in order: NumPy scalars (`np.int32(5)`), arrays (which become
    pointers), other structs, lists of these, and None (a null pointer).

        Struct(data=x, rows=np.int32(4), scale=np.float32(0.5))     # struct { float *data; int rows; float scale; }
    """

    def __init__(self, **fields: Any):
        self.fields = fields

    def __repr__(self) -> str:
        return f"Struct({', '.join(self.fields)})"


def leaves(value: Any) -> list[Any]:
    """What may be an array in an argument."""
    if isinstance(value, Struct):
        return [leaf for field in value.fields.values() for leaf in leaves(field)]
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [value]


def layout(value: Any, address: Callable[[Any], int | None]) -> tuple[bytes, int]:
    """The bytes of a field of a struct, and its alignment."""
    if isinstance(value, (Struct, list, tuple)):
        out, most = b"", 1
        for field in value.fields.values() if isinstance(value, Struct) else value:
            data, align = layout(field, address)
            out += bytes(-len(out) % align) + data
            most = max(most, align)
        return out + bytes(-len(out) % most), most
    if value is None:
        return bytes(8), 8
    if (pointer := address(value)) is not None:
        return struct.pack("<Q", pointer), 8
    if isinstance(value, np.generic):
        data = value.tobytes()
        return data, value.dtype.alignment if value.dtype.fields else len(data)
    if isinstance(value, (ctypes.Structure, ctypes.Array, ctypes._SimpleCData)):
        return bytes(value), ctypes.alignment(value)
    raise LaunchError(f"{type(value).__name__} in a struct: expected a number with a width, such as np.int32(5), an array or a struct")


def pack(parameter: Parameter, value: Any, address: Callable[[Any], int | None]) -> bytes:
    """The bytes of one argument, if it is of the parameter's type. `address` knows the arrays."""
    try:
        data = _pack(parameter, value, address)
    except (struct.error, OverflowError):
        raise LaunchError(f"expected {parameter!r}, found {_said(value)}, which does not fit it") from None
    if len(data) != parameter.bytes:
        raise LaunchError(f"expected {parameter.bytes} bytes ({parameter!r}), found {len(data)} ({_said(value)})")
    return data


def _pack(parameter: Parameter, value: Any, address: Callable[[Any], int | None]) -> bytes:
    if (pointer := address(value)) is not None:
        if parameter.bytes != 8 or parameter.element not in ("u64", "b64", "s64"):
            raise LaunchError(f"expected a value ({parameter!r}), found {_said(value)}, which is passed as a pointer")
        return struct.pack("<Q", pointer)
    if isinstance(value, Struct):
        return layout(value, address)[0]
    if isinstance(value, (bytes, bytearray, memoryview, ctypes.Structure, ctypes.Array, ctypes._SimpleCData, np.void)):
        return bytes(value)
    if value is None:
        if parameter.bytes != 8:
            raise LaunchError(f"expected a value ({parameter!r}), found None, which is a null pointer")
        return bytes(8)
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return _integer(parameter, int(value))
    if isinstance(value, (float, np.floating)):
        return _float(parameter, value)
    raise LaunchError(f"expected an array, a number or a struct ({parameter!r}), found {_said(value)}")


def _integer(parameter: Parameter, value: int) -> bytes:
    if parameter.count != 1:
        raise LaunchError(f"expected a struct or an array of {parameter.bytes} bytes ({parameter!r}), found {value}")
    if parameter.element in FLOATS:
        return struct.pack(FLOATS[parameter.element], value)
    bits = parameter.bytes * 8
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise LaunchError(f"{value} does not fit {bits} bits ({parameter!r})")
    return (value & ((1 << bits) - 1)).to_bytes(parameter.bytes, "little")


def _float(parameter: Parameter, value: Any) -> bytes:
    if parameter.element in FLOATS:
        return struct.pack(FLOATS[parameter.element], value)
    # Types without a kind: b32, b16, and a half of CUDA C++, which is a struct.
    if isinstance(value, np.floating) and parameter.element.startswith("b") and value.dtype.itemsize == parameter.bytes:
        return value.tobytes()
    if parameter.element in ("b32", "b64") and parameter.count == 1:
        return struct.pack("<f" if parameter.element == "b32" else "<d", value)
    raise LaunchError(f"expected an integer ({parameter!r}), found {_said(value)}")


def _said(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:60]
