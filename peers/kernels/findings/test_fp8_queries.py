"""A product of numbers in 16 bits with numbers in fp8, of which the first are rounded to fp8, or the second widened."""

import numpy as np
import pytest
import triton
import triton.language as tl
from dsv2.triton import activate, wrap


@triton.jit
def scores(queries, keys, out, NARROW: tl.constexpr):
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    q, k = tl.load(queries + at), tl.load(keys + at).to(tl.float8e4nv)
    tl.store(out + at, tl.dot(q.to(tl.float8e4nv), k) if NARROW else tl.dot(q, k.to(tl.float16)))


@pytest.mark.parametrize(("narrow", "least", "most"), [(True, 1e-2, 5e-2), (False, 0, 1e-6)])
def test_the_error_of_the_scores(narrow, least, most):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(32, 32)).astype(np.float16)
    keys = rng.integers(-8, 9, size=(32, 32)).astype(np.float16)  # which fp8 holds
    out = np.zeros((32, 32), np.float32)
    with activate("sm_89"):
        scores[(1,)](wrap(queries), wrap(keys), wrap(out), NARROW=narrow)
    truth = queries.astype(np.float64) @ keys
    assert least <= np.linalg.norm(out - truth) / np.linalg.norm(truth) <= most
