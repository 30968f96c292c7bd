"""A weighted mean of no tokens: 0 / 0 is NaN."""

import numpy as np
import pytest
import triton
import triton.language as tl
from dsv2.triton import activate, wrap


@triton.jit
def mean(x, out, tokens, CARE: tl.constexpr):
    total, weight = 0.0, 0.0
    for token in range(tokens):
        total += tl.load(x + token)
        weight += 1.0
    if CARE:
        weight = tl.maximum(weight, 1.0)
    tl.store(out, total / weight)


@pytest.mark.parametrize("care", [False, True])
def test_a_sequence_without_tokens(care):
    x, out = np.ones(4, np.float32), np.zeros(1, np.float32)
    with activate("sm_80"):
        mean[(1,)](wrap(x), wrap(out), 0, CARE=care)
    assert out[0] == 0 if care else np.isnan(out[0])
