"""A kernel of Triton with its test, which needs no GPU. The right one passes, the wrong one is found.

pytest examples/test_softmax.py
"""

import numpy as np
import pytest
import triton
import triton.language as tl

import dsv2.triton


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr, LAST: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    mask = column < columns + LAST
    values = tl.exp(tl.load(x + row * columns + column, mask=mask, other=float("-inf")))
    tl.store(out + row * columns + column, values / tl.sum(values), mask=mask)


@pytest.mark.parametrize("last", [0, pytest.param(1, marks=pytest.mark.xfail(raises=dsv2.KernelFault, strict=True))])
def test_softmax(last):
    x = np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32)
    out = np.zeros_like(x)
    with dsv2.triton.activate("sm_80", races=True):
        softmax[(5,)](dsv2.triton.wrap(x), dsv2.triton.wrap(out), 100, BLOCK=128, LAST=last)
    truth, plain = (np.exp(x.astype(dtype)) for dtype in (np.float64, np.float32))
    truth, plain = (values / values.sum(-1, keepdims=True) for values in (truth, plain))
    # A small multiple of what NumPy errs in the same type.
    assert np.abs(out - truth).max() <= 4 * np.abs(plain - truth).max()
