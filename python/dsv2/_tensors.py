"""Tensors of PyTorch and arrays of NumPy, alike for whoever judges them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import numpy as np

from dsv2._dsv2 import RequestError

_NUMPY = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64}
# Types that NumPy lacks, as PyTorch and ml_dtypes call them.
_NARROW = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


def default_device() -> str:
    if find_spec("torch") is None:
        return "numpy"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tensor(data: bytes, dtype: str, shape: list[int], device: str) -> Any:
    if device == "numpy":
        if dtype in _NARROW:
            if find_spec("ml_dtypes") is None:
                raise ImportError("a workload in bf16 or fp8 needs torch or ml_dtypes, and neither is installed")
            import ml_dtypes

            array = np.frombuffer(data, getattr(ml_dtypes, _NARROW[dtype])).reshape(shape).copy()
        else:
            array = np.frombuffer(data, _NUMPY[dtype]).reshape(shape).copy()
        return array.item() if array.ndim == 0 else array
    import torch

    types = {"F16": torch.float16, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64}
    types |= {name: getattr(torch, kind) for name, kind in _NARROW.items()}
    made = torch.frombuffer(bytearray(data), dtype=types[dtype]).reshape(shape) if data else torch.empty(shape, dtype=types[dtype])
    return made.item() if made.dim() == 0 else made.to(device)


def _torch() -> Any:
    return sys.modules.get("torch")


def is_tensor(value: Any) -> bool:
    return _torch() is not None and isinstance(value, _torch().Tensor)


def copy(value: Any) -> Any:
    if is_tensor(value):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def bits(value: Any) -> Any:
    if is_tensor(value):
        return value.detach().cpu().contiguous().flatten().view(_torch().uint8).numpy().tobytes()
    return np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else value


def held(value: Any) -> Any:
    """A value that a file of tensors can hold: NumPy's bf16 and fp8 as fp32, which has all their numbers."""
    if isinstance(value, np.ndarray) and value.dtype.name in _NARROW.values():
        return value.astype(np.float32)
    return value


def known_device(device: Any) -> str:
    """The name of a device, if there is such a one."""
    if str(device) == "numpy":
        return "numpy"
    if find_spec("torch") is None:
        raise RequestError(f"device: expected 'numpy', as PyTorch is not installed, found {device!r}")
    import torch

    try:
        if not isinstance(device, (str, torch.device)):
            raise ValueError
        if torch.empty(0, device=device).device.type == "meta":
            raise ValueError  # no numbers
    except (RuntimeError, ValueError, AssertionError, NotImplementedError):
        raise RequestError(f"device: expected 'numpy' or a device of PyTorch that is there, found {device!r}") from None
    return str(device)
