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
    truth = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(out, truth / truth.sum(-1, keepdims=True), rtol=1e-5)
