"""A kernel of CUDA C++ that takes a struct, and its profile beside its source.

pip install nvidia-cuda-nvrtc nvidia-cuda-runtime
python examples/cuda_struct.py [PAGE.html]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from dsv2 import cuda
from dsv2.emulator import Struct, out

SOURCE = r"""
struct Matrix { const float *data; int rows, columns; };

extern "C" __global__ void transpose(const __grid_constant__ Matrix x, float *out) {
    __shared__ float tile[32][32];  // 32 columns: a column is all in one bank
    tile[threadIdx.y][threadIdx.x] = x.data[threadIdx.y * x.columns + threadIdx.x];
    __syncthreads();
    out[threadIdx.y * x.rows + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
"""

x = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
result = np.zeros_like(x)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "transpose.cu")
    for columns in (32, 33):
        file.write_text(SOURCE.replace("tile[32][32]", f"tile[32][{columns}]"))
        kernel = cuda.compile(file)["transpose"]
        matrix = Struct(data=x, rows=np.int32(32), columns=np.int32(32))
        run = kernel.launch(matrix, out(result), grid=1, block=(32, 32), races=True, profile=True)
        assert (result == x.T).all() and not run.races
        print(f"{columns} columns: {run.profile.total.bank_conflicts} bank conflicts")
    if sys.argv[1:]:
        run.html(sys.argv[1])
