"""A tile of a warp goes through shared memory to other lanes: without __syncwarp() nothing orders the two."""

import numpy as np
import pytest
from dsv2 import cuda
from dsv2.emulator import out

SOURCE = """
extern "C" __global__ void turn(const float *x, float *y) {
    __shared__ float tile[32 * 4];
    for (int i = 0; i < 4; ++i) tile[threadIdx.x * 4 + i] = x[threadIdx.x * 4 + i];
#ifdef SYNC
    __syncwarp();
#endif
    for (int i = 0; i < 4; ++i) y[i * 32 + threadIdx.x] = tile[i * 32 + threadIdx.x];
}
"""


@pytest.mark.parametrize(("options", "races"), [([], True), (["-DSYNC"], False)])
def test_a_tile_that_other_lanes_read(options, races):
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    run = cuda.compile(SOURCE, options=options)["turn"].launch(x, out(y), grid=1, block=32, races=True)
    np.testing.assert_array_equal(y, x)  # the emulator's lanes go in step: the numbers are right either way
    assert bool(run.races) == races
