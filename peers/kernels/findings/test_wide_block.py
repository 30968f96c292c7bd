"""A block of 32 x 128 threads is refused, as by a GPU."""

import dsv2
import numpy as np
import pytest
from dsv2 import cuda

SOURCE = 'extern "C" __global__ void nothing(float *x) { if (threadIdx.y == 0) x[threadIdx.x] = 1; }'


def test_a_block_has_1024_threads_at_most():
    kernel, x = cuda.compile(SOURCE)["nothing"], np.zeros(32, np.float32)
    kernel.launch(x, grid=1, block=(32, 32))
    with pytest.raises(dsv2.Error, match=r"a block of \[32, 128, 1\] threads; at most 1024 are possible"):
        kernel.launch(x, grid=1, block=(32, 128))
