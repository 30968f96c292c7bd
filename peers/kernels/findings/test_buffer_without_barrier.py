"""A program of Triton that reads back what its other threads stored in global memory: only a barrier orders the two."""

import numpy as np
import pytest
import triton
import triton.language as tl
from dsv2.triton import activate, wrap


@triton.jit
def turn(x, buffer, out, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(buffer + BLOCK - 1 - i, tl.load(x + i))
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + i, tl.load(buffer + i))


@pytest.mark.parametrize("barrier", [False, True])
def test_a_buffer_that_is_read_back(barrier):
    x, buffer, out = np.arange(256, dtype=np.float32), np.zeros(256, np.float32), np.zeros(256, np.float32)
    with activate("sm_80", races="note") as runs:
        turn[(1,)](wrap(x), wrap(buffer), wrap(out), BLOCK=256, BARRIER=barrier)
    assert bool(runs.last.races) != barrier
    assert np.array_equal(out, x[::-1]) == barrier  # without it the first warp reads before the last one has written
