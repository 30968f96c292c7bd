"""tl.dot of fp32 multiplies in TF32 unless it is told not to."""

import numpy as np
import pytest
import triton
import triton.language as tl
from dsv2.triton import activate, wrap


@triton.jit
def product(a, b, c, PRECISION: tl.constexpr):
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@pytest.mark.parametrize(("precision", "least", "most"), [("tf32", 1e-4, 1e-3), ("ieee", 0, 1e-6)])
def test_the_error_of_a_product(precision, least, most):
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(32, 32)).astype(np.float32) for _ in range(3))
    with activate("sm_80"):
        product[(1,)](wrap(a), wrap(b), wrap(c), PRECISION=precision)
    truth = a.astype(np.float64) @ b
    assert least <= np.linalg.norm(c - truth) / np.linalg.norm(truth) <= most
