"""Two denominators of nothing: minus infinity less minus infinity is NaN."""

import numpy as np
import pytest
import triton
import triton.language as tl
from dsv2.triton import activate, wrap


@triton.jit
def merge(v, s, out, CARE: tl.constexpr):
    a, b = tl.load(s), tl.load(s + 1)
    largest = tl.maximum(a, b)
    if CARE:
        largest = tl.where(largest == float("-inf"), 0.0, largest)
    a, b = tl.exp(a - largest), tl.exp(b - largest)
    total = a + b
    if CARE:
        total = tl.where(total == 0.0, 1.0, total)
    tl.store(out, (tl.load(v) * a + tl.load(v + 1) * b) / total)


@pytest.mark.parametrize("care", [False, True])
def test_two_parts_without_keys(care):
    v, s, out = np.ones(2, np.float32), np.full(2, -np.inf, np.float32), np.zeros(1, np.float32)
    with activate("sm_80"):
        merge[(1,)](wrap(v), wrap(s), wrap(out), CARE=care)
    assert out[0] == 0 if care else np.isnan(out[0])
